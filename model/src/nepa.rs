//! The model. Shapes: B batch, P patches, T tokens (P + 1, or P in pretraining), D width, H heads.
use candle_core::{DType, Device, Tensor, Var};

use crate::{ModelError, NepaConfig, Weights};

/// The random factors of the rotary coordinates of one forward pass; the default changes nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeDraw {
    /// Added to (y, x).
    pub shift: [f64; 2],
    /// Factors of (y, x).
    pub jitter: [f64; 2],
    /// One factor for both.
    pub rescale: f64,
}

impl Default for RopeDraw {
    fn default() -> Self {
        Self { shift: [0.0; 2], jitter: [1.0; 2], rescale: 1.0 }
    }
}

impl RopeDraw {
    /// Draws from (seed, step, micro-batch) with the ranges of `config`; the same on every machine.
    pub fn draw(_config: &NepaConfig, _seed: u64, _step: u64, _micro_batch: u64) -> Self {
        unimplemented!()
    }
}

/// Both sequences, `[B, T, D]`, class token first.
#[derive(Debug, Clone)]
pub struct NepaOutput {
    /// What goes into the first block.
    pub sequence_input: Tensor,
    /// The final norm's output.
    pub sequence_output: Tensor,
}

/// The pretraining loss (a scalar tensor, on the tape) and the copy diagnostics.
#[derive(Debug)]
pub struct PretrainLoss {
    /// `-mean cos(output[t], embedding[t + 1])`.
    pub loss: Tensor,
    /// Mean cosine of the prediction with the next embedding.
    pub cos_target: f64,
    /// Mean cosine of the prediction with the current embedding.
    pub cos_previous: f64,
    /// Share of positions where the second is greater.
    pub copy_win: f64,
}

/// A NEPA model: one `Var` a weight.
#[derive(Debug)]
pub struct Nepa {
    /// Weights in the order of `Weights::specs`.
    pub vars: Vec<Var>,
}

impl Nepa {
    /// Builds the model from weights on `device` in `dtype` (f32 or f64).
    pub fn new(_config: &NepaConfig, _weights: &Weights, _dtype: DType, _device: &Device) -> Result<Self, ModelError> {
        unimplemented!()
    }

    /// Its configuration.
    pub fn config(&self) -> &NepaConfig {
        unimplemented!()
    }

    /// Copies flat values (in the order of `Weights`) into the vars.
    pub fn set_weights(&self, _flat: &[f32]) -> Result<(), ModelError> {
        unimplemented!()
    }

    /// All T = P + 1 tokens. `causal` normally is the config's `is_causal`. `pixels` is `[B, 3, S, S]`, normalised.
    pub fn forward(&self, _pixels: &Tensor, _rope: &RopeDraw, _causal: bool) -> Result<NepaOutput, ModelError> {
        unimplemented!()
    }

    /// The pretraining loss with T = P tokens through the blocks (the last changes nothing).
    pub fn pretrain_loss(&self, _pixels: &Tensor, _rope: &RopeDraw) -> Result<PretrainLoss, ModelError> {
        unimplemented!()
    }

    /// Adds the gradients of `loss` to `flat` (in the order of `Weights`), scaled by `scale`; a missing gradient is an error.
    pub fn backward_into(&self, _loss: &Tensor, _scale: f32, _flat: &mut [f32]) -> Result<(), ModelError> {
        unimplemented!()
    }

    /// Features for evaluation, `[B, D]`: mean over the patch tokens of the final norm's output.
    pub fn features(&self, _pixels: &Tensor, _causal: bool) -> Result<Tensor, ModelError> {
        unimplemented!()
    }
}
