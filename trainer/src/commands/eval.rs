//! `nepa eval`.
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::{Subcommand, ValueEnum};
use nepa_pipeline::{DatasetConfig, IoRuntime, Normalize};
use nepa_schemas::SchemaOptions;
use serde_json::json;

use super::values::{at_least, device as device_of, whole};
use crate::cli::with_exit_codes;
use crate::device::{self, DeviceChoice};
use crate::eval::{
    Classes, Evaluation, FeaturePair, ImageSet, Layer, Measurement, Pool, Pretrained, ReadOptions,
    ResultTable, Scores, Source, verdict,
};
use crate::messages::{nearest, quoted_path};
use crate::print::labelled;
use crate::words;

/// Measure how well a checkpoint's features classify.
///
/// The weights stay frozen; classifiers learn from the features of --train and are tried on those
/// of --test. Pixels and random weights stand beside the checkpoint, so that a figure says
/// something. Labels must be there; classes are matched by name where the shards know names.
#[derive(Debug, clap::Args)]
#[command(after_help = ALL_EXAMPLES, after_long_help = long_help(ALL_EXAMPLES))]
pub struct Args {
    #[command(subcommand)]
    how: How,
}

#[derive(Debug, Subcommand)]
enum How {
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
pub struct SetArgs {
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
    images: ImageArgs,
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
    #[arg(long, value_name = "N", value_parser = at_least::<u64>(0), help_heading = "Features", hide_short_help = true)]
    seed: Option<u64>,
    #[command(flatten)]
    layers: LayerArgs,
}

/// How images are read and reach a model.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Data")]
pub(super) struct ImageArgs {
    /// Column with the images: its name, or `struct.field`.
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    image_column: Option<String>,
    /// Column with the labels [default: label, labels or class].
    ///
    /// Its name, `struct.field`, or KEY where folders are called KEY=class. Where none of the
    /// default names is there, what else is called like one.
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Read the training shards of one split alone.
    ///
    /// As their names or folders say it.
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub(super) train_split: Option<String>,
    /// Read the test shards of one split alone.
    ///
    /// As their names or folders say it.
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub(super) test_split: Option<String>,
    /// End where something about the shards is doubtful.
    ///
    /// Several splits, copies, missing shards; without it they are warned of.
    #[arg(long)]
    strict: bool,
    /// Most images taken of each set, from its beginning.
    #[arg(long, value_name = "N", value_parser = at_least::<usize>(1))]
    limit: Option<usize>,
    /// Shorter side of an image before the centre is cut out.
    ///
    /// The model takes a square from the centre of the image. Where it is left out, 8/7 of the
    /// model's size (256 for 224); for models of less than 64 pixels the model's own.
    #[arg(long, value_name = "PIXELS", value_parser = whole::<u32>(1..=16_384), hide_short_help = true)]
    resize: Option<u32>,
    /// Where features are computed: cpu, cuda or cuda:N.
    ///
    /// CUDA needs a program built by `make cuda`.
    #[arg(
        long, value_name = "DEVICE", default_value_t = DeviceChoice::Cpu, value_parser = device_of, help_heading = "Speed"
    )]
    pub(super) device: DeviceChoice,
    /// Images in one forward pass.
    #[arg(
        long, value_name = "N", default_value_t = 32,
        value_parser = whole::<u16>(1..=u16::MAX.into()), help_heading = "Speed", hide_short_help = true)]
    batch: u16,
    /// Decode threads [default: one a core].
    #[arg(
        long = "decode-threads", alias = "threads", value_name = "N",
        value_parser = whole::<u16>(1..=u16::MAX.into()), help_heading = "Speed"
    )]
    threads: Option<u16>,
}

impl ImageArgs {
    /// Opens labelled shards, of one split if it is named.
    pub(super) fn open(
        &self,
        urls: &[String],
        split: Option<&String>,
        runtime: &IoRuntime,
    ) -> anyhow::Result<ImageSet> {
        self.open_with(urls, split, self.label_column.clone(), runtime)
    }

    /// Opens shards whose labels are not read.
    pub(super) fn open_unlabelled(
        &self,
        urls: &[String],
        runtime: &IoRuntime,
    ) -> anyhow::Result<ImageSet> {
        self.open_with(urls, None, Some(String::new()), runtime)
    }

    fn open_with(
        &self,
        urls: &[String],
        split: Option<&String>,
        label_column: Option<String>,
        runtime: &IoRuntime,
    ) -> anyhow::Result<ImageSet> {
        let schema = SchemaOptions {
            image_column: self.image_column.clone(),
            label_column,
            ..SchemaOptions::default()
        };
        let config = DatasetConfig {
            urls: urls.to_vec(),
            schema,
            split: split.cloned(),
            strict: self.strict,
            ..DatasetConfig::default()
        };
        ImageSet::open(&config, runtime)
    }

    /// How images are prepared for a model; pixels are normalised as in its training.
    pub(super) fn read_options(&self, pretrained: &Pretrained) -> anyhow::Result<ReadOptions> {
        let size = pretrained.config().image_size as u32;
        let data = pretrained.recipe().map(|recipe| &recipe.data);
        let usual = if size < 64 {
            size
        } else {
            (size * 8).div_ceil(7)
        };
        let resize = self.resize.unwrap_or(usual);
        ensure!(
            resize >= size,
            "--resize {resize}: the model takes {size} pixels, which cannot be cut from less"
        );
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(ReadOptions {
            resize,
            size,
            normalize: data.map_or_else(Normalize::default, |data| data.normalize),
            exif_orientation: data.is_none_or(|data| data.exif_orientation),
            batch: usize::from(self.batch),
            threads: self.threads.map_or_else(cores, usize::from),
            limit: self.limit.unwrap_or(usize::MAX),
        })
    }
}

/// Where in a model features are taken.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Features")]
pub(super) struct LayerArgs {
    /// Layers, by commas: numbers of blocks, 'last', or 'all'.
    ///
    /// 0 is what goes into the first block, 'last' the final norm's output. Middle blocks usually
    /// score higher than the last.
    #[arg(
        long,
        value_name = "LAYERS",
        value_delimiter = ',',
        default_value = "last"
    )]
    layers: Vec<String>,
    /// How the tokens of a layer become one feature.
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Pool::PatchMean)]
    pub(super) pool: Pool,
    /// What a token sees.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Attention::Bidirectional)]
    attention: Attention,
}

impl LayerArgs {
    /// The layers of a model with so many blocks.
    pub(super) fn of_blocks(&self, num_blocks: usize) -> anyhow::Result<Vec<Layer>> {
        let mut layers = Vec::new();
        for text in &self.layers {
            if text == "all" {
                layers.extend(Layer::all(num_blocks));
                continue;
            }
            let layer = text.parse::<Layer>();
            let layer = layer.map_err(|error| {
                let meant = nearest(text, ["last", "all"]);
                let tip = meant.map(|meant| format!("\ntip: did you mean {meant}?"));
                anyhow::anyhow!("--layers: {error} nor 'all'{}", tip.unwrap_or_default())
            })?;
            ensure!(
                layer <= Layer::Block(num_blocks) || layer == Layer::Last,
                "--layers {layer}: the model has {num_blocks} blocks"
            );
            layers.push(layer);
        }
        layers.sort_unstable();
        layers.dedup();
        Ok(layers)
    }

    pub(super) fn causal(&self) -> bool {
        self.attention == Attention::Causal
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        let pool = match self.pool {
            Pool::PatchMean => "mean over patches",
            Pool::ClassToken => "class token",
        };
        let attention = match self.attention {
            Attention::Bidirectional => "bidirectional",
            Attention::Causal => "causal",
        };
        format!("{pool}, {attention} attention")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Attention {
    /// Every token sees all.
    Bidirectional,
    /// A token sees itself and those before, as in pretraining.
    Causal,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let none = Scores::default();
    let (set, scores) = match args.how {
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
    let device = device::open(args.images.device)?;
    let runtime = IoRuntime::new(2).context("cannot start the I/O threads")?;
    let pretrained = Pretrained::open(&args.checkpoint, &runtime)?;
    let config = pretrained.config();
    ensure!(
        config.num_channels == 3,
        "the model takes {} channels, images have 3",
        config.num_channels
    );
    let trained = if pretrained.step().is_some() {
        Source::Ema
    } else {
        Source::Raw
    };
    let usual = vec![Source::Pixels, Source::Random, trained];
    let sources = args.features.as_ref().unwrap_or(&usual);
    let (mut models, mut of_models) = (Vec::new(), Vec::new());
    for source in sources.iter().filter(|source| **source != Source::Pixels) {
        of_models.push(*source);
        let name = match (source, pretrained.step()) {
            (Source::Raw | Source::Ema, Some(step)) => format!("{source}, step {step}"),
            _ => source.to_string(),
        };
        models.push((name, pretrained.model(*source, args.seed, &device)?));
    }
    let images = &args.images;
    let train = images.open(&args.train, images.train_split.as_ref(), &runtime)?;
    let test = images.open(&args.test, images.test_split.as_ref(), &runtime)?;
    let layers = args.layers.of_blocks(config.num_hidden_layers)?;
    let evaluation = Evaluation {
        train: &train,
        test: &test,
        read: args.images.read_options(&pretrained)?,
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
    let step = pretrained.step().map_or(String::new(), |step| {
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
            "checkpoint": args.checkpoint, "step": pretrained.step(),
            "train_images": num_train, "test_images": num_test, "classes": known,
            "train_images_without_label": first.unlabelled[0], "test_images_without_label": first.unlabelled[1],
            "tokens": args.layers.describe(), "results": measured,
        });
        std::fs::write(path, serde_json::to_vec_pretty(&value)?)
            .with_context(|| format!("cannot write {}", quoted_path(path)))?;
    }
    Ok(ExitCode::SUCCESS)
}
