//! How much processor time do RandAugment, an erased box and mixing take an image of 224 x 224
//! pixels, ours and timm's?
//!
//! Both take turns on the same pictures, on one core; each draws by its own stream, so that a turn
//! is of many images. Processor time, not wall time. timm runs in `benchmarks/timm_worker.py`, which
//! says what it needs; without `--python` only ours is measured. Prints Markdown.
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use clap::Parser;
use nepa_benchmarks::{IMAGE_SIZE, median, open, samples, thread_cpu_s};
use nepa_pipeline::random::{Purpose, epoch_stream, micro_batch_stream};
use nepa_pipeline::{
    AugmentConfig, CpuRenderer, CropPlan, Filter, IoRuntime, MixConfig, MixPlan, Normalize,
    PixelOperations, RandAugment, RandomErasing,
};

/// RandAugment, erasing and mixing on one core, ours against timm's.
#[derive(Debug, Parser)]
struct Args {
    /// Shards of images.
    url: String,
    /// A Python with timm, torch, torchvision and Pillow.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Turns of each; the median counts.
    #[arg(long, default_value_t = 15)]
    rounds: u64,
    /// Images of a turn, an even number.
    #[arg(long, default_value_t = 128)]
    images: usize,
}

const SIDE: usize = IMAGE_SIZE as usize;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let pictures = pictures(&args.url, args.images)?;
    let mut file = tempfile::NamedTempFile::new()?;
    for picture in &pictures {
        file.write_all(picture)?;
    }
    file.flush()?;
    let python = args.python.as_deref();
    let timm = python.map(|python| Timm::start(python, file.path()));
    let mut timm = timm.transpose()?;
    let version = timm.as_ref().map_or("-", |timm| &timm.version);
    println!("| an image | ours, ms | {version}, ms | ratio |\n|---|---|---|---|");
    let mut ours = Ours::new(&pictures)?;
    let mut all = [0.0, 0.0];
    for (what, share, title) in [
        ("operations", 1.0, "RandAugment rand-m9-mstd0.5-inc1"),
        ("erase", 0.25, "random erasing, a quarter of one box"),
        ("mix", 1.0, "Mixup 0.8 or CutMix 1.0, with targets"),
    ] {
        let (mut our_ms, mut their_ms) = (Vec::new(), Vec::new());
        // The first round warms caches and is not counted.
        for round in 0..=args.rounds {
            let mine = ours.turn(what, round)?;
            let theirs = timm
                .as_mut()
                .map(|timm| timm.turn(what, round))
                .transpose()?;
            if round > 0 {
                let an_image = |seconds: f64| share * 1e3 * seconds / pictures.len() as f64;
                our_ms.push(an_image(mine));
                their_ms.extend(theirs.map(an_image));
            }
        }
        let ours = median(&our_ms);
        let theirs = if their_ms.is_empty() {
            f64::NAN
        } else {
            median(&their_ms)
        };
        println!(
            "| {title} | {ours:.3} | {theirs:.3} | {:.1} |",
            theirs / ours
        );
        all = [all[0] + ours, all[1] + theirs];
    }
    println!(
        "| together | {:.3} | {:.3} | {:.1} |",
        all[0],
        all[1],
        all[1] / all[0]
    );
    Ok(())
}

/// Crops of the images as training sees them, 8-bit RGB.
fn pictures(url: &str, images: usize) -> anyhow::Result<Vec<Vec<u8>>> {
    let runtime = IoRuntime::new(2)?;
    let dataset = open(url, &runtime)?;
    let samples = samples(&dataset, images)?;
    let mut renderer = CpuRenderer::default();
    let mut pictures = Vec::new();
    // Again from the first, where there are fewer.
    for (bytes, plan) in samples.iter().cycle().take(images) {
        let header = renderer.read_header(bytes)?;
        let mut crop = vec![0; 3 * SIDE * SIDE];
        renderer.render_crop(bytes, header, plan, &mut crop)?;
        pictures.push(crop);
    }
    Ok(pictures)
}

/// A picture as an uncompressed bitmap.
fn bitmap(picture: &[u8]) -> Vec<u8> {
    let side = IMAGE_SIZE.to_le_bytes();
    let header = [54u32, 40].map(u32::to_le_bytes);
    let mut file = b"BM\0\0\0\0\0\0\0\0".to_vec();
    for part in [
        &header[0][..],
        &header[1],
        &side,
        &side,
        &[1, 0, 24, 0],
        &[0; 24],
    ] {
        file.extend(part);
    }
    // From the last row to the first, blue before green before red; a row is a multiple of 4 bytes.
    for row in picture.chunks_exact(3 * SIDE).rev() {
        for [red, green, blue] in row.as_chunks::<3>().0 {
            file.extend([blue, green, red]);
        }
    }
    file
}

/// Our side of a turn.
struct Ours<'a> {
    pictures: &'a [Vec<u8>],
    /// The first picture as a file whose decoding takes next to nothing.
    file: Vec<u8>,
    pixels: Vec<f32>,
    operations: PixelOperations,
    renderer: CpuRenderer,
}

impl<'a> Ours<'a> {
    fn new(pictures: &'a [Vec<u8>]) -> anyhow::Result<Self> {
        let first = pictures.first().context("no image could be decoded")?;
        let normalized = |picture: &'a Vec<u8>| {
            let channel = |channel| picture.iter().skip(channel).step_by(3);
            let values = (0..3).flat_map(channel);
            values.map(|&value| f32::from(value) / 127.5 - 1.0)
        };
        Ok(Self {
            pixels: pictures.iter().flat_map(normalized).collect(),
            file: bitmap(first),
            pictures,
            operations: PixelOperations::new(Normalize::default().fill()),
            renderer: CpuRenderer::default(),
        })
    }

    /// Seconds of processor time for all images.
    fn turn(&mut self, what: &str, round: u64) -> anyhow::Result<f64> {
        match what {
            "operations" => self.operations(round),
            "erase" => self.erase(round),
            _ => self.mix(round),
        }
    }

    fn operations(&mut self, round: u64) -> anyhow::Result<f64> {
        let augment = augment(Some(RandAugment::default()), None).build()?;
        let mut pictures = self.pictures.to_vec();
        let mut stream = epoch_stream(round, 0, 0, Purpose::Augment);
        let start = thread_cpu_s()?;
        for picture in &mut pictures {
            let plan = &augment.draw(IMAGE_SIZE, IMAGE_SIZE, &mut stream)[0];
            self.operations
                .apply(&plan.operations, picture, IMAGE_SIZE, IMAGE_SIZE);
        }
        Ok(thread_cpu_s()? - start)
    }

    /// What a rendering with a box takes more than one without.
    fn erase(&mut self, round: u64) -> anyhow::Result<f64> {
        let always = RandomErasing {
            probability: 1.0,
            ..RandomErasing::default()
        };
        let augment = augment(None, Some(always)).build()?;
        let mut stream = epoch_stream(round, 1, 0, Purpose::Augment);
        let mut view = vec![0f32; 3 * SIDE * SIDE];
        let header = self.renderer.read_header(&self.file)?;
        let draw = |_| augment.draw(IMAGE_SIZE, IMAGE_SIZE, &mut stream).remove(0);
        let erased = self.pictures.iter().map(draw).collect::<Vec<_>>();
        let plain = erased.iter().map(|plan| CropPlan {
            erase: None,
            ..plan.clone()
        });
        let plain = plain.collect::<Vec<_>>();
        // Whole turns of each: the clock of processor time ticks in milliseconds.
        let mut seconds = |plans: &[CropPlan]| {
            let start = thread_cpu_s()?;
            for plan in plans {
                let views = std::slice::from_ref(plan);
                self.renderer
                    .render(&self.file, header, views, [&mut view[..]])?;
            }
            anyhow::Ok(thread_cpu_s()? - start)
        };
        Ok(seconds(&erased)? - seconds(&plain)?)
    }

    fn mix(&mut self, round: u64) -> anyhow::Result<f64> {
        let config = MixConfig {
            mixup_alpha: 0.8,
            cutmix_alpha: 1.0,
            ..MixConfig::default()
        };
        let mut pixels = self.pixels.clone();
        let images = self.pictures.len();
        let labels = (0..images as u32).map(|i| i % 1000).collect::<Vec<_>>();
        let start = thread_cpu_s()?;
        for pass in 0..PASSES {
            let mut stream = micro_batch_stream(round, pass, 0, Purpose::MixImages);
            let plan = MixPlan::draw(&config, images, IMAGE_SIZE, &mut stream)?;
            plan.apply(&mut pixels);
            plan.targets(&labels, 1000)?;
        }
        Ok((thread_cpu_s()? - start) / PASSES as f64)
    }
}

/// Mixings of a turn: one takes but a few ticks of the clock of processor time.
const PASSES: u64 = 10;

/// All of a picture as a crop, and what is asked for beyond it.
fn augment(rand_augment: Option<RandAugment>, erase: Option<RandomErasing>) -> AugmentConfig {
    AugmentConfig::RandomResizedCrop {
        size: IMAGE_SIZE,
        scale: [1.0, 1.0],
        ratio: [1.0, 1.0],
        flip: 0.5,
        filter: Filter::Bicubic,
        rand_augment,
        erase,
    }
}

/// timm, in a process of its own.
struct Timm {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
    version: String,
}

impl Timm {
    fn start(python: &Path, pictures: &Path) -> anyhow::Result<Self> {
        let worker = concat!(env!("CARGO_MANIFEST_DIR"), "/timm_worker.py");
        let mut child = Command::new(python)
            .arg(worker)
            .arg(pictures)
            .arg(SIDE.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", python.display()))?;
        let output = child.stdout.take().context("no pipe from timm")?;
        let mut answers = BufReader::new(output);
        let mut version = String::new();
        answers.read_line(&mut version)?;
        anyhow::ensure!(
            !version.is_empty(),
            "{worker} did not start; it says at its head what it needs"
        );
        Ok(Self {
            child,
            answers,
            version: version.trim().to_owned(),
        })
    }

    /// Seconds of processor time for all images.
    fn turn(&mut self, what: &str, round: u64) -> anyhow::Result<f64> {
        let input = self.child.stdin.as_mut().context("no pipe to timm")?;
        writeln!(input, "{what} {round}")?;
        input.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let nanoseconds: f64 = line.trim().parse().context("timm gave no number")?;
        Ok(nanoseconds / 1e9)
    }
}

impl Drop for Timm {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
