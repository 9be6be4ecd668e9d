//! The step against the processor's: one step, the gradients of each variant, bits again, and many
//! steps.
use anyhow::{Context, ensure};
use nepa_benchmarks::device_report::{print_verdict, relative};
use nepa_model::cpu::CpuDevice;
use nepa_model::{Ablation, ParamSpec, RopeDraw, init_weights};
use nepa_tests::step_variants::norm;
use nepa_tests::stepping::{self, add};
use nepa_trainer::cuda::CudaEngine;
use nepa_trainer::engine::{CpuEngine, Engine, Images, StepInput, TrainingSetup, TrainingState};
use nepa_trainer::optimizer::OptimizerConfig;

use crate::models::{device, pixels, small, step, variants, weights};

/// A weight's gradient whose values are this share of the mean is compared with that: by its own
/// size it would be rounding.
const LEAST_SHARE: f64 = 1e-3;

/// How far gradients are apart, of the whole and of the worst weight.
fn apart(found: &[f32], expected: &[f32], specs: &[ParamSpec]) -> (f64, f64, String) {
    let each = norm(expected.iter().copied()) / (expected.len() as f64).sqrt();
    let (mut worst, mut worst_name) = (0.0f64, String::new());
    for spec in specs {
        let least = LEAST_SHARE * each * (spec.len() as f64).sqrt();
        let part = relative(&found[spec.range()], &expected[spec.range()], least);
        // It moves all scores of a query alike: nothing but rounding.
        if !spec.name.ends_with("k_norm.bias") && (part > worst || part.is_nan()) {
            (worst, worst_name) = (part, spec.name.clone());
        }
    }
    (relative(found, expected, 0.0), worst, worst_name)
}

/// Loss, gradient and updated weights of one step.
fn twin(tiny: bool) -> anyhow::Result<String> {
    let (config, settings) = (small(tiny), OptimizerConfig::default());
    let pixels = pixels(&config, 4);
    let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let state = || TrainingState::new(weights(&config));
    let device = device()?;
    let groups = |name: &str| settings.group(name);
    let setup = TrainingSetup {
        config: &config,
        update: settings.settings(),
        groups: &groups,
        micro_batch: 4,
        micro_batches: 1,
        exchange: None,
        ablation: Ablation::default(),
    };
    let mut gpu = CudaEngine::new(&setup, state(), &device, 0)?;
    let mut cpu = CpuEngine::new(&setup, state())?;
    let passes = [RopeDraw::draw(&config, 9, 1, 0).into()];
    let input = StepInput::unlabelled(Images::Host(&slices), &passes);
    let (found, expected) = (gpu.step(&input)?, cpu.step(&input)?);
    let loss = (found.loss - expected.loss).abs();
    let specs = state().weights.specs;
    let (whole, worst, name) = apart(&gpu.gradient()?, &cpu.gradient()?, &specs);
    for engine in [&mut gpu as &mut dyn Engine, &mut cpu] {
        engine.update(&settings.rates(1e-3))?;
    }
    let (gpu, cpu) = (gpu.export()?.weights.flat, cpu.export()?.weights.flat);
    let moved = norm(cpu.iter().zip(&state().weights.flat).map(|(a, b)| a - b));
    let off = norm(gpu.iter().zip(&cpu).map(|(a, b)| a - b)) / moved;
    let text = format!(
        "loss {:.4} off by {loss:.1e}, gradient by {whole:.1e}, its worst part by {worst:.1e} \
         ({name}), the update by {off:.1e}",
        expected.loss
    );
    // The first update of AdamW is as large for a small gradient as for a large one: where rounding
    // decides a sign, it is off by all.
    let holds = loss < 5e-3 && whole < 2e-2 && worst < 8e-2 && off < 0.5;
    ensure!(holds, "{text}");
    Ok(text)
}

/// Loss and gradients of each variant.
fn gradients(tiny: bool) -> anyhow::Result<String> {
    let (mut worst_loss, mut worst, mut worst_name) = (0.0f64, 0.0f64, String::new());
    for (name, config) in variants(tiny) {
        let (weights, pixels) = (weights(&config), pixels(&config, 4));
        let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let rope = RopeDraw::draw(&config, 1, 1, 0);
        let device = CpuDevice::<f32>::default();
        let mut cpu = stepping::pretraining(&config, &weights.flat, 4, device)?;
        let reference = add(&mut cpu, &slices, &rope, 1.0)?;
        cpu.finish(None)?;
        let expected = cpu.read_gradient()?;
        let mut step = step(&config, &weights, 4)?;
        let found = add(&mut step, &slices, &rope, 1.0)?;
        step.finish(None)?;
        worst_loss = worst_loss.max((found.loss - reference.loss).abs());
        let (whole, part, part_name) = apart(&step.read_gradient()?, &expected, &weights.specs);
        ensure!(
            whole < 2e-2,
            "{name}: the whole gradient is off by {whole:.1e}"
        );
        if part > worst || part.is_nan() {
            (worst, worst_name) = (part, format!("{name}: {part_name}"));
        }
    }
    ensure!(worst_loss < 5e-3, "a loss is off by {worst_loss:.1e}");
    ensure!(worst < 8e-2, "{worst_name} is off by {worst:.1e}");
    Ok(format!(
        "losses within {worst_loss:.1e}, worst weight's gradient {worst:.1e} ({worst_name})"
    ))
}

fn repeats(tiny: bool) -> anyhow::Result<String> {
    let (_, config) = &variants(tiny)[1];
    let (weights, pixels) = (weights(config), pixels(config, 8));
    let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
    // The second run takes the algorithms that the first one chose, as a run that goes on does.
    let mut chosen = None;
    let mut run = || {
        let mut step = step(config, &weights, 8)?;
        if let Some(chosen) = &chosen {
            let launcher = step.device_mut().launcher_mut();
            let taken = launcher.take_algorithms(chosen);
            ensure!(taken, "the chosen algorithms are not taken again");
        }
        let report = add(&mut step, &slices, &RopeDraw::default(), 1.0)?;
        step.finish(None)?;
        chosen = Some(step.device().launcher().chosen_algorithms());
        anyhow::Ok((report, step.read_gradient()?))
    };
    ensure!(run()? == run()?, "two runs differ");
    Ok("loss and gradient bit for bit, with the matmuls' algorithms taken again".into())
}

/// Both engines on one batch, over which the loss falls far.
fn trains(tiny: bool) -> anyhow::Result<String> {
    let (steps, mean_of, lr) = if tiny { (10, 2, 3e-3) } else { (500, 50, 1e-4) };
    let (config, settings) = (small(tiny), OptimizerConfig::default());
    let pixels = pixels(&config, 8);
    let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let state = || TrainingState::new(init_weights(&config, 5));
    let device = device()?;
    let groups = |name: &str| settings.group(name);
    let setup = TrainingSetup {
        config: &config,
        update: settings.settings(),
        groups: &groups,
        micro_batch: 8,
        micro_batches: 1,
        exchange: None,
        ablation: Ablation::default(),
    };
    let mut gpu = CudaEngine::new(&setup, state(), &device, 0)?;
    let mut cpu = CpuEngine::new(&setup, state())?;
    let (mut sums, mut worst, mut first, mut last) = ((0.0, 0.0), 0.0f64, None, 0.0);
    for number in 1..=steps {
        let passes = [RopeDraw::draw(&config, 9, number, 0).into()];
        let input = StepInput::unlabelled(Images::Host(&slices), &passes);
        sums.0 += gpu.step(&input)?.loss;
        sums.1 += cpu.step(&input)?.loss;
        for engine in [&mut gpu as &mut dyn Engine, &mut cpu] {
            let lr = lr * (number as f64 / mean_of as f64).min(1.0);
            engine.update(&settings.rates(lr))?;
        }
        // Means: where the loss jumps, it jumps a little earlier or later. The loss goes from 0 to
        // -1, so its own size is no measure.
        if number % mean_of == 0 {
            let of = mean_of as f64;
            let apart = (sums.0 - sums.1).abs() / of;
            worst = if apart <= worst { worst } else { apart };
            first.get_or_insert(sums.0 / of);
            last = sums.0 / of;
            sums = (0.0, 0.0);
        }
    }
    let first = first.context("some steps")?;
    ensure!(
        worst < 1e-2,
        "means of {mean_of} losses differ by {worst:.1e}"
    );
    ensure!(last < first - 0.05, "it does not learn: {first} {last}");
    Ok(format!(
        "{steps} steps: loss {first:.3} to {last:.3}, means of {mean_of} within {worst:.1e}"
    ))
}

pub(crate) fn print_twin(tiny: bool) -> bool {
    print_verdict("one step against its twin on the CPU", &twin(tiny))
}

pub(crate) fn print_gradients(tiny: bool) -> bool {
    print_verdict("gradients against the f32 engine", &gradients(tiny))
}

pub(crate) fn print_repeats(tiny: bool) -> bool {
    print_verdict("the same bits again", &repeats(tiny))
}

pub(crate) fn print_trains(tiny: bool) -> bool {
    print_verdict("training against the f32 engine", &trains(tiny))
}
