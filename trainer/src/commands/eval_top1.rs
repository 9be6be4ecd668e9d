//! `nepa eval top1`.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use comfy_table::{CellAlignment, Table, presets};
use nepa_pipeline::{IoConfig, IoRuntime};
use serde_json::json;

use super::args::{ImageArgs, TransformArgs};
use super::help::with_exit_codes;
use crate::console::messages::quoted_path;
use crate::console::print::{self, labelled};
use crate::console::words;
use crate::device;
use crate::eval::{Accuracy, ClassMatch, MatchBy, ReadOptions, Top1, Top1Report};
use crate::weights::{self, Which};

/// How often a classifier is right: the number that people publish.
///
/// Top-1 and top-5 accuracy with their 95 % intervals and the mean cross-entropy of labelled
/// images. Labels are matched with the model's classes by name where both sides have names, in any
/// order, else by number. Images without a label are left out; those of a class that the model does
/// not have count as wrong; both are said.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
pub(crate) struct Args {
    /// A fine-tuning run's output, a checkpoint, or a published folder.
    ///
    /// Of a run the newest checkpoint; a path or URL.
    #[arg(long, value_name = "CHECKPOINT")]
    checkpoint: String,
    /// Labelled shards that are classified.
    #[arg(long, value_name = "URL", required = true)]
    test: Vec<String>,
    /// Write the results, with those of each class, into this JSON file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Raw weights or their moving average; both by a comma.
    ///
    /// Where it is left out, all that is there; a published folder has no average.
    #[arg(long, value_name = "WHICH", value_enum, value_delimiter = ',')]
    weights: Option<Vec<Which>>,
    #[command(flatten)]
    transform: TransformArgs,
    /// How labels and the model's classes are matched.
    ///
    /// Where it is left out, by name where both have names, else by number.
    #[arg(
        long = "match",
        value_name = "HOW",
        value_enum,
        help_heading = "Data",
        hide_short_help = true
    )]
    by: Option<MatchBy>,
    /// Read the shards of one split alone.
    ///
    /// As their names or folders say it.
    #[arg(
        long,
        value_name = "NAME",
        help_heading = "Data",
        hide_short_help = true
    )]
    test_split: Option<String>,
    #[command(flatten)]
    images: ImageArgs,
}

const EXAMPLES: &str = "Examples:
  nepa eval top1 --checkpoint runs/finetuned \\
      --test 'scenes/val-*.parquet'
  nepa eval top1 \\
      --checkpoint s3://bucket/nepa-l14-classifier \\
      --test 's3://bucket/in1k/val-*.parquet' \\
      --transform squash-235-bicubic --json top1.json";

fn long_help() -> String {
    with_exit_codes(
        EXAMPLES,
        "  0          measured, however good\n  \
         1          the weights, images or labels cannot be read,\n             \
         or there is no classifier in them",
    )
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let device = device::open(args.images.device)?;
    let runtime = IoRuntime::new(2).context("cannot start the I/O threads")?;
    let folder = weights::open(&args.checkpoint, &IoConfig::default(), &runtime)?;
    let config = folder.config();
    ensure!(
        config.num_channels == 3,
        "the model takes {} channels, images have 3",
        config.num_channels
    );
    super::args::check_classifier(&folder)?;
    let (transform, normalize, from) = args.transform.pixels(&folder)?;
    let mut which = args.weights.clone().unwrap_or_else(|| folder.kinds());
    which.dedup();
    let read = |which: &Which| folder.weights(*which);
    let weights = which.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let split = args.test_split.as_ref();
    let set = args.images.open(&args.test, split, &runtime)?;
    let mut classes = ClassMatch::new(config, &set, args.by)?;
    eprintln!("labels: {}", set.labels()?);
    let top1 = Top1 {
        read: ReadOptions {
            normalize,
            ..args.images.read_options(&folder, transform)
        },
        device: &device,
    };
    let weights: Vec<_> = weights.iter().collect();
    let report = top1.evaluate(config, &weights, &mut classes)?;
    let warnings = report.left_out.warnings(set.len());
    for warning in warnings.iter().chain(&classes.warning()) {
        print::message("warning: ", warning);
    }
    println!("{}\n", table(&which, &report));
    let scored = report.weights.first().map_or(0, |scores| scores.top1.total);
    let step = folder.step().map_or(String::new(), |step| {
        format!("trained for {}; ", words::counted(step, "step"))
    });
    labelled("scores", "in % \u{b1} its 95 % interval; loss in nats");
    labelled(
        "images",
        &format!("{} test images", words::count(scored as u64)),
    );
    labelled("classes", &format!("matched {}", classes.line()));
    labelled("pixels", &format!("{transform}, {from}"));
    let seconds = words::duration(started.elapsed());
    labelled("model", &format!("{step}evaluated in {seconds}"));
    if let Some(path) = &args.json {
        let results = which.iter().zip(&report.weights).map(|(which, scores)| {
            json!({
                "weights": which, "top1": with_interval(scores.top1),
                "top5": scores.top5.map(with_interval), "loss": scores.loss,
                "classes": scores.classes,
            })
        });
        let value = json!({
            "checkpoint": folder.place(), "step": folder.step(), "transform": transform.to_string(),
            "mean": normalize.mean, "std": normalize.std, "matched": classes.line(),
            "images": scored, "images_without_label": report.left_out.unlabelled,
            "images_undecodable": report.left_out.undecodable,
            "images_without_class": report.without_class,
            "results": results.collect::<Vec<_>>(),
        });
        std::fs::write(path, serde_json::to_vec_pretty(&value)?)
            .with_context(|| format!("cannot write {}", quoted_path(path)))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn with_interval(accuracy: Accuracy) -> serde_json::Value {
    let (low, high) = accuracy.interval();
    json!({
        "right": accuracy.right, "total": accuracy.total, "share": accuracy.share(),
        "interval": [low, high],
    })
}

/// A row for each kind of weights, in Markdown.
fn table(which: &[Which], report: &Top1Report) -> Table {
    let has_top5 = report.weights.iter().any(|scores| scores.top5.is_some());
    let mut header = vec!["weights", "top-1"];
    header.extend(has_top5.then_some("top-5"));
    header.push("loss");
    let row = |(which, scores): (&Which, &crate::eval::Top1Scores)| {
        let mut row = vec![which.to_string(), scores.top1.narrow()];
        row.extend(scores.top5.map(Accuracy::narrow));
        row.push(format!("{:.4}", scores.loss));
        row
    };
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_header(header)
        .add_rows(which.iter().zip(&report.weights).map(row));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
