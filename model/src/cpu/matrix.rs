//! Matrices in slices.
use crate::real::Real;

/// A matrix in a slice: `rows` times `columns`, and how far apart two rows and two columns are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    pub(super) values: &'a [T],
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
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
    pub(super) fn columns(self, first: usize, columns: usize) -> Self {
        Self {
            values: &self.values[first..],
            columns,
            ..self
        }
    }

    /// Of a matrix that is not transposed, some rows from `first` on.
    pub(super) fn row_range(self, first: usize, rows: usize) -> Self {
        let start = first * self.row_stride;
        let end = (start + rows * self.row_stride).min(self.values.len());
        Self {
            values: &self.values[start..end],
            rows,
            ..self
        }
    }

    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Values from the first to behind the last.
    pub(super) fn reach(&self) -> usize {
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

impl<'a, T: Real> Matrix<'a, T> {
    pub(super) fn as_f32(&self) -> Option<Matrix<'a, f32>> {
        Some(Matrix {
            values: T::as_f32(self.values)?,
            rows: self.rows,
            columns: self.columns,
            row_stride: self.row_stride,
            column_stride: self.column_stride,
        })
    }
}
