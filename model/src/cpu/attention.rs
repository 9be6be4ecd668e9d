//! Attention of one head of one image, a block of queries at a time; its backward makes the scores
//! again. No matrix of T x T scores is in memory.
use super::matmul::MatrixMut;
use super::matrix::Matrix;
use super::rows::{
    HeadNorm, HeadRows, Rotary, SoftmaxRows, dot_rows, put, put_rotated_backward, scale_each_row,
    softmax, softmax_backward, take, take_rotated,
};
use super::scratch::{QUERIES, Scratch};
use crate::real::Real;

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

/// What all heads of all images share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads<'a, T> {
    pub(super) tokens: usize,
    pub(super) count: usize,
    pub(super) size: usize,
    pub(super) causal: bool,
    /// Of queries and of keys.
    pub(super) norms: [Option<HeadNorm<'a, T>>; 2],
}

impl<T: Real> Heads<'_, T> {
    /// Query, key and value of a head in the projected sequence `[T, 3 D]`.
    pub(super) fn projected(&self, head: usize) -> [HeadRows; 3] {
        let width = self.count * self.size;
        [0, 1, 2].map(|part| HeadRows {
            start: part * width + head * self.size,
            stride: 3 * width,
            size: self.size,
        })
    }

    /// A head in the output `[T, D]`.
    pub(super) fn output(&self, head: usize) -> HeadRows {
        HeadRows {
            start: head * self.size,
            stride: self.count * self.size,
            size: self.size,
        }
    }

    /// A head by itself, `[T, d]`, as the `number`-th one.
    pub(super) fn alone(&self, number: usize) -> HeadRows {
        HeadRows {
            start: number * self.tokens * self.size,
            stride: self.size,
            size: self.size,
        }
    }

    fn scale(&self) -> T {
        T::from_f64(1.0 / (self.size as f64).sqrt())
    }
}

/// From `qkv [T, 3 D]` of an image to the rows `to` of `out`; `softmax [2, T]` gets greatest score
/// and inverse sum of each query.
#[expect(clippy::too_many_arguments, reason = "called in two places")]
pub(super) fn forward<T: Real>(
    heads: &Heads<'_, T>,
    head: usize,
    rotary: Rotary<'_, T>,
    qkv: &[T],
    to: HeadRows,
    out: &mut [T],
    statistics: &mut [T],
    scratch: &mut Scratch<Vec<T>>,
) {
    let (tokens, size) = (heads.tokens, heads.size);
    let (greatest, inverse) = statistics.split_at_mut(tokens);
    let [query, key, value, ..] = &mut scratch.heads;
    let [scores, _] = &mut scratch.scores;
    let from = heads.projected(head);
    take_rotated(qkv, from[0], heads.norms[0], rotary, query);
    take_rotated(qkv, from[1], heads.norms[1], rotary, key);
    take(qkv, from[2], value);
    for block in blocks(tokens, heads.causal) {
        let scores = &mut scores[..(block.end - block.first) * block.keys];
        let keys = Matrix::new(&key[..block.keys * size], size);
        let values = Matrix::new(&value[..block.keys * size], size);
        let queries = Matrix::new(&query[block.first * size..block.end * size], size);
        MatrixMut::new(scores, block.keys).set_a_bt(queries, keys);
        let rows = block.first..block.end;
        softmax(
            scores,
            block.keys,
            block.visible,
            block.more,
            heads.scale(),
            &mut greatest[rows.clone()],
            &mut inverse[rows.clone()],
        );
        let end = (block.end - 1) * to.stride + to.start + size;
        let out = &mut out[block.first * to.stride + to.start..end];
        MatrixMut::strided(out, size, to.stride).set_a_b(Matrix::new(scores, block.keys), values);
        scale_each_row(out, to.stride, size, &inverse[rows]);
    }
}

/// What the backward pass of one image reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Saved<'a, T> {
    pub(super) qkv: &'a [T],
    pub(super) out: &'a [T],
    pub(super) d_out: &'a [T],
}

/// Gradients of query, key and value of a head to the rows `to` of `d_qkv`; `sums [4, d]` are the
/// gradients of the norms: query's weight and bias, key's weight and bias.
#[expect(clippy::too_many_arguments, reason = "called in two places")]
pub(super) fn backward<T: Real>(
    heads: &Heads<'_, T>,
    head: usize,
    rotary: Rotary<'_, T>,
    saved: Saved<'_, T>,
    statistics: &[T],
    to: [HeadRows; 3],
    d_qkv: &mut [T],
    sums: &mut [T],
    scratch: &mut Scratch<Vec<T>>,
) {
    let (tokens, size) = (heads.tokens, heads.size);
    let (greatest, inverse) = statistics.split_at(tokens);
    let [query, key, value, grad, d_query, d_key, d_value] = &mut scratch.heads;
    let [scores, d_scores] = &mut scratch.scores;
    let (from, output) = (heads.projected(head), heads.output(head));
    // The head's output, only for its dot products with the gradient.
    take(saved.out, output, query);
    take(saved.d_out, output, grad);
    dot_rows(query, grad, size, &mut scratch.delta);
    take_rotated(saved.qkv, from[0], heads.norms[0], rotary, query);
    take_rotated(saved.qkv, from[1], heads.norms[1], rotary, key);
    take(saved.qkv, from[2], value);
    d_key.fill(T::zero());
    d_value.fill(T::zero());
    for block in blocks(tokens, heads.causal) {
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
        let of_block = block.first..block.end;
        let each = SoftmaxRows {
            greatest: &greatest[of_block.clone()],
            inverse: &inverse[of_block.clone()],
            delta: &scratch.delta[of_block],
        };
        softmax_backward(
            scores,
            d_scores,
            block.keys,
            block.visible,
            block.more,
            heads.scale(),
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
    sums.fill(T::zero());
    let (for_query, for_key) = sums.split_at_mut(2 * size);
    let (query_norm, key_norm) = (heads.norms[0], heads.norms[1]);
    let mut put_back = |grad: &mut [T], part: usize, norm, sums: &mut [T]| {
        put_rotated_backward(
            grad, saved.qkv, from[part], norm, rotary, to[part], d_qkv, sums,
        );
    };
    put_back(d_query, 0, query_norm, for_query);
    put_back(d_key, 1, key_norm, for_key);
    put(d_value, to[2], d_qkv);
}
