//! Sequences, hidden states and attention of all tokens.
use candle_core::Tensor;

use super::model::{FINAL_NORM, Nepa, NepaOutput, block_name};
use super::pass::{Graph, Pass};
use crate::{ModelError, RopeDraw};

impl Nepa {
    /// All T = P + 1 tokens. `causal` normally is the config's `is_causal`. `pixels` is `[B, C, S,
    /// S]`, normalised.
    pub fn forward(
        &self,
        pixels: &Tensor,
        rope: &RopeDraw,
        causal: bool,
    ) -> Result<NepaOutput, ModelError> {
        self.whole_pass(rope, causal, Graph::Record)?
            .sequences(pixels)
    }

    /// What every layer holds, `[B, T, D]` each: what goes into the first block (0), the output of
    /// block n (n), and last the final norm's output (number of blocks + 1). Nothing is recorded.
    pub fn hidden_states(&self, pixels: &Tensor, causal: bool) -> Result<Vec<Tensor>, ModelError> {
        let pass = self.whole_pass(&RopeDraw::default(), causal, Graph::None)?;
        let mut states = vec![pass.with_class_token(&pass.patch_embeddings(pixels)?)?];
        for block in 0..self.config.num_hidden_layers {
            states.push(pass.block(&states[block], block)?);
        }
        states.push(pass.norm(&states[states.len() - 1], FINAL_NORM)?);
        Ok(states)
    }

    /// Attention of one block (from 0) to what goes into it (`[B, T, D]`, one of
    /// [`Self::hidden_states`]): `[B, H, T, T]`, rows sum to 1. Nothing is recorded.
    pub fn attention_map(
        &self,
        block: usize,
        input: &Tensor,
        causal: bool,
    ) -> Result<Tensor, ModelError> {
        let pass = self.whole_pass(&RopeDraw::default(), causal, Graph::None)?;
        let layer = block_name(block);
        pass.attention_weights(
            &pass.norm(input, &format!("{layer}.layernorm_before"))?,
            &layer,
        )
    }

    /// A pass over all tokens.
    pub(super) fn whole_pass(
        &self,
        rope: &RopeDraw,
        causal: bool,
        graph: Graph,
    ) -> Result<Pass<'_>, ModelError> {
        self.pass(rope, self.config.num_patches() + 1, causal, graph)
    }
}
