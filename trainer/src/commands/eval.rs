//! `nepa eval`.
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use candle_core::{DType, Device, Tensor};
use clap::{Subcommand, ValueEnum};
use nepa_model::{Nepa, NepaConfig, Weights, init_weights, read_published};
use nepa_pipeline::render::Normalize;
use nepa_pipeline::{
    AugmentConfig, Dataset, DatasetConfig, Filter, IoConfig, IoRuntime, Loader, LoaderConfig,
};
use nepa_schemas::{Label, SchemaOptions};

use crate::checkpoint::{read_weights, verify_folder};
use crate::device::{self, DeviceChoice};
use crate::knn::{Features, classify};
use crate::output::fetch_checkpoint;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    how: How,
}

#[derive(Debug, Subcommand)]
enum How {
    /// Classify images by their nearest neighbours in feature space; nothing is trained.
    Knn(KnnArgs),
}

/// Classifies test images by the labelled training images whose features are nearest; nothing is trained.
///
/// The feature of an image is the mean over the patch tokens of the final norm's output. The k training images of greatest cosine
/// vote for their class, each with its cosine as weight. Images are resized (shorter side 8/7 of the model's), then cut at the centre.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nepa eval knn --checkpoint runs/quickstart --train '/tmp/scenes/train-*.parquet' --test '/tmp/scenes/val-*.parquet'
  nepa eval knn --checkpoint runs/quickstart --train '/tmp/scenes/train-*.parquet' --test '/tmp/scenes/val-*.parquet' --init-from-config
The second evaluates the same architecture before training, to compare with.")]
pub struct KnnArgs {
    /// A checkpoint, a run's output (its newest checkpoint), or a folder in the published layout; a path or URL.
    #[arg(long, value_name = "URL")]
    checkpoint: String,
    /// Labelled shards that vote.
    #[arg(long, value_name = "URL", required = true)]
    train: Vec<String>,
    /// Labelled shards that are classified.
    #[arg(long, value_name = "URL", required = true)]
    test: Vec<String>,
    /// Which weights of a checkpoint; a published folder has one kind only. Default: ema.
    #[arg(long, value_enum)]
    weights: Option<WhichWeights>,
    /// What a token sees.
    #[arg(long, value_enum, default_value_t = Attention::Bidirectional)]
    attention: Attention,
    /// Neighbours that vote.
    #[arg(long, default_value_t = 20)]
    k: usize,
    /// Most images taken of each set, from its beginning.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Evaluate new random weights of the checkpoint's architecture.
    #[arg(long, conflicts_with = "weights")]
    init_from_config: bool,
    /// Seed of those weights. Default: the run's own, else 1337.
    #[arg(long, requires = "init_from_config")]
    seed: Option<u64>,
    /// Column with the labels.
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Column with the images.
    #[arg(long, value_name = "NAME")]
    image_column: Option<String>,
    /// Where features are computed: cpu, cuda or cuda:N. CUDA needs a program built by `make cuda`.
    #[arg(long, default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
    /// Images in one forward pass.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Decode threads. Default: one a core.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum WhichWeights {
    /// As trained.
    Raw,
    /// Their moving average.
    Ema,
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
    let How::Knn(args) = args.how;
    knn(&args)
}

fn knn(args: &KnnArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.k > 0, "--k 0: at least one neighbour must vote");
    let started = Instant::now();
    let device = device::open(args.device)?;
    let runtime = IoRuntime::new(2).context("cannot start the I/O threads")?;
    let (config, weights, which) = read_model(args, &runtime)?;
    let model = Nepa::new(&config, &weights, DType::F32, &device)?;
    let mut classes = Classes::default();
    let train = features(args, &args.train, &model, &device, &runtime, &mut classes)?;
    let num_classes = classes.len();
    let test = features(args, &args.test, &model, &device, &runtime, &mut classes)?;
    if classes.len() > num_classes {
        eprintln!(
            "warning: {} classes of the test set are not in the training set",
            classes.len() - num_classes
        );
    }
    let accuracy = classify(&train, &test, args.k, threads(args));
    let (low, high) = accuracy.interval();
    println!(
        "knn accuracy {:.2} % (95 % interval {:.2} to {:.2}; chance {:.2})",
        100.0 * accuracy.share(),
        100.0 * low,
        100.0 * high,
        100.0 / num_classes.max(1) as f64,
    );
    println!(
        "  {which} of {}, {} attention, k = {}, {} training and {} test images, {num_classes} classes, {:.1} s",
        args.checkpoint,
        match args.attention {
            Attention::Bidirectional => "bidirectional",
            Attention::Causal => "causal",
        },
        args.k.min(train.len()),
        train.len(),
        test.len(),
        started.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

fn threads(args: &KnnArgs) -> usize {
    args.threads.map_or_else(
        || std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        usize::from,
    )
}

/// The weights to evaluate, and what they are for people.
fn read_model(
    args: &KnnArgs,
    runtime: &IoRuntime,
) -> anyhow::Result<(NepaConfig, Weights, &'static str)> {
    let local = std::path::Path::new(&args.checkpoint);
    let published = local.join("model.safetensors").exists()
        && !local.join(crate::checkpoint::MANIFEST).exists();
    let (folder, _downloaded) = if published {
        ensure!(
            args.weights != Some(WhichWeights::Ema),
            "{} is a folder in the published layout, which has one kind of weights; leave --weights out",
            local.display()
        );
        (local.to_owned(), None)
    } else {
        fetch_checkpoint(&args.checkpoint, &IoConfig::default(), runtime)?
    };
    if args.init_from_config {
        let config = nepa_model::read_config(&folder.join("config.json"))?;
        let seed = args.seed.or_else(|| seed_of_run(&folder)).unwrap_or(1337);
        let weights = init_weights(&config, seed);
        return Ok((config, weights, "new random weights in the architecture"));
    }
    if published {
        let (config, weights) = read_published(&folder)?;
        return Ok((config, weights, "weights"));
    }
    verify_folder(&folder)?;
    let ema = args.weights != Some(WhichWeights::Raw);
    let (config, weights) = read_weights(&folder, ema)?;
    Ok((
        config,
        weights,
        if ema { "moving average" } else { "raw weights" },
    ))
}

/// The seed in a checkpoint's `state.json`, so that the untrained model is the one that the run started with.
fn seed_of_run(folder: &std::path::Path) -> Option<u64> {
    let text = std::fs::read(folder.join("state.json")).ok()?;
    let state: serde_json::Value = serde_json::from_slice(&text).ok()?;
    state["recipe"]["seed"].as_u64()
}

/// Class numbers by label. The same index or name is the same class in both sets.
#[derive(Debug, Default)]
struct Classes {
    numbers: BTreeMap<Label, usize>,
}

impl Classes {
    fn len(&self) -> usize {
        self.numbers.len()
    }

    fn number(&mut self, label: &Label) -> usize {
        let next = self.numbers.len();
        *self.numbers.entry(label.clone()).or_insert(next)
    }
}

/// Replaces an index by its class name where the data set knows it, so that sets with differing orders of classes agree.
fn named(label: Label, names: Option<&[String]>) -> Label {
    match (&label, names) {
        (Label::Index(index), Some(names)) => usize::try_from(*index)
            .ok()
            .and_then(|index| names.get(index))
            .map_or(label, |name| Label::Name(name.as_str().into())),
        _ => label,
    }
}

fn features(
    args: &KnnArgs,
    urls: &[String],
    model: &Nepa,
    device: &Device,
    runtime: &IoRuntime,
    classes: &mut Classes,
) -> anyhow::Result<Features> {
    let schema = SchemaOptions {
        image_column: args.image_column.clone(),
        label_column: args.label_column.clone(),
    };
    let dataset = DatasetConfig {
        urls: urls.to_vec(),
        schema,
        ..DatasetConfig::default()
    };
    let dataset = Dataset::open(&dataset, &IoConfig::default(), runtime)?;
    let names = dataset.class_names().map(<[String]>::to_vec);
    let size = model.config().image_size as u32;
    ensure!(
        model.config().num_channels == 3,
        "the model takes {} channels, images have 3",
        model.config().num_channels
    );
    let total = dataset
        .num_samples()
        .min(args.limit.map_or(u64::MAX, |limit| limit as u64)) as usize;
    ensure!(total > 0, "{}: no image to evaluate", urls.join(", "));
    let config = LoaderConfig {
        seed: 0,
        global_batch: usize::from(args.batch),
        rank: 0,
        world_size: 1,
        epochs: Some(1),
        shuffle: false,
        drop_last: false,
        augment: AugmentConfig::CenterCrop {
            size,
            resize: (size * 8).div_ceil(7),
            filter: Filter::Bicubic,
        },
        normalize: Normalize::default(),
        exif_orientation: true,
        decode_threads: threads(args),
        prefetch_batches: 2,
        shuffle_window_bytes: 64 << 20,
        max_bad_fraction: 0.01,
        bad_samples_path: None,
    };
    let mut loader = Loader::new(dataset, config, None)?;
    let width = model.config().hidden_size;
    let mut features = Features::new(width);
    while features.len() < total {
        let Some(batch) = loader.next_batch()? else {
            break;
        };
        let count = batch.samples().len().min(total - features.len());
        let pixels: Vec<f32> = (0..count).flat_map(|i| batch.pixels(i)).copied().collect();
        let side = size as usize;
        let pixels = Tensor::from_vec(pixels, (count, 3, side, side), device)?;
        let found = model
            .features(&pixels, args.attention == Attention::Causal)?
            .to_vec2::<f32>()?;
        for (feature, sample) in found.iter().zip(batch.samples()) {
            // A replacement is another sample a second time.
            if sample.replaces.is_some() {
                continue;
            }
            let Some(label) = sample.label.clone() else {
                bail!(
                    "{}, {}: no label; evaluation needs one for every image (choose the column with --label-column)",
                    urls.join(", "),
                    sample.id
                );
            };
            features.push(feature, classes.number(&named(label, names.as_deref())));
        }
    }
    Ok(features)
}
