//! Compares the model and an engine with tensors that the published code computed; `nepa verify`
//! prints the result.
//!
//! A folder holds `config.json`, `model.safetensors`, `reference.safetensors` (pixels, both
//! sequences, loss, every gradient) and, if there is a trajectory, `trajectory.safetensors` and
//! `info.json` (some optimiser steps: losses, norms, final weights, average).
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use nepa_model::cpu::CpuDevice;
use nepa_model::{
    ModelError, Nepa, NepaConfig, ParamSpec, Pass, RopeDraw, Step, StepOptions, Weights,
    read_published,
};
use serde::Deserialize;

use crate::console::messages::quoted_path;
use crate::engine::{Engine, EngineError, Images, TrainingState};
use crate::optimizer::{OptimizerConfig, decays};
use crate::recipe::{EngineChoice, Precision};
use crate::run::build_engine;
use crate::schedule::Schedule;

/// Greatest absolute error of a loss.
const LOSS_TOLERANCE: f64 = 1e-6;
/// Greatest relative error of everything else.
const TOLERANCE: f64 = 1e-5;

/// How an error is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// `|a - b|`, the greatest over all values.
    Absolute,
    /// `|a - b|_2 / |b|_2`.
    Relative,
}

/// One comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What is compared, in plural for those with names: `gradients`, `final weights`, ...
    pub what: &'static str,
    /// Name of the weight, or empty.
    pub name: String,
    /// How far off.
    pub error: f64,
    /// How far off it may be.
    pub tolerance: f64,
    /// How that is measured.
    pub measure: Measure,
}

impl Comparison {
    /// Whether it holds; not for NaN.
    pub fn holds(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// A folder cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// Weights, configuration or computation.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A tensor has an unexpected shape or type.
    #[error("a tensor of the reference does not fit the model: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The engine, or the optimiser's settings in `info.json`.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A file is missing or damaged.
    #[error("cannot read {}: {detail}", quoted_path(path))]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// Tensors are missing or of unknown weights.
    #[error("{}: {} missing: {}; {} not of this model: {}", path.display(), missing.len(), missing.join(", "), surplus.len(), surplus.join(", "))]
    Names {
        /// Which file.
        path: PathBuf,
        /// Names that should be there.
        missing: Vec<String>,
        /// Names that should not.
        surplus: Vec<String>,
    },
}

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

/// All comparisons that the folder allows, in f32 as a run computes: sequences, loss, gradients and
/// trajectory of that engine.
pub fn compare(folder: &Path, choice: EngineChoice) -> Result<Vec<Comparison>, GoldenError> {
    let (config, weights) = read_published(folder)?;
    let model = Nepa::new(&config, &weights, DType::F32, &Device::Cpu)?;
    let mut comparisons = compare_reference(folder, &config, &model, weights.clone(), choice)?;
    let path = folder.join("trajectory.safetensors");
    if path.exists() {
        comparisons.extend(compare_trajectory(folder, &path, &model, weights, choice)?);
    }
    Ok(comparisons)
}

/// An engine for batches like `pixels`.
fn engine_for(
    choice: EngineChoice,
    config: &NepaConfig,
    optimizer: &OptimizerConfig,
    weights: Weights,
    pixels: &Tensor,
) -> Result<Box<dyn Engine>, GoldenError> {
    let micro_batch = pixels.dim(0)?;
    let training = TrainingState::new(weights);
    let precision = Precision::F32;
    let device = Device::Cpu;
    Ok(build_engine(
        choice,
        precision,
        config,
        optimizer,
        training,
        micro_batch,
        &device,
        0,
    )?)
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
        model,
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
    let mut engine = engine_for(choice, config, &optimizer, weights, pixels)?;
    let loss = engine.step(&Images::Device(pixels), &[rope])?.loss;
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
    for spec in model.specs() {
        comparisons.push(relative(
            "gradients",
            &spec.name,
            &weight_of(&gradient, spec)?,
            reference.get(&format!("grad.{}", spec.name)),
        )?);
    }
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
    let info_path = folder.join("info.json");
    let bad_info = |detail: String| GoldenError::File {
        path: info_path.clone(),
        detail,
    };
    let text = std::fs::read(&info_path).map_err(|error| bad_info(error.to_string()))?;
    let info: Info = serde_json::from_slice(&text).map_err(|error| bad_info(error.to_string()))?;
    let run = info
        .trajectory
        .ok_or_else(|| bad_info("it has no key `trajectory`, but there is a trajectory".into()))?;
    let reference = Tensors::read(path)?;
    let batches: Vec<String> = (0..run.steps).map(|step| format!("batch.{step}")).collect();
    let mut needed = vec!["losses", "grad_norms", "lrs"];
    needed.extend(batches.iter().map(String::as_str));
    reference.check(&needed, &[], &["final.", "ema."], model)?;

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
    let (mut losses, mut norms, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    let specs = weights.specs.clone();
    let first = batches.first().map(|batch| reference.get(batch));
    let first = first.ok_or_else(|| bad_info("the trajectory has no step".into()))?;
    let mut engine = engine_for(choice, model.config(), &config, weights, first)?;
    for (step, batch) in batches.iter().enumerate() {
        let report = engine.step(&Images::Device(reference.get(batch)), &[rope])?;
        let rate = schedule.at(step as u64);
        engine.update(rate)?;
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

/// One weight's values of a flat buffer.
fn weight_of(flat: &[f32], spec: &ParamSpec) -> candle_core::Result<Tensor> {
    Tensor::from_slice(&flat[spec.range()], spec.shape.as_slice(), &Device::Cpu)
}

/// A safetensors file, whole in memory.
struct Tensors {
    path: PathBuf,
    tensors: HashMap<String, Tensor>,
}

impl Tensors {
    fn read(path: &Path) -> Result<Self, GoldenError> {
        let failed = |detail: String| GoldenError::File {
            path: path.into(),
            detail,
        };
        let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .map_err(|error| failed(format!("not a whole safetensors file: {error}")))?;
        Ok(Self {
            path: path.into(),
            tensors,
        })
    }

    /// Proves that all `needed` tensors are there, one a weight under each of `prefixes`, and under
    /// them no other.
    fn check(
        &self,
        needed: &[&str],
        optional: &[&str],
        prefixes: &[&str],
        model: &Nepa,
    ) -> Result<(), GoldenError> {
        let mut expected: BTreeSet<String> = needed.iter().map(|name| (*name).to_owned()).collect();
        for prefix in prefixes {
            expected.extend(
                model
                    .specs()
                    .iter()
                    .map(|spec| format!("{prefix}{}", spec.name)),
            );
        }
        let missing: Vec<String> = expected
            .iter()
            .filter(|name| !self.tensors.contains_key(*name))
            .cloned()
            .collect();
        let surplus: BTreeSet<String> = self
            .tensors
            .keys()
            .filter(|name| !expected.contains(*name) && !optional.contains(&name.as_str()))
            .cloned()
            .collect();
        if missing.is_empty() && surplus.is_empty() {
            return Ok(());
        }
        Err(GoldenError::Names {
            path: self.path.clone(),
            missing,
            surplus: surplus.into_iter().collect(),
        })
    }

    /// A tensor that [`Tensors::check`] has proven to be there.
    fn get(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    fn numbers(&self, name: &str) -> Result<Vec<f64>, GoldenError> {
        Ok(doubles(self.get(name))?)
    }
}

fn doubles(tensor: &Tensor) -> candle_core::Result<Vec<f64>> {
    tensor
        .detach()
        .to_dtype(DType::F64)?
        .flatten_all()?
        .to_vec1::<f64>()
}

/// The one value of a tensor.
fn number(tensor: &Tensor) -> candle_core::Result<f64> {
    let values = doubles(tensor)?;
    match values[..] {
        [value] => Ok(value),
        _ => candle_core::bail!("one number expected, not the shape {:?}", tensor.dims()),
    }
}

fn greatest_difference(ours: &[f64], theirs: &[f64]) -> f64 {
    if ours.len() != theirs.len() {
        return f64::INFINITY;
    }
    // `max` would drop a NaN.
    ours.iter()
        .zip(theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(
            0.0,
            |worst, error| if error <= worst { worst } else { error },
        )
}

fn absolute(what: &'static str, ours: f64, theirs: f64) -> Comparison {
    let error = greatest_difference(&[ours], &[theirs]);
    Comparison {
        what,
        name: String::new(),
        error,
        tolerance: LOSS_TOLERANCE,
        measure: Measure::Absolute,
    }
}

fn relative(
    what: &'static str,
    name: &str,
    ours: &Tensor,
    theirs: &Tensor,
) -> candle_core::Result<Comparison> {
    if ours.dims() != theirs.dims() {
        candle_core::bail!(
            "{what} {name}: ours has the shape {:?}, the reference {:?}",
            ours.dims(),
            theirs.dims()
        );
    }
    let (ours, theirs) = (doubles(ours)?, doubles(theirs)?);
    let norm = |values: &mut dyn Iterator<Item = f64>| {
        values.map(|value| value * value).sum::<f64>().sqrt()
    };
    let off = norm(&mut ours.iter().zip(&theirs).map(|(a, b)| a - b));
    let size = norm(&mut theirs.iter().copied());
    let error = if size > 0.0 { off / size } else { off };
    Ok(Comparison {
        what,
        name: name.into(),
        error,
        tolerance: TOLERANCE,
        measure: Measure::Relative,
    })
}

/// Groups by what is compared, in order of first appearance, each group's worst first.
pub fn grouped(comparisons: &[Comparison]) -> Vec<Vec<&Comparison>> {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut groups: Vec<Vec<&Comparison>> = Vec::new();
    for comparison in comparisons {
        let place = *places.entry(comparison.what).or_insert(groups.len());
        if place == groups.len() {
            groups.push(Vec::new());
        }
        groups[place].push(comparison);
    }
    for group in &mut groups {
        group.sort_by(|a, b| b.error.total_cmp(&a.error));
    }
    groups
}
