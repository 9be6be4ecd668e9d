//! The forward pass: each block leaves its inputs, what attention needs again, and the MLP before
//! its activation; all else is made again later.
use rayon::prelude::*;

use super::matmul::{Matrix, MatrixMut};
use super::memory::{ROWS_PER_PIECE, Scratch, Shape};
use super::vectorized::{activate, activate_gated, add_bias, add_scaled, norm_rows};
use super::{ExplicitNepa, Linear, Scalar, affine, attention, head_norms, rotary, weight};
use crate::{HiddenAct, RopeDraw};

impl<T: Scalar> ExplicitNepa<T> {
    /// Fills every buffer up to `output`.
    pub(super) fn forward(&mut self, weights: &[T], images: &[&[T]], rope: &RopeDraw) {
        self.embed(weights, images, rope);
        for index in 0..self.shape.blocks {
            self.block(weights, index);
        }
    }

    fn embed(&mut self, weights: &[T], images: &[&[T]], rope: &RopeDraw) {
        let (shape, places, buffers) = (self.shape, &self.places, &mut self.buffers);
        let table = rope.table(&self.config);
        let half = buffers.rotary.len() / 2;
        for (values, table) in buffers
            .rotary
            .chunks_exact_mut(half)
            .zip([&table.cos, &table.sin])
        {
            for (value, exact) in values.iter_mut().zip(table) {
                *value = T::from_f64(*exact);
            }
        }
        let (patch, side) = (self.config.patch_size, self.config.image_size);
        buffers
            .patches
            .par_chunks_mut(shape.patches * shape.patch_values)
            .zip(images)
            .for_each(|(patches, image)| cut(image, side, patch, patches));
        buffers
            .embedding
            .par_chunks_mut(ROWS_PER_PIECE * shape.width)
            .zip(
                buffers
                    .patches
                    .par_chunks(ROWS_PER_PIECE * shape.patch_values),
            )
            .for_each(|(out, patches)| {
                apply(
                    weights,
                    &places.projection,
                    patches,
                    shape.patch_values,
                    out,
                    shape.width,
                );
            });
        let class = &weights[places.class_token.clone()];
        let first = match buffers.blocks.first_mut() {
            Some(block) => &mut block.input,
            None => &mut buffers.output,
        };
        first
            .par_chunks_mut(shape.tokens * shape.width)
            .zip(buffers.embedding.par_chunks(shape.patches * shape.width))
            .for_each(|(tokens, embedding)| {
                let (row, rest) = tokens.split_at_mut(shape.width);
                row.copy_from_slice(class);
                rest.copy_from_slice(&embedding[..rest.len()]);
            });
    }

    fn block(&mut self, weights: &[T], index: usize) {
        let (shape, eps, places) = (self.shape, self.eps(), &self.places.blocks[index]);
        let (scratches, width) = (&self.scratches, self.shape.width);
        let (blocks, later) = self.buffers.blocks.split_at_mut(index + 1);
        let block = &mut blocks[index];
        let next = match later.first_mut() {
            Some(block) => &mut block.input,
            None => &mut self.buffers.output,
        };

        let norm = affine(weights, &places.norm_before);
        let piece = ROWS_PER_PIECE * width;
        (
            block.input.par_chunks(piece),
            block.qkv.par_chunks_mut(3 * piece),
        )
            .into_par_iter()
            .for_each(|(input, qkv)| {
                let mut scratch = scratches.own();
                let normed = &mut scratch.rows[0][..input.len()];
                norm_rows(input, norm, eps, width, normed);
                for (part, linear) in places.projections.iter().enumerate() {
                    let out = &mut qkv[part * width..];
                    apply(weights, linear, normed, width, out, 3 * width);
                }
            });

        let norms = head_norms(&self.config, weights, &places.head_norms);
        let rotary = rotary(&self.buffers.rotary);
        let causal = self.config.is_causal;
        let image = shape.tokens * width;
        (
            block.qkv.par_chunks(3 * image),
            block.attention.par_chunks_mut(image),
            block.softmax.par_chunks_mut(2 * shape.heads * shape.tokens),
        )
            .into_par_iter()
            .for_each(|(qkv, out, softmax)| {
                let mut scratch = scratches.own();
                attention::forward(
                    &shape,
                    causal,
                    norms,
                    rotary,
                    qkv,
                    out,
                    softmax,
                    &mut scratch,
                );
            });

        let act = self.config.hidden_act;
        let norm = affine(weights, &places.norm_after);
        (
            block.input.par_chunks(piece),
            block.attention.par_chunks(piece),
            block.middle.par_chunks_mut(piece),
            block.up.par_chunks_mut(ROWS_PER_PIECE * shape.up),
            next.par_chunks_mut(piece),
        )
            .into_par_iter()
            .for_each(|(input, attention, middle, up, next)| {
                let mut scratch = scratches.own();
                let Scratch {
                    rows: [normed, product],
                    wide,
                    ..
                } = &mut *scratch;
                let product = &mut product[..input.len()];
                apply(
                    weights,
                    &places.attention_output,
                    attention,
                    width,
                    product,
                    width,
                );
                add_scaled(
                    input,
                    product,
                    &weights[places.attention_scale.clone()],
                    middle,
                );

                let normed = &mut normed[..input.len()];
                norm_rows(middle, norm, eps, width, normed);
                for (part, linear) in std::iter::once(&places.up).chain(&places.gate).enumerate() {
                    let out = &mut up[part * shape.mlp..];
                    apply(weights, linear, normed, width, out, shape.up);
                }
                let hidden = &mut wide[..input.len() / width * shape.mlp];
                make_hidden(&shape, act, up, hidden);
                apply(weights, &places.down, hidden, shape.mlp, product, width);
                add_scaled(middle, product, &weights[places.mlp_scale.clone()], next);
            });
    }
}

/// `out = x W^T + b` on the first values of each `stride`; `x` without gaps.
fn apply<T: Scalar>(
    weights: &[T],
    linear: &Linear,
    x: &[T],
    inputs: usize,
    out: &mut [T],
    stride: usize,
) {
    let outputs = linear.weight.len() / inputs;
    MatrixMut::strided(out, outputs, stride)
        .set_a_bt(Matrix::new(x, inputs), weight(weights, linear, inputs));
    if let Some(bias) = &linear.bias {
        add_bias(out, stride, &weights[bias.clone()]);
    }
}

/// What goes into the MLP's second product: `act(up)`, or `act(gate) * up`.
pub(super) fn make_hidden<T: Scalar>(shape: &Shape, act: HiddenAct, up: &[T], hidden: &mut [T]) {
    if shape.up == shape.mlp {
        activate(up, act, hidden);
    } else {
        activate_gated(up, act, shape.mlp, hidden);
    }
}

/// An image `[C, S, S]` to its patches `[P, C p p]`, row by row.
fn cut<T: Copy>(image: &[T], side: usize, patch: usize, patches: &mut [T]) {
    let channels = image.len() / (side * side);
    let across = side / patch;
    let values = channels * patch * patch;
    for (number, out) in patches.chunks_exact_mut(values).enumerate() {
        let (top, left) = (number / across * patch, number % across * patch);
        for (line, out) in out.chunks_exact_mut(patch).enumerate() {
            let (channel, y) = (line / patch, top + line % patch);
            let first = (channel * side + y) * side + left;
            out.copy_from_slice(&image[first..first + patch]);
        }
    }
}
