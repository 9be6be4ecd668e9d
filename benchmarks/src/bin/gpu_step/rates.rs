//! Whole steps of the engine that runs use, update included, on one batch that lies on the device.
use std::time::Instant;

use anyhow::ensure;
use candle_core::{DType, Device, Tensor};
use nepa_benchmarks::device_report::{print_measured, print_verdict};
use nepa_benchmarks::median;
use nepa_model::{Ablation, MemoryPlan, NepaConfig, RopeDraw, init_weights};
use nepa_pipeline::cuda::check_device;
use nepa_trainer::cuda::CudaEngine;
use nepa_trainer::device::peak_tflops;
use nepa_trainer::engine::{Engine, Images, StepInput, TrainingSetup, TrainingState};
use nepa_trainer::optimizer::OptimizerConfig;

use crate::models::{Model, device, pixels};

/// Steps before the measurement: the first ones choose the matmuls' algorithms.
const WARM_UP: u64 = 3;

/// Images on the device in bf16, as the loader leaves them; made here and copied, so that no kernel
/// of candle's is needed.
fn on_device(config: &NepaConfig, batch: usize, device: &Device) -> anyhow::Result<Tensor> {
    let side = config.image_size;
    let some = pixels(config, batch.min(8));
    let values = some.iter().flatten().copied().collect::<Vec<_>>();
    let some = Tensor::from_vec(values, (some.len(), 3, side, side), &Device::Cpu)?;
    let some = some.to_dtype(DType::BF16)?;
    let rows = (0..batch as u32).map(|i| i % some.dims()[0] as u32);
    let rows = Tensor::from_iter(rows, &Device::Cpu)?;
    Ok(some.index_select(&rows, 0)?.to_device(device)?)
}

struct Rated {
    seconds: f64,
    loss: f64,
    memory_gib: f64,
}

fn rate(
    config: &NepaConfig,
    state: TrainingState,
    batch: usize,
    steps: usize,
) -> anyhow::Result<Rated> {
    let device = device()?;
    let settings = OptimizerConfig::default();
    let groups = |name: &str| settings.group(name);
    let setup = TrainingSetup {
        config,
        update: settings.settings(),
        groups: &groups,
        micro_batch: batch,
        micro_batches: 1,
        exchange: None,
        ablation: Ablation::default(),
    };
    let mut engine = CudaEngine::new(&setup, state, &device, 0)?;
    let images = on_device(config, batch, &device)?;
    let images = Images::Device(&images);
    let (mut times, mut loss) = (Vec::new(), 0.0);
    for number in 0..steps as u64 + WARM_UP {
        let started = Instant::now();
        loss = engine
            .step(&StepInput::unlabelled(
                images,
                &[RopeDraw::draw(config, 1, number, 0).into()],
            ))?
            .loss;
        engine.update(&settings.rates(1e-5))?;
        if number >= WARM_UP {
            times.push(started.elapsed().as_secs_f64());
        }
    }
    ensure!(loss.is_finite(), "the loss is {loss}");
    let memory = engine.memory().map_or(0, MemoryPlan::total_bytes);
    Ok(Rated {
        seconds: median(&times),
        loss,
        memory_gib: memory as f64 / f64::from(1 << 30),
    })
}

/// A row for each batch: images a pass, ms a step, images/s, MFU where the device's peak is known,
/// memory.
pub(crate) fn print(
    model: Model,
    tiny: bool,
    batches: &[usize],
    steps: usize,
) -> anyhow::Result<bool> {
    let (name, config) = model.config(tiny);
    let peak = peak_tflops(&check_device(0)?.name);
    let state = TrainingState::new(init_weights(&config, 1));
    let mut passed = true;
    for &batch in batches {
        let found = rate(&config, state.clone(), batch, steps).map(|rated| {
            let rate = batch as f64 / rated.seconds;
            let tflops = rate * config.training_flops_per_image() / 1e12;
            let share = peak.map_or_else(
                || format!("{tflops:.1} TFLOP/s, the device's peak is not known"),
                |peak| format!("{:.1} % of {peak:.0} TFLOP/s", 100.0 * tflops / peak),
            );
            [
                format!("{:.1}", 1e3 * rated.seconds),
                format!("{rate:.0}"),
                share,
                format!("{:.2}", rated.memory_gib),
            ]
        });
        passed &= print_measured(&format!("{name}, {batch} images a pass"), &found);
    }
    Ok(passed)
}

/// The engine of B/14 is built and computes some steps.
pub(crate) fn print_engine(tiny: bool, batch: usize) -> bool {
    let (name, config) = Model::B14.config(tiny);
    let started = Instant::now();
    let state = TrainingState::new(init_weights(&config, 1));
    let made = started.elapsed().as_secs_f64();
    let found = rate(&config, state, batch, 1).map(|rated| {
        format!(
            "{} steps of {batch} images, the last one in {:.1} ms, loss {:.4}; plan of {:.2} GiB; \
             {:.1} s in all, weights made in {made:.1}",
            WARM_UP + 1,
            1e3 * rated.seconds,
            rated.loss,
            rated.memory_gib,
            started.elapsed().as_secs_f64()
        )
    });
    print_verdict(&format!("engine of {name}"), &found)
}
