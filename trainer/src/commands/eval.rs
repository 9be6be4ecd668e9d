//! `nepa eval`.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Subcommand;
use nepa_pipeline::{IoConfig, IoRuntime};
use serde_json::json;

use super::args::{FeatureImageArgs, LayerArgs};
use super::eval_top1;
use super::help::with_exit_codes;
use super::values::at_least;
use crate::console::messages::quoted_path;
use crate::console::print::labelled;
use crate::console::words;
use crate::device;
use crate::eval::{
    Classes, Evaluation, FeaturePair, Measurement, ResultTable, Scores, Source, verdict,
};
use crate::weights::{self, Which};

/// Measure how well weights classify.
///
/// `top1` asks a fine-tuned classifier. The others are for features, as of pretraining: the weights
/// stay frozen; classifiers learn from the features of --train and are tried on those of --test.
/// Pixels and random weights stand beside the checkpoint, so that a figure says something. Labels
/// must be there; classes are matched by name where the shards know names.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help(EXAMPLES))]
pub(crate) struct Args {
    #[command(subcommand)]
    how: How,
}

#[derive(Debug, Subcommand)]
enum How {
    Top1(eval_top1::Args),
    /// Nearest neighbours in feature space; nothing is trained.
    ///
    /// The k training images of greatest cosine vote for their class, each with its cosine as
    /// weight.
    #[command(after_help = KNN_EXAMPLES, after_long_help = long_help(KNN_EXAMPLES))]
    Knn {
        /// Neighbours that vote.
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = at_least::<usize>(1))]
        k: usize,
        #[command(flatten)]
        set: SetArgs,
    },
    /// Linear classifiers on the frozen features.
    ///
    /// Ridge regression in closed form (a quick answer), and logistic regression by L-BFGS until it
    /// converges. Features are scaled to mean 0 and variance 1. The penalty is chosen on a tenth of
    /// the training images, then all of them are fitted.
    #[command(after_help = LINEAR_EXAMPLES, after_long_help = long_help(LINEAR_EXAMPLES))]
    Linear {
        /// Leave logistic regression out.
        #[arg(long)]
        ridge_only: bool,
        #[command(flatten)]
        set: SetArgs,
    },
    /// Both in one table; images go through the model once.
    ///
    /// As `nepa eval knn` and `nepa eval linear` do, one row for each model and layer.
    #[command(after_help = ALL_EXAMPLES, after_long_help = long_help(ALL_EXAMPLES))]
    All {
        /// Neighbours that vote.
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = at_least::<usize>(1))]
        k: usize,
        #[command(flatten)]
        set: SetArgs,
    },
}

const KNN_EXAMPLES: &str = "Examples:
  nepa eval knn --checkpoint runs/quickstart \\
      --train 'scenes/train-*.parquet' \\
      --test 'scenes/val-*.parquet'
  nepa eval knn --checkpoint runs/quickstart \\
      --train 'scenes/train-*.parquet' \\
      --test 'scenes/val-*.parquet' \\
      --features ema --layers all
The second looks at every layer of the trained model alone.";
const LINEAR_EXAMPLES: &str = "Examples:
  nepa eval linear --checkpoint runs/quickstart \\
      --train 'scenes/train-*.parquet' \\
      --test 'scenes/val-*.parquet' --layers 2,last";
const ALL_EXAMPLES: &str = "Examples:
  nepa eval all --checkpoint runs/quickstart \\
      --train 'scenes/train-*.parquet' \\
      --test 'scenes/val-*.parquet'";

const EXAMPLES: &str = "Examples:
  nepa eval all --checkpoint runs/quickstart \\
      --train 'scenes/train-*.parquet' \\
      --test 'scenes/val-*.parquet'
  nepa eval top1 --checkpoint runs/finetuned \\
      --test 'scenes/val-*.parquet'";

fn long_help(examples: &str) -> String {
    let table = "Output, a row of the table for each model and layer:
  pixels           the images themselves, 32 x 32: what must
                   be beaten
  random weights   the model before training
  moving average, raw weights
                   the checkpoint
A column is a classifier: share of the test images that it
gets right, in %, with its 95 % interval.";
    with_exit_codes(
        &format!("{examples}\n\n{table}"),
        "  0          measured, however good\n  \
         1          the checkpoint, images or labels cannot be read",
    )
}

/// What is evaluated, and on which images.
#[derive(Debug, clap::Args)]
pub(crate) struct SetArgs {
    /// A run's output, a checkpoint, or a published folder.
    ///
    /// Of a run the newest checkpoint; a path or URL.
    #[arg(long, value_name = "CHECKPOINT")]
    checkpoint: String,
    /// Labelled shards that classifiers learn from.
    #[arg(long, value_name = "URL", required = true)]
    train: Vec<String>,
    /// Labelled shards that are classified.
    #[arg(long, value_name = "URL", required = true)]
    test: Vec<String>,
    /// Write the results into this JSON file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    images: FeatureImageArgs,
    /// What features are computed from; several by commas.
    ///
    /// Pixels, random and the trained weights where it is left out; a published folder has no
    /// moving average.
    #[arg(
        long,
        value_name = "WHAT",
        value_enum,
        value_delimiter = ',',
        help_heading = "Features"
    )]
    features: Option<Vec<Source>>,
    /// Seed of random weights [default: the run's own, else 1337].
    #[arg(
        long, value_name = "N", value_parser = at_least::<u64>(0), help_heading = "Features",
        hide_short_help = true
    )]
    seed: Option<u64>,
    #[command(flatten)]
    layers: LayerArgs,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let none = Scores::default();
    let (set, scores) = match args.how {
        How::Top1(args) => return eval_top1::run(&args),
        How::Knn { k, set } => (
            set,
            Scores {
                knn: Some(k),
                ..none
            },
        ),
        How::Linear { ridge_only, set } => {
            let logistic = !ridge_only;
            (
                set,
                Scores {
                    ridge: true,
                    logistic,
                    ..none
                },
            )
        }
        How::All { k, set } => (
            set,
            Scores {
                knn: Some(k),
                ridge: true,
                logistic: true,
            },
        ),
    };
    ensure!(
        scores.knn != Some(0),
        "--k 0: at least one neighbour must vote"
    );
    evaluate(&set, scores)
}

fn evaluate(args: &SetArgs, scores: Scores) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let device = device::open(args.images.images.device)?;
    let runtime = IoRuntime::new(2).context("cannot start the I/O threads")?;
    let folder = weights::open(&args.checkpoint, &IoConfig::default(), &runtime)?;
    let config = folder.config();
    ensure!(
        config.num_channels == 3,
        "the model takes {} channels, images have 3",
        config.num_channels
    );
    let trained = if folder.kinds().contains(&Which::Ema) {
        Source::Ema
    } else {
        Source::Raw
    };
    let usual = vec![Source::Pixels, Source::Random, trained];
    let sources = args.features.as_ref().unwrap_or(&usual);
    let (mut models, mut of_models) = (Vec::new(), Vec::new());
    for source in sources.iter().filter(|source| **source != Source::Pixels) {
        of_models.push(*source);
        let name = match (source, folder.step()) {
            (Source::Raw | Source::Ema, Some(step)) => format!("{source}, step {step}"),
            _ => source.to_string(),
        };
        models.push((name, source.model(&folder, args.seed, &device)?));
    }
    let (train, test) = args.images.open_sets(&args.train, &args.test, &runtime)?;
    let layers = args.layers.of_blocks(config.num_hidden_layers)?;
    let evaluation = Evaluation {
        train: &train,
        test: &test,
        read: args.images.read_options(&folder)?,
        causal: args.layers.causal(),
        layers: &layers,
        pool: args.layers.pool,
        device: &device,
    };
    eprintln!("{}", evaluation.labels()?);
    let mut classes = Classes::default();
    let mut pairs = Vec::new();
    if sources.contains(&Source::Pixels) {
        pairs.push(evaluation.of_pixels(&mut classes)?);
    }
    if !models.is_empty() {
        pairs.extend(evaluation.of_models(&models, &mut classes)?);
    }
    let first = pairs.first().context("--features: name at least one")?;
    let (num_train, num_test) = (first.train.len(), first.test.len());
    let known = first.train.num_classes();
    for warning in first.label_warnings(&classes)? {
        eprintln!("warning: {warning}");
    }
    let measured = FeaturePair::measure_all(&pairs, scores)?;
    let of_models = of_models.iter();
    let of_models = of_models.flat_map(|source| layers.iter().map(move |_| *source));
    let of_pixels = sources.contains(&Source::Pixels).then_some(Source::Pixels);
    let kinds = of_pixels.into_iter().chain(of_models).collect::<Vec<_>>();
    let short = measured.iter().zip(&kinds).map(|(row, kind)| Measurement {
        source: match kind {
            Source::Pixels => row.source.clone(),
            _ => kind.to_string(),
        },
        ..row.clone()
    });
    let table = ResultTable::narrow(&short.collect::<Vec<_>>(), scores);
    println!("{table}\n");
    let step = folder.step().map_or(String::new(), |step| {
        format!("; trained for {}", words::counted(step, "step"))
    });
    let chance = 100.0 / known.max(1) as f64;
    labelled(
        "scores",
        &format!("in % \u{b1} its 95 % interval; chance {chance:.1}"),
    );
    labelled(
        "images",
        &format!(
            "{} training and {} test images, {known} classes",
            words::count(num_train as u64),
            words::count(num_test as u64)
        ),
    );
    labelled(
        "pooled",
        &format!(
            "{}{step}; evaluated in {}",
            args.layers.describe(),
            words::duration(started.elapsed())
        ),
    );
    let rows = kinds.iter().copied().zip(&measured).collect::<Vec<_>>();
    if let Some(sentence) = verdict(&rows, first.test.most_frequent()) {
        labelled("result", &sentence);
    }
    for row in &measured {
        if row.logistic.is_some_and(|probe| !probe.converged) {
            eprintln!(
                "warning: {}: logistic regression did not converge",
                row.name()
            );
        }
    }
    if let Some(path) = &args.json {
        let value = json!({
            "checkpoint": args.checkpoint, "step": folder.step(),
            "train_images": num_train, "test_images": num_test, "classes": known,
            "train_images_without_label": first.unlabelled[0],
            "test_images_without_label": first.unlabelled[1],
            "tokens": args.layers.describe(), "results": measured,
        });
        std::fs::write(path, serde_json::to_vec_pretty(&value)?)
            .with_context(|| format!("cannot write {}", quoted_path(path)))?;
    }
    Ok(ExitCode::SUCCESS)
}
