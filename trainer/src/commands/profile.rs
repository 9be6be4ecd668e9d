//! `nepa profile`: runs the loader alone and names the stage that limits it.
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use cpu_time::ProcessTime;
use nepa_pipeline::{
    AugmentConfig, Dataset, DatasetConfig, DecoderStats, IoConfig, IoRuntime, LoaderConfig,
    LoaderError, MixingForecast, PipelineStats, Stage, StageStats, shown_url,
};
use nepa_schemas::SchemaOptions;
use serde::Serialize;

use super::help::with_exit_codes;
use super::values::{device as device_of, number, whole};
use crate::console::messages::quoted_path;
use crate::data::show_warnings;
use crate::device::{self, DeviceChoice};
use crate::recipe::{DataConfig, Draft, JpegChoice, Precision, Recipe};
use crate::run::Batches;

/// Run the loader alone and name the stage that limits it.
///
/// No model is computed. The clock starts with the first batch; each batch is dropped as it comes.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
pub(crate) struct Args {
    /// Shards: paths, prefixes or globs.
    #[arg(required = true, value_name = "URL")]
    pub urls: Vec<String>,
    /// Time to measure after the first batch, in seconds.
    #[arg(long, default_value_t = 10.0, value_name = "SECONDS", value_parser = number)]
    pub seconds: f64,
    /// Also write the report to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Column with the images: its name, or `struct.field`.
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub image_column: Option<String>,
    /// Which of the shards.
    #[command(flatten)]
    pub shards: super::args::ShardArgs,
    /// Take the loader's settings from this recipe.
    ///
    /// Name of a built-in recipe, or a TOML file. The flags below replace single values.
    #[arg(long, value_name = "RECIPE", help_heading = "Loader")]
    pub recipe: Option<PathBuf>,
    /// Images in a batch [default: the recipe's, else 64].
    #[arg(
        long, value_name = "N", value_parser = whole::<u32>(1..=u32::MAX.into()),
        help_heading = "Loader"
    )]
    pub batch: Option<u32>,
    /// Side of the square images [default: the recipe's, else 224].
    #[arg(
        long, value_name = "PIXELS", value_parser = whole::<u32>(1..=16_384),
        help_heading = "Loader"
    )]
    pub image_size: Option<u32>,
    /// Decode threads [default: the recipe's, else one a core].
    #[arg(
        long, value_name = "N", value_parser = whole::<u16>(1..=u16::MAX.into()),
        help_heading = "Loader"
    )]
    pub decode_threads: Option<u16>,
    /// Most requests in flight [default: the recipe's, else 32].
    #[arg(
        long, value_name = "N", value_parser = whole::<u16>(1..=u16::MAX.into()),
        help_heading = "Loader"
    )]
    pub max_requests: Option<u16>,
    /// Size of the shuffle window [default: the recipe's, else 1024].
    #[arg(
        long = "shuffle-window-mib", alias = "shuffle-window", value_name = "MIB",
        value_parser = whole::<u32>(1..=u32::MAX.into()), help_heading = "Loader"
    )]
    pub shuffle_window: Option<u32>,
    /// Where the batches are filled: cpu, cuda or cuda:N.
    ///
    /// The processor's memory where it is left out, whatever the recipe says. CUDA needs a program
    /// built by `make cuda`.
    #[arg(
        long,
        default_value = "cpu",
        value_name = "DEVICE",
        value_parser = device_of,
        help_heading = "Loader"
    )]
    pub device: DeviceChoice,
    /// Who decodes JPEGs on a GPU [default: the recipe's, else auto].
    #[arg(long, value_name = "WHO", help_heading = "Loader")]
    pub jpeg: Option<JpegChoice>,
}

const EXAMPLES: &str = "Examples:
  nepa profile scenes
  nepa profile 's3://bucket/in1k/train-*.parquet' \\
      --recipe nepa-b14-in1k --seconds 60
  nepa profile s3://bucket/in1k --decode-threads 4 \\
      --max-requests 64 --json profile.json
  nepa profile scenes --device cuda --jpeg hybrid";

fn long_help() -> String {
    let table = "Output, a row of the table for each stage:
  workers      threads or requests of the stage
  items, MiB   what it did
  busy s       time at work, of all its workers
  wait in s    time without input: the stage before limits
  wait out s   time without room: the stage behind limits
  queue fill   how full its input queue was on average
On a GPU a line below says who decoded, and what was
refused. The last lines name the limiting stage and say what
to do.";
    with_exit_codes(
        &format!("{EXAMPLES}\n\n{table}"),
        "  0          measured\n  1          the data cannot be read",
    )
}

/// What was measured; also the JSON.
#[derive(Debug, Serialize)]
struct Report {
    urls: Vec<String>,
    batch: usize,
    image_size: u32,
    decode_threads: usize,
    max_requests: usize,
    shuffle_window_bytes: u64,
    cores: usize,
    first_batch_s: f64,
    wall_s: f64,
    images: u64,
    images_per_second: f64,
    fetched_bytes_per_second: f64,
    cpu_ms_per_image: f64,
    cpu_cores_used: f64,
    limiting_stage: Stage,
    limiting_share: f64,
    advice: String,
    stages: Vec<StageStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decoders: Option<DecoderStats>,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if !(args.seconds > 0.0 && args.seconds < 1e9) {
        bail!("--seconds {} must be a positive number", args.seconds);
    }
    if let (DeviceChoice::Cpu, Some(jpeg)) = (args.device, args.jpeg) {
        bail!(
            "--jpeg {jpeg} chooses who decodes JPEGs on a GPU, and --device is cpu, where the \
             processor does; leave it out, or give --device cuda"
        );
    }
    let recipe = args
        .recipe
        .as_deref()
        .map(|path| Draft::read(path, &[])?.without_model())
        .transpose()?;
    let (io, config, io_threads) = settings(&args, recipe.as_ref());
    let precision = recipe
        .as_ref()
        .map_or(Precision::F32, |recipe| recipe.train.precision);
    let of_recipe = recipe
        .as_ref()
        .map(|recipe| recipe.loader.clone())
        .unwrap_or_default();
    let mut engines = args.jpeg.or(of_recipe.jpeg).unwrap_or_default().engines();
    engines.largest = of_recipe.jpeg_largest.unwrap_or(engines.largest);
    let runtime = IoRuntime::new(io_threads).context("cannot start the I/O threads")?;
    let data = recipe.map(|recipe| recipe.data);
    let of_recipe = |value: fn(&DataConfig) -> &Option<String>| {
        data.as_ref().and_then(|data| value(data).clone())
    };
    let image_column = args
        .image_column
        .clone()
        .or_else(|| of_recipe(|data| &data.image_column));
    let split = args
        .shards
        .split
        .clone()
        .or_else(|| of_recipe(|data| &data.split));
    // As in pretraining, labels are not read.
    let schema = SchemaOptions {
        image_column,
        label_column: Some(String::new()),
        ..SchemaOptions::default()
    };
    let dataset = Dataset::open(
        &DatasetConfig {
            urls: args.urls.clone(),
            schema,
            split,
            strict: args.shards.strict,
            ..DatasetConfig::default()
        },
        &io,
        &runtime,
    )?;
    show_warnings(&dataset);
    let device = device::open(args.device)?;
    let open = |dataset, config| Batches::open(dataset, config, None, &device, precision, engines);
    let report = measure(&args, &io, config, dataset, open)?;
    print!("{}", table(&report));
    if let Some(path) = &args.json {
        let mut json = serde_json::to_vec_pretty(&report)?;
        json.push(b'\n');
        std::fs::write(path, json)
            .with_context(|| format!("cannot write the report to {}", quoted_path(path)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The recipe's settings, or the defaults, with the flags over them; and the number of I/O threads.
fn settings(args: &Args, recipe: Option<&Recipe>) -> (IoConfig, LoaderConfig, usize) {
    let mut io = recipe.map_or_else(IoConfig::default, |recipe| recipe.io.clone());
    if let Some(requests) = args.max_requests {
        io.max_requests = requests.into();
    }
    let mut config = LoaderConfig {
        seed: 1337,
        global_batch: 64,
        // A set smaller than one batch can be measured too.
        drop_last: false,
        shuffle_window_bytes: 1 << 30,
        ..LoaderConfig::default()
    };
    let mut io_threads = 2;
    if let Some(recipe) = recipe {
        let (data, loader) = (&recipe.data, &recipe.loader);
        config.seed = recipe.seed;
        config.global_batch = recipe.train.batch;
        config.augment = data.augment.clone();
        config.normalize = data.normalize;
        config.exif_orientation = data.exif_orientation;
        config.shuffle_window_bytes = data.shuffle_window_bytes;
        config.max_bad_fraction = data.max_bad_fraction;
        config.decode_threads = loader.decode_threads.unwrap_or(config.decode_threads);
        config.prefetch_batches = loader.prefetch_batches.unwrap_or(config.prefetch_batches);
        io_threads = loader.io_threads.unwrap_or(io_threads);
    }
    if let Some(threads) = args.decode_threads {
        config.decode_threads = threads.into();
    }
    if let Some(batch) = args.batch {
        config.global_batch = batch as usize;
    }
    if let Some(mib) = args.shuffle_window {
        config.shuffle_window_bytes = u64::from(mib) << 20;
    }
    if let Some(new) = args.image_size {
        match &mut config.augment {
            AugmentConfig::RandomResizedCrop { size, .. }
            | AugmentConfig::MultiCrop {
                global_size: size, ..
            } => *size = new,
            AugmentConfig::CenterCrop { size, resize, .. }
            | AugmentConfig::Squash { size, resize, .. } => {
                *resize = (u64::from(*resize) * u64::from(new)).div_ceil(u64::from((*size).max(1)))
                    as u32;
                *size = new;
            }
        }
    }
    (io, config, io_threads)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn measure(
    args: &Args,
    io: &IoConfig,
    config: LoaderConfig,
    dataset: Arc<Dataset>,
    open: impl FnOnce(Arc<Dataset>, LoaderConfig) -> Result<Batches, LoaderError>,
) -> anyhow::Result<Report> {
    let image_size = config.augment.build()?.view_sides()[0];
    let (batch, decode_threads) = (config.global_batch, config.decode_threads);
    let shuffle_window_bytes = config.shuffle_window_bytes;
    if let Some(forecast) = MixingForecast::new(&dataset, &config) {
        eprintln!("{forecast}");
    }
    let started = Instant::now();
    let mut loader = open(dataset, config)?;
    loader
        .next_batch()?
        .context("the loader ended before its first batch")?;
    let first_batch_s = started.elapsed().as_secs_f64();
    let before = loader.stats();
    let (since, cpu) = (
        Instant::now(),
        ProcessTime::try_now().context("cannot read the processor time")?,
    );
    let mut images = 0;
    while since.elapsed().as_secs_f64() < args.seconds {
        let batch = loader.next_batch()?.context("the loader ended")?;
        images += batch.samples().len() as u64;
    }
    let cpu = cpu
        .try_elapsed()
        .context("cannot read the processor time")?
        .as_secs_f64();
    let stats = loader.stats().since(&before);
    let (limiting_stage, limiting_share) = stats.limiting_stage();
    let wall = stats.wall_s.max(1e-9);
    Ok(Report {
        urls: args.urls.iter().map(|url| shown_url(url)).collect(),
        batch,
        image_size,
        decode_threads,
        max_requests: io.max_requests,
        shuffle_window_bytes,
        cores: cores(),
        first_batch_s,
        wall_s: stats.wall_s,
        images,
        images_per_second: images as f64 / wall,
        fetched_bytes_per_second: stats.stage(Stage::Fetch).bytes as f64 / wall,
        cpu_ms_per_image: 1e3 * cpu / images.max(1) as f64,
        cpu_cores_used: cpu / wall,
        limiting_stage,
        limiting_share,
        advice: advice(&stats, limiting_stage, limiting_share, cores()),
        stages: stats.stages,
        decoders: stats.decoders,
    })
}

fn advice(stats: &PipelineStats, stage: Stage, share: f64, cores: usize) -> String {
    let (requests, threads) = (
        stats.stage(Stage::Fetch).workers,
        stats.stage(Stage::Decode).workers,
    );
    if share < 0.4 {
        return "No stage stands out: they are balanced, or another program takes the processor."
            .to_owned();
    }
    match stage {
        Stage::Fetch => format!(
            "The decode threads wait for the store: raise --max-requests (now {requests}), read \
             from a nearer bucket, or pack larger row groups; more decode threads will not help."
        ),
        Stage::Unpack => "The threads decompress row groups: JPEGs do not shrink any more, so \
            write the shards without compression (nepa pack does)."
            .to_owned(),
        Stage::Decode if threads < cores => {
            format!(
                "The decode threads are busy: raise --decode-threads (now {threads} on {cores} \
                 cores)."
            )
        }
        Stage::Decode => format!(
            "The decode threads are busy on all {cores} cores: store smaller images or use more \
             cores; a faster store will not help."
        ),
        Stage::Dispatch | Stage::Consume => {
            "Batches are taken more slowly than they come: the loader is not what limits."
                .to_owned()
        }
    }
}

fn table(report: &Report) -> String {
    const MIB: f64 = (1 << 20) as f64;
    let mut text = format!(
        "{:.0} images/s, {:.1} MiB/s fetched, {:.2} CPU-ms an image ({:.2} of {} cores)\n",
        report.images_per_second,
        report.fetched_bytes_per_second / MIB,
        report.cpu_ms_per_image,
        report.cpu_cores_used,
        report.cores,
    );
    let _ = writeln!(
        text,
        "{} images of {} px in {:.1} s, first batch after {:.2} s; batch {}, {} decode threads, {} \
         requests, window {:.0} MiB\n",
        report.images,
        report.image_size,
        report.wall_s,
        report.first_batch_s,
        report.batch,
        report.decode_threads,
        report.max_requests,
        report.shuffle_window_bytes as f64 / MIB,
    );
    let _ = writeln!(
        text,
        "{:<9}{:>8}{:>10}{:>10}{:>10}{:>12}{:>12}{:>13}",
        "stage", "workers", "items", "MiB", "busy s", "wait in s", "wait out s", "queue fill"
    );
    for stage in &report.stages {
        let fill = if stage.queue_capacity == 0 {
            "-".to_owned()
        } else {
            format!("{:.1} of {}", stage.queue_fill, stage.queue_capacity)
        };
        let _ = writeln!(
            text,
            "{:<9}{:>8}{:>10}{:>10.1}{:>10.2}{:>12.2}{:>12.2}{:>13}",
            stage.stage.to_string(),
            stage.workers,
            stage.items,
            stage.bytes as f64 / MIB,
            stage.busy_s,
            stage.blocked_in_s,
            stage.blocked_out_s,
            fill,
        );
    }
    if let Some(decoders) = &report.decoders {
        let _ = writeln!(text, "\n{decoders}");
    }
    let _ = writeln!(
        text,
        "\nlimiting stage: {} ({:.0} % of the time)\n{}",
        report.limiting_stage,
        100.0 * report.limiting_share,
        report.advice
    );
    text
}
