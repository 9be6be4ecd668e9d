//! `nepa profile`: where the loader's time goes, proved by running it again with a stage removed.
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nepa_pipeline::{
    AugmentConfig, Dataset, DatasetConfig, IoConfig, IoRuntime, LoaderConfig, MixingForecast,
};
use nepa_schemas::SchemaOptions;

use super::help::with_exit_codes;
use super::values::{device as device_of, number, whole};
use crate::console::messages::quoted_path;
use crate::data::show_warnings;
use crate::device::{self, DeviceChoice};
use crate::profile::{Costs, Report, Scenario, Subject, Tuned, compare, measure, tune};
use crate::recipe::{Draft, JpegChoice, Precision, Recipe};
use crate::run::{Stepper, dataset_config};
use crate::signals::{SaveFirst, received};
use crate::trace::Trace;

/// Find what limits the loader, and prove it.
///
/// No model is computed. Short trials take turns: the loader as it is, the store without decoding,
/// decoding without the store, and each with a setting changed. Their rates are ceilings; the
/// lowest one limits. Ctrl-C ends it with what was measured so far.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
pub(crate) struct Args {
    /// Shards: paths, prefixes or globs [default: the recipe's].
    #[arg(value_name = "URL", required_unless_present_any = ["recipe", "measured", "compare"])]
    pub urls: Vec<String>,
    /// Time to measure, over all trials, in seconds.
    #[arg(long, default_value_t = 30.0, value_name = "SECONDS", value_parser = number)]
    pub seconds: f64,
    /// Whether this consumer would be fed: so many images a second, or `step`.
    ///
    /// A number is the rate of a GPU's training step, for example. `step` runs the training steps
    /// of the recipe on every batch, on its device.
    #[arg(long, value_name = "IMAGES", value_parser = consumer)]
    pub consumer: Option<ConsumerChoice>,
    /// Compute what another store or machine would give; may be repeated.
    ///
    /// Of requests, latency (ms to the first byte), bandwidth (MB/s), cores, threads and consumer
    /// (images/s) any may be given, as in `requests=64,latency=30,cores=16`.
    #[arg(long, value_name = "CHANGES")]
    pub simulate: Vec<Scenario>,
    /// Measure nothing: take the costs of --simulate from this report (--json).
    #[arg(
        long, value_name = "FILE", requires = "simulate", hide_short_help = true,
        conflicts_with_all = ["urls", "recipe", "tune", "consumer", "html", "trace"]
    )]
    pub measured: Option<PathBuf>,
    /// Search the settings of speed, and write what is faster to this file.
    ///
    /// Profiles with each change that should help, five times at most; each takes --seconds.
    #[arg(long, value_name = "FILE", conflicts_with = "consumer")]
    pub tune: Option<PathBuf>,
    /// Also write the report to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Also write the report to this file, as an HTML page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Measure nothing: compare two reports that --json wrote.
    #[arg(long, num_args = 2, value_names = ["A", "B"], exclusive = true)]
    pub compare: Vec<PathBuf>,
    /// Also write when each request, image and batch began and ended.
    ///
    /// Of the second trial of the loader as it is: JSON that https://ui.perfetto.dev opens.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub trace: Option<PathBuf>,
    /// Column with the images: its name, or `struct.field`.
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub image_column: Option<String>,
    /// Which of the shards.
    #[command(flatten)]
    pub shards: super::args::ShardArgs,
    /// Open the shards by this index, which `nepa inspect --index` has written.
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Data",
        hide_short_help = true
    )]
    pub index: Option<String>,
    /// Take data and settings from this recipe.
    ///
    /// Name of a built-in recipe, or a TOML file. The flags below replace single values.
    #[arg(long, value_name = "RECIPE", help_heading = "Loader")]
    pub recipe: Option<PathBuf>,
    /// Change one value of the recipe; may be repeated.
    #[arg(
        long = "set",
        value_name = "KEY=VALUE",
        requires = "recipe",
        help_heading = "Loader"
    )]
    pub sets: Vec<String>,
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
        value_parser = whole::<u32>(1..=u32::MAX.into()), help_heading = "Loader",
        hide_short_help = true
    )]
    pub shuffle_window: Option<u32>,
    /// Where the batches are filled: cpu, cuda or cuda:N [default: cpu].
    ///
    /// With `--consumer step` the recipe's device where it is left out. CUDA needs a program built
    /// by `make cuda`.
    #[arg(long, value_name = "DEVICE", value_parser = device_of, help_heading = "Loader")]
    pub device: Option<DeviceChoice>,
    /// Who decodes JPEGs on a GPU [default: the recipe's, else auto].
    #[arg(
        long,
        value_name = "WHO",
        help_heading = "Loader",
        hide_short_help = true
    )]
    pub jpeg: Option<JpegChoice>,
}

/// Whoever takes the batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ConsumerChoice {
    /// So many images a second.
    Rate(f64),
    /// The recipe's training steps.
    Step,
}

fn consumer(text: &str) -> Result<ConsumerChoice, String> {
    if text == "step" {
        return Ok(ConsumerChoice::Step);
    }
    let rate = number(text).map_err(|error| format!("{error}, or `step`"))?;
    if rate > 0.0 && rate < 1e9 {
        Ok(ConsumerChoice::Rate(rate))
    } else {
        Err("it must be a positive number of images a second, or `step`".to_owned())
    }
}

const EXAMPLES: &str = "Examples:
  nepa profile scenes
  nepa profile 's3://bucket/in1k/train-*.parquet' \\
      --recipe nepa-b14-in1k --consumer 3200
  nepa profile --recipe my.toml --consumer step
  nepa profile scenes --json after.json --html after.html
  nepa profile --measured profile.json \\
      --simulate cores=16,bandwidth=1200,consumer=3200
  nepa profile --compare before.json after.json
  nepa profile scenes --device cuda --jpeg hybrid";

fn long_help() -> String {
    let table = "Output: the rate of the loader as it is, the least and the
greatest of three rounds; the ceiling of each stage by
itself; what limits, why, and what to do; what changes would
give, each made and measured unless it says (computed); what
images of each format cost, and the slowest ones. Every key
of the JSON is explained in docs/profile.md.";
    with_exit_codes(
        &format!("{EXAMPLES}\n\n{table}"),
        "  0          measured\n  1          the data cannot be read",
    )
}

/// The longest that a loader may take to end after a signal.
const END_WITHIN: Duration = Duration::from_secs(20);

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.measured {
        return simulate(&args, path);
    }
    if let [before, after] = &args.compare[..] {
        print!("{}", compare(before, after)?);
        return Ok(ExitCode::SUCCESS);
    }
    let seconds = args.seconds;
    ensure!(
        seconds > 0.0 && seconds < 1e9,
        "--seconds {seconds} must be a positive number"
    );
    let is_stepping = args.consumer == Some(ConsumerChoice::Step);
    let path = args.recipe.as_deref();
    let draft = path.map(|path| Draft::read(path, &args.sets));
    let recipe = match draft.transpose()? {
        Some(draft) if is_stepping => Some(draft.pretraining()?),
        Some(draft) => Some(draft.without_model()?),
        None if is_stepping => bail!("--consumer step needs the --recipe whose steps are computed"),
        None => None,
    };
    let device = match &recipe {
        Some(recipe) if is_stepping => recipe.device,
        _ => DeviceChoice::default(),
    };
    let device = args.device.unwrap_or(device);
    if let (DeviceChoice::Cpu, Some(jpeg)) = (device, args.jpeg) {
        bail!(
            "--jpeg {jpeg} chooses who decodes JPEGs on a GPU, and the device is cpu, where the \
             processor does; leave it out, or give --device cuda"
        );
    }
    let (io, config, io_threads) = settings(&args, recipe.as_ref());
    let of_recipe = recipe
        .as_ref()
        .map(|recipe| recipe.loader.clone())
        .unwrap_or_default();
    let mut engines = args.jpeg.or(of_recipe.jpeg).unwrap_or_default().engines();
    engines.largest = of_recipe.jpeg_largest.unwrap_or(engines.largest);
    let runtime = IoRuntime::new(io_threads).context("cannot start the I/O threads")?;
    let data = data(&args, recipe.as_ref())?;
    let reopen = |io: &IoConfig| Ok(Dataset::open(&data, io, &runtime)?);
    let opening = Instant::now();
    let dataset = reopen(&io)?;
    let open_s = opening.elapsed().as_secs_f64();
    show_warnings(&dataset);
    let mixing = MixingForecast::new(&dataset, &config);
    let device = device::open(device)?;
    let mut stepper = match &recipe {
        Some(recipe) if is_stepping => {
            let recipe = stepping(recipe.clone(), &args, &data);
            Some(Stepper::pretraining(recipe, &dataset, &device, &runtime)?)
        }
        _ => None,
    };
    let image_size = config.augment.build()?.view_sides()[0];
    let trace = args.trace.as_deref().map(Trace::create).transpose()?;
    let mut subject = Subject {
        urls: {
            let sources = data.mixture.iter().flat_map(|source| &source.urls);
            data.urls.iter().chain(sources).cloned().collect()
        },
        dataset,
        reopen: &reopen,
        config,
        io,
        runtime: &runtime,
        device: &device,
        precision: recipe
            .as_ref()
            .map_or(Precision::F32, |recipe| recipe.train.precision),
        engines,
        consumer: match args.consumer {
            Some(ConsumerChoice::Rate(rate)) => Some(rate),
            _ => None,
        },
        open_s,
        mixing,
        time: Duration::from_secs_f64(seconds),
        cores: device::cores(),
        image_size,
        trace: trace.as_ref(),
    };
    let saving = SaveFirst {
        says: "showing what was measured so far",
        most: Some(END_WITHIN),
    };
    let saving = saving.begin();
    let mut tuned = Tuned::new();
    let found = if args.tune.is_some() {
        let (found, kept) = tune(&mut subject)?;
        tuned = kept;
        found
    } else {
        measure(&subject, stepper.as_mut())?
    };
    drop(saving);
    if let Some(trace) = &trace {
        trace.finish()?;
    }
    let mut report = Report::new(&subject, &found);
    if let Some(report) = &mut report {
        report.simulate(&args.simulate)?;
    }
    let ended = received().and_then(|signal| u8::try_from(128 + signal).ok());
    let code = ended.map_or(ExitCode::SUCCESS, ExitCode::from);
    let Some(report) = report else {
        eprintln!("nothing was measured yet");
        return Ok(code);
    };
    report.show();
    if let Some(path) = &args.tune {
        let lines = tuned
            .iter()
            .map(|(key, value)| format!("{key} = {value}\n"));
        let text = lines.collect::<String>();
        std::fs::write(path, text)
            .with_context(|| format!("cannot write the settings to {}", quoted_path(path)))?;
    }
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    if let Some(path) = &args.html {
        write(path, report.html()?.as_bytes())?;
    }
    Ok(code)
}

/// What scenarios would give by the costs of a report.
fn simulate(args: &Args, path: &Path) -> anyhow::Result<ExitCode> {
    let costs = Costs::read(path)?;
    let simulated = args
        .simulate
        .iter()
        .map(|scenario| costs.simulate(*scenario));
    let simulated = simulated.collect::<Vec<_>>();
    for simulated in &simulated {
        simulated.show();
    }
    if let Some(path) = &args.json {
        write_json(path, &simulated)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write_json(path: &Path, report: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut json = serde_json::to_vec_pretty(report)?;
    json.push(b'\n');
    write(path, &json)
}

/// The recipe whose steps are computed, on the data and in batches of the profile.
fn stepping(mut recipe: Recipe, args: &Args, data: &DatasetConfig) -> Recipe {
    recipe.data.urls.clone_from(&data.urls);
    recipe.data.mixture.clone_from(&data.mixture);
    if let Some(batch) = args.batch {
        recipe.train.batch = batch as usize;
        recipe.train.micro_batch = recipe.train.micro_batch.min(batch as usize);
    }
    recipe
}

fn write(path: &Path, report: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, report)
        .with_context(|| format!("cannot write the report to {}", quoted_path(path)))
}

/// What is read: all of the recipe's data, with the flags over it.
fn data(args: &Args, recipe: Option<&Recipe>) -> anyhow::Result<DatasetConfig> {
    // As in pretraining, labels are not read.
    let unlabelled = Some(String::new());
    let mut data = match recipe {
        Some(recipe) => dataset_config(recipe, unlabelled),
        None => DatasetConfig {
            schema: SchemaOptions {
                label_column: unlabelled,
                ..SchemaOptions::default()
            },
            ..DatasetConfig::default()
        },
    };
    if !args.urls.is_empty() {
        data.urls.clone_from(&args.urls);
        data.mixture.clear();
    }
    if args.image_column.is_some() {
        data.schema.image_column.clone_from(&args.image_column);
    }
    if args.shards.split.is_some() {
        data.split.clone_from(&args.shards.split);
    }
    if args.index.is_some() {
        data.index.clone_from(&args.index);
    }
    data.strict |= args.shards.strict;
    ensure!(
        !(data.urls.is_empty() && data.mixture.is_empty()),
        "the recipe names no data (data.urls is empty): give the shards' URL"
    );
    Ok(data)
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
        config.lanes = data.lanes;
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
