//! Named weights in one order for all: sorted by name. Reads and writes the published layout.
use std::collections::BTreeMap;
use std::path::Path;

use crate::{ModelError, NepaConfig};

/// Name, shape and place of one weight in the flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// Published name.
    pub name: String,
    /// Shape, PyTorch layout.
    pub shape: Vec<usize>,
    /// First element in the flat buffer.
    pub offset: usize,
}

impl ParamSpec {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// All weights of a model, sorted by name, offsets contiguous.
    pub fn all(_config: &NepaConfig) -> Vec<Self> {
        unimplemented!()
    }
}

/// All weights of a model in one flat f32 buffer, in the order of [`ParamSpec::all`].
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// What lies where.
    pub specs: Vec<ParamSpec>,
    /// The values.
    pub flat: Vec<f32>,
}

/// Reads `config.json` and `model.safetensors`; a missing or surplus weight, or a wrong shape, is an error that names it.
pub fn read_published(_folder: &Path) -> Result<(NepaConfig, Weights), ModelError> {
    let _: BTreeMap<String, ()> = BTreeMap::new();
    unimplemented!()
}

/// Writes `config.json` and `model.safetensors`.
pub fn write_published(_folder: &Path, _config: &NepaConfig, _weights: &Weights) -> Result<(), ModelError> {
    unimplemented!()
}
