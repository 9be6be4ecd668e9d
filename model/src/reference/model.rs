//! The reference model: one `Var` a weight. What it computes: `forward.rs`, `pretraining.rs`,
//! `classification.rs`.
use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};

use crate::{ModelError, NepaConfig, ParamSpec, Weights};

/// Both sequences, `[B, T, D]`, class token first.
#[derive(Debug, Clone)]
pub struct NepaOutput {
    /// What goes into the first block.
    pub sequence_input: Tensor,
    /// The final norm's output.
    pub sequence_output: Tensor,
}

/// A NEPA model: one `Var` a weight.
#[derive(Debug)]
pub struct Nepa {
    /// Weights in the order of [`Weights::specs`].
    pub vars: Vec<Var>,
    pub(super) config: NepaConfig,
    pub(super) specs: Vec<ParamSpec>,
    pub(super) index: HashMap<String, usize>,
    pub(super) dtype: DType,
    pub(super) device: Device,
    /// Operands of matmuls are cast to this type.
    pub(super) matmul: DType,
}

pub(super) const FINAL_NORM: &str = "vit_nepa.layernorm";

pub(super) fn block_name(block: usize) -> String {
    format!("vit_nepa.encoder.layer.{block}")
}

impl Nepa {
    /// Builds the model from weights on `device` in `dtype` (f32 or f64).
    pub fn new(
        config: &NepaConfig,
        weights: &Weights,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        let specs = ParamSpec::all(config);
        let expected = specs.iter().map(ParamSpec::len).sum();
        if weights.flat.len() != expected || weights.specs != specs {
            return Err(ModelError::FlatLength {
                got: weights.flat.len(),
                expected,
            });
        }
        let vars = specs
            .iter()
            .map(|spec| {
                let values =
                    Tensor::from_slice(&weights.flat[spec.range()], spec.shape.as_slice(), device)?;
                Var::from_tensor(&values.to_dtype(dtype)?)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let index = specs
            .iter()
            .enumerate()
            .map(|(i, spec)| (spec.name.clone(), i))
            .collect();
        Ok(Self {
            vars,
            config: config.clone(),
            specs,
            index,
            dtype,
            matmul: dtype,
            device: device.clone(),
        })
    }

    /// Casts operands of matmuls to this type (bfloat16, for speed); weights, residual stream, norms
    /// and softmax stay in the model's own.
    pub fn set_matmul_type(&mut self, matmul: DType) {
        self.matmul = matmul;
    }

    /// Its configuration.
    pub fn config(&self) -> &NepaConfig {
        &self.config
    }

    /// Names, shapes and places of its weights.
    pub fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// Number of its weights' values.
    pub fn num_weights(&self) -> usize {
        self.specs.last().map_or(0, |spec| spec.range().end)
    }

    /// Copies flat values (in the order of `Weights`) into the vars.
    pub fn set_weights(&self, flat: &[f32]) -> Result<(), ModelError> {
        self.check_flat(flat.len())?;
        for (var, spec) in self.vars.iter().zip(&self.specs) {
            let values =
                Tensor::from_slice(&flat[spec.range()], spec.shape.as_slice(), &self.device)?;
            var.set(&values.to_dtype(self.dtype)?)?;
        }
        Ok(())
    }

    /// A copy of its weights in f32, in the order of [`Weights`].
    pub fn flat_weights(&self) -> Result<Vec<f32>, ModelError> {
        let mut flat = Vec::with_capacity(self.num_weights());
        for var in &self.vars {
            let values = var.to_dtype(DType::F32)?.flatten_all()?;
            flat.extend(values.to_vec1::<f32>()?);
        }
        Ok(flat)
    }

    /// Adds the gradients of `loss` to `flat` (in the order of `Weights`), scaled by `scale`; a
    /// missing gradient is an error.
    pub fn backward_into(
        &self,
        loss: &Tensor,
        scale: f32,
        flat: &mut [f32],
    ) -> Result<(), ModelError> {
        self.check_flat(flat.len())?;
        let gradients = self.gradients(loss)?;
        for (gradient, spec) in gradients.into_iter().zip(&self.specs) {
            let values = gradient
                .to_dtype(DType::F32)?
                .flatten_all()?
                .to_vec1::<f32>()?;
            for (sum, value) in flat[spec.range()].iter_mut().zip(values) {
                *sum += scale * value;
            }
        }
        Ok(())
    }

    /// The gradients of `loss`, one a weight, in order and in the model's own type.
    pub fn gradients(&self, loss: &Tensor) -> Result<Vec<Tensor>, ModelError> {
        let mut store = loss.backward()?;
        self.vars
            .iter()
            .zip(&self.specs)
            .map(|(var, spec)| {
                store
                    .remove(var)
                    .ok_or_else(|| ModelError::MissingGradient {
                        name: spec.name.clone(),
                    })
            })
            .collect()
    }

    fn check_flat(&self, got: usize) -> Result<(), ModelError> {
        let expected = self.num_weights();
        if got == expected {
            Ok(())
        } else {
            Err(ModelError::FlatLength { got, expected })
        }
    }
}
