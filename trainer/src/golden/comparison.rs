//! What is compared with a reference, how far off it may be, and the files that hold references.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use nepa_model::{ModelError, ParamSpec, Weights};
use serde::de::DeserializeOwned;

use crate::console::messages::quoted_path;
use crate::engine::{Engine, EngineError, TrainingSetup, TrainingState};
use crate::recipe::{EngineChoice, Precision};
use crate::run::build_engine;

/// Greatest absolute error of a loss.
pub(super) const LOSS_TOLERANCE: f64 = 1e-6;
/// Greatest relative error of everything else.
pub(super) const TOLERANCE: f64 = 1e-5;

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

/// An engine in f32 on the processor.
pub(super) fn engine_for(
    choice: EngineChoice,
    setup: &TrainingSetup<'_>,
    weights: Weights,
) -> Result<Box<dyn Engine>, GoldenError> {
    let training = TrainingState::new(weights);
    let choice = (choice, Precision::F32);
    Ok(build_engine(choice, setup, training, &Device::Cpu, 0)?)
}

/// What `info.json` says.
pub(super) fn read_info<I: DeserializeOwned>(folder: &Path) -> Result<I, GoldenError> {
    let path = folder.join("info.json");
    let read = || -> Result<I, String> {
        let text = std::fs::read(&path).map_err(|error| error.to_string())?;
        serde_json::from_slice(&text).map_err(|error| error.to_string())
    };
    read().map_err(|detail| GoldenError::File {
        path: path.clone(),
        detail,
    })
}

/// One weight's values of a flat buffer.
pub(super) fn weight_of(flat: &[f32], spec: &ParamSpec) -> candle_core::Result<Tensor> {
    Tensor::from_slice(&flat[spec.range()], spec.shape.as_slice(), &Device::Cpu)
}

/// A safetensors file, whole in memory.
pub(super) struct Tensors {
    pub(super) path: PathBuf,
    pub(super) tensors: HashMap<String, Tensor>,
}

impl Tensors {
    pub(super) fn read(path: &Path) -> Result<Self, GoldenError> {
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
    pub(super) fn check(
        &self,
        needed: &[&str],
        optional: &[&str],
        prefixes: &[&str],
        specs: &[ParamSpec],
    ) -> Result<(), GoldenError> {
        let mut expected: BTreeSet<String> = needed.iter().map(|name| (*name).to_owned()).collect();
        for prefix in prefixes {
            expected.extend(specs.iter().map(|spec| format!("{prefix}{}", spec.name)));
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
    pub(super) fn get(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    pub(super) fn numbers(&self, name: &str) -> Result<Vec<f64>, GoldenError> {
        Ok(doubles(self.get(name))?)
    }
}

pub(super) fn doubles(tensor: &Tensor) -> candle_core::Result<Vec<f64>> {
    tensor
        .detach()
        .to_dtype(DType::F64)?
        .flatten_all()?
        .to_vec1::<f64>()
}

/// The one value of a tensor.
pub(super) fn number(tensor: &Tensor) -> candle_core::Result<f64> {
    let values = doubles(tensor)?;
    match values[..] {
        [value] => Ok(value),
        _ => candle_core::bail!("one number expected, not the shape {:?}", tensor.dims()),
    }
}

pub(super) fn greatest_difference(ours: &[f64], theirs: &[f64]) -> f64 {
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

pub(super) fn absolute(what: &'static str, ours: f64, theirs: f64) -> Comparison {
    let error = greatest_difference(&[ours], &[theirs]);
    Comparison {
        what,
        name: String::new(),
        error,
        tolerance: LOSS_TOLERANCE,
        measure: Measure::Absolute,
    }
}

pub(super) fn relative(
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

/// Each weight's part of a gradient beside the reference's.
pub(super) fn gradients(
    specs: &[ParamSpec],
    gradient: &[f32],
    reference: &Tensors,
) -> Result<Vec<Comparison>, GoldenError> {
    let compare = |spec: &ParamSpec| {
        let ours = weight_of(gradient, spec)?;
        let theirs = reference.get(&format!("grad.{}", spec.name));
        Ok(relative("gradients", &spec.name, &ours, theirs)?)
    };
    specs.iter().map(compare).collect()
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
