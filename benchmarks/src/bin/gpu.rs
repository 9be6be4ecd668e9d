//! Does the GPU path of the loader give what the CPU's gives, and how fast is it? All tests that need a GPU, then rates.
//!
//! Prints Markdown; ends with code 1 if a test failed. Run by scripts/gpu-check, which puts peers beside it.
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use nepa_benchmarks::process_cpu_s;
use nepa_pipeline::cuda::cudarc::driver::{CudaContext, CudaStream};
use nepa_pipeline::cuda::{Chroma, CudaBackend, EngineConfig, check_device, cuda_backend, nvjpeg};
use nepa_pipeline::device::{PixelLayout, PixelType};
use nepa_pipeline::render::Normalize;
use nepa_pipeline::{
    AugmentConfig, Dataset, DatasetConfig, Filter, IoConfig, IoRuntime, Loader, LoaderConfig,
    SampleRecord,
};

/// Side of the images.
const SIDE: u32 = 224;

/// Tests and rates of the loader on CUDA device 0.
#[derive(Debug, Parser)]
struct Args {
    /// Shards of photos of usual sizes.
    data: String,
    /// Shards of odd and broken JPEGs.
    #[arg(long)]
    zoo: Option<String>,
    /// Decode threads of the rates.
    #[arg(long, default_value_t = 16)]
    decode_threads: usize,
    /// Time for each rate in seconds.
    #[arg(long, default_value_t = 15.0)]
    seconds: f64,
}

/// Which engines a loader uses, and its name in the tables.
type Engines = (&'static str, EngineConfig);

const fn engines(hardware: bool, hybrid: bool) -> EngineConfig {
    EngineConfig {
        hardware,
        hybrid,
        ..EngineConfig::AUTO
    }
}

/// Every way of decoding. Hardware alone is no configuration: what it does not take must go somewhere.
const ALL: [Engines; 3] = [
    ("CPU decode, GPU conversion", engines(false, false)),
    ("nvJPEG hybrid + CPU", engines(false, true)),
    ("nvJPEG hardware + hybrid + CPU", engines(true, true)),
];

struct Bench {
    dataset: Arc<Dataset>,
    zoo: Option<Arc<Dataset>>,
    stream: Arc<CudaStream>,
    args: Args,
}

/// One epoch of a loader: what it holds.
struct Epoch {
    samples: Vec<SampleRecord>,
    pixels: Vec<f32>,
}

fn open(url: &str, runtime: &IoRuntime) -> anyhow::Result<Arc<Dataset>> {
    let config = DatasetConfig {
        urls: vec![url.to_owned()],
        ..DatasetConfig::default()
    };
    Ok(Dataset::open(&config, &IoConfig::default(), runtime)?)
}

fn config(batch: usize, decode_threads: usize, epochs: Option<u64>) -> LoaderConfig {
    LoaderConfig {
        seed: 1337,
        global_batch: batch,
        rank: 0,
        world_size: 1,
        epochs,
        shuffle: true,
        drop_last: false,
        augment: AugmentConfig::RandomResizedCrop {
            size: SIDE,
            scale: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            flip: 0.5,
            filter: Filter::Bilinear,
        },
        normalize: Normalize::default(),
        exif_orientation: true,
        decode_threads,
        prefetch_batches: 2,
        shuffle_window_bytes: 1 << 30,
        max_bad_fraction: 1.0,
        bad_samples_path: None,
    }
}

fn layout(pixel_type: PixelType) -> PixelLayout {
    PixelLayout {
        pixel_type,
        image_size: SIDE,
        patch_size: None,
    }
}

fn on_cpu(dataset: &Arc<Dataset>) -> anyhow::Result<Epoch> {
    let mut loader = Loader::new(Arc::clone(dataset), config(32, 8, Some(1)), None)?;
    let (mut samples, mut pixels) = (Vec::new(), Vec::new());
    while let Some(batch) = loader.next_batch()? {
        samples.extend_from_slice(batch.samples());
        pixels.extend(batch.to_vec());
    }
    Ok(Epoch { samples, pixels })
}

impl Bench {
    fn loader(
        &self,
        dataset: &Arc<Dataset>,
        config: LoaderConfig,
        pixel_type: PixelType,
        engines: EngineConfig,
    ) -> anyhow::Result<Loader<CudaBackend>> {
        let normalize = config.normalize;
        let backend = cuda_backend(
            Arc::clone(&self.stream),
            layout(pixel_type),
            &normalize,
            engines,
        )?;
        let dataset = Arc::clone(dataset);
        Ok(Loader::with_backend(
            dataset,
            config,
            None,
            Arc::new(backend),
        )?)
    }

    fn on_device(&self, dataset: &Arc<Dataset>, engines: EngineConfig) -> anyhow::Result<Epoch> {
        let mut loader = self.loader(dataset, config(32, 8, Some(1)), PixelType::F32, engines)?;
        let (mut samples, mut pixels) = (Vec::new(), Vec::new());
        while let Some(batch) = loader.next_batch()? {
            let num_bytes = batch.len() * layout(PixelType::F32).slot_bytes();
            let bytes = batch
                .memory()
                .read(num_bytes, loader.backend().consumer())?;
            samples.extend_from_slice(batch.samples());
            let (values, _) = bytes.as_chunks::<4>();
            pixels.extend(values.iter().map(|value| f32::from_le_bytes(*value)));
        }
        Ok(Epoch { samples, pixels })
    }

    /// The same samples and plans as on the CPU; pixels within the limits, in 255ths. Says how far they are.
    fn parity(
        &self,
        dataset: &Arc<Dataset>,
        expected: &Epoch,
        engines: EngineConfig,
        (mean_limit, tail_limit): (f64, f64),
    ) -> anyhow::Result<String> {
        let found = self.on_device(dataset, engines)?;
        ensure!(
            found.samples == expected.samples,
            "samples, plans or replacements differ"
        );
        // Normalised by 0.5 and 0.5: 2 / 255 is one level.
        let mut levels: Vec<f64> = found
            .pixels
            .iter()
            .zip(&expected.pixels)
            .map(|(a, b)| f64::from((a - b).abs()) * 127.5)
            .collect();
        let mean = levels.iter().sum::<f64>() / levels.len() as f64;
        let tail = levels.len() * 999 / 1000;
        let (_, tail, _) = levels.select_nth_unstable_by(tail, f64::total_cmp);
        let text = format!(
            "{} images, mean {mean:.3}/255, 99.9th percentile {tail:.2}/255",
            found.samples.len()
        );
        ensure!(mean <= mean_limit && *tail <= tail_limit, "{text}");
        Ok(text)
    }

    /// Pieces of memory taken after the first batches; must be none.
    fn allocations(&self, engines: EngineConfig) -> anyhow::Result<String> {
        let threads = self.args.decode_threads;
        let mut loader = self.loader(
            &self.dataset,
            config(64, threads, None),
            PixelType::Bf16,
            engines,
        )?;
        let count = |loader: &Loader<CudaBackend>| {
            loader.backend().accelerator().allocations() + nvjpeg::allocations()
        };
        let next = |loader: &mut Loader<CudaBackend>| -> anyhow::Result<()> {
            loader.next_batch()?.context("the loader ended")?;
            Ok(())
        };
        // Decoders are warmed up with an image of the largest size before the first batch; this is for what is left.
        let warm_up = 2 * loader.batches_per_epoch();
        for _ in 0..warm_up {
            next(&mut loader)?;
        }
        let before = count(&loader);
        for _ in 0..100 {
            next(&mut loader)?;
        }
        let grown = count(&loader) - before;
        ensure!(grown == 0, "{grown} pieces of memory in 100 batches");
        Ok(format!("0 in 100 batches, {before} before"))
    }

    /// A row: images a second, of one core, processor use, intervals between batches.
    fn rate(&self, (name, engines): Engines) -> anyhow::Result<String> {
        let batch = 256;
        let threads = self.args.decode_threads;
        let mut loader = self.loader(
            &self.dataset,
            config(batch, threads, None),
            PixelType::Bf16,
            engines,
        )?;
        let mut images = 0;
        for _ in 0..4 {
            loader.next_batch()?.context("the loader ended")?;
        }
        let (started, cpu) = (Instant::now(), process_cpu_s()?);
        let limit = Duration::from_secs_f64(self.args.seconds);
        let mut intervals = Vec::new();
        while started.elapsed() < limit {
            let waiting = Instant::now();
            let next = loader.next_batch()?.context("the loader ended")?;
            // The pixels are there when the consumer's stream says so.
            self.stream.synchronize()?;
            images += next.len();
            intervals.push(1e3 * waiting.elapsed().as_secs_f64());
        }
        let (wall, cpu) = (started.elapsed().as_secs_f64(), process_cpu_s()? - cpu);
        intervals.sort_by(f64::total_cmp);
        let at = |share: f64| intervals[((intervals.len() - 1) as f64 * share) as usize];
        Ok(format!(
            "| {name} | {:.0} | {:.0} | {:.1} | {:.1} / {:.1} / {:.1} |",
            images as f64 / wall,
            images as f64 / cpu,
            cpu / wall,
            at(0.5),
            at(0.99),
            at(1.0)
        ))
    }
}

/// Prints a test's row and says whether it passed.
fn test(name: &str, result: anyhow::Result<String>) -> bool {
    let passed = result.is_ok();
    let (verdict, text) = match result {
        Ok(text) => ("ok", text),
        Err(error) => ("FAILED", format!("{error:#}")),
    };
    println!("| {name} | {verdict} | {text} |");
    passed
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let runtime = IoRuntime::new(2)?;
    let facts = check_device(0)?;
    let context = CudaContext::new(0)?;
    let bench = Bench {
        dataset: open(&args.data, &runtime)?,
        zoo: args
            .zoo
            .as_ref()
            .map(|url| open(url, &runtime))
            .transpose()?,
        stream: context.new_stream()?,
        args,
    };
    println!("- GPU: {facts:?}");
    let version = nvjpeg::Library::version();
    println!("- nvJPEG: {version:?}");
    let hardware = nvjpeg::Library::new(&context, nvjpeg::Backend::Hardware, Chroma::default())
        .and_then(|it| it.hardware());
    match &hardware {
        Ok((engines, cores)) => {
            println!("- Hardware JPEG decoder: {engines} engines of {cores} cores");
        }
        Err(error) => println!("- Hardware JPEG decoder: none ({error})"),
    }

    println!("\n| test | verdict | |\n|---|---|---|");
    let mut all_passed = true;
    let expected = on_cpu(&bench.dataset)?;
    for (name, engines) in ALL {
        let limits = if engines.hybrid {
            (0.75, 6.0)
        } else {
            (0.001, 0.01)
        };
        let found = bench.parity(&bench.dataset, &expected, engines, limits);
        all_passed &= test(&format!("pixels, {name}"), found);
    }
    if let Some(zoo) = &bench.zoo {
        let expected = on_cpu(zoo)?;
        for (name, engines) in ALL {
            // Damaged files may look different; only samples, plans and replacements count.
            let found = bench.parity(zoo, &expected, engines, (f64::MAX, f64::MAX));
            all_passed &= test(&format!("odd and broken JPEGs, {name}"), found);
        }
        let (name, engines) = ALL[2];
        let found = bench.parity(
            &bench.dataset,
            &on_cpu(&bench.dataset)?,
            engines,
            (0.75, 6.0),
        );
        all_passed &= test(&format!("pixels after those, {name}"), found);
    }
    for (name, engines) in ALL {
        all_passed &= test(&format!("memory taken, {name}"), bench.allocations(engines));
    }

    println!(
        "\nBatches of 256 into bf16 at {SIDE} px, {} decode threads, {} s each; data from local files.\n",
        bench.args.decode_threads, bench.args.seconds
    );
    println!(
        "| engines | images/s | images/s of one core | cores used | ms between batches, p50 / p99 / max |"
    );
    println!("|---|---|---|---|---|");
    for engines in ALL {
        println!("{}", bench.rate(engines)?);
    }
    if !all_passed {
        bail!("a test failed, see the table");
    }
    Ok(ExitCode::SUCCESS)
}
