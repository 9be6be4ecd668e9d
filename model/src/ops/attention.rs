//! Around the two matrix products of attention: heads apart and together again, rotary positions,
//! softmax under the causal mask.
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use super::{Real, Values, dtype, for_real, lanes, operand};

const HEADS: &str = "heads";
const SCORES: &str = "attention_scores";
const SOFTMAX: &str = "causal_softmax";

/// Cosine and sine for every token and the first half of a head's d values (the second half has the
/// same), `[T, d / 2]`.
#[derive(Debug)]
pub(crate) struct RotaryTable {
    pub(crate) cos: Vec<f64>,
    pub(crate) sin: Vec<f64>,
}

/// `[B, T, H d]` to `[B, H, T, d]`, rotated by the table if there is one.
pub(crate) fn split_heads(
    x: &Tensor,
    heads: usize,
    rotary: Option<&Arc<RotaryTable>>,
) -> Result<Tensor> {
    x.contiguous()?.apply_op1(HeadExchange {
        heads,
        rotary: rotary.cloned(),
        split: true,
    })
}

/// `[B, H, T, d]` to `[B, T, H d]`.
pub(crate) fn merge_heads(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(HeadExchange {
        heads: x.dim(1)?,
        rotary: None,
        split: false,
    })
}

/// `q k^T` for each head, `[B, H, T, T]`.
pub(crate) fn attention_scores(q: &Tensor, k: &Tensor) -> Result<Tensor> {
    q.contiguous()?.apply_op2(&k.contiguous()?, Scores)
}

/// Softmax over the last dimension of `scale * scores`, `[B, H, T, T]`; if `causal`, a token sees
/// itself and those before.
pub(crate) fn causal_softmax(scores: &Tensor, scale: f64, causal: bool) -> Result<Tensor> {
    scores
        .contiguous()?
        .apply_op1(CausalSoftmax { scale, causal })
}

/// Exchanges tokens and heads; its backward is the opposite exchange, with the rotation turned
/// back.
#[derive(Debug, Clone)]
struct HeadExchange {
    heads: usize,
    rotary: Option<Arc<RotaryTable>>,
    split: bool,
}

impl HeadExchange {
    /// Dimensions of the input as `[B, outer, inner, d]`, and the output's shape.
    fn dims(&self, shape: &Shape) -> Result<([usize; 4], Shape)> {
        if self.split {
            let (b, tokens, width) = shape.dims3()?;
            let d = width / self.heads;
            Ok((
                [b, tokens, self.heads, d],
                (b, self.heads, tokens, d).into(),
            ))
        } else {
            let (b, heads, tokens, d) = shape.dims4()?;
            Ok(([b, heads, tokens, d], (b, tokens, heads * d).into()))
        }
    }

    /// `dims` are those of the input, `[B, outer, inner, d]`. Rotates before merging or after
    /// splitting, by `direction` 1 or -1.
    fn exchange<T: Real>(&self, x: &[T], dims: [usize; 4], direction: f64) -> Vec<T> {
        let [_, outer, inner, d] = dims;
        let tables = self.rotary.as_ref().map(|table| {
            let convert = |values: &[f64], sign: f64| {
                values
                    .iter()
                    .map(|v| T::from_f64(sign * v))
                    .collect::<Vec<T>>()
            };
            (convert(&table.cos, 1.0), convert(&table.sin, direction))
        });
        let half = d / 2;
        let mut out = vec![T::zero(); x.len()];
        out.par_chunks_mut(outer * d)
            .enumerate()
            .for_each(|(index, out)| {
                // One (image, inner) slice of the output holds all of outer.
                let (image, place) = (index / inner, index % inner);
                for (o, out) in out.chunks_exact_mut(d).enumerate() {
                    let first = ((image * outer + o) * inner + place) * d;
                    let row = &x[first..first + d];
                    let token = if self.split { o } else { place };
                    if let Some((cos, sin)) = &tables {
                        let (cos, sin) =
                            (&cos[token * half..][..half], &sin[token * half..][..half]);
                        for k in 0..half {
                            out[k] = row[k] * cos[k] - row[k + half] * sin[k];
                            out[k + half] = row[k + half] * cos[k] + row[k] * sin[k];
                        }
                    } else {
                        out.copy_from_slice(row);
                    }
                }
            });
        out
    }
}

impl CustomOp1 for HeadExchange {
    fn name(&self) -> &'static str {
        HEADS
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (dims, shape) = self.dims(lx.shape())?;
        for_real!(dtype(x), HEADS, T => {
            let out = self.exchange(operand::<T>(x, lx, HEADS)?, dims, 1.0);
            Ok((T::to_cpu_storage_owned(out), shape))
        })
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let values = Values::of(&grad, HEADS)?;
        let opposite = Self {
            split: !self.split,
            ..self.clone()
        };
        let (dims, _) = opposite.dims(grad.shape())?;
        for_real!(grad.dtype(), HEADS, T => {
            let dx = opposite.exchange(values.get::<T>()?, dims, -1.0);
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}

/// The transposed operand is never written out.
#[derive(Debug, Clone, Copy)]
struct Scores;

impl CustomOp2 for Scores {
    fn name(&self) -> &'static str {
        SCORES
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (b, h, tokens, d) = lq.shape().dims4()?;
        let out = q.matmul(
            k,
            (b * h, tokens, lk.dims()[2], d),
            lq,
            &lk.transpose(2, 3)?,
        )?;
        Ok((out, (b, h, tokens, lk.dims()[2]).into()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dq = grad.matmul(&k.detach())?;
        let dk = grad.transpose(2, 3)?.matmul(&q.detach())?;
        Ok((Some(dq), Some(dk)))
    }
}

#[derive(Debug, Clone, Copy)]
struct CausalSoftmax {
    scale: f64,
    causal: bool,
}

impl CausalSoftmax {
    fn visible(self, query: usize, keys: usize) -> usize {
        if self.causal { query + 1 } else { keys }
    }

    fn forward<T: Real>(self, scores: &[T], tokens: usize) -> Vec<T> {
        let scale = T::from_f64(self.scale);
        let mut out = vec![T::zero(); scores.len()];
        out.par_chunks_mut(tokens * tokens)
            .zip(scores.par_chunks(tokens * tokens))
            .for_each(|(out, scores)| {
                for (query, (out, row)) in out
                    .chunks_exact_mut(tokens)
                    .zip(scores.chunks_exact(tokens))
                    .enumerate()
                {
                    let keys = self.visible(query, tokens);
                    let (out, row) = (&mut out[..keys], &row[..keys]);
                    let greatest = row.iter().fold(row[0], |a, b| if *b > a { *b } else { a });
                    for (p, score) in out.iter_mut().zip(row) {
                        *p = ((*score - greatest) * scale).exp();
                    }
                    let factor = T::one() / lanes(out, out, |p, _| p);
                    for p in out.iter_mut() {
                        *p *= factor;
                    }
                }
            });
        out
    }

    fn backward<T: Real>(self, probabilities: &[T], grad: &[T], tokens: usize) -> Vec<T> {
        let scale = T::from_f64(self.scale);
        let mut out = vec![T::zero(); grad.len()];
        out.par_chunks_mut(tokens * tokens)
            .enumerate()
            .for_each(|(index, out)| {
                for (query, out) in out.chunks_exact_mut(tokens).enumerate() {
                    let first = index * tokens * tokens + query * tokens;
                    let keys = self.visible(query, tokens);
                    let (p, grad) = (
                        &probabilities[first..first + keys],
                        &grad[first..first + keys],
                    );
                    let mean = lanes(p, grad, |p, grad| p * grad);
                    for ((out, p), grad) in out.iter_mut().zip(p).zip(grad) {
                        *out = scale * *p * (*grad - mean);
                    }
                }
            });
        out
    }
}

impl CustomOp1 for CausalSoftmax {
    fn name(&self) -> &'static str {
        SOFTMAX
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, _, queries, keys) = lx.shape().dims4()?;
        if queries != keys {
            candle_core::bail!("causal_softmax: {queries} queries against {keys} keys");
        }
        for_real!(dtype(x), SOFTMAX, T => {
            let out = self.forward(operand::<T>(x, lx, SOFTMAX)?, keys);
            Ok((T::to_cpu_storage_owned(out), lx.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let values = (Values::of(out, SOFTMAX)?, Values::of(&grad, SOFTMAX)?);
        for_real!(x.dtype(), SOFTMAX, T => {
            let dx = self.backward(values.0.get::<T>()?, values.1.get::<T>()?, x.dim(3)?);
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}
