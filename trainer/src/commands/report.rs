//! `nepa report`.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use nepa_pipeline::{IoConfig, IoRuntime};

use super::eval::{ImageArgs, LayerArgs};
use super::values::at_least;
use crate::cli::with_exit_codes;
use crate::device;
use crate::eval::{Evaluation, Pretrained, Scores, Source};
use crate::output::fetch_run;
use crate::report::{ReportOptions, write_report};

/// Write a report of a run: curves, accuracies, maps.
///
/// A page (HTML) that holds all its pictures, and Markdown: loss, copy diagnostics, learning rate,
/// gradient norm and speed. With --train and --test also the accuracy of the frozen features of
/// every checkpoint that the run kept (checkpoint.keep in the recipe). With --test or --images what
/// the newest checkpoint predicts and attends to. The run may still go on.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    after_long_help = with_exit_codes(
        EXAMPLES,
        "  0          the report is written\n  \
         1          the run or the images cannot be read"
    )
)]
pub struct Args {
    /// The output of a run, a path or URL.
    #[arg(value_name = "RUN")]
    run: String,
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
    read: ImageArgs,
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
      --test 'scenes/val-*.parquet'";

/// The sources that a run trained.
fn trained() -> impl TypedValueParser<Value = Source> {
    PossibleValuesParser::new(["raw", "ema"]).map(|name| match name.as_str() {
        "raw" => Source::Raw,
        _ => Source::Ema,
    })
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    ensure!(args.k > 0, "--k 0: at least one neighbour must vote");
    let device = device::open(args.read.device)?;
    let runtime = IoRuntime::new(2).context("cannot start the I/O threads")?;
    let run = fetch_run(&args.run, &IoConfig::default(), &runtime)?;
    let Some((_, newest)) = run.checkpoints.last() else {
        bail!("{} has no checkpoint yet", args.run);
    };
    let newest = Pretrained::open(&newest.to_string_lossy(), &runtime)?;
    let read = args.read.read_options(&newest)?;
    let layers = args.layers.of_blocks(newest.config().num_hidden_layers)?;
    let open = |urls: &[String], split: Option<&String>| {
        (!urls.is_empty())
            .then(|| args.read.open(urls, split, &runtime))
            .transpose()
    };
    let train = open(&args.train, args.read.train_split.as_ref())?;
    let test = open(&args.test, args.read.test_split.as_ref())?;
    let images = (!args.images.is_empty())
        .then(|| args.read.open_unlabelled(&args.images, &runtime))
        .transpose()?;
    let evaluation = train
        .as_ref()
        .zip(test.as_ref())
        .map(|(train, test)| Evaluation {
            train,
            test,
            read,
            causal: args.layers.causal(),
            layers: &layers,
            pool: args.layers.pool,
            device: &device,
        });
    if let Some(evaluation) = &evaluation {
        println!("{}", evaluation.labels()?);
    }
    let drawn = images.as_ref().or(test.as_ref()).filter(|_| args.maps > 0);
    let options = ReportOptions {
        evaluation,
        scores: Scores {
            knn: Some(args.k),
            ridge: args.ridge_only,
            logistic: !args.ridge_only,
        },
        tokens: args.layers.describe(),
        weights: args.weights,
        maps: drawn.map(|images| (images, read, args.maps)),
        device: &device,
    };
    write_report(&run, &args.run, &newest, &options, &runtime, &args.out)?;
    println!("{}", args.out.join("index.html").display());
    println!("{}", args.out.join("report.md").display());
    Ok(ExitCode::SUCCESS)
}
