//! Matrix products of row-major slices by `gemm`, one thread each; the callers split the work into
//! fixed pieces.
#![expect(
    unsafe_code,
    reason = "gemm takes pointers and strides; the slices are checked here"
)]
use gemm::Parallelism;
use rayon::prelude::*;

use super::Scalar;

/// A matrix in a slice: `rows` times `columns`, and how far apart two rows and two columns are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    values: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows of `columns` values without gaps.
    pub(super) fn new(values: &'a [T], columns: usize) -> Self {
        Self::strided(values, columns, columns)
    }

    /// Of rows of `stride` values, the first `columns` of each; the last row may end after them.
    pub(super) fn strided(values: &'a [T], columns: usize, stride: usize) -> Self {
        Self {
            values,
            rows: values.len().div_ceil(stride),
            columns,
            row_stride: stride,
            column_stride: 1,
        }
    }

    /// Of a matrix that is not transposed, some columns from `first` on.
    fn columns(self, first: usize, columns: usize) -> Self {
        Self {
            values: &self.values[first..],
            columns,
            ..self
        }
    }

    fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Values from the first to behind the last.
    fn reach(&self) -> usize {
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }

    /// Its slice and the distance of its rows, for sums over rows.
    pub(super) fn rows(self) -> (&'a [T], usize) {
        (self.values, self.row_stride)
    }
}

/// A row-major matrix to be written: of rows of `stride` values, the first `columns` of each.
#[derive(Debug)]
pub(super) struct MatrixMut<'a, T> {
    values: &'a mut [T],
    columns: usize,
    stride: usize,
}

impl<'a, T: Scalar> MatrixMut<'a, T> {
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

    /// `self += a b`.
    pub(super) fn add_a_b(self, a: Matrix<'_, T>, b: Matrix<'_, T>) {
        self.product(true, a, b);
    }

    /// `self += a^T b`.
    pub(super) fn add_at_b(self, a: Matrix<'_, T>, b: Matrix<'_, T>) {
        self.product(true, a.transposed(), b);
    }
}

/// Rows of a weight's gradient that one task computes, at the least and at the most: a product's
/// fixed costs are spread over them.
const ROWS_PER_TASK: (usize, usize) = (96, 192);
/// Tasks that there should be.
const TASKS: usize = 4;

/// A weight's gradient `[out, in]`: `sum += grad^T x` over all rows, on all threads.
pub(super) fn add_weight_gradient<T: Scalar>(sum: &mut [T], grad: Matrix<'_, T>, x: Matrix<'_, T>) {
    let width = x.columns;
    let rows = (sum.len() / width / TASKS).clamp(ROWS_PER_TASK.0, ROWS_PER_TASK.1);
    sum.par_chunks_mut(rows * width)
        .enumerate()
        .for_each(|(task, sum)| {
            let part = grad.columns(task * rows, sum.len() / width);
            MatrixMut::new(sum, width).add_at_b(part, x);
        });
}
