//! A classifier's head, and its loss. K classes.
use candle_core::{D, Tensor};

use super::composed::log_softmax;
use super::model::Nepa;
use super::pass::{Graph, Pass};
use crate::{ModelError, RopeDraw};

impl Nepa {
    /// Logits of a classifier, `[B, K]`, with their graph. `drop_path` has a factor for each image
    /// of each branch, `[blocks, 2, B]` ([`crate::DropPath::draw`]).
    pub fn classify(
        &self,
        pixels: &Tensor,
        rope: &RopeDraw,
        drop_path: Option<&[f32]>,
    ) -> Result<Tensor, ModelError> {
        let pass = self.classifier_pass(rope, Graph::Record)?;
        let pass = pass.with_drop_path(drop_path, pixels)?;
        pass.head(&pass.pooled(pixels)?)
    }

    /// What a classifier's head is given, `[B, D]`: with `add_pooling_layer` the mean of the
    /// patches, before `fc_norm`; else the last token. As [`Self::classify`].
    pub fn pooled(
        &self,
        pixels: &Tensor,
        rope: &RopeDraw,
        drop_path: Option<&[f32]>,
    ) -> Result<Tensor, ModelError> {
        let pass = self.classifier_pass(rope, Graph::Record)?;
        pass.with_drop_path(drop_path, pixels)?.pooled(pixels)
    }

    /// Logits of a classifier, `[B, K]`, as in evaluation: nothing is drawn or recorded.
    pub fn logits(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        let pass = self.classifier_pass(&RopeDraw::default(), Graph::None)?;
        pass.head(&pass.pooled(pixels)?)
    }

    fn classifier_pass(&self, rope: &RopeDraw, graph: Graph) -> Result<Pass<'_>, ModelError> {
        if self.config.is_classifier() {
            return self.whole_pass(rope, self.config.is_causal, graph);
        }
        Err(ModelError::Step {
            reason: "a model of pretraining has no classes; `nepa finetune` makes a classifier",
        })
    }
}

impl Pass<'_> {
    fn pooled(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        let sequence = self.sequences(pixels)?.sequence_output;
        let patches = sequence.dim(1)? - 1;
        Ok(if self.config().add_pooling_layer {
            sequence.narrow(1, 1, patches)?.mean(1)?
        } else {
            sequence.narrow(1, patches, 1)?.squeeze(1)?
        })
    }

    /// `fc_norm`, if there is one, and the linear classifier: `[B, D]` to `[B, K]`.
    fn head(&self, pooled: &Tensor) -> Result<Tensor, ModelError> {
        if self.config().add_pooling_layer {
            self.linear(&self.norm(pooled, "fc_norm")?, "classifier")
        } else {
            self.linear(pooled, "classifier")
        }
    }
}

/// `-mean over images of sum_k target_k log softmax(logits)_k`, a scalar; both `[B, K]`. No
/// gradient flows to the targets.
pub fn soft_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor, ModelError> {
    let targets = targets.detach().to_dtype(logits.dtype())?;
    let of_images = (log_softmax(logits)? * targets)?.sum(D::Minus1)?;
    Ok(of_images.mean_all()?.neg()?)
}
