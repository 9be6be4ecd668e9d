//! How many images a second does one core decode, crop to 224 and normalise, and how many does
//! Pillow?
//!
//! Both take turns in blocks of images, with the same crops; processor time, not wall time, so that
//! other load matters little. Pillow runs in `benchmarks/pillow_worker.py`; without `--python` only
//! ours is measured. Prints Markdown.
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use clap::Parser;
use nepa_benchmarks::{CountingAllocator, median, open, page_faults, samples, thread_cpu_s};
use nepa_pipeline::{CpuRenderer, CropPlan, IoRuntime};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Decode and crop on one core, ours against Pillow's.
#[derive(Debug, Parser)]
struct Args {
    /// Shards of images.
    url: String,
    /// A Python with Pillow and numpy.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Passes over the images; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Most images taken.
    #[arg(long, default_value_t = 200)]
    limit: usize,
    /// Print ours as JSON.
    #[arg(long)]
    json: bool,
}

/// Images of one turn: some hundred milliseconds, many ticks of the clock of processor time.
const BLOCK: usize = 25;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = IoRuntime::new(2)?;
    let dataset = open(&args.url, &runtime)?;
    let samples = samples(&dataset, args.limit)?;
    let mut renderer = CpuRenderer::default();
    let mut pillow = args.python.as_deref().map(Pillow::start).transpose()?;
    let side = nepa_benchmarks::IMAGE_SIZE as usize;
    let mut output = vec![0f32; 3 * side * side];
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (mut allocations, mut faults) = (0, 0);
    // The first round warms caches and is not counted.
    for round in 0..=args.rounds {
        let (mut our_s, mut their_s) = (0.0, 0.0);
        for block in samples.chunks(BLOCK) {
            let start = thread_cpu_s()?;
            let before = (CountingAllocator::count(), page_faults()?);
            for (bytes, plan) in block {
                renderer.render_plan(bytes, plan, &mut output)?;
            }
            if round > 0 {
                allocations += CountingAllocator::count() - before.0;
                faults += page_faults()? - before.1;
            }
            our_s += thread_cpu_s()? - start;
            if let Some(pillow) = &mut pillow {
                for (bytes, plan) in block {
                    their_s += pillow.render(bytes, plan)?;
                }
            }
        }
        if round > 0 {
            ours.push(samples.len() as f64 / our_s);
            theirs.push(samples.len() as f64 / their_s);
        }
    }
    let per_image = |count: u64| count as f64 / (samples.len() * args.rounds) as f64;
    let (allocations, faults) = (per_image(allocations), per_image(faults));
    if args.json {
        let result = serde_json::json!({
            "images": samples.len(), "rounds": args.rounds, "cpu_s": samples.len() as f64 / median(&ours),
            "allocations_per_image": allocations, "page_faults_per_image": faults,
        });
        println!("{result}");
        return Ok(());
    }
    let range = |rates: &[f64]| {
        let (low, high) = rates.iter().fold((f64::MAX, 0f64), |(low, high), &rate| {
            (low.min(rate), high.max(rate))
        });
        format!("{:.0} | {low:.0} to {high:.0}", median(rates))
    };
    println!(
        "{} images of {}, {} rounds.\n",
        samples.len(),
        dataset.shards()[0]
            .url
            .rsplit('/')
            .next()
            .unwrap_or_default(),
        args.rounds
    );
    println!("| decode + crop + normalise | images/s of one core, median | range |\n|---|---|---|");
    println!("| ours | {} |", range(&ours));
    if let Some(pillow) = &pillow {
        println!("| {} | {} |", pillow.version, range(&theirs));
        let ratios: Vec<f64> = ours
            .iter()
            .zip(&theirs)
            .map(|(ours, theirs)| ours / theirs)
            .collect();
        println!("| ours / Pillow | {:.2} | of each round |", median(&ratios));
    } else {
        println!("| Pillow | not measured: no Python with it | |");
    }
    println!(
        "\nOurs, an image after the first round: {allocations:.1} allocations (of Rust code), {faults:.2} page faults."
    );
    Ok(())
}

/// Pillow in a process of its own, which measures itself.
struct Pillow {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
    version: String,
}

impl Pillow {
    fn start(python: &Path) -> anyhow::Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("pillow_worker.py");
        let mut child = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let mut answers = BufReader::new(child.stdout.take().context("no pipe from Pillow")?);
        let mut version = String::new();
        answers.read_line(&mut version)?;
        Ok(Self {
            child,
            answers,
            version: version.trim().to_owned(),
        })
    }

    /// Seconds of processor time for one image.
    fn render(&mut self, bytes: &[u8], plan: &CropPlan) -> anyhow::Result<f64> {
        let rect = plan.rect;
        let input = self.child.stdin.as_mut().context("no pipe to Pillow")?;
        writeln!(
            input,
            "{} {} {} {} {} {} {}",
            bytes.len(),
            rect.x,
            rect.y,
            rect.width,
            rect.height,
            plan.output_size,
            u8::from(plan.flip)
        )?;
        input.write_all(bytes)?;
        input.flush()?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let nanoseconds: f64 = answer.trim().parse().context("Pillow's answer")?;
        Ok(nanoseconds / 1e9)
    }
}

impl Drop for Pillow {
    fn drop(&mut self) {
        // It ends when its input does.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
