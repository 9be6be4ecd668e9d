//! Attention of one image, head by head and a block of queries at a time; its backward makes the
//! scores again.
use super::Scalar;
use super::matmul::{Matrix, MatrixMut};
use super::memory::{QUERIES, Scratch, Shape};
use super::vectorized::{
    HeadNorm, HeadRows, Rotary, SoftmaxRows, dot_rows, put, put_rotated_backward, scale_each_row,
    softmax, softmax_backward, take, take_rotated,
};

/// The queries of one step, and the keys that any of them sees.
struct Block {
    first: usize,
    end: usize,
    keys: usize,
    /// Keys that the first query sees, and how many more each following one.
    visible: usize,
    more: usize,
}

fn blocks(tokens: usize, causal: bool) -> impl Iterator<Item = Block> {
    (0..tokens).step_by(QUERIES).map(move |first| {
        let end = (first + QUERIES).min(tokens);
        if causal {
            Block {
                first,
                end,
                keys: end,
                visible: first + 1,
                more: 1,
            }
        } else {
            Block {
                first,
                end,
                keys: tokens,
                visible: tokens,
                more: 0,
            }
        }
    })
}

/// Places of one head in the projected sequence (query, key, value) and in the output.
fn places(shape: &Shape, head: usize) -> ([HeadRows; 3], HeadRows) {
    let (width, size) = (shape.width, shape.head());
    let projected = [0, 1, 2].map(|part| HeadRows {
        start: part * width + head * size,
        stride: 3 * width,
        size,
    });
    let output = HeadRows {
        start: head * size,
        stride: width,
        size,
    };
    (projected, output)
}

fn scale<T: Scalar>(shape: &Shape) -> T {
    T::from_f64(1.0 / (shape.head() as f64).sqrt())
}

/// `qkv [T, 3 D]` to `out [T, D]`; `statistics [2, H, T]` gets greatest score and inverse sum of
/// each softmax.
#[expect(clippy::too_many_arguments, reason = "one call each way")]
pub(super) fn forward<T: Scalar>(
    shape: &Shape,
    causal: bool,
    norms: [Option<HeadNorm<'_, T>>; 2],
    rotary: Rotary<'_, T>,
    qkv: &[T],
    out: &mut [T],
    statistics: &mut [T],
    scratch: &mut Scratch<Vec<T>>,
) {
    let (tokens, size) = (shape.tokens, shape.head());
    let (greatest, inverse) = statistics.split_at_mut(shape.heads * tokens);
    let [query, key, value, ..] = &mut scratch.heads;
    let [scores, _] = &mut scratch.scores;
    for head in 0..shape.heads {
        let (from, to) = places(shape, head);
        take_rotated(qkv, from[0], norms[0], rotary, query);
        take_rotated(qkv, from[1], norms[1], rotary, key);
        take(qkv, from[2], value);
        for block in blocks(tokens, causal) {
            let scores = &mut scores[..(block.end - block.first) * block.keys];
            let keys = Matrix::new(&key[..block.keys * size], size);
            let values = Matrix::new(&value[..block.keys * size], size);
            let queries = Matrix::new(&query[block.first * size..block.end * size], size);
            MatrixMut::new(scores, block.keys).set_a_bt(queries, keys);
            let rows = head * tokens + block.first..head * tokens + block.end;
            softmax(
                scores,
                block.keys,
                block.visible,
                block.more,
                scale(shape),
                &mut greatest[rows.clone()],
                &mut inverse[rows.clone()],
            );
            let end = (block.end - 1) * to.stride + to.start + size;
            let out = &mut out[block.first * to.stride + to.start..end];
            MatrixMut::strided(out, size, to.stride)
                .set_a_b(Matrix::new(scores, block.keys), values);
            scale_each_row(out, to.stride, size, &inverse[rows]);
        }
    }
}

/// What the backward pass of one image reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Saved<'a, T> {
    pub(super) qkv: &'a [T],
    pub(super) out: &'a [T],
    pub(super) statistics: &'a [T],
}

/// Gradient of `qkv` from that of `out`; `sums [4, d]` grows by the gradients of the norms: query's
/// weight and bias, key's weight and bias.
#[expect(clippy::too_many_arguments, reason = "one call each way")]
pub(super) fn backward<T: Scalar>(
    shape: &Shape,
    causal: bool,
    norms: [Option<HeadNorm<'_, T>>; 2],
    rotary: Rotary<'_, T>,
    saved: Saved<'_, T>,
    d_out: &[T],
    d_qkv: &mut [T],
    sums: &mut [T],
    scratch: &mut Scratch<Vec<T>>,
) {
    let (tokens, size) = (shape.tokens, shape.head());
    let (greatest, inverse) = saved.statistics.split_at(shape.heads * tokens);
    let [query, key, value, grad, d_query, d_key, d_value] = &mut scratch.heads;
    let [scores, d_scores] = &mut scratch.scores;
    for head in 0..shape.heads {
        let (from, to) = places(shape, head);
        // The head's output, only for its products with the gradient.
        take(saved.out, to, query);
        take(d_out, to, grad);
        dot_rows(query, grad, size, &mut scratch.delta);
        take_rotated(saved.qkv, from[0], norms[0], rotary, query);
        take_rotated(saved.qkv, from[1], norms[1], rotary, key);
        take(saved.qkv, from[2], value);
        d_key.fill(T::zero());
        d_value.fill(T::zero());
        for block in blocks(tokens, causal) {
            let (rows, seen) = (block.first * size..block.end * size, ..block.keys * size);
            let len = (block.end - block.first) * block.keys;
            let (scores, d_scores) = (&mut scores[..len], &mut d_scores[..len]);
            let (keys, values) = (
                Matrix::new(&key[seen], size),
                Matrix::new(&value[seen], size),
            );
            let queries = Matrix::new(&query[rows.clone()], size);
            let grads = Matrix::new(&grad[rows.clone()], size);
            MatrixMut::new(scores, block.keys).set_a_bt(queries, keys);
            MatrixMut::new(d_scores, block.keys).set_a_bt(grads, values);
            let of_head = head * tokens + block.first..head * tokens + block.end;
            let each = SoftmaxRows {
                greatest: &greatest[of_head.clone()],
                inverse: &inverse[of_head],
                delta: &scratch.delta[block.first..block.end],
            };
            softmax_backward(
                scores,
                d_scores,
                block.keys,
                block.visible,
                block.more,
                scale(shape),
                each,
            );
            let (probabilities, d_scores) = (
                Matrix::new(scores, block.keys),
                Matrix::new(d_scores, block.keys),
            );
            MatrixMut::new(&mut d_value[seen], size).add_at_b(probabilities, grads);
            MatrixMut::new(&mut d_key[seen], size).add_at_b(d_scores, queries);
            MatrixMut::new(&mut d_query[rows], size).set_a_b(d_scores, keys);
        }
        let (for_query, for_key) = sums.split_at_mut(2 * size);
        put_rotated_backward(
            d_query, saved.qkv, from[0], norms[0], rotary, d_qkv, for_query,
        );
        put_rotated_backward(d_key, saved.qkv, from[1], norms[1], rotary, d_qkv, for_key);
        put(d_value, from[2], d_qkv);
    }
}
