//! The model of candle's operations and its autograd, on any device: slower and hungrier than a
//! [`crate::Step`], and independent of it. It is the oracle of tests and of `nepa verify`, draws
//! attention maps, and trains what a device's step cannot compute. Shapes: B batch, P patches, T
//! tokens (P + 1, or P in pretraining), D width, H heads, d = D / H.
//!
//! In pretraining the last patch is a target only: the loss drops the last output, and under the
//! causal mask no other token sees it. So the blocks run on T = P tokens; the loss and every
//! gradient are those of T = P + 1.
mod composed;

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor, Var};

use crate::{ModelError, NepaConfig, ParamSpec, PretrainReport, RopeDraw, Weights};

use composed::{Composed, cosine_rows};

/// Both sequences, `[B, T, D]`, class token first.
#[derive(Debug, Clone)]
pub struct NepaOutput {
    /// What goes into the first block.
    pub sequence_input: Tensor,
    /// The final norm's output.
    pub sequence_output: Tensor,
}

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

/// A NEPA model: one `Var` a weight.
#[derive(Debug)]
pub struct Nepa {
    /// Weights in the order of [`Weights::specs`].
    pub vars: Vec<Var>,
    config: NepaConfig,
    specs: Vec<ParamSpec>,
    index: HashMap<String, usize>,
    dtype: DType,
    device: Device,
    /// Operands of matmuls are cast to this type.
    matmul: DType,
}

const FINAL_NORM: &str = "vit_nepa.layernorm";

fn block_name(block: usize) -> String {
    format!("vit_nepa.encoder.layer.{block}")
}

/// Whether a forward pass is recorded for a backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Graph {
    Record,
    None,
}

/// What one forward pass needs besides its input.
struct Pass<'a> {
    model: &'a Nepa,
    graph: Graph,
    ops: Composed,
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

    fn pass(
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
        })
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

    /// All T = P + 1 tokens. `causal` normally is the config's `is_causal`. `pixels` is `[B, C, S,
    /// S]`, normalised.
    pub fn forward(
        &self,
        pixels: &Tensor,
        rope: &RopeDraw,
        causal: bool,
    ) -> Result<NepaOutput, ModelError> {
        self.run(pixels, rope, causal, Graph::Record)
    }

    fn run(
        &self,
        pixels: &Tensor,
        rope: &RopeDraw,
        causal: bool,
        graph: Graph,
    ) -> Result<NepaOutput, ModelError> {
        let pass = self.pass(rope, self.config.num_patches() + 1, causal, graph)?;
        let patches = pass.patch_embeddings(pixels)?;
        let sequence_input = pass.with_class_token(&patches)?;
        let sequence_output = pass.encode(&sequence_input)?;
        Ok(NepaOutput {
            sequence_input,
            sequence_output,
        })
    }

    /// The pretraining loss with T = P tokens through the blocks (the last changes nothing), if
    /// attention is causal.
    pub fn pretrain_loss(
        &self,
        pixels: &Tensor,
        rope: &RopeDraw,
    ) -> Result<PretrainLoss, ModelError> {
        let causal = self.config.is_causal;
        if !causal {
            return pretrain_loss_of(&self.forward(pixels, rope, causal)?);
        }
        let num_patches = self.config.num_patches();
        let pass = self.pass(rope, num_patches, causal, Graph::Record)?;
        let patches = pass.patch_embeddings(pixels)?;
        let input = pass.with_class_token(&patches.narrow(1, 0, num_patches - 1)?)?;
        let output = pass.encode(&input)?;
        loss_and_copying(&output, &patches, &input)
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

    /// What every layer holds, `[B, T, D]` each: what goes into the first block (0), the output of
    /// block n (n), and last the final norm's output (number of blocks + 1). Nothing is recorded.
    pub fn hidden_states(&self, pixels: &Tensor, causal: bool) -> Result<Vec<Tensor>, ModelError> {
        let pass = self.whole_pass(causal)?;
        let mut states = vec![pass.with_class_token(&pass.patch_embeddings(pixels)?)?];
        for block in 0..self.config.num_hidden_layers {
            states.push(pass.block(&states[block], &block_name(block))?);
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
        let pass = self.whole_pass(causal)?;
        let layer = block_name(block);
        pass.attention_weights(
            &pass.norm(input, &format!("{layer}.layernorm_before"))?,
            &layer,
        )
    }

    /// A pass over all tokens without graph or rotary draw, as in evaluation.
    fn whole_pass(&self, causal: bool) -> Result<Pass<'_>, ModelError> {
        let tokens = self.config.num_patches() + 1;
        self.pass(&RopeDraw::default(), tokens, causal, Graph::None)
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

/// Loss and copy diagnostics from a whole forward pass (T = P + 1).
pub fn pretrain_loss_of(output: &NepaOutput) -> Result<PretrainLoss, ModelError> {
    let predictions = output.sequence_output.dim(1)? - 1;
    loss_and_copying(
        &output.sequence_output.narrow(1, 0, predictions)?,
        &output.sequence_input.narrow(1, 1, predictions)?,
        &output.sequence_input.narrow(1, 0, predictions)?,
    )
}

/// All three `[B, P, D]`: what is predicted, what comes next, what is there.
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
    let to_current = values(&cosine_rows(&predictions.detach(), current)?)?;
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

impl Pass<'_> {
    fn optional(&self, name: &str) -> Option<Tensor> {
        let var = &self.model.vars[*self.model.index.get(name)?];
        Some(if self.graph == Graph::Record {
            var.as_tensor().clone()
        } else {
            var.as_detached_tensor()
        })
    }

    fn weight(&self, name: &str) -> Tensor {
        self.optional(name)
            .unwrap_or_else(|| panic!("ParamSpec::all lists {name}"))
    }

    /// `[B, C, S, S]` to `[B, P, D]`: a convolution whose kernel is its stride is one matmul
    /// over the patches.
    fn patch_embeddings(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        let config = &self.model.config;
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

    fn with_class_token(&self, patches: &Tensor) -> Result<Tensor, ModelError> {
        let (batch, _, width) = patches.dims3()?;
        let class = self
            .weight("vit_nepa.embeddings.cls_token")
            .broadcast_as((batch, 1, width))?
            .contiguous()?;
        Ok(Tensor::cat(&[&class, patches], 1)?)
    }

    fn encode(&self, input: &Tensor) -> Result<Tensor, ModelError> {
        let mut x = input.clone();
        for n in 0..self.model.config.num_hidden_layers {
            x = self.block(&x, &block_name(n))?;
        }
        self.norm(&x, FINAL_NORM)
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor, ModelError> {
        let (weight, bias) = (
            self.weight(&format!("{name}.weight")),
            self.weight(&format!("{name}.bias")),
        );
        Ok(composed::layer_norm(
            x,
            x.dim(D::Minus1)?,
            Some(&weight),
            Some(&bias),
            self.model.config.layer_norm_eps,
        )?)
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor, ModelError> {
        let bias = self.optional(&format!("{name}.bias"));
        Ok(self
            .ops
            .linear(x, &self.weight(&format!("{name}.weight")), bias.as_ref())?)
    }

    fn block(&self, x: &Tensor, layer: &str) -> Result<Tensor, ModelError> {
        let attention =
            self.attention(&self.norm(x, &format!("{layer}.layernorm_before"))?, layer)?;
        let x = composed::add_scaled(
            x,
            &attention,
            self.optional(&format!("{layer}.layer_scale.lambda1"))
                .as_ref(),
        )?;
        let mlp = self.mlp(&self.norm(&x, &format!("{layer}.layernorm_after"))?, layer)?;
        Ok(composed::add_scaled(
            &x,
            &mlp,
            self.optional(&format!("{layer}.output.layer_scale.lambda1"))
                .as_ref(),
        )?)
    }

    fn attention(&self, x: &Tensor, layer: &str) -> Result<Tensor, ModelError> {
        let weights = self.attention_weights(x, layer)?;
        let v = self.linear(x, &format!("{layer}.attention.attention.value"))?;
        let v = self
            .ops
            .split_heads(&v, self.model.config.num_attention_heads, false)?;
        self.linear(
            &composed::merge_heads(&self.ops.attend(&weights, &v)?)?,
            &format!("{layer}.attention.output.dense"),
        )
    }

    /// `softmax(q k^T / sqrt(d))` of the normed input `x`, `[B, H, T, T]`.
    fn attention_weights(&self, x: &Tensor, layer: &str) -> Result<Tensor, ModelError> {
        let config = &self.model.config;
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
        let config = &self.model.config;
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

#[cfg(test)]
mod tests;
