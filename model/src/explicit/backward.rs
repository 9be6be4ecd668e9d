//! The backward pass, block by block from the loss to the pixels' weights.
use rayon::prelude::*;

use super::matmul::{Matrix, MatrixMut, add_weight_gradient};
use super::memory::ROWS_PER_PIECE;
use super::vectorized::{
    LossRows, activate_backward, activate_gated_backward, add_rows, loss_rows, norm_rows,
    norm_rows_backward, scale_rows,
};
use super::{
    ExplicitNepa, Linear, Norm, PretrainReport, Scalar, affine, attention, forward, head_norms,
    rotary, weight,
};

/// Columns of a sum over rows that one task adds, and rows that it adds before their sum joins the
/// whole.
const COLUMNS_PER_TASK: usize = 128;
const ROWS_PER_SUM: usize = 64;

/// `sum += rows of the matrix`, in a fixed order.
fn add_column_sums<T: Scalar>(sum: &mut [T], matrix: Matrix<'_, T>) {
    let (values, stride) = matrix.rows();
    sum.par_chunks_mut(COLUMNS_PER_TASK)
        .enumerate()
        .for_each(|(task, sum)| {
            for rows in values[task * COLUMNS_PER_TASK..].chunks(ROWS_PER_SUM * stride) {
                let mut part = [T::zero(); COLUMNS_PER_TASK];
                add_rows(rows, stride, &mut part[..sum.len()]);
                for (sum, part) in sum.iter_mut().zip(part) {
                    *sum += part;
                }
            }
        });
}

/// `range += sums of the pieces`, each of `stride` values of which those from `start` on count.
fn add_pieces<T: Scalar>(
    gradient: &mut [T],
    range: Option<&std::ops::Range<usize>>,
    pieces: &[T],
    stride: usize,
    start: usize,
) {
    if let Some(range) = range {
        add_rows(&pieces[start..], stride, &mut gradient[range.clone()]);
    }
}

/// A linear layer's gradients, of weight and bias.
fn add_linear<T: Scalar>(
    gradient: &mut [T],
    linear: &Linear,
    grad: Matrix<'_, T>,
    x: Matrix<'_, T>,
) {
    add_weight_gradient(&mut gradient[linear.weight.clone()], grad, x);
    if let Some(bias) = &linear.bias {
        add_column_sums(&mut gradient[bias.clone()], grad);
    }
}

impl<T: Scalar> ExplicitNepa<T> {
    /// Adds `share` times the gradient of the loss of the last forward pass.
    pub(super) fn backward(
        &mut self,
        weights: &[T],
        share: f64,
        gradient: &mut [T],
    ) -> PretrainReport {
        let report = self.loss(weights, share, gradient);
        for index in (0..self.shape.blocks).rev() {
            self.mlp_backward(weights, index, gradient);
            self.attention_backward(weights, index, gradient);
        }
        self.embedding_backward(gradient);
        report
    }

    /// Final norm, loss, and the gradient of the residual stream before the norm.
    fn loss(&mut self, weights: &[T], share: f64, gradient: &mut [T]) -> PretrainReport {
        let (shape, eps, buffers) = (self.shape, self.eps(), &mut self.buffers);
        let (image, width) = (shape.tokens * shape.width, shape.width);
        let count = (shape.batch * shape.patches) as f64;
        let factor = T::from_f64(-share / count);
        let affine = affine(weights, &self.places.norm);
        let scratches = &self.scratches;
        let input = buffers
            .blocks
            .first()
            .map_or(&buffers.output, |block| &block.input);
        let sums = &mut buffers.partial_sums[..shape.batch * 2 * width];
        (
            buffers.output.par_chunks(image),
            buffers.embedding.par_chunks(shape.patches * width),
            input.par_chunks(image),
            buffers.d_stream.par_chunks_mut(image),
            buffers.cosines.par_chunks_mut(2 * shape.patches),
            sums.par_chunks_mut(2 * width),
        )
            .into_par_iter()
            .for_each(|(x, next, current, dx, cosines, sums)| {
                let predicted = shape.patches * width;
                sums.fill(T::zero());
                // Without the causal mask the last token has an output that predicts nothing.
                dx[predicted..].fill(T::zero());
                loss_rows(LossRows {
                    x: &x[..predicted],
                    next,
                    current: &current[..predicted],
                    affine,
                    eps,
                    factor,
                    prediction: &mut scratches.own().rows[0][..width],
                    dx: &mut dx[..predicted],
                    cosines: cosines.as_chunks_mut().0,
                    sums,
                });
            });
        let norm = &self.places.norm;
        add_pieces(gradient, norm.weight.as_ref(), sums, 2 * width, 0);
        add_pieces(gradient, norm.bias.as_ref(), sums, 2 * width, width);

        let mut report = PretrainReport::default();
        for [next, current] in buffers.cosines.as_chunks().0 {
            report.cos_target += next.to_f64() / count;
            report.cos_previous += current.to_f64() / count;
            report.copy_win += f64::from(u8::from(current > next)) / count;
        }
        report.loss = -report.cos_target;
        report
    }

    /// From the gradient after the block to that after its attention.
    fn mlp_backward(&mut self, weights: &[T], index: usize, gradient: &mut [T]) {
        let (shape, eps, places) = (self.shape, self.eps(), &self.places.blocks[index]);
        let (scratches, act) = (&self.scratches, self.config.hidden_act);
        let (width, piece) = (shape.width, ROWS_PER_PIECE * shape.width);
        let buffers = &mut self.buffers;
        let block = &buffers.blocks[index];

        let wide = ROWS_PER_PIECE * shape.up;
        (
            block.up.par_chunks(wide),
            buffers.hidden.par_chunks_mut(ROWS_PER_PIECE * shape.mlp),
        )
            .into_par_iter()
            .for_each(|(up, hidden)| forward::make_hidden(&shape, act, up, hidden));
        add_linear(
            gradient,
            &places.down,
            Matrix::new(&buffers.d_stream, width),
            Matrix::new(&buffers.hidden, shape.mlp),
        );

        let norm = affine(weights, &places.norm_after);
        let sums = &mut buffers.partial_sums[..shape.rows().div_ceil(ROWS_PER_PIECE) * 2 * width];
        (
            block.middle.par_chunks(piece),
            block.up.par_chunks(wide),
            buffers.d_stream.par_chunks_mut(piece),
            buffers.d_up.par_chunks_mut(wide),
            buffers.normed.par_chunks_mut(piece),
            sums.par_chunks_mut(2 * width),
        )
            .into_par_iter()
            .for_each(|(middle, up, d_stream, d_up, normed, sums)| {
                let mut scratch = scratches.own();
                let scratch = &mut *scratch;
                let scaled = &mut scratch.rows[0][..middle.len()];
                scale_rows(d_stream, &weights[places.mlp_scale.clone()], scaled);
                let down = weight(weights, &places.down, shape.mlp);
                let scaled_rows = Matrix::new(scaled, width);
                if shape.up == shape.mlp {
                    MatrixMut::new(d_up, shape.mlp).set_a_b(scaled_rows, down);
                    activate_backward(up, act, d_up);
                } else {
                    let d_hidden = &mut scratch.wide[..middle.len() / width * shape.mlp];
                    MatrixMut::new(d_hidden, shape.mlp).set_a_b(scaled_rows, down);
                    activate_gated_backward(up, d_hidden, act, shape.mlp, d_up);
                }
                norm_rows(middle, norm, eps, width, normed);
                let grad = &mut scratch.rows[1][..middle.len()];
                let d_rows =
                    |part: usize| Matrix::strided(&d_up[part * shape.mlp..], shape.mlp, shape.up);
                MatrixMut::new(grad, width).set_a_b(d_rows(0), weight(weights, &places.up, width));
                if let Some(gate) = &places.gate {
                    MatrixMut::new(grad, width).add_a_b(d_rows(1), weight(weights, gate, width));
                }
                sums.fill(T::zero());
                norm_rows_backward(
                    middle,
                    norm.weight.unwrap_or_default(),
                    eps,
                    grad,
                    d_stream,
                    sums,
                );
            });
        add_norm(gradient, &places.norm_after, sums, width);
        for (part, linear) in std::iter::once(&places.up).chain(&places.gate).enumerate() {
            let grad = Matrix::strided(&buffers.d_up[part * shape.mlp..], shape.mlp, shape.up);
            add_linear(gradient, linear, grad, Matrix::new(&buffers.normed, width));
        }
    }

    /// From the gradient after the block's attention to that before the block.
    fn attention_backward(&mut self, weights: &[T], index: usize, gradient: &mut [T]) {
        let (shape, eps, places) = (self.shape, self.eps(), &self.places.blocks[index]);
        let (scratches, causal) = (&self.scratches, self.config.is_causal);
        let (width, piece) = (shape.width, ROWS_PER_PIECE * shape.width);
        let buffers = &mut self.buffers;
        let block = &buffers.blocks[index];

        add_linear(
            gradient,
            &places.attention_output,
            Matrix::new(&buffers.d_stream, width),
            Matrix::new(&block.attention, width),
        );
        (
            buffers.d_stream.par_chunks(piece),
            buffers.d_normed.par_chunks_mut(piece),
        )
            .into_par_iter()
            .for_each(|(d_stream, d_attention)| {
                let mut scratch = scratches.own();
                let scaled = &mut scratch.rows[0][..d_stream.len()];
                scale_rows(d_stream, &weights[places.attention_scale.clone()], scaled);
                MatrixMut::new(d_attention, width).set_a_b(
                    Matrix::new(scaled, width),
                    weight(weights, &places.attention_output, width),
                );
            });

        let norms = head_norms(&self.config, weights, &places.head_norms);
        let rotary = rotary(&buffers.rotary);
        let (image, size) = (shape.tokens * width, shape.head());
        let sums = &mut buffers.partial_sums[..shape.batch * 4 * size];
        (
            block.qkv.par_chunks(3 * image),
            block.attention.par_chunks(image),
            block.softmax.par_chunks(2 * shape.heads * shape.tokens),
            buffers.d_normed.par_chunks(image),
            buffers.d_qkv.par_chunks_mut(3 * image),
            sums.par_chunks_mut(4 * size),
        )
            .into_par_iter()
            .for_each(|(qkv, out, statistics, d_out, d_qkv, sums)| {
                sums.fill(T::zero());
                let saved = attention::Saved {
                    qkv,
                    out,
                    statistics,
                };
                let mut scratch = scratches.own();
                attention::backward(
                    &shape,
                    causal,
                    norms,
                    rotary,
                    saved,
                    d_out,
                    d_qkv,
                    sums,
                    &mut scratch,
                );
            });
        for (number, norm) in places.head_norms.iter().enumerate() {
            let start = 2 * number * size;
            add_pieces(gradient, norm.weight.as_ref(), sums, 4 * size, start);
            add_pieces(gradient, norm.bias.as_ref(), sums, 4 * size, start + size);
        }

        let norm = affine(weights, &places.norm_before);
        let sums = &mut buffers.partial_sums[..shape.rows().div_ceil(ROWS_PER_PIECE) * 2 * width];
        (
            block.input.par_chunks(piece),
            buffers.d_qkv.par_chunks(3 * piece),
            buffers.d_stream.par_chunks_mut(piece),
            buffers.normed.par_chunks_mut(piece),
            sums.par_chunks_mut(2 * width),
        )
            .into_par_iter()
            .for_each(|(input, d_qkv, d_stream, normed, sums)| {
                norm_rows(input, norm, eps, width, normed);
                let mut scratch = scratches.own();
                let grad = &mut scratch.rows[0][..input.len()];
                for (part, linear) in places.projections.iter().enumerate() {
                    let rows = Matrix::strided(&d_qkv[part * width..], width, 3 * width);
                    let weight = weight(weights, linear, width);
                    let grad = MatrixMut::new(grad, width);
                    if part == 0 {
                        grad.set_a_b(rows, weight);
                    } else {
                        grad.add_a_b(rows, weight);
                    }
                }
                sums.fill(T::zero());
                norm_rows_backward(
                    input,
                    norm.weight.unwrap_or_default(),
                    eps,
                    grad,
                    d_stream,
                    sums,
                );
            });
        add_norm(gradient, &places.norm_before, sums, width);
        for (part, linear) in places.projections.iter().enumerate() {
            let grad = Matrix::strided(&buffers.d_qkv[part * width..], width, 3 * width);
            add_linear(gradient, linear, grad, Matrix::new(&buffers.normed, width));
        }
    }

    /// Gradients of the class token and of the patch embedding; as a target the embedding is a
    /// constant.
    fn embedding_backward(&mut self, gradient: &mut [T]) {
        let (shape, width, buffers) = (self.shape, self.shape.width, &mut self.buffers);
        let image = shape.tokens * width;
        add_column_sums(
            &mut gradient[self.places.class_token.clone()],
            Matrix::strided(&buffers.d_stream, width, image),
        );
        // Where T = P, the last patch is no input.
        let d_embedding = &mut buffers.d_normed[..shape.batch * shape.patches * width];
        (
            d_embedding.par_chunks_mut(shape.patches * width),
            buffers.d_stream.par_chunks(image),
        )
            .into_par_iter()
            .for_each(|(d_embedding, d_stream)| {
                let (inputs, rest) = d_embedding.split_at_mut(image - width);
                inputs.copy_from_slice(&d_stream[width..]);
                rest.fill(T::zero());
            });
        add_linear(
            gradient,
            &self.places.projection,
            Matrix::new(d_embedding, width),
            Matrix::new(&buffers.patches, shape.patch_values),
        );
    }
}

fn add_norm<T: Scalar>(gradient: &mut [T], norm: &Norm, sums: &[T], width: usize) {
    add_pieces(gradient, norm.weight.as_ref(), sums, 2 * width, 0);
    add_pieces(gradient, norm.bias.as_ref(), sums, 2 * width, width);
}
