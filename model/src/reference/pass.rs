//! One forward pass: the parts of the encoder, on candle's operations.
use candle_core::{D, Tensor};

use super::composed::{self, Composed};
use super::model::{FINAL_NORM, Nepa, NepaOutput, block_name};
use crate::{ModelError, NepaConfig, RopeDraw};

/// Whether a forward pass is recorded for a backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Graph {
    Record,
    None,
}

/// What one forward pass needs besides its input.
pub(super) struct Pass<'a> {
    model: &'a Nepa,
    graph: Graph,
    ops: Composed,
    /// Factors of the branches, `[2 * blocks, B]`.
    drop_path: Option<Tensor>,
}

impl Nepa {
    /// A pass over the first `num_tokens` tokens that drops no branch.
    pub(super) fn pass(
        &self,
        rope: &RopeDraw,
        num_tokens: usize,
        causal: bool,
        graph: Graph,
    ) -> Result<Pass<'_>, ModelError> {
        let rotary = rope.table(&self.config, [self.config.patches_per_side(); 2]);
        Ok(Pass {
            model: self,
            graph,
            ops: Composed::new(
                &rotary,
                self.config.head_size() / 2,
                num_tokens,
                causal,
                self.dtype,
                self.matmul,
                &self.device,
            )?,
            drop_path: None,
        })
    }
}

impl Pass<'_> {
    pub(super) fn config(&self) -> &NepaConfig {
        &self.model.config
    }

    /// Multiplies branches by these factors, `[blocks, 2, B]`, for a pass of these pixels.
    pub(super) fn with_drop_path(
        mut self,
        factors: Option<&[f32]>,
        pixels: &Tensor,
    ) -> Result<Self, ModelError> {
        let branches = 2 * self.config().num_hidden_layers;
        let batch = pixels.dims().first().copied().unwrap_or(0);
        self.drop_path = match factors {
            Some(factors) if factors.len() != branches * batch => {
                return Err(ModelError::Step {
                    reason: "drop path needs a factor for each image of each branch",
                });
            }
            Some(factors) => {
                let factors = Tensor::from_slice(factors, (branches, batch), &self.model.device)?;
                Some(factors.to_dtype(self.model.dtype)?)
            }
            None => None,
        };
        Ok(self)
    }

    /// All tokens of the images, into the blocks and out of the final norm.
    pub(super) fn sequences(&self, pixels: &Tensor) -> Result<NepaOutput, ModelError> {
        let sequence_input = self.with_class_token(&self.patch_embeddings(pixels)?)?;
        Ok(NepaOutput {
            sequence_output: self.encode(&sequence_input)?,
            sequence_input,
        })
    }

    pub(super) fn optional(&self, name: &str) -> Option<Tensor> {
        let var = &self.model.vars[*self.model.index.get(name)?];
        Some(if self.graph == Graph::Record {
            var.as_tensor().clone()
        } else {
            var.as_detached_tensor()
        })
    }

    pub(super) fn weight(&self, name: &str) -> Tensor {
        self.optional(name)
            .unwrap_or_else(|| panic!("ParamSpec::all lists {name}"))
    }

    /// `[B, C, S, S]` to `[B, P, D]`: a convolution whose kernel is its stride is one matmul
    /// over the patches.
    pub(super) fn patch_embeddings(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        let config = self.config();
        let (channels, size, patch) = (config.num_channels, config.image_size, config.patch_size);
        let batch = match pixels.dims() {
            [batch, c, h, w] if *batch > 0 && (*c, *h, *w) == (channels, size, size) => *batch,
            other => {
                return Err(ModelError::PixelShape {
                    got: other.to_vec(),
                    channels,
                    image_size: size,
                });
            }
        };
        let side = config.patches_per_side();
        let values = channels * patch * patch;
        let patches = pixels
            .to_dtype(self.model.dtype)?
            .reshape(&[batch, channels, side, patch, side, patch][..])?
            .permute([0, 2, 4, 1, 3, 5])?
            .reshape((batch, side * side, values))?;
        let projection = "vit_nepa.embeddings.patch_embeddings.projection";
        let weight = self
            .weight(&format!("{projection}.weight"))
            .reshape((config.hidden_size, values))?;
        Ok(self.ops.linear(
            &patches,
            &weight,
            Some(&self.weight(&format!("{projection}.bias"))),
        )?)
    }

    pub(super) fn with_class_token(&self, patches: &Tensor) -> Result<Tensor, ModelError> {
        let (batch, _, width) = patches.dims3()?;
        let class = self
            .weight("vit_nepa.embeddings.cls_token")
            .broadcast_as((batch, 1, width))?
            .contiguous()?;
        Ok(Tensor::cat(&[&class, patches], 1)?)
    }

    /// All blocks and the final norm, `[B, T, D]` both.
    pub(super) fn encode(&self, input: &Tensor) -> Result<Tensor, ModelError> {
        let mut x = input.clone();
        for n in 0..self.config().num_hidden_layers {
            x = self.block(&x, n)?;
        }
        self.norm(&x, FINAL_NORM)
    }

    pub(super) fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor, ModelError> {
        let (weight, bias) = (
            self.weight(&format!("{name}.weight")),
            self.weight(&format!("{name}.bias")),
        );
        Ok(composed::layer_norm(
            x,
            x.dim(D::Minus1)?,
            Some(&weight),
            Some(&bias),
            self.config().layer_norm_eps,
        )?)
    }

    pub(super) fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor, ModelError> {
        let bias = self.optional(&format!("{name}.bias"));
        Ok(self
            .ops
            .linear(x, &self.weight(&format!("{name}.weight")), bias.as_ref())?)
    }

    pub(super) fn block(&self, x: &Tensor, block: usize) -> Result<Tensor, ModelError> {
        let layer = block_name(block);
        let normed = self.norm(x, &format!("{layer}.layernorm_before"))?;
        let branch = self.attention(&normed, &layer)?;
        let x = self.add(
            x,
            &branch,
            &format!("{layer}.layer_scale.lambda1"),
            [block, 0],
        )?;
        let normed = self.norm(&x, &format!("{layer}.layernorm_after"))?;
        let branch = self.mlp(&normed, &layer)?;
        self.add(
            &x,
            &branch,
            &format!("{layer}.output.layer_scale.lambda1"),
            [block, 1],
        )
    }

    /// Adds a branch, times its LayerScale and its factors of drop path.
    fn add(
        &self,
        x: &Tensor,
        branch: &Tensor,
        scale: &str,
        [block, part]: [usize; 2],
    ) -> Result<Tensor, ModelError> {
        let scale = self.optional(scale);
        let scaled = match &scale {
            Some(scale) => branch.broadcast_mul(scale)?,
            None => branch.clone(),
        };
        let kept = match &self.drop_path {
            Some(factors) => {
                let factors = factors.narrow(0, 2 * block + part, 1)?;
                scaled.broadcast_mul(&factors.reshape(((), 1, 1))?)?
            }
            None => scaled,
        };
        Ok((x + kept)?)
    }

    pub(super) fn attention(&self, x: &Tensor, layer: &str) -> Result<Tensor, ModelError> {
        let weights = self.attention_weights(x, layer)?;
        let v = self.linear(x, &format!("{layer}.attention.attention.value"))?;
        let v = self
            .ops
            .split_heads(&v, self.config().num_attention_heads, false)?;
        self.linear(
            &composed::merge_heads(&self.ops.attend(&weights, &v)?)?,
            &format!("{layer}.attention.output.dense"),
        )
    }

    /// `softmax(q k^T / sqrt(d))` of the normed input `x`, `[B, H, T, T]`.
    pub(super) fn attention_weights(&self, x: &Tensor, layer: &str) -> Result<Tensor, ModelError> {
        let config = self.config();
        let heads = config.num_attention_heads;
        let rotated = |part: &str, norm: &str| -> Result<Tensor, ModelError> {
            let mut projected = self.linear(x, &format!("{layer}.attention.attention.{part}"))?;
            if config.qk_norm {
                let name = format!("{layer}.attention.attention.{norm}");
                let (weight, bias) = (
                    self.optional(&format!("{name}.weight")),
                    self.optional(&format!("{name}.bias")),
                );
                projected = composed::layer_norm(
                    &projected,
                    config.head_size(),
                    weight.as_ref(),
                    bias.as_ref(),
                    config.layer_norm_eps,
                )?;
            }
            Ok(self.ops.split_heads(&projected, heads, true)?)
        };
        let (q, k) = (rotated("query", "q_norm")?, rotated("key", "k_norm")?);
        let scale = 1.0 / (config.head_size() as f64).sqrt();
        Ok(self
            .ops
            .softmax(&self.ops.attention_scores(&q, &k)?, scale)?)
    }

    fn mlp(&self, x: &Tensor, layer: &str) -> Result<Tensor, ModelError> {
        let config = self.config();
        let up = self.linear(x, &format!("{layer}.intermediate.up_proj"))?;
        let hidden = if config.use_gated_mlp {
            let gate = self.linear(x, &format!("{layer}.intermediate.gate_proj"))?;
            (composed::activate(&gate, config.hidden_act)? * up)?
        } else {
            composed::activate(&up, config.hidden_act)?
        };
        self.linear(&hidden, &format!("{layer}.output.dense"))
    }
}
