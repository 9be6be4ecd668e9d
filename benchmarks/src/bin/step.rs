//! How long does one optimiser step of a model take on this processor, and how much memory does it
//! take: our engines and PyTorch?
//!
//! Each contestant is a process of its own with the same weights, pixels and rotary factors; they
//! take turns, a step each. No loader. Prints rows of Markdown. PyTorch runs in
//! `benchmarks/versus/nepa_torch.py`; without `--python` it is left out.
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use candle_core::{DType, Device};
use clap::Parser;
use nepa_benchmarks::{median, peak_memory_mib, process_cpu_s};
use nepa_model::{Ablation, RopeDraw, init_weights, read_published, write_published};
use nepa_trainer::engine::{
    AutogradEngine, CpuEngine, Engine, Images, StepInput, TrainingSetup, TrainingState,
};
use nepa_trainer::optimizer::OptimizerConfig;
use nepa_trainer::recipe::{EngineChoice, Recipe};
use serde::{Deserialize, Serialize};

/// Steps of a recipe's model, contestant by contestant.
#[derive(Debug, Parser)]
struct Args {
    /// The recipe: model, optimiser, batch and micro-batch. For a worker, the folder that the
    /// benchmark wrote.
    recipe: PathBuf,
    /// Steps of each that count; one more comes first.
    #[arg(long, default_value_t = 7)]
    rounds: u64,
    /// Threads of each; left out: all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// A Python with torch and safetensors.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Works as this contestant, a step for each line of standard input.
    #[arg(long, hide = true)]
    work: Option<EngineChoice>,
}

/// What a worker needs besides the weights: `step.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    batch: usize,
    micro_batch: usize,
    #[serde(flatten)]
    optimizer: OptimizerConfig,
}

/// A worker's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Answer {
    wall_ms: f64,
    cpu_ms: f64,
    peak_mib: f64,
    loss: f64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.work {
        Some(engine) => work(&args.recipe, engine),
        None => race(&args),
    }
}

/// Steps as one of our engines.
fn work(folder: &Path, engine: EngineChoice) -> anyhow::Result<()> {
    let (config, weights) = read_published(folder)?;
    let Settings {
        batch,
        micro_batch,
        optimizer,
    } = serde_json::from_slice(&fs::read(folder.join("step.json"))?)?;
    let state = TrainingState::new(weights);
    let groups = |name: &str| optimizer.group(name);
    let setup = TrainingSetup {
        config: &config,
        update: optimizer.settings(),
        groups: &groups,
        micro_batch,
        micro_batches: batch / micro_batch,
        exchange: None,
        ablation: Ablation::default(),
    };
    let mut engine: Box<dyn Engine> = match engine {
        EngineChoice::Cpu => Box::new(CpuEngine::new(&setup, state)?),
        EngineChoice::Cuda => bail!("this benchmark is the processor's"),
        EngineChoice::Autograd => Box::new(AutogradEngine::new(
            &setup,
            state,
            &Device::Cpu,
            DType::F32,
        )?),
    };
    // Any pixels do: the time does not depend on their values.
    let length = 3 * config.image_size * config.image_size;
    let value = |image: usize, i: usize| ((i * 31 + image * 7919) % 255) as f32 / 127.5 - 1.0;
    let pixels: Vec<Vec<f32>> = (0..batch)
        .map(|image| (0..length).map(|i| value(image, i)).collect())
        .collect();
    let images: Vec<&[f32]> = pixels.iter().map(Vec::as_slice).collect();
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line?;
        let (rescale, lr) = line.split_once(' ').context("a rotary factor and a rate")?;
        let (rescale, lr) = (rescale.parse()?, lr.parse()?);
        let rope = RopeDraw {
            rescale,
            ..RopeDraw::default()
        };
        let (wall, cpu) = (Instant::now(), process_cpu_s()?);
        let passes = vec![rope.into(); batch / micro_batch];
        let report = engine.step(&StepInput::unlabelled(Images::Host(&images), &passes))?;
        engine.update(&optimizer.rates(lr))?;
        let answer = Answer {
            wall_ms: 1e3 * wall.elapsed().as_secs_f64(),
            cpu_ms: 1e3 * (process_cpu_s()? - cpu),
            peak_mib: peak_memory_mib()?,
            loss: report.loss,
        };
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

/// A contestant's process.
struct Worker {
    name: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    answers: Vec<Answer>,
}

impl Worker {
    fn start(name: &str, command: &mut Command, threads: Option<usize>) -> anyhow::Result<Self> {
        if let Some(threads) = threads {
            command.env("RAYON_NUM_THREADS", threads.to_string());
            command.env("CANDLE_NUM_THREADS", threads.to_string());
            command.env("OMP_NUM_THREADS", threads.to_string());
        }
        // candle's threads otherwise wait in a busy loop, and would take the processor from the
        // next contestant.
        command.env("CANDLE_BARRIER_POOL_SPIN_LIMIT", "0");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name} does not start"))?;
        let mut worker = Self {
            name: name.to_owned(),
            input: child.stdin.take().context("a pipe")?,
            output: BufReader::new(child.stdout.take().context("a pipe")?),
            child,
            answers: Vec::new(),
        };
        match worker.line()?.as_str() {
            "ready" => Ok(worker),
            other => bail!("{name} says {other:?}"),
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("{} ended: {}", self.name, self.child.wait()?);
        }
        Ok(line.trim().to_owned())
    }

    fn step(&mut self, rescale: f64, lr: f64) -> anyhow::Result<()> {
        writeln!(self.input, "{rescale} {lr}")?;
        let answer = serde_json::from_str(&self.line()?)?;
        self.answers.push(answer);
        Ok(())
    }

    /// The median over the steps that count.
    fn median(&self, of: impl Fn(&Answer) -> f64) -> f64 {
        median(&self.answers[1..].iter().map(of).collect::<Vec<_>>())
    }
}

fn race(args: &Args) -> anyhow::Result<()> {
    let recipe = Recipe::read(&args.recipe, &[])?;
    let (model, train) = (&recipe.model, &recipe.train);
    let weights = init_weights(model, recipe.seed);
    let folder = tempfile::tempdir()?;
    write_published(folder.path(), model, &weights)?;
    let settings = Settings {
        batch: train.batch,
        micro_batch: train.micro_batch,
        optimizer: recipe.optimizer.clone(),
    };
    fs::write(
        folder.path().join("step.json"),
        serde_json::to_vec(&settings)?,
    )?;

    let own = std::env::current_exe()?;
    let mut workers = Vec::new();
    for (name, engine) in [("ours", "cpu"), ("autograd", "autograd")] {
        let mut command = Command::new(&own);
        command.arg(folder.path()).args(["--work", engine]);
        workers.push(Worker::start(name, &mut command, args.threads)?);
    }
    if let Some(python) = &args.python {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("versus/nepa_torch.py");
        let mut command = Command::new(python);
        command.arg(script).arg("work").arg(folder.path());
        if let Some(threads) = args.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        workers.push(Worker::start("PyTorch", &mut command, args.threads)?);
    }
    for round in 0..=args.rounds {
        let rescale = RopeDraw::draw(model, recipe.seed, round, 0).rescale;
        for worker in &mut workers {
            worker.step(rescale, 1e-4)?;
        }
    }

    let first = &workers[0];
    let cores = std::thread::available_parallelism()?.get();
    for worker in &workers {
        // Of each round, so that what else the machine does in a round counts for both.
        let ratio = |of: fn(&Answer) -> f64| {
            let rounds = worker.answers[1..].iter().zip(&first.answers[1..]);
            median(&rounds.map(|(a, b)| of(a) / of(b)).collect::<Vec<_>>())
        };
        let off = worker.answers.iter().zip(&first.answers);
        let off = off
            .map(|(a, b)| (a.loss - b.loss).abs())
            .fold(0.0, f64::max);
        println!(
            "| {} | {} / {} | {} | {} | {:.0} | {:.0} | {:.2} | {:.2} | {:.0} | {:.0e} |",
            recipe.name,
            train.batch,
            train.micro_batch,
            args.threads.unwrap_or(cores),
            worker.name,
            worker.median(|answer| answer.wall_ms),
            worker.median(|answer| answer.cpu_ms),
            ratio(|answer| answer.wall_ms),
            ratio(|answer| answer.cpu_ms),
            worker.median(|answer| answer.peak_mib),
            off
        );
    }
    Ok(())
}
