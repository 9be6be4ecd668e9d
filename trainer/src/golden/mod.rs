//! Compares the model and an engine with tensors that the published code computed; `nepa verify`
//! prints the result.
//!
//! A folder holds `config.json`, `model.safetensors`, `reference.safetensors` (pixels, both
//! sequences, loss, every gradient) and, if there is a trajectory, `trajectory.safetensors` and
//! `info.json` (some optimiser steps: losses, norms, final weights, average). That of a classifier
//! is in `classifier.rs`.
mod classifier;
mod comparison;

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use nepa_model::cpu::CpuDevice;
use nepa_model::{
    Ablation, Nepa, NepaConfig, Pass, RopeDraw, Step, StepOptions, Weights, read_published,
};
use serde::Deserialize;

use self::comparison::{
    LOSS_TOLERANCE, Tensors, absolute, engine_for, gradients, greatest_difference, number,
    read_info, relative, weight_of,
};
use crate::engine::{Images, PassDraw, StepInput, TrainingSetup, TrainingState};
use crate::optimizer::{OptimizerConfig, decays};
use crate::recipe::EngineChoice;
use crate::schedule::Schedule;

pub use self::comparison::{Comparison, GoldenError, Measure, grouped};

/// `info.json`'s description of the trajectory.
#[derive(Debug, Deserialize)]
struct Trajectory {
    lr: f64,
    weight_decay: f64,
    beta1: f64,
    beta2: f64,
    warmup_steps: u64,
    total_steps: u64,
    steps: u64,
    max_grad_norm: f64,
    ema_decay: f64,
    #[serde(default)]
    no_decay: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Info {
    #[serde(default)]
    rope_scale: Option<f64>,
    #[serde(default)]
    trajectory: Option<Trajectory>,
}

/// All comparisons that the folder allows, in f32 as a run computes: sequences or logits, loss,
/// gradients and trajectory of that engine.
pub fn compare(folder: &Path, choice: EngineChoice) -> Result<Vec<Comparison>, GoldenError> {
    let (config, weights) = read_published(folder)?;
    if config.is_classifier() {
        return classifier::compare(folder, &config, &weights, choice);
    }
    let model = Nepa::new(&config, &weights, DType::F32, &Device::Cpu)?;
    let mut comparisons = compare_reference(folder, &config, &model, weights.clone(), choice)?;
    let path = folder.join("trajectory.safetensors");
    if path.exists() {
        comparisons.extend(compare_trajectory(folder, &path, &model, weights, choice)?);
    }
    Ok(comparisons)
}

fn compare_reference(
    folder: &Path,
    config: &NepaConfig,
    model: &Nepa,
    weights: Weights,
    choice: EngineChoice,
) -> Result<Vec<Comparison>, GoldenError> {
    let path = folder.join("reference.safetensors");
    let reference = Tensors::read(&path)?;
    reference.check(
        &["pixel_values", "sequence_input", "sequence_output", "loss"],
        &["rope_scale"],
        &["grad."],
        model.specs(),
    )?;
    let rescale = match reference.tensors.get("rope_scale") {
        Some(scale) => number(scale)?,
        None => 1.0,
    };
    let rope = RopeDraw {
        rescale,
        ..RopeDraw::default()
    };
    let pixels = reference.get("pixel_values");
    let [input, output] = sequences(choice, model, &weights, pixels, &rope)?;
    let optimizer = OptimizerConfig::default();
    let setup = TrainingSetup {
        config,
        update: optimizer.settings(),
        groups: &|name| optimizer.group(name),
        micro_batch: pixels.dim(0)?,
        micro_batches: 1,
        exchange: None,
        ablation: Ablation::default(),
    };
    let mut engine = engine_for(choice, &setup, weights)?;
    let passes = [PassDraw::from(rope)];
    let batch = StepInput::unlabelled(Images::Device(pixels), &passes);
    let loss = engine.step(&batch)?.loss;
    let gradient = engine.gradient()?;
    let mut comparisons = vec![
        relative(
            "input sequence",
            "",
            &input,
            reference.get("sequence_input"),
        )?,
        relative(
            "output sequence",
            "",
            &output,
            reference.get("sequence_output"),
        )?,
        absolute("loss", loss, number(reference.get("loss"))?),
    ];
    comparisons.extend(gradients(model.specs(), &gradient, &reference)?);
    Ok(comparisons)
}

/// What goes into the first block and what leaves the final norm, `[B, T, D]`, by what computes an
/// engine's model.
fn sequences(
    choice: EngineChoice,
    model: &Nepa,
    weights: &Weights,
    pixels: &Tensor,
    rope: &RopeDraw,
) -> Result<[Tensor; 2], GoldenError> {
    let config = model.config();
    if choice == EngineChoice::Autograd {
        let output = model.forward(pixels, rope, config.is_causal)?;
        return Ok([output.sequence_input, output.sequence_output]);
    }
    let images = pixels.flatten_from(1)?.to_vec2::<f32>()?;
    let images: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
    let options = StepOptions::inference(config, images.len(), config.is_causal);
    let mut step = Step::new(config, &options, CpuDevice::<f32>::default())?;
    step.load_weights(&weights.flat)?;
    let staged = step.stage(&images)?;
    step.forward(staged, images.len(), &Pass::of(rope))?;
    let shape = (images.len(), (), config.hidden_size);
    Ok([
        Tensor::from_vec(step.read_hidden(0)?, shape, &Device::Cpu)?,
        Tensor::from_vec(step.read_output()?, shape, &Device::Cpu)?,
    ])
}

fn compare_trajectory(
    folder: &Path,
    path: &Path,
    model: &Nepa,
    weights: Weights,
    choice: EngineChoice,
) -> Result<Vec<Comparison>, GoldenError> {
    let bad_info = |detail: String| GoldenError::File {
        path: folder.join("info.json"),
        detail,
    };
    let info: Info = read_info(folder)?;
    let run = info
        .trajectory
        .ok_or_else(|| bad_info("it has no key `trajectory`, but there is a trajectory".into()))?;
    let reference = Tensors::read(path)?;
    let batches: Vec<String> = (0..run.steps).map(|step| format!("batch.{step}")).collect();
    let mut needed = vec!["losses", "grad_norms", "lrs"];
    needed.extend(batches.iter().map(String::as_str));
    reference.check(&needed, &[], &["final.", "ema."], model.specs())?;

    let config = OptimizerConfig {
        beta1: run.beta1,
        beta2: run.beta2,
        weight_decay: run.weight_decay,
        max_grad_norm: Some(run.max_grad_norm),
        ema_decay: Some(run.ema_decay),
        ..OptimizerConfig::default()
    };
    let schedule = Schedule {
        lr: run.lr,
        warmup_steps: run.warmup_steps,
        total_steps: run.total_steps,
        final_lr: 0.0,
    };
    let rope = RopeDraw {
        rescale: info.rope_scale.unwrap_or(1.0),
        ..RopeDraw::default()
    };
    let passes = [PassDraw::from(rope)];
    let (mut losses, mut norms, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    let specs = weights.specs.clone();
    let first = batches.first().map(|batch| reference.get(batch));
    let first = first.ok_or_else(|| bad_info("the trajectory has no step".into()))?;
    let setup = TrainingSetup {
        config: model.config(),
        update: config.settings(),
        groups: &|name| config.group(name),
        micro_batch: first.dim(0)?,
        micro_batches: 1,
        exchange: None,
        ablation: Ablation::default(),
    };
    let mut engine = engine_for(choice, &setup, weights)?;
    for (step, batch) in batches.iter().enumerate() {
        let images = Images::Device(reference.get(batch));
        let report = engine.step(&StepInput::unlabelled(images, &passes))?;
        let rate = schedule.at(step as u64);
        engine.update(&config.rates(rate))?;
        norms.push(report.grad_norm);
        losses.push(report.loss);
        rates.push(rate);
    }
    let TrainingState { weights, optimizer } = engine.export()?;

    let mut comparisons = vec![Comparison {
        what: "trajectory: losses",
        name: String::new(),
        error: greatest_difference(&losses, &reference.numbers("losses")?),
        tolerance: LOSS_TOLERANCE,
        measure: Measure::Absolute,
    }];
    for (what, ours, name) in [
        ("trajectory: gradient norms", &norms, "grad_norms"),
        ("trajectory: learning rates", &rates, "lrs"),
    ] {
        let ours = Tensor::from_slice(ours, ours.len(), &Device::Cpu)?;
        comparisons.push(relative(what, "", &ours, reference.get(name))?);
    }
    if let Some(theirs) = &run.no_decay {
        let theirs: BTreeSet<&str> = theirs.iter().map(String::as_str).collect();
        let ours: BTreeSet<&str> = specs
            .iter()
            .map(|spec| spec.name.as_str())
            .filter(|name| !decays(name))
            .collect();
        comparisons.push(Comparison {
            what: "trajectory: names without decay",
            name: String::new(),
            error: ours.symmetric_difference(&theirs).count() as f64,
            tolerance: 0.0,
            measure: Measure::Absolute,
        });
    }
    for (what, flat, prefix) in [
        ("trajectory: final weights", &weights.flat, "final."),
        ("trajectory: moving average", &optimizer.ema, "ema."),
    ] {
        for spec in &specs {
            comparisons.push(relative(
                what,
                &spec.name,
                &weight_of(flat, spec)?,
                reference.get(&format!("{prefix}{}", spec.name)),
            )?);
        }
    }
    Ok(comparisons)
}
