//! `nepa report`.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use nepa_pipeline::{IoConfig, IoRuntime};

use super::eval::{ImageArgs, LayerArgs};
use crate::device;
use crate::eval::{Evaluation, Pretrained, Scores, Source};
use crate::output::fetch_run;
use crate::report::{ReportOptions, write_report};

/// Writes a learning report of a run: a page (HTML) that holds all its pictures, and Markdown.
///
/// Curves of loss, copy diagnostics, learning rate, gradient norm and speed. With --train and --test: accuracy of the frozen features of
/// every checkpoint that the run kept (`checkpoint.keep` in the recipe). With --test or --images: what the newest checkpoint predicts and attends to. The run may
/// still go on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  nepa report runs/quickstart --train '/tmp/scenes/train-*.parquet' --test '/tmp/scenes/val-*.parquet' --out report")]
pub struct Args {
    /// The output of a run, a path or URL.
    #[arg(value_name = "RUN")]
    run: String,
    /// Folder for the report; it is made.
    #[arg(long, value_name = "FOLDER", default_value = "report")]
    out: PathBuf,
    /// Labelled shards that classifiers learn from.
    #[arg(long, value_name = "URL", requires = "test")]
    train: Vec<String>,
    /// Labelled shards that are classified.
    #[arg(long, value_name = "URL", requires = "train")]
    test: Vec<String>,
    /// Shards whose images are drawn, labelled or not. Default: those of --test.
    #[arg(long, value_name = "URL")]
    images: Vec<String>,
    /// Images that are drawn.
    #[arg(long, value_name = "N", default_value_t = 6)]
    maps: usize,
    /// Neighbours that vote.
    #[arg(long, default_value_t = 20)]
    k: usize,
    /// Leave logistic regression out: ridge regression is quicker.
    #[arg(long)]
    ridge_only: bool,
    /// Raw weights or their moving average.
    #[arg(long, value_parser = trained(), default_value = "ema")]
    weights: Source,
    #[command(flatten)]
    layers: LayerArgs,
    #[command(flatten)]
    read: ImageArgs,
}

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
