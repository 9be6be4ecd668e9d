//! A classifier's head on the host, whatever the device: the norm of what is pooled, if the model
//! has one, then a linear layer, both ways. B images, D width, K classes. All sums are in one order,
//! whatever the threads.
use std::ops::Range;

use super::matmul::{add_weight_gradient, rows_times};
use super::matrix::Matrix;
use super::packed::Panels;
use super::rows::{self, NormBackwardRows, NormRows};
use crate::real::Real;
use crate::step::HeadPlaces;

/// The weights of a head.
#[derive(Debug)]
pub(crate) struct Head<'a, T> {
    /// All of them, and where each is.
    pub(crate) values: &'a [T],
    pub(crate) places: &'a HeadPlaces,
    /// Added to a variance.
    pub(crate) eps: f64,
}

/// What the forward pass found.
#[derive(Debug)]
pub(crate) struct HeadPass<T> {
    /// `[B, D]`: what the linear layer reads.
    normed: Vec<T>,
    /// `[B]` each.
    statistics: [Vec<T>; 2],
    /// `[B, K]`.
    pub(crate) logits: Vec<T>,
}

impl<T: Real> Head<'_, T> {
    fn part(&self, range: &Range<usize>) -> &[T] {
        &self.values[range.clone()]
    }

    /// D.
    fn width(&self) -> usize {
        self.places.weight.len() / self.num_classes()
    }

    /// K.
    fn num_classes(&self) -> usize {
        self.places.bias.len()
    }

    /// Of pooled rows `[B, D]`.
    pub(crate) fn forward(&self, pooled: &[T]) -> HeadPass<T> {
        let (width, classes) = (self.width(), self.num_classes());
        let images = pooled.len() / width;
        let mut statistics = [0; 2].map(|_| Vec::new());
        let mut normed = pooled.to_vec();
        if let Some([weight, bias]) = &self.places.norm {
            statistics = [0; 2].map(|_| vec![T::zero(); images]);
            let [mean, rstd] = &mut statistics;
            rows::norm_rows(NormRows {
                x: pooled,
                weight: self.part(weight),
                bias: self.part(bias),
                eps: T::from_f64(self.eps),
                out: &mut normed,
                mean,
                rstd,
            });
        }
        // [K, B], as the classes are many and are split over threads.
        let mut by_class = vec![T::zero(); classes * images];
        let weight = Matrix::new(self.part(&self.places.weight), width);
        let columns = Matrix::new(&normed, width).transposed();
        rows_times(&mut Panels::default(), &mut by_class, weight, columns, None);
        let mut logits = transposed(&by_class, images);
        rows::add_bias(&mut logits, classes, self.part(&self.places.bias));
        HeadPass {
            normed,
            statistics,
            logits,
        }
    }

    /// From the gradient of the logits, `[B, K]`, to that of the pooled rows, `[B, D]`; those of the
    /// weights are added to `gradient`, which is laid out as the weights are.
    pub(crate) fn backward(
        &self,
        pooled: &[T],
        pass: &HeadPass<T>,
        d_logits: &[T],
        gradient: &mut [T],
    ) -> Vec<T> {
        let (width, classes) = (self.width(), self.num_classes());
        let images = pooled.len() / width;
        let (panels, places) = (&mut Panels::default(), self.places);
        let (d_logits_rows, normed) = (
            Matrix::new(d_logits, classes),
            Matrix::new(&pass.normed, width),
        );
        let d_weight = &mut gradient[places.weight.clone()];
        add_weight_gradient(panels, d_weight, d_logits_rows, normed);
        rows::add_rows(d_logits, classes, &mut gradient[places.bias.clone()]);
        // [D, B], as the columns are many and are split over threads.
        let mut by_column = vec![T::zero(); width * images];
        let weight = Matrix::new(self.part(&places.weight), width);
        add_weight_gradient(panels, &mut by_column, weight, d_logits_rows.transposed());
        let mut d_normed = transposed(&by_column, images);
        let Some([weight, bias]) = &places.norm else {
            return d_normed;
        };
        let mut d_pooled = vec![T::zero(); images * width];
        let mut sums = vec![T::zero(); 3 * width];
        let [mean, rstd] = &pass.statistics;
        rows::norm_rows_backward(NormBackwardRows {
            x: pooled,
            mean,
            rstd,
            weight: self.part(weight),
            bias: self.part(bias),
            grad: &mut d_normed,
            dx: &mut d_pooled,
            again: None,
            branch: None,
            tokens: 1,
            first: 0,
            sums: &mut sums,
        });
        rows::add_rows(&sums[..width], width, &mut gradient[weight.clone()]);
        rows::add_rows(&sums[width..2 * width], width, &mut gradient[bias.clone()]);
        d_pooled
    }
}

/// The transpose of rows of `columns` values.
fn transposed<T: Real>(rows: &[T], columns: usize) -> Vec<T> {
    let count = rows.len() / columns;
    let mut out = vec![T::zero(); rows.len()];
    for (number, row) in rows.chunks_exact(columns).enumerate() {
        for (column, value) in row.iter().enumerate() {
            out[column * count + number] = *value;
        }
    }
    out
}
