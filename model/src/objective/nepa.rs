//! Next-embedding prediction (arXiv 2512.16922): the loss is minus the mean cosine of each token's
//! output with the embedding of the next patch, which is a constant as a target. Final norm, loss
//! and gradient are one operation.
use super::objective::Objective;
use crate::step::Step;
use crate::step::device::{CosineLoss, Device};

/// The mean loss of a micro-batch, and how much it copies: a model may cheat by repeating its
/// input. "Current" is the embedding at the predicting position, for the first one the class token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PretrainReport {
    /// `-mean cos(output[t], embedding[t + 1])`.
    pub loss: f64,
    /// Mean cosine of the prediction with the next embedding.
    pub cos_target: f64,
    /// Mean cosine of the prediction with the current embedding.
    pub cos_previous: f64,
    /// Share of positions where the second is greater.
    pub copy_win: f64,
}

/// The objective.
#[derive(Debug, Clone, Copy, Default)]
pub struct NextEmbedding;

impl<D: Device> Objective<D> for NextEmbedding {
    type Report = PretrainReport;

    fn backward(&mut self, step: &mut Step<D>, share: f64) -> Result<(), D::Error> {
        let predictions = (step.shape().images * step.shape().patches) as f64;
        let (norm, [d_weight, d_bias]) = (step.final_norm(), step.final_norm_gradients());
        let loss = CosineLoss {
            rows: step.rows(),
            patches: step.shape().patches,
            x: step.stream(step.shape().blocks),
            weight: norm.weight,
            bias: norm.bias,
            next: step.embedding(),
            current: step.stream(0),
            factor: -share / predictions,
            dx: step.d_stream(),
            d_weight,
            d_bias,
            added: step.last_branch_gradient(),
            partials: step.partials(),
        };
        step.device_mut().cosine_loss(&loss)
    }

    fn report(&mut self, step: &mut Step<D>) -> Result<PretrainReport, D::Error> {
        let predictions = (step.shape().images * step.shape().patches) as f64;
        let sums = step.device_mut().cosine_sums()?;
        let [target, previous, wins] = sums.map(|sum| sum / predictions);
        Ok(PretrainReport {
            loss: -target,
            cos_target: target,
            cos_previous: previous,
            copy_win: wins,
        })
    }
}
