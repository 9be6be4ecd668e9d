//! The model's operations. Our own have a backward of their own: candle-nn's fused forms drop
//! gradients silently, and the unfused ones keep every intermediate. They split their work into
//! fixed pieces, so the number of threads changes no bit; f32 and f64 on the CPU only. [`composed`]
//! is for other devices. Called by `nepa.rs` alone.
mod activation;
mod attention;
mod composed;
mod cosine;
mod linear;
mod norm;

pub(crate) use attention::RotaryTable;
pub(crate) use composed::Composed;

use std::sync::Arc;

use crate::HiddenAct;

use candle_core::{
    CpuStorage, DType, Error, Layout, Result, Storage, StorageRef, Tensor, WithDType,
};
use rayon::prelude::*;

/// Rows in one piece of a sum over rows: fixed, so that the order of additions is.
const ROWS_PER_PIECE: usize = 64;
/// Elements in one piece of an elementwise operation.
const ELEMENTS_PER_PIECE: usize = 1 << 13;

/// The operations of one forward pass: our own, or [`Composed`] of candle's. Shapes are explained
/// at each module's functions.
#[derive(Debug, Clone)]
pub(crate) enum Ops {
    Own {
        rotary: Arc<RotaryTable>,
        causal: bool,
    },
    Composed(Composed),
}

impl Ops {
    /// `x [.., in]` times `weight [out, in]` transposed, plus `bias [out]`.
    pub(crate) fn linear(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        match self {
            Self::Own { .. } => linear::linear(x, weight, bias),
            Self::Composed(ops) => ops.linear(x, weight, bias),
        }
    }

    /// `[B, T, H d]` to `[B, H, T, d]`, rotated to its position if asked for.
    pub(crate) fn split_heads(&self, x: &Tensor, heads: usize, rotated: bool) -> Result<Tensor> {
        match self {
            Self::Own { rotary, .. } => attention::split_heads(x, heads, rotated.then_some(rotary)),
            Self::Composed(ops) => ops.split_heads(x, heads, rotated),
        }
    }

    /// `[B, H, T, d]` to `[B, T, H d]`.
    pub(crate) fn merge_heads(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own { .. } => attention::merge_heads(x),
            Self::Composed(_) => composed::merge_heads(x),
        }
    }

    /// `softmax(scale q k^T)` for each head, `[B, H, T, T]` of `[B, H, T, d]`.
    pub(crate) fn attention_weights(&self, q: &Tensor, k: &Tensor, scale: f64) -> Result<Tensor> {
        match self {
            Self::Own { causal, .. } => {
                attention::causal_softmax(&attention::attention_scores(q, k)?, scale, *causal)
            }
            Self::Composed(ops) => ops.softmax(&ops.attention_scores(q, k)?, scale),
        }
    }

    /// Those weights times `v`, `[B, H, T, d]`.
    pub(crate) fn attend(&self, weights: &Tensor, v: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own { .. } => weights.matmul(v),
            Self::Composed(ops) => ops.attend(weights, v),
        }
    }

    /// `x + scale * y` with `scale [D]` over the last dimension.
    pub(crate) fn add_scaled(&self, x: &Tensor, y: &Tensor, scale: &Tensor) -> Result<Tensor> {
        match self {
            Self::Own { .. } => linear::add_scaled(x, y, scale),
            Self::Composed(_) => composed::add_scaled(x, y, scale),
        }
    }

    /// LayerNorm over each `width` consecutive values.
    pub(crate) fn layer_norm(
        &self,
        x: &Tensor,
        width: usize,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<Tensor> {
        match self {
            Self::Own { .. } => norm::layer_norm(x, width, weight, bias, eps),
            Self::Composed(_) => composed::layer_norm(x, width, weight, bias, eps),
        }
    }

    /// `act(x)`.
    pub(crate) fn activate(&self, x: &Tensor, act: HiddenAct) -> Result<Tensor> {
        match self {
            Self::Own { .. } => activation::activate(x, act),
            Self::Composed(_) => composed::activate(x, act),
        }
    }

    /// `act(gate) * up`.
    pub(crate) fn activate_gated(
        &self,
        gate: &Tensor,
        up: &Tensor,
        act: HiddenAct,
    ) -> Result<Tensor> {
        match self {
            Self::Own { .. } => activation::activate_gated(gate, up, act),
            Self::Composed(_) => composed::activate(gate, act)? * up,
        }
    }
}

/// Cosines of the rows of `prediction` and `target`, both `[.., D]`; no gradient flows to `target`.
pub(crate) fn cosine_rows(prediction: &Tensor, target: &Tensor) -> Result<Tensor> {
    if prediction.device().is_cpu() {
        cosine::cosine_rows(prediction, target)
    } else {
        composed::cosine_rows(prediction, target)
    }
}

/// The floating point types that our own operations are written for.
pub trait Real: WithDType + std::ops::Neg<Output = Self> + std::iter::Sum {
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn erf(self) -> Self;
}

#[expect(
    clippy::inline_always,
    reason = "a call would keep the caller's loop from being vectorised"
)]
impl Real for f32 {
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    /// By halves of the exponent and a polynomial (that of Cephes), which the compiler can
    /// vectorise; off by less than 2e-7 of the value, and at least 1e-38.
    #[inline(always)]
    fn exp(self) -> Self {
        let x = self.clamp(-87.3, 88.3);
        // Adding this puts the nearest integer into the lowest bits.
        let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
        let n = shifted - 12_582_912.0;
        let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
        let p = 1.987_569_2e-4 * r + 1.398_199_9e-3;
        let p = p * r + 8.333_452e-3;
        let p = p * r + 4.166_579_6e-2;
        let p = p * r + 1.666_666_5e-1;
        let p = p * r + 5e-1;
        let y = p * (r * r) + r + 1.0;
        y * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
    }
    /// A rational approximation on [-4, 4] (the one of Eigen and XLA), which the compiler can
    /// vectorise; off by less than 5e-7.
    #[inline(always)]
    fn erf(self) -> Self {
        let x = self.clamp(-4.0, 4.0);
        let s = x * x;
        let p = -2.726_142e-10 * s + 2.770_681_4e-8;
        let p = p * s - 2.101_024e-6;
        let p = p * s - 5.692_506_4e-5;
        let p = p * s - 7.349_906_3e-4;
        let p = p * s - 2.954_6e-3;
        let p = p * s - 1.609_603_3e-2;
        let q = -1.456_607_2e-5 * s - 2.133_740_5e-4;
        let q = q * s - 1.682_827e-3;
        let q = q * s - 7.373_329_2e-3;
        let q = q * s - 1.426_473_9e-2;
        x * p / q
    }
}

impl Real for f64 {
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
}

/// Runs `$body` with `$real` standing for the type of `$dtype`; any other type than f32 and f64 is
/// candle's error.
macro_rules! for_real {
    ($dtype:expr, $op:expr, $real:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $real = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $real = f64;
                $body
            }
            other => Err(candle_core::Error::UnsupportedDTypeForOp(other, $op).bt()),
        }
    };
}
use for_real;

/// The values of a contiguous operand of a forward call.
fn operand<'a, T: Real>(
    storage: &'a CpuStorage,
    layout: &Layout,
    op: &'static str,
) -> Result<&'a [T]> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| Error::RequiresContiguous { op }.bt())?;
    Ok(&storage.as_slice::<T>()?[start..end])
}

/// The values of a contiguous tensor, held for reading.
struct Values<'a> {
    storage: StorageRef<'a>,
    range: (usize, usize),
    op: &'static str,
}

impl<'a> Values<'a> {
    fn of(tensor: &'a Tensor, op: &'static str) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let range = layout
            .contiguous_offsets()
            .ok_or_else(|| Error::RequiresContiguous { op }.bt())?;
        Ok(Self { storage, range, op })
    }

    fn get<T: Real>(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(storage) => Ok(&storage.as_slice::<T>()?[self.range.0..self.range.1]),
            _ => Err(Error::Msg(format!("{}: runs on the CPU only", self.op)).bt()),
        }
    }
}

/// Type of a storage.
fn dtype(storage: &CpuStorage) -> DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

/// `sum f(a, b)` over two rows in eight lanes: the compiler can vectorise it, and it rounds less
/// than one running sum.
fn lanes<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut sums = [T::zero(); 8];
    let (a_chunks, b_chunks) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a_chunks.0.iter().zip(b_chunks.0) {
        for lane in 0..8 {
            sums[lane] += f(a[lane], b[lane]);
        }
    }
    let tail: T = a_chunks
        .1
        .iter()
        .zip(b_chunks.1)
        .map(|(a, b)| f(*a, *b))
        .sum();
    ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7])) + tail
}

/// `f(a, b)` for each pair of elements, in parallel.
fn map2<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T + Sync) -> Vec<T> {
    let mut out = vec![T::zero(); a.len()];
    out.par_chunks_mut(ELEMENTS_PER_PIECE)
        .zip(a.par_chunks(ELEMENTS_PER_PIECE))
        .zip(b.par_chunks(ELEMENTS_PER_PIECE))
        .for_each(|((out, a), b)| {
            for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
                *out = f(*a, *b);
            }
        });
    out
}

/// `f(a, b, c)` for each triple of elements, in parallel.
fn map3<T: Real>(a: &[T], b: &[T], c: &[T], f: impl Fn(T, T, T) -> T + Sync) -> Vec<T> {
    let mut out = vec![T::zero(); a.len()];
    out.par_chunks_mut(ELEMENTS_PER_PIECE)
        .zip(a.par_chunks(ELEMENTS_PER_PIECE))
        .zip(b.par_chunks(ELEMENTS_PER_PIECE))
        .zip(c.par_chunks(ELEMENTS_PER_PIECE))
        .for_each(|(((out, a), b), c)| {
            for (((out, a), b), c) in out.iter_mut().zip(a).zip(b).zip(c) {
                *out = f(*a, *b, *c);
            }
        });
    out
}

/// `f(a, b, w)` for each pair of elements and the weight of their column, in parallel.
fn map_rows<T: Real>(a: &[T], b: &[T], weights: &[T], f: impl Fn(T, T, T) -> T + Sync) -> Vec<T> {
    let mut out = vec![T::zero(); a.len()];
    let width = weights.len();
    let piece = width * ROWS_PER_PIECE;
    out.par_chunks_mut(piece)
        .zip(a.par_chunks(piece))
        .zip(b.par_chunks(piece))
        .for_each(|((out, a), b)| {
            let rows = out.chunks_exact_mut(width).zip(a.chunks_exact(width));
            for ((out, a), b) in rows.zip(b.chunks_exact(width)) {
                for (((out, a), b), w) in out.iter_mut().zip(a).zip(b).zip(weights) {
                    *out = f(*a, *b, *w);
                }
            }
        });
    out
}

/// Sums over rows: `add(row, sums)` adds row by row to the `width` sums of its piece; pieces are
/// added in order.
fn sum_rows<T: Real>(rows: usize, width: usize, add: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let pieces: Vec<Vec<T>> = (0..rows.div_ceil(ROWS_PER_PIECE))
        .into_par_iter()
        .map(|piece| {
            let mut sums = vec![T::zero(); width];
            for row in piece * ROWS_PER_PIECE..rows.min((piece + 1) * ROWS_PER_PIECE) {
                add(row, &mut sums);
            }
            sums
        })
        .collect();
    let mut total = vec![T::zero(); width];
    for piece in &pieces {
        for (sum, value) in total.iter_mut().zip(piece) {
            *sum += *value;
        }
    }
    total
}

#[cfg(test)]
mod tests;
