//! The model's operations on the CPU, each with its own backward: candle-nn's fused forms drop gradients silently, and the
//! unfused ones keep every intermediate. All of them split their work into fixed pieces, so the number of threads changes no bit.
//! Only f32 and f64 on the CPU; called by `nepa.rs` alone.
mod activation;
mod attention;
mod cosine;
mod linear;
mod norm;

pub(crate) use activation::{activate, activate_gated};
pub(crate) use attention::{
    RotaryTable, attention_scores, causal_softmax, merge_heads, split_heads,
};
pub(crate) use cosine::cosine_rows;
pub(crate) use linear::{add_scaled, linear};
pub(crate) use norm::layer_norm;

use candle_core::{
    CpuStorage, DType, Error, Layout, Result, Storage, StorageRef, Tensor, WithDType,
};
use rayon::prelude::*;

/// Rows in one piece of a sum over rows: fixed, so that the order of additions is.
const ROWS_PER_PIECE: usize = 64;
/// Elements in one piece of an elementwise operation.
const ELEMENTS_PER_PIECE: usize = 1 << 13;

/// The floating point types that the operations are written for.
pub(crate) trait Real: WithDType + std::ops::Neg<Output = Self> + std::iter::Sum {
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn erf(self) -> Self;
}

impl Real for f32 {
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    fn exp(self) -> Self {
        f32::exp(self)
    }
    /// A rational approximation on [-4, 4] (the one of Eigen and XLA), which the compiler can vectorise; off by less than 5e-7.
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

/// Runs `$body` with `$real` standing for the type of `$dtype`; any other type than f32 and f64 is candle's error.
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

/// `sum f(a, b)` over two rows in eight lanes: the compiler can vectorise it, and it rounds less than one running sum.
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

/// Sums over rows: `add(row, sums)` adds row by row to the `width` sums of its piece; pieces are added in order.
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
