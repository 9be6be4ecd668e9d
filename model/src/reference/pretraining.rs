//! The loss of pretraining, and what the paper's ablations make of it.
//!
//! In pretraining the last patch is a target only: the loss drops the last output, and under the
//! causal mask no other token sees it. So the blocks run on T = P tokens; the loss and every
//! gradient are those of T = P + 1.
use candle_core::{DType, Tensor};

use super::composed::cosine_rows;
use super::model::{Nepa, NepaOutput};
use super::pass::{Graph, Pass};
use crate::ablation::Ablation;
use crate::{ModelError, PretrainReport, RopeDraw};

/// The pretraining loss (a scalar tensor with its graph) and the copy diagnostics: a model may cheat
/// by repeating its input. "Current" is the embedding at the predicting position, for the first
/// position the class token.
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

impl PretrainLoss {
    /// Its numbers.
    pub fn report(&self) -> Result<PretrainReport, ModelError> {
        Ok(PretrainReport {
            loss: self.loss.to_dtype(DType::F64)?.to_scalar::<f64>()?,
            cos_target: self.cos_target,
            cos_previous: self.cos_previous,
            copy_win: self.copy_win,
        })
    }
}

/// What is drawn for one forward pass of pretraining. The default draws nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct PretrainDraw<'a> {
    /// Factors of the rotary coordinates.
    pub rope: RopeDraw,
    /// A factor for each image of each branch, `[blocks, 2, B]`.
    pub drop_path: Option<&'a [f32]>,
    /// Whether a patch is masked, `[B, P]`.
    pub masked: Option<&'a [bool]>,
}

impl Nepa {
    /// The pretraining loss with T = P tokens through the blocks (the last changes nothing), if
    /// attention is causal.
    pub fn pretrain_loss(
        &self,
        pixels: &Tensor,
        rope: &RopeDraw,
    ) -> Result<PretrainLoss, ModelError> {
        let draw = PretrainDraw {
            rope: *rope,
            ..PretrainDraw::default()
        };
        self.ablated_loss(pixels, &draw, &Ablation::default())
    }

    /// The pretraining loss under ablations of the paper. Targets are the embeddings of the patches
    /// themselves, also where the blocks are given the mask token.
    ///
    /// Without shift every token (the class token, too) predicts its own embedding, so the report's
    /// "next" and "current" are the same.
    pub fn ablated_loss(
        &self,
        pixels: &Tensor,
        draw: &PretrainDraw<'_>,
        ablation: &Ablation,
    ) -> Result<PretrainLoss, ModelError> {
        let (patches, causal) = (self.config.num_patches(), self.config.is_causal);
        let seen_patches = patches - usize::from(causal && ablation.shift);
        let pass = self
            .pass(&draw.rope, seen_patches + 1, causal, Graph::Record)?
            .with_drop_path(draw.drop_path, pixels)?;
        let embedded = pass.patch_embeddings(pixels)?;
        let seen = match draw.masked {
            Some(masked) => pass.masked(&embedded, masked)?,
            None => embedded.clone(),
        };
        let input = pass.with_class_token(&seen.narrow(1, 0, seen_patches)?)?;
        let output = pass.encode(&input)?;
        let sequence = pass.with_class_token(&embedded)?;
        let (predictions, targets, current) = if ablation.shift {
            let current = sequence.narrow(1, 0, patches)?;
            (output.narrow(1, 0, patches)?, embedded, current)
        } else {
            (output, sequence.clone(), sequence)
        };
        let targets = if ablation.stop_gradient {
            targets.detach()
        } else {
            targets
        };
        loss_and_copying(&predictions, &targets, &current)
    }
}

impl Pass<'_> {
    /// Patch embeddings, `[B, P, D]`, with the mask token in place of those that are masked.
    fn masked(&self, patches: &Tensor, masked: &[bool]) -> Result<Tensor, ModelError> {
        let (batch, count, _) = patches.dims3()?;
        let token = self.optional("vit_nepa.embeddings.mask_token");
        let (Some(token), true) = (token, masked.len() == batch * count) else {
            return Err(ModelError::Step {
                reason: "a mask needs use_mask_token and a value for each patch of each image",
            });
        };
        let chosen: Vec<f32> = masked
            .iter()
            .map(|masked| f32::from(u8::from(*masked)))
            .collect();
        let chosen = Tensor::from_vec(chosen, (batch, count, 1), patches.device())?;
        let chosen = chosen.to_dtype(patches.dtype())?;
        let kept = patches.broadcast_mul(&chosen.affine(-1.0, 1.0)?)?;
        Ok((kept + chosen.broadcast_mul(&token)?)?)
    }
}

/// Loss and copy diagnostics from a whole forward pass (T = P + 1).
pub fn pretrain_loss_of(output: &NepaOutput) -> Result<PretrainLoss, ModelError> {
    let predictions = output.sequence_output.dim(1)? - 1;
    loss_and_copying(
        &output.sequence_output.narrow(1, 0, predictions)?,
        &output.sequence_input.narrow(1, 1, predictions)?.detach(),
        &output.sequence_input.narrow(1, 0, predictions)?,
    )
}

/// All three `[B, P, D]`: what is predicted, what comes next, what is there. A gradient flows to
/// `next` unless it is detached.
fn loss_and_copying(
    predictions: &Tensor,
    next: &Tensor,
    current: &Tensor,
) -> Result<PretrainLoss, ModelError> {
    let cosines = cosine_rows(predictions, next)?;
    let loss = cosines.mean_all()?.neg()?;
    let values = |cosines: &Tensor| {
        cosines
            .detach()
            .to_dtype(DType::F64)?
            .flatten_all()?
            .to_vec1::<f64>()
    };
    let to_next = values(&cosines)?;
    let to_current = values(&cosine_rows(&predictions.detach(), &current.detach())?)?;
    let count = to_next.len() as f64;
    let wins = to_next
        .iter()
        .zip(&to_current)
        .filter(|(next, current)| current > next)
        .count();
    Ok(PretrainLoss {
        loss,
        cos_target: to_next.iter().sum::<f64>() / count,
        cos_previous: to_current.iter().sum::<f64>() / count,
        copy_win: wins as f64 / count,
    })
}
