//! `nepa report`.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use nepa_pipeline::{IoConfig, IoRuntime};

use super::args::{FeatureImageArgs, LayerArgs};
use super::help::with_exit_codes;
use super::values::at_least;
use crate::device;
use crate::eval::{Evaluation, Scores, Source};
use crate::output::{Bring, fetch_run};
use crate::report::{Newest, ReportOptions, Subject, write_report};
use crate::weights;

/// Draw a report of a run, or of several in comparison.
///
/// A page (HTML) that holds all its pictures, and Markdown.
///
/// Curves of loss, copy diagnostics, gradient norm, learning rate, speed and waiting. With --train
/// and --test: accuracy of the frozen features of every checkpoint that the runs kept
/// (`checkpoint.keep` in the recipe), beside that of random weights and of pixels. With --test or
/// --images: what the newest checkpoint predicts and attends to. The runs may still go on; before
/// the first checkpoint there are curves alone.
///
/// Of a run of `nepa finetune` its evaluations, and the curves.
///
/// Of several runs the curves lie over each other, and a table shows the settings in which their
/// recipes differ.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    after_long_help = with_exit_codes(
        EXAMPLES,
        "  0          the report is written\n  \
         1          the run or the images cannot be read"
    )
)]
pub(crate) struct Args {
    /// The output of a run, a path or URL; of several, a comparison is drawn.
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<String>,
    /// Folder for the report; it is made.
    #[arg(long, value_name = "FOLDER", default_value = "report")]
    out: PathBuf,
    /// Labelled shards that classifiers learn from.
    #[arg(long, value_name = "URL", requires = "test", help_heading = "Data")]
    train: Vec<String>,
    /// Labelled shards that are classified.
    #[arg(long, value_name = "URL", requires = "train", help_heading = "Data")]
    test: Vec<String>,
    /// Shards whose images are drawn [default: those of --test].
    ///
    /// Labelled or not.
    #[arg(long, value_name = "URL", help_heading = "Data")]
    images: Vec<String>,
    #[command(flatten)]
    read: FeatureImageArgs,
    /// Images that are drawn.
    #[arg(
        long, value_name = "N", default_value_t = 6, value_parser = at_least::<usize>(0),
        help_heading = "Features"
    )]
    maps: usize,
    /// Neighbours that vote.
    #[arg(
        long, value_name = "N", default_value_t = 20, value_parser = at_least::<usize>(1),
        help_heading = "Features"
    )]
    k: usize,
    /// Leave logistic regression out: ridge regression is quicker.
    #[arg(long, help_heading = "Features")]
    ridge_only: bool,
    /// Raw weights or their moving average.
    #[arg(
        long, value_name = "WHICH", value_parser = trained(), default_value = "ema",
        help_heading = "Features"
    )]
    weights: Source,
    #[command(flatten)]
    layers: LayerArgs,
}

const EXAMPLES: &str = "Examples:
  nepa report runs/quickstart
  nepa report runs/quickstart --out report \\
      --train 'scenes/train-*.parquet' \\
      --test 'scenes/val-*.parquet'
  nepa report runs/a runs/b --out comparison";

/// The sources that a run trained.
fn trained() -> impl TypedValueParser<Value = Source> {
    PossibleValuesParser::new(["raw", "ema"]).map(|name| match name.as_str() {
        "raw" => Source::Raw,
        _ => Source::Ema,
    })
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    ensure!(args.k > 0, "--k 0: at least one neighbour must vote");
    let device = device::open(args.read.images.device)?;
    let runtime = IoRuntime::new(2).context("cannot start the I/O threads")?;
    let bring = match (&args.train[..], args.maps) {
        ([_, ..], _) => Bring::All,
        ([], 1..) if !args.images.is_empty() => Bring::Newest,
        _ => Bring::None,
    };
    let mut subjects = Vec::new();
    for place in &args.runs {
        let copy = fetch_run(place, bring, &IoConfig::default(), &runtime)?;
        let newest = copy.checkpoints.last().map(|(_, folder)| {
            let weights = weights::open(&folder.to_string_lossy(), &IoConfig::default(), &runtime)?;
            ensure!(
                !weights.config().is_classifier(),
                "{place} is a classifier, and --train, --test and --images are for models that \
                 predict patches; its evaluations are drawn without them, and `nepa eval top1` \
                 asks it about other images"
            );
            Ok::<_, anyhow::Error>(Newest {
                read: args.read.read_options(&weights)?,
                layers: args.layers.of_blocks(weights.config().num_hidden_layers)?,
                weights,
            })
        });
        subjects.push(Subject {
            place: place.clone(),
            copy,
            newest: newest.transpose()?,
        });
    }
    let sets = (!args.train.is_empty())
        .then(|| args.read.open_sets(&args.train, &args.test, &runtime))
        .transpose()?;
    let images = (!args.images.is_empty())
        .then(|| args.read.images.open_unlabelled(&args.images, &runtime))
        .transpose()?;
    let sets = sets.as_ref().map(|(train, test)| (train, test));
    if let Some((train, test)) = sets {
        println!("{}", Evaluation::labels_of(train, test)?);
    }
    let drawn = images
        .as_ref()
        .or(sets.map(|(_, test)| test))
        .filter(|_| args.maps > 0);
    let options = ReportOptions {
        sets,
        causal: args.layers.causal(),
        pool: args.layers.pool,
        tokens: args.layers.describe(),
        scores: Scores {
            knn: Some(args.k),
            ridge: args.ridge_only,
            logistic: !args.ridge_only,
        },
        weights: args.weights,
        maps: drawn.map(|images| (images, args.maps)),
        device: &device,
    };
    write_report(&subjects, &options, &runtime, &args.out)?;
    let path =
        |name: &str| crate::console::messages::quoted(&args.out.join(name).display().to_string());
    println!("report (open it in a browser): {}", path("index.html"));
    println!("the same in Markdown:          {}", path("report.md"));
    Ok(ExitCode::SUCCESS)
}
