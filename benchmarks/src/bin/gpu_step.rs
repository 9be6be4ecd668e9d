//! Does the training step on the GPU give what the processor's gives, and how far is each of its kernels and products from what the device can?
//!
//! Prints Markdown; ends with code 1 if a test failed. Run by scripts/gpu-check, which puts PyTorch beside it.
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, ensure};
use candle_core::Device;
use clap::Parser;
use nepa_benchmarks::median;
use nepa_model::cuda::{CudaStepDevice, CudaStepError};
use nepa_model::kernel_step::arguments::{Launch, Work};
use nepa_model::kernel_step::{FlatState, KernelStep, Product, StepDevice};
use nepa_model::{ExplicitNepa, MemoryPlan, NepaConfig, RopeDraw, Weights, init_weights};
use nepa_pipeline::cuda::cudarc::driver::{CudaContext, CudaEvent, CudaStream, sys};
use nepa_tests::step_variants::{off, variants_of};
use nepa_trainer::cpu_engine::CpuEngine;
use nepa_trainer::cuda::CudaEngine;
use nepa_trainer::engine::{Engine, Images, TrainingState};
use nepa_trainer::optimizer::OptimizerConfig;

/// Tests and rates of the training step on CUDA device 0.
#[derive(Debug, Parser)]
struct Args {
    /// Images of each forward and backward pass of the rates.
    #[arg(long, value_delimiter = ',', default_value = "64,128,256")]
    batches: Vec<usize>,
    /// Steps of each rate.
    #[arg(long, default_value_t = 10)]
    steps: usize,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let mut failed = false;
    println!("## Training step\n\n| test | result |\n|---|---|");
    for (name, test) in [
        (
            "gradients against the f32 engine",
            gradients as fn() -> anyhow::Result<String>,
        ),
        ("the same bits again", repeats),
        ("500 steps against the f32 engine", trains),
    ] {
        match test() {
            Ok(found) => println!("| {name} | {found} |"),
            Err(error) => {
                failed = true;
                println!("| {name}: {error:#} | FAILED |");
            }
        }
    }
    println!(
        "\n| model | images a pass | ms a step | images/s | MFU of 989 TFLOP/s | memory, GiB |\n|---|---|---|---|---|---|"
    );
    let mut profiled = None;
    for (name, config) in [
        ("B/14", NepaConfig::base_14()),
        ("L/14", NepaConfig::large_14()),
    ] {
        for &batch in &args.batches {
            match rate(&config, batch, args.steps) {
                Ok(row) => {
                    println!("| {name} | {batch} | {row} |");
                    if name == "B/14" {
                        profiled = Some((config.clone(), batch));
                    }
                }
                Err(error) => println!("| {name} | {batch} | {error:#} | | | |"),
            }
        }
    }
    if let Some((config, batch)) = profiled {
        profile(&config, batch)?;
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Heads of 64, 64 patches; LayerScale such that the blocks matter.
fn small() -> NepaConfig {
    NepaConfig {
        hidden_size: 192,
        num_attention_heads: 3,
        num_hidden_layers: 3,
        intermediate_size: 384,
        image_size: 112,
        patch_size: 14,
        layerscale_value: 0.5,
        ..NepaConfig::base_14()
    }
}

fn variants() -> [(&'static str, NepaConfig); 4] {
    let [gelu, gated, bidirectional] = variants_of(&small());
    [
        gelu,
        gated,
        bidirectional,
        (
            "256 tokens",
            NepaConfig {
                num_hidden_layers: 1,
                image_size: 224,
                ..small()
            },
        ),
    ]
}

fn pixels(config: &NepaConfig, batch: usize) -> Vec<Vec<f32>> {
    let len = 3 * config.image_size * config.image_size;
    let value = |image: usize, i: usize| {
        let noise = (i * 31 + image * 7919) % 255;
        ((i * (image + 3)) as f32 / 997.0).sin() * 0.7 + noise as f32 / 255.0 - 0.5
    };
    let image = |image| (0..len).map(|i| value(image, i)).collect();
    (0..batch).map(image).collect()
}

fn weights(config: &NepaConfig) -> Weights {
    let mut weights = init_weights(config, 3);
    for spec in weights.specs.clone() {
        if spec.shape.len() > 1 {
            for value in &mut weights.flat[spec.range()] {
                *value *= 2.0;
            }
        }
    }
    weights
}

fn stream() -> anyhow::Result<std::sync::Arc<CudaStream>> {
    Ok(CudaContext::new(0)?.new_stream()?)
}

/// A step that holds these weights.
fn step(
    config: &NepaConfig,
    weights: &Weights,
    batch: usize,
) -> anyhow::Result<KernelStep<CudaStepDevice>> {
    let mut step = KernelStep::new(config, batch, CudaStepDevice::new(stream()?)?)?;
    step.load(&FlatState::new(weights.flat.clone()))?;
    Ok(step)
}

/// Loss and gradients of each variant.
fn gradients() -> anyhow::Result<String> {
    let (mut worst_loss, mut worst, mut worst_name) = (0.0f64, 0.0f64, String::new());
    for (name, config) in variants() {
        let (weights, pixels) = (weights(&config), pixels(&config, 4));
        let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let rope = RopeDraw::draw(&config, 1, 1, 0);
        let mut expected = vec![0.0; weights.flat.len()];
        let mut explicit = ExplicitNepa::<f32>::new(&config, 4)?;
        let reference = explicit.add_gradient(&weights.flat, &slices, &rope, 1.0, &mut expected)?;
        explicit.finish(&weights.flat, &mut expected);
        let mut step = step(&config, &weights, 4)?;
        step.clear_gradient()?;
        let staged = step.stage(&slices)?;
        let found = step.add_gradient(staged, &rope, 1.0)?;
        step.finish(None)?;
        let gradient = step.read_gradient()?;
        worst_loss = worst_loss.max((found.loss - reference.loss).abs());
        let whole = off(&gradient, &expected);
        ensure!(
            whole < 2e-2,
            "{name}: the whole gradient is off by {whole:.1e}"
        );
        for spec in &weights.specs {
            let part = off(&gradient[spec.range()], &expected[spec.range()]);
            // It moves all scores of a query alike: nothing but rounding.
            if !spec.name.ends_with("k_norm.bias") && (part > worst || part.is_nan()) {
                (worst, worst_name) = (part, format!("{name}: {}", spec.name));
            }
        }
    }
    ensure!(worst_loss < 5e-3, "a loss is off by {worst_loss:.1e}");
    ensure!(worst < 8e-2, "{worst_name} is off by {worst:.1e}");
    Ok(format!(
        "losses within {worst_loss:.1e}, worst weight's gradient {worst:.1e} ({worst_name})"
    ))
}

fn repeats() -> anyhow::Result<String> {
    let (_, config) = &variants()[1];
    let (weights, pixels) = (weights(config), pixels(config, 8));
    let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let run = || {
        let mut step = step(config, &weights, 8)?;
        step.clear_gradient()?;
        let staged = step.stage(&slices)?;
        let report = step.add_gradient(staged, &RopeDraw::default(), 1.0)?;
        step.finish(None)?;
        anyhow::Ok((report, step.read_gradient()?))
    };
    ensure!(run()? == run()?, "two runs differ");
    Ok("loss and gradient bit for bit".into())
}

/// Both engines on one batch, over which the loss falls far.
fn trains() -> anyhow::Result<String> {
    let (config, settings) = (small(), OptimizerConfig::default());
    let pixels = pixels(&config, 8);
    let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let state = || TrainingState::new(init_weights(&config, 5));
    let device = Device::new_cuda(0)?;
    let mut gpu = CudaEngine::new(&config, &settings, state(), 8, &device, 0)?;
    let mut cpu = CpuEngine::new(&config, &settings, state(), 8)?;
    let (mut sums, mut worst, mut first, mut last) = ((0.0, 0.0), 0.0f64, None, 0.0);
    for number in 1..=500u64 {
        let rope = [RopeDraw::draw(&config, 9, number, 0)];
        let images = Images::Host(&slices);
        sums.0 += gpu.step(&images, &rope)?.loss;
        sums.1 += cpu.step(&images, &rope)?.loss;
        for engine in [&mut gpu as &mut dyn Engine, &mut cpu] {
            engine.update(1e-4 * (number as f64 / 50.0).min(1.0))?;
        }
        // Means: where the loss jumps, it jumps a little earlier or later.
        if number % 50 == 0 {
            worst = worst.max(((sums.0 - sums.1) / sums.1).abs());
            first.get_or_insert(sums.0 / 50.0);
            last = sums.0 / 50.0;
            sums = (0.0, 0.0);
        }
    }
    let first = first.context("500 steps")?;
    ensure!(worst < 1e-2, "means of 50 losses differ by {worst:.1e}");
    ensure!(last < first - 0.05, "it does not learn: {first} {last}");
    Ok(format!(
        "loss {first:.3} to {last:.3}, means of 50 within {worst:.1e}"
    ))
}

/// FLOPs of training on one image: attention at half where it is causal; the embedding forward and its weights' gradient only.
fn flops_an_image(config: &NepaConfig) -> f64 {
    let (d, mlp, p) = (
        config.hidden_size as f64,
        config.intermediate_size as f64,
        config.num_patches() as f64,
    );
    let mlp_products = if config.use_gated_mlp { 3.0 } else { 2.0 };
    let block = 2.0 * (4.0 * d * d + mlp_products * d * mlp) + 2.0 * p * d;
    let embedding = 2.0 * d * (3 * config.patch_size * config.patch_size) as f64;
    p * (3.0 * config.num_hidden_layers as f64 * block + 2.0 * embedding)
}

/// A row of the rates: whole steps, update included, on one staged batch.
fn rate(config: &NepaConfig, batch: usize, steps: usize) -> anyhow::Result<String> {
    let device = Device::new_cuda(0)?;
    let settings = OptimizerConfig::default();
    let state = TrainingState::new(init_weights(config, 1));
    let mut engine = CudaEngine::new(config, &settings, state, batch, &device, 0)?;
    let side = config.image_size;
    let pixels = candle_core::Tensor::rand(-1f32, 1f32, (batch, 3, side, side), &device)?;
    let images = Images::Device(&pixels);
    let mut times = Vec::new();
    for number in 0..steps as u64 + 3 {
        let started = Instant::now();
        engine.step(&images, &[RopeDraw::draw(config, 1, number, 0)])?;
        engine.update(1e-5)?;
        // The first ones choose the products' algorithms.
        if number >= 3 {
            times.push(started.elapsed().as_secs_f64());
        }
    }
    let time = median(&times);
    let memory = engine.memory().map_or(0, MemoryPlan::total_bytes);
    let rate = batch as f64 / time;
    Ok(format!(
        "{:.1} | {rate:.0} | {:.1} % | {:.1}",
        1e3 * time,
        100.0 * rate * flops_an_image(config) / 989e12,
        memory as f64 / f64::from(1 << 30)
    ))
}

/// What one kind of launch took in a step.
#[derive(Debug, Default, Clone)]
struct Spent {
    calls: usize,
    ms: f64,
    work: Work,
}

/// A device that times every launch and product between two events.
struct Timed {
    device: CudaStepDevice,
    spent: Rc<RefCell<BTreeMap<String, Spent>>>,
}

impl Timed {
    fn event(&self) -> Result<CudaEvent, CudaStepError> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = self.device.stream().context().new_event(flags);
        event.map_err(|error| timing(&error))
    }

    fn time(
        &mut self,
        name: String,
        work: Work,
        run: impl FnOnce(&mut CudaStepDevice) -> Result<(), CudaStepError>,
    ) -> Result<(), CudaStepError> {
        let (start, end) = (self.event()?, self.event()?);
        let stream = std::sync::Arc::clone(self.device.stream());
        start.record(&stream).map_err(|error| timing(&error))?;
        run(&mut self.device)?;
        end.record(&stream).map_err(|error| timing(&error))?;
        let ms = start.elapsed_ms(&end).map_err(|error| timing(&error))?;
        let mut spent = self.spent.borrow_mut();
        let entry = spent.entry(name).or_default();
        entry.calls += 1;
        entry.ms += f64::from(ms);
        entry.work.bytes += work.bytes;
        entry.work.flops += work.flops;
        Ok(())
    }
}

fn timing(error: &dyn std::error::Error) -> CudaStepError {
    CudaStepError::Driver {
        doing: "timing",
        detail: error.to_string(),
    }
}

impl StepDevice for Timed {
    type Error = CudaStepError;

    fn allocate(&mut self, num_bytes: u64) -> Result<u64, CudaStepError> {
        self.device.allocate(num_bytes)
    }
    fn launch<A: Copy>(&mut self, launch: Launch<A>) -> Result<(), CudaStepError> {
        self.time(launch.kernel().to_owned(), launch.work(), |device| {
            device.launch(launch)
        })
    }
    fn multiply(&mut self, product: Product) -> Result<(), CudaStepError> {
        let Product { m, n, k, .. } = product;
        let work = Work {
            bytes: 0,
            flops: 2 * (m * n * k) as u64,
        };
        self.time(format!("product {m} x {k} by {k} x {n}"), work, |device| {
            device.multiply(product)
        })
    }
    fn zero(&mut self, address: u64, num_bytes: u64) -> Result<(), CudaStepError> {
        self.device.zero(address, num_bytes)
    }
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), CudaStepError> {
        self.device.write(address, bytes)
    }
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), CudaStepError> {
        self.device.read(address, bytes)
    }
}

/// One step, launch by launch.
fn profile(config: &NepaConfig, batch: usize) -> anyhow::Result<()> {
    let spent = Rc::new(RefCell::new(BTreeMap::new()));
    let device = Timed {
        device: CudaStepDevice::new(stream()?)?,
        spent: Rc::clone(&spent),
    };
    let mut step = KernelStep::new(config, batch, device)?;
    step.load(&FlatState::new(init_weights(config, 1).flat))?;
    let pixels = pixels(config, batch);
    let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let staged = step.stage(&slices)?;
    step.set_groups(|_| (0.0, 1.0))?;
    // The first round chooses the products' algorithms.
    for _ in 0..2 {
        spent.borrow_mut().clear();
        step.clear_gradient()?;
        step.add_gradient(staged, &RopeDraw::default(), 1.0)?;
        step.finish(Some(1.0))?;
        step.update(&nepa_model::kernel_step::Update {
            step: 1,
            lr: 1e-5,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            average_decay: Some(0.9999),
        })?;
    }
    println!(
        "\nOne step of B/14 with {batch} images, each launch between two events (which adds some microseconds each).\n\n\
         | launch | calls | ms in all | TB/s | TFLOP/s |\n|---|---|---|---|---|"
    );
    let mut spent = spent.borrow().clone().into_iter().collect::<Vec<_>>();
    spent.sort_by(|a, b| b.1.ms.total_cmp(&a.1.ms));
    let total: f64 = spent.iter().map(|(_, spent)| spent.ms).sum();
    for (name, Spent { calls, ms, work }) in spent {
        let rate = |amount: u64| {
            if amount == 0 {
                String::new()
            } else {
                format!("{:.2}", amount as f64 / ms / 1e9)
            }
        };
        let (bytes, flops) = (rate(work.bytes), rate(work.flops));
        println!("| {name} | {calls} | {ms:.3} | {bytes} | {flops} |");
    }
    println!("| all | | {total:.1} | | |");
    Ok(())
}
