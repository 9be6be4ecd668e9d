//! Matmuls of row-major slices by `gemm`, one thread each, and how a large one is split over
//! threads; large ones in f32 are left to `packed.rs`, where it has a kernel for the processor.
#![expect(
    unsafe_code,
    reason = "gemm takes pointers and strides; the slices are checked here"
)]
use gemm::Parallelism;
use rayon::prelude::*;

use super::matrix::Matrix;
use super::packed::Panels;
use super::rows::add_bias;
use crate::real::Real;

/// A row-major matrix to be written: of rows of `stride` values, the first `columns` of each.
#[derive(Debug)]
pub(super) struct MatrixMut<'a, T> {
    values: &'a mut [T],
    columns: usize,
    stride: usize,
}

impl<'a, T: Real> MatrixMut<'a, T> {
    pub(super) fn new(values: &'a mut [T], columns: usize) -> Self {
        Self::strided(values, columns, columns)
    }

    pub(super) fn strided(values: &'a mut [T], columns: usize, stride: usize) -> Self {
        Self {
            values,
            columns,
            stride,
        }
    }

    /// `self = a b`, added to what is there if asked for.
    fn product(self, add: bool, a: Matrix<'_, T>, b: Matrix<'_, T>) {
        let (rows, columns) = (self.values.len().div_ceil(self.stride), self.columns);
        let reach = (rows - 1) * self.stride + columns;
        assert!(
            (a.rows, b.columns, a.columns) == (rows, columns, b.rows)
                && columns <= self.stride
                && reach <= self.values.len()
                && a.reach() <= a.values.len()
                && b.reach() <= b.values.len(),
            "matrices that do not fit each other or their slices"
        );
        let stride = |stride: usize| stride as isize;
        // SAFETY: rows, columns and strides stay inside of the three slices, as was just checked;
        // rows of the target do not overlap; T is f32 or f64, for which `gemm` is written.
        unsafe {
            gemm::gemm(
                rows,
                columns,
                a.columns,
                self.values.as_mut_ptr(),
                1,
                stride(self.stride),
                add,
                a.values.as_ptr(),
                stride(a.column_stride),
                stride(a.row_stride),
                b.values.as_ptr(),
                stride(b.column_stride),
                stride(b.row_stride),
                T::one(),
                T::one(),
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }

    /// `self = a b^T`.
    pub(super) fn set_a_bt(self, a: Matrix<'_, T>, b: Matrix<'_, T>) {
        self.product(false, a, b.transposed());
    }

    /// `self = a b`.
    pub(super) fn set_a_b(self, a: Matrix<'_, T>, b: Matrix<'_, T>) {
        self.product(false, a, b);
    }

    /// `self += a^T b`.
    pub(super) fn add_at_b(self, a: Matrix<'_, T>, b: Matrix<'_, T>) {
        self.product(true, a.transposed(), b);
    }
}

/// Rows of a result that one task computes at the least: a call of `gemm` packs one operand anew,
/// whose costs are spread over them.
const LEAST_ROWS: usize = 64;
/// Columns from which on `gemm` sums each value of a result in an order that depends on the sums'
/// length alone, and not on the rows that it is asked for at once.
const LEAST_COLUMNS: usize = 65;

/// Runs `multiply(first, rows, part)` for parts of a result `[m, n]`, on all threads. Into how many
/// parts it is split follows the threads, which changes no bit; small results are not split.
fn split<T: Real>(result: &mut [T], n: usize, multiply: impl Fn(usize, usize, &mut [T]) + Sync) {
    let m = result.len() / n;
    let threads = rayon::current_num_threads();
    // Two a thread, so that one that is late does not hold the others up.
    let wanted = if threads == 1 { 1 } else { 2 * threads };
    let count = match m / LEAST_ROWS {
        _ if n < LEAST_COLUMNS => 1,
        most => wanted.min(most).max(1),
    };
    let mut parts = Vec::with_capacity(count);
    let mut rest = result;
    for number in 0..count {
        let (first, end) = (number * m / count, (number + 1) * m / count);
        let (part, behind) = rest.split_at_mut((end - first) * n);
        parts.push((first, end - first, part));
        rest = behind;
    }
    let run = |(first, rows, part)| multiply(first, rows, part);
    parts.into_par_iter().for_each(run);
}

/// `c = a b` by packed panels, added to what is there if asked for, and then a bias added to each
/// column; false, and nothing done, where they are not for it.
fn multiply_packed<T: Real>(
    panels: &mut Panels,
    c: &mut [T],
    add: bool,
    (a, b): (Matrix<'_, T>, Matrix<'_, T>),
    bias: Option<&[T]>,
) -> bool {
    let (Some(a), Some(b), Some(c)) = (a.as_f32(), b.as_f32(), T::as_f32_mut(c)) else {
        return false;
    };
    panels.multiply(c, add, (a, b), bias.and_then(T::as_f32))
}

/// A weight's gradient `[out, in]`: `sum += grad^T x` over all rows, on all threads.
pub(super) fn add_weight_gradient<T: Real>(
    panels: &mut Panels,
    sum: &mut [T],
    grad: Matrix<'_, T>,
    x: Matrix<'_, T>,
) {
    if multiply_packed(panels, sum, true, (grad.transposed(), x), None) {
        return;
    }
    split(sum, x.columns, |first, rows, sum| {
        MatrixMut::new(sum, x.columns).add_at_b(grad.columns(first, rows), x);
    });
}

/// `out [m, n] = x [m, k] b` and perhaps a bias for each column, on all threads.
pub(super) fn rows_times<T: Real>(
    panels: &mut Panels,
    out: &mut [T],
    x: Matrix<'_, T>,
    b: Matrix<'_, T>,
    bias: Option<&[T]>,
) {
    let n = b.columns;
    if multiply_packed(panels, out, false, (x, b), bias) {
        return;
    }
    split(out, n, |first, rows, out| {
        MatrixMut::new(out, n).product(false, x.row_range(first, rows), b);
        if let Some(bias) = bias {
            add_bias(out, n, bias);
        }
    });
}
