//! What trains: a batch in, a loss out, then an update. The run does not know which engine it drives.
//!
//! [`TapeEngine`], on candle's tape and flat host buffers, is the first; engines with explicit kernels come beside it.

use nepa_model::Weights;



/// All that training changes, of one step; flat buffers in the order of `weights.specs`.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingState {
    /// Optimiser steps done.
    pub step: u64,
    /// Weights.
    pub weights: Weights,
    /// AdamW's first moment.
    pub first_moment: Vec<f32>,
    /// AdamW's second moment.
    pub second_moment: Vec<f32>,
    /// Moving average of the weights; before the first step the weights themselves.
    pub ema: Vec<f32>,
}

impl TrainingState {
    /// The state before the first step.
    pub fn new(weights: Weights) -> Self {
        let zeros = vec![0.0; weights.flat.len()];
        let ema = weights.flat.clone();
        Self { step: 0, first_moment: zeros.clone(), second_moment: zeros, ema, weights }
    }
}

/// What one forward and backward pass over a whole batch found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean loss.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Mean cosine of the prediction with the next embedding.
    pub cos_target: f64,
    /// Mean cosine of the prediction with the current embedding.
    pub cos_previous: f64,
    /// Share of positions where the second is greater.
    pub copy_win: f64,
}

/// Peak-relative learning rates of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRates {
    /// Of all weights but the embeddings.
    pub main: f64,
    /// Of the embeddings.
    pub embedding: f64,
}
