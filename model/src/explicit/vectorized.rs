//! Loops over rows, compiled for several instruction sets of which the best is chosen at run time.
//! The order of additions is written out, so an instruction set changes no bit. Called by the
//! passes of the explicit engine.
use std::marker::PhantomData;

use super::Scalar;
use crate::HiddenAct;
use crate::ops::Real;

/// Accumulators of a sum over a row: as many as the widest registers hold of f32.
const LANES: usize = 16;

/// Defines functions whose bodies are compiled for each instruction set that `pulp` knows.
macro_rules! vectorized {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        pub(super) fn $name<'a, T: Scalar>($($arg: $ty),*) {
            struct Body<'a, T> { $($arg: $ty,)* lifetime: PhantomData<&'a T> }
            impl<'a, T: Scalar> pulp::NullaryFnOnce for Body<'a, T> {
                type Output = ();
                // Only what is inlined into the caller is compiled for its instruction set.
                #[inline(always)]
                fn call(self) {
                    let Self { $($arg,)* lifetime: _ } = self;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Body { $($arg,)* lifetime: PhantomData });
        }
    )*};
}

/// `sum f(a, b)` over two rows.
#[expect(
    clippy::inline_always,
    reason = "compiled for the caller's instruction set"
)]
#[inline(always)]
fn sum<T: Scalar>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut sums = [T::zero(); LANES];
    let (a_chunks, b_chunks) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_chunks.0.iter().zip(b_chunks.0) {
        for lane in 0..LANES {
            sums[lane] += f(a[lane], b[lane]);
        }
    }
    let mut tail = T::zero();
    for (a, b) in a_chunks.1.iter().zip(b_chunks.1) {
        tail += f(*a, *b);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0] + tail
}

/// Mean and inverse standard deviation of a row, in two passes: the published epsilon is far below
/// what a difference of squares can resolve.
#[expect(
    clippy::inline_always,
    reason = "compiled for the caller's instruction set"
)]
#[inline(always)]
fn statistics<T: Scalar>(row: &[T], eps: T) -> (T, T) {
    let n = T::from_f64(row.len() as f64);
    let mean = sum(row, row, |x, _| x) / n;
    let variance = sum(row, row, |x, _| (x - mean) * (x - mean)) / n;
    (mean, T::one() / (variance + eps).sqrt())
}

/// Weight and bias of a LayerNorm; without a weight both count as absent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Affine<'a, T> {
    pub(super) weight: Option<&'a [T]>,
    pub(super) bias: Option<&'a [T]>,
}

/// `(x - mean) * scale * weight + bias`, one row.
#[expect(
    clippy::inline_always,
    reason = "compiled for the caller's instruction set"
)]
#[inline(always)]
fn norm_row<T: Scalar>(x: &[T], affine: Affine<'_, T>, eps: T, out: &mut [T]) {
    let (mean, scale) = statistics(x, eps);
    for (out, x) in out.iter_mut().zip(x) {
        *out = (*x - mean) * scale;
    }
    if let Some(weight) = affine.weight {
        for (out, w) in out.iter_mut().zip(weight) {
            *out *= *w;
        }
    }
    if let Some(bias) = affine.bias {
        for (out, b) in out.iter_mut().zip(bias) {
            *out += *b;
        }
    }
}

/// One row of a LayerNorm's backward: `grad` becomes the input's gradient, `d_weight` and `d_bias`
/// grow. With n = normalised x and h = grad * weight, it is scale * (h - mean(h) - n * mean(h n)).
#[expect(
    clippy::inline_always,
    reason = "compiled for the caller's instruction set"
)]
#[inline(always)]
fn norm_row_backward<T: Scalar>(
    x: &[T],
    weight: Option<&[T]>,
    eps: T,
    grad: &mut [T],
    d_weight: &mut [T],
    d_bias: &mut [T],
) {
    let n = T::from_f64(x.len() as f64);
    let (mean, scale) = statistics(x, eps);
    if let Some(weight) = weight {
        let sums = d_weight.iter_mut().zip(d_bias);
        for ((grad, x), (d_weight, d_bias)) in grad.iter().zip(x).zip(sums) {
            *d_weight += *grad * ((*x - mean) * scale);
            *d_bias += *grad;
        }
        for (grad, w) in grad.iter_mut().zip(weight) {
            *grad *= *w;
        }
    }
    let mean_h = sum(grad, grad, |h, _| h) / n;
    let mean_hn = sum(grad, x, |h, x| h * ((x - mean) * scale)) / n;
    for (grad, x) in grad.iter_mut().zip(x) {
        *grad = scale * (*grad - mean_h - (*x - mean) * scale * mean_hn);
    }
}

/// Turns the pairs (k, k + d / 2) of one head's row by the angles of its token; `direction` 1 or
/// -1.
#[expect(
    clippy::inline_always,
    reason = "compiled for the caller's instruction set"
)]
#[inline(always)]
fn rotate_row<T: Scalar>(row: &mut [T], cos: &[T], sin: &[T], direction: T) {
    let (first, second) = row.split_at_mut(cos.len());
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let sin = direction * *sin;
        (*a, *b) = (*a * *cos - *b * sin, *b * *cos + *a * sin);
    }
}

/// One head of a sequence: of rows of `stride` values, the `size` values from `start` on.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadRows {
    pub(super) start: usize,
    pub(super) stride: usize,
    pub(super) size: usize,
}

impl HeadRows {
    fn of_token(self, token: usize) -> std::ops::Range<usize> {
        let first = token * self.stride + self.start;
        first..first + self.size
    }
}

/// Rotary table of a pass, `[T, d / 2]` each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rotary<'a, T> {
    pub(super) cos: &'a [T],
    pub(super) sin: &'a [T],
}

/// QK-norm, if the model has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadNorm<'a, T> {
    pub(super) affine: Affine<'a, T>,
    pub(super) eps: T,
}

/// Inverse length of a row, and whether the row is long enough to be divided by its own length (as
/// in `torch.nn.functional.normalize`).
#[expect(
    clippy::inline_always,
    reason = "compiled for the caller's instruction set"
)]
#[inline(always)]
fn inverse_length<T: Scalar>(row: &[T]) -> (T, bool) {
    let length = sum(row, row, |x, y| x * y).sqrt();
    let least = T::from_f64(1e-12);
    if length > least {
        (T::one() / length, true)
    } else {
        (T::one() / least, false)
    }
}

vectorized! {
    /// LayerNorm of rows.
    fn norm_rows(x: &'a [T], affine: Affine<'a, T>, eps: T, width: usize, out: &'a mut [T]) {
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            norm_row(x, affine, eps, out);
        }
    }

    /// LayerNorm's backward: adds the input's gradient to `dx`; `grad` is used up; `sums` is `[2,
    /// width]`, for weight and bias.
    fn norm_rows_backward(x: &'a [T], weight: &'a [T], eps: T, grad: &'a mut [T], dx: &'a mut [T], sums: &'a mut [T]) {
        let width = weight.len();
        let (d_weight, d_bias) = sums.split_at_mut(width);
        let rows = x.chunks_exact(width).zip(grad.chunks_exact_mut(width));
        for (dx, (x, grad)) in dx.chunks_exact_mut(width).zip(rows) {
            norm_row_backward(x, Some(weight), eps, grad, d_weight, d_bias);
            for (dx, grad) in dx.iter_mut().zip(grad) {
                *dx += *grad;
            }
        }
    }

    /// `rows += bias`, on the first `bias.len()` of each `stride` values.
    fn add_bias(rows: &'a mut [T], stride: usize, bias: &'a [T]) {
        for row in rows.chunks_mut(stride) {
            for (value, bias) in row.iter_mut().zip(bias) {
                *value += *bias;
            }
        }
    }

    /// `out = x + scale * y`.
    fn add_scaled(x: &'a [T], y: &'a [T], scale: &'a [T], out: &'a mut [T]) {
        let width = scale.len();
        let rows = x.chunks_exact(width).zip(y.chunks_exact(width));
        for (out, (x, y)) in out.chunks_exact_mut(width).zip(rows) {
            for (((out, x), y), scale) in out.iter_mut().zip(x).zip(y).zip(scale) {
                *out = *x + *scale * *y;
            }
        }
    }

    /// `out = scale * x`.
    fn scale_rows(x: &'a [T], scale: &'a [T], out: &'a mut [T]) {
        let width = scale.len();
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            for ((out, x), scale) in out.iter_mut().zip(x).zip(scale) {
                *out = *x * *scale;
            }
        }
    }

    /// `out = act(x)`.
    fn activate(x: &'a [T], act: HiddenAct, out: &'a mut [T]) {
        match act {
            HiddenAct::Gelu => {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = HiddenAct::Gelu.value(*x);
                }
            }
            HiddenAct::Silu => {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = HiddenAct::Silu.value(*x);
                }
            }
            HiddenAct::Relu => {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = HiddenAct::Relu.value(*x);
                }
            }
        }
    }

    /// `out = act(gate) * up`, of rows that hold `mlp` values of up, then as many of gate.
    fn activate_gated(x: &'a [T], act: HiddenAct, mlp: usize, out: &'a mut [T]) {
        for (out, row) in out.chunks_exact_mut(mlp).zip(x.chunks_exact(2 * mlp)) {
            let (up, gate) = row.split_at(mlp);
            for ((out, up), gate) in out.iter_mut().zip(up).zip(gate) {
                *out = act.value(*gate) * *up;
            }
        }
    }

    /// Its backward: the gradient of such rows from that of the result.
    fn activate_gated_backward(x: &'a [T], grad: &'a [T], act: HiddenAct, mlp: usize, d_x: &'a mut [T]) {
        let rows = x.chunks_exact(2 * mlp).zip(grad.chunks_exact(mlp));
        for (d_row, (row, grad)) in d_x.chunks_exact_mut(2 * mlp).zip(rows) {
            let ((up, gate), (d_up, d_gate)) = (row.split_at(mlp), d_row.split_at_mut(mlp));
            for ((d, gate), grad) in d_up.iter_mut().zip(gate).zip(grad) {
                *d = *grad * act.value(*gate);
            }
            for (((d, gate), up), grad) in d_gate.iter_mut().zip(gate).zip(up).zip(grad) {
                *d = *grad * *up * act.slope(*gate);
            }
        }
    }

    /// `grad *= act'(x)`.
    fn activate_backward(x: &'a [T], act: HiddenAct, grad: &'a mut [T]) {
        match act {
            HiddenAct::Gelu => {
                for (grad, x) in grad.iter_mut().zip(x) {
                    *grad *= HiddenAct::Gelu.slope(*x);
                }
            }
            HiddenAct::Silu => {
                for (grad, x) in grad.iter_mut().zip(x) {
                    *grad *= HiddenAct::Silu.slope(*x);
                }
            }
            HiddenAct::Relu => {
                for (grad, x) in grad.iter_mut().zip(x) {
                    *grad *= HiddenAct::Relu.slope(*x);
                }
            }
        }
    }

    /// `sums += a` over rows of `stride` values, the first `sums.len()` of each.
    fn add_rows(rows: &'a [T], stride: usize, sums: &'a mut [T]) {
        for row in rows.chunks(stride) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += *value;
            }
        }
    }

    /// Takes one head of a projected sequence, normalised and rotated: `[T, d]`.
    fn take_rotated(projected: &'a [T], from: HeadRows, norm: Option<HeadNorm<'a, T>>, rotary: Rotary<'a, T>, head: &'a mut [T]) {
        let half = from.size / 2;
        for (token, out) in head.chunks_exact_mut(from.size).enumerate() {
            let row = &projected[from.of_token(token)];
            match norm {
                Some(norm) => norm_row(row, norm.affine, norm.eps, out),
                None => out.copy_from_slice(row),
            }
            rotate_row(out, &rotary.cos[token * half..][..half], &rotary.sin[token * half..][..half], T::one());
        }
    }

    /// Takes one head as it is: `[T, d]`.
    fn take(sequence: &'a [T], from: HeadRows, head: &'a mut [T]) {
        for (token, out) in head.chunks_exact_mut(from.size).enumerate() {
            out.copy_from_slice(&sequence[from.of_token(token)]);
        }
    }

    /// Puts one head back.
    fn put(head: &'a [T], to: HeadRows, sequence: &'a mut [T]) {
        for (token, row) in head.chunks_exact(to.size).enumerate() {
            sequence[to.of_token(token)].copy_from_slice(row);
        }
    }

    /// The backward of `take_rotated`: a head's gradient, used up, becomes that of the projected
    /// sequence; `sums` is `[2, d]`, for the norm's weight and bias.
    fn put_rotated_backward(
        head: &'a mut [T],
        projected: &'a [T],
        to: HeadRows,
        norm: Option<HeadNorm<'a, T>>,
        rotary: Rotary<'a, T>,
        d_projected: &'a mut [T],
        sums: &'a mut [T],
    ) {
        let half = to.size / 2;
        let (d_weight, d_bias) = sums.split_at_mut(to.size);
        for (token, grad) in head.chunks_exact_mut(to.size).enumerate() {
            let place = to.of_token(token);
            rotate_row(grad, &rotary.cos[token * half..][..half], &rotary.sin[token * half..][..half], -T::one());
            if let Some(norm) = norm {
                norm_row_backward(&projected[place.clone()], norm.affine.weight, norm.eps, grad, d_weight, d_bias);
            }
            d_projected[place].copy_from_slice(grad);
        }
    }

    /// Softmax of rows of `keys` scores, not yet divided by its sum; `visible` keys in the first
    /// row, `more` in each following one. Gives the greatest score and the inverse sum of each row.
    fn softmax(scores: &'a mut [T], keys: usize, visible: usize, more: usize, scale: T, greatest: &'a mut [T], inverse: &'a mut [T]) {
        let rows = scores.chunks_exact_mut(keys).zip(greatest.iter_mut().zip(inverse));
        for (row, (scores, (greatest, inverse))) in rows.enumerate() {
            let (seen, unseen) = scores.split_at_mut(visible + row * more);
            let mut lanes = [seen[0]; LANES];
            let chunks = seen.as_chunks::<LANES>();
            for chunk in chunks.0 {
                for lane in 0..LANES {
                    lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
                }
            }
            let most = lanes.iter().chain(chunks.1).fold(seen[0], |a, b| if *b > a { *b } else { a });
            for score in seen.iter_mut() {
                *score = Real::exp((*score - most) * scale);
            }
            unseen.fill(T::zero());
            *greatest = most;
            *inverse = T::one() / sum(seen, seen, |p, _| p);
        }
    }

    /// `row *= factor`, one factor a row, on the first `width` of each `stride` values.
    fn scale_each_row(rows: &'a mut [T], stride: usize, width: usize, factors: &'a [T]) {
        for (row, factor) in rows.chunks_mut(stride).zip(factors) {
            for value in &mut row[..width] {
                *value *= *factor;
            }
        }
    }

    /// Softmax's backward on rows of `keys` values: `scores` become probabilities, and their
    /// gradients that of the scores. `delta` is the sum of each row's probabilities times their
    /// gradients.
    fn softmax_backward(scores: &'a mut [T], grad: &'a mut [T], keys: usize, visible: usize, more: usize, scale: T, rows: SoftmaxRows<'a, T>) {
        let each = rows.greatest.iter().zip(rows.inverse).zip(rows.delta);
        let values = scores.chunks_exact_mut(keys).zip(grad.chunks_exact_mut(keys));
        for (row, ((scores, grad), ((greatest, inverse), delta))) in values.zip(each).enumerate() {
            let (seen, unseen) = scores.split_at_mut(visible + row * more);
            for (score, grad) in seen.iter_mut().zip(&mut *grad) {
                let probability = Real::exp((*score - *greatest) * scale) * *inverse;
                *score = probability;
                *grad = scale * probability * (*grad - *delta);
            }
            unseen.fill(T::zero());
            grad[visible + row * more..].fill(T::zero());
        }
    }

    /// `out[t] = a[t] . b[t]` for rows of `width`.
    fn dot_rows(a: &'a [T], b: &'a [T], width: usize, out: &'a mut [T]) {
        for ((out, a), b) in out.iter_mut().zip(a.chunks_exact(width)).zip(b.chunks_exact(width)) {
            *out = sum(a, b, |a, b| a * b);
        }
    }

    /// Final norm, cosine loss, its gradient and the copy diagnostics of the rows of one image's
    /// predictions. `x` and `dx` are `[P, D]`; `next` and `current` are the embeddings that come
    /// next and that are there, `[P, D]`; `prediction` is one row of scratch; `sums` is `[2, D]`;
    /// `factor` is the gradient of the loss by one cosine.
    fn loss_rows(loss: LossRows<'a, T>) {
        let LossRows { x, next, current, affine, eps, factor, prediction, dx, cosines, sums } = loss;
        let width = prediction.len();
        let (d_weight, d_bias) = sums.split_at_mut(width);
        let rows = x.chunks_exact(width).zip(next.chunks_exact(width)).zip(current.chunks_exact(width));
        for (((x, z), c), (dx, cosines)) in rows.zip(dx.chunks_exact_mut(width).zip(cosines)) {
            norm_row(x, affine, eps, prediction);
            let ((p_inverse, divided), (z_inverse, _)) = (inverse_length(prediction), inverse_length(z));
            let cosine = sum(prediction, z, |p, z| p * z) * p_inverse * z_inverse;
            let (c_inverse, _) = inverse_length(c);
            *cosines = [cosine, sum(prediction, c, |p, c| p * c) * p_inverse * c_inverse];
            // d cos / d p = (z / |z| - cos * p / |p|) / |p|; below the least length, p is divided
            // by a constant.
            let along = if divided { cosine * p_inverse } else { T::zero() };
            for ((dx, p), z) in dx.iter_mut().zip(&*prediction).zip(z) {
                *dx = factor * p_inverse * (*z * z_inverse - along * *p);
            }
            norm_row_backward(x, affine.weight, eps, dx, d_weight, d_bias);
        }
    }
}

/// What the forward pass and a sum of products know of each row of a softmax.
#[derive(Debug, Clone, Copy)]
pub(super) struct SoftmaxRows<'a, T> {
    pub(super) greatest: &'a [T],
    pub(super) inverse: &'a [T],
    pub(super) delta: &'a [T],
}

/// Arguments of [`loss_rows`].
#[derive(Debug)]
pub(super) struct LossRows<'a, T> {
    pub(super) x: &'a [T],
    pub(super) next: &'a [T],
    pub(super) current: &'a [T],
    pub(super) affine: Affine<'a, T>,
    pub(super) eps: T,
    pub(super) factor: T,
    pub(super) prediction: &'a mut [T],
    pub(super) dx: &'a mut [T],
    /// By row: with what comes next, with what is there.
    pub(super) cosines: &'a mut [[T; 2]],
    pub(super) sums: &'a mut [T],
}
