//! Loops over rows, compiled for several instruction sets of which the best is chosen at run time.
//! The order of additions is written out, so an instruction set changes no bit.
use std::f64::consts::FRAC_1_SQRT_2;
use std::marker::PhantomData;

use crate::HiddenAct;
use crate::real::Real;

/// Accumulators of a sum over a row: as many as the widest registers hold of f32.
const LANES: usize = 16;

/// Defines functions whose bodies are compiled for each instruction set that `pulp` knows.
macro_rules! vectorized {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "some of them have many")]
        pub(super) fn $name<'a, T: Real>($($arg: $ty),*) {
            struct Body<'a, T> { $($arg: $ty,)* lifetime: PhantomData<&'a T> }
            impl<'a, T: Real> pulp::NullaryFnOnce for Body<'a, T> {
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
fn sum<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
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
fn statistics<T: Real>(row: &[T], eps: T) -> (T, T) {
    let n = T::from_f64(row.len() as f64);
    let mean = sum(row, row, |x, _| x) / n;
    let variance = sum(row, row, |x, _| (x - mean) * (x - mean)) / n;
    (mean, T::one() / (variance + eps).sqrt())
}

/// Weight and bias of a norm of heads; without a weight both count as absent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Affine<'a, T> {
    pub(super) weight: Option<&'a [T]>,
    pub(super) bias: Option<&'a [T]>,
}

/// `out = (x - mean) * rstd * weight + bias`, one row.
#[expect(
    clippy::inline_always,
    reason = "compiled for the caller's instruction set"
)]
#[inline(always)]
fn normalize_row<T: Real>(x: &[T], (mean, rstd): (T, T), affine: Affine<'_, T>, out: &mut [T]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = (*x - mean) * rstd;
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
/// grow. With n = normalised x and h = grad * weight, it is rstd * (h - mean(h) - n * mean(h n)).
#[expect(
    clippy::inline_always,
    reason = "compiled for the caller's instruction set"
)]
#[inline(always)]
fn norm_row_backward<T: Real>(
    x: &[T],
    (mean, rstd): (T, T),
    weight: Option<&[T]>,
    grad: &mut [T],
    d_weight: &mut [T],
    d_bias: &mut [T],
) {
    let n = T::from_f64(x.len() as f64);
    if let Some(weight) = weight {
        let sums = d_weight.iter_mut().zip(d_bias);
        for ((grad, x), (d_weight, d_bias)) in grad.iter().zip(x).zip(sums) {
            *d_weight += *grad * ((*x - mean) * rstd);
            *d_bias += *grad;
        }
        for (grad, w) in grad.iter_mut().zip(weight) {
            *grad *= *w;
        }
    }
    let mean_h = sum(grad, grad, |h, _| h) / n;
    let mean_hn = sum(grad, x, |h, x| h * ((x - mean) * rstd)) / n;
    for (grad, x) in grad.iter_mut().zip(x) {
        *grad = rstd * (*grad - mean_h - (*x - mean) * rstd * mean_hn);
    }
}

/// One row of the stream's gradient for the branch that was added last: `sums` grow by
/// `factor * dx`, and copies are written where they are wanted.
#[expect(
    clippy::inline_always,
    reason = "compiled for the caller's instruction set"
)]
#[inline(always)]
fn branch_row<T: Real>(
    dx: &[T],
    factor: T,
    scale: Option<&[T]>,
    factored: Option<&mut [T]>,
    scaled: Option<&mut [T]>,
    sums: &mut [T],
) {
    for (sum, dx) in sums.iter_mut().zip(dx) {
        *sum += factor * *dx;
    }
    if let Some(factored) = factored {
        for (out, dx) in factored.iter_mut().zip(dx) {
            *out = factor * *dx;
        }
    }
    if let (Some(scaled), Some(scale)) = (scaled, scale) {
        for ((out, dx), scale) in scaled.iter_mut().zip(dx).zip(scale) {
            *out = factor * *dx * *scale;
        }
    }
}

/// Turns the pairs (k, k + d / 2) of one head's row by the angles of its token; `direction` 1 or
/// -1.
#[expect(
    clippy::inline_always,
    reason = "compiled for the caller's instruction set"
)]
#[inline(always)]
fn rotate_row<T: Real>(row: &mut [T], cos: &[T], sin: &[T], direction: T) {
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
fn inverse_length<T: Real>(row: &[T]) -> (T, bool) {
    let length = sum(row, row, |x, y| x * y).sqrt();
    let least = T::from_f64(1e-12);
    if length > least {
        (T::one() / length, true)
    } else {
        (T::one() / least, false)
    }
}

#[expect(
    clippy::inline_always,
    reason = "a call would keep the caller's loop from being vectorised"
)]
impl HiddenAct {
    /// The very value of [`Self::both`].
    #[inline(always)]
    fn value<T: Real>(self, x: T) -> T {
        self.both(x).0
    }

    /// Value and slope, which share most of their work.
    #[inline(always)]
    fn both<T: Real>(self, x: T) -> (T, T) {
        let (half, one) = (T::from_f64(0.5), T::one());
        match self {
            Self::Gelu => {
                // The normal distribution's function and its density.
                let below = half * (one + (x * T::from_f64(FRAC_1_SQRT_2)).erf());
                let density = (-half * x * x).exp() * T::from_f64(0.398_942_280_401_432_7);
                (x * below, below + x * density)
            }
            Self::Silu => {
                let sigmoid = one / (one + (-x).exp());
                (x * sigmoid, sigmoid * (one + x * (one - sigmoid)))
            }
            Self::Relu if x > T::zero() => (x, one),
            Self::Relu => (T::zero(), T::zero()),
        }
    }
}

vectorized! {
    /// LayerNorm of rows; leaves mean and inverse deviation of each.
    fn norm_rows(rows: NormRows<'a, T>) {
        let NormRows { x, weight, bias, eps, out, mean, rstd } = rows;
        let affine = Affine { weight: Some(weight), bias: Some(bias) };
        let width = weight.len();
        let each = out.chunks_exact_mut(width).zip(mean.iter_mut().zip(rstd));
        for (x, (out, (mean, rstd))) in x.chunks_exact(width).zip(each) {
            (*mean, *rstd) = statistics(x, eps);
            normalize_row(x, (*mean, *rstd), affine, out);
        }
    }

    /// `out = x + factor * scale * y`, `tokens` rows a factor; `first` is the number of the first
    /// row.
    fn add_branch(rows: BranchRows<'a, T>) {
        let BranchRows { x, y, scale, factors, tokens, first, width, out } = rows;
        let each = x.chunks_exact(width).zip(y.chunks_exact(width));
        for (row, (out, (x, y))) in out.chunks_exact_mut(width).zip(each).enumerate() {
            let factor = factors.map_or(T::one(), |factors| factors[(first + row) / tokens]);
            match scale {
                Some(scale) => {
                    for (((out, x), y), scale) in out.iter_mut().zip(x).zip(y).zip(scale) {
                        *out = *x + factor * *scale * *y;
                    }
                }
                None => {
                    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
                        *out = *x + factor * *y;
                    }
                }
            }
        }
    }

    /// LayerNorm's backward inside of the stream: `dx` grows by the input's gradient; `grad` is
    /// used up; `sums` is `[3, width]`: for weight, bias and the last branch.
    fn norm_rows_backward(rows: NormBackwardRows<'a, T>) {
        let NormBackwardRows { x, mean, rstd, weight, bias, grad, dx, mut again, mut branch, tokens, first, sums } = rows;
        let width = weight.len();
        let (d_weight, rest) = sums.split_at_mut(width);
        let (d_bias, of_branch) = rest.split_at_mut(width);
        let affine = Affine { weight: Some(weight), bias: Some(bias) };
        let rows = x.chunks_exact(width).zip(grad.chunks_exact_mut(width)).zip(mean.iter().zip(rstd));
        for (row, (dx, ((x, grad), (mean, rstd)))) in dx.chunks_exact_mut(width).zip(rows).enumerate() {
            let columns = row * width..(row + 1) * width;
            if let Some(again) = &mut again {
                normalize_row(x, (*mean, *rstd), affine, &mut again[columns.clone()]);
            }
            norm_row_backward(x, (*mean, *rstd), Some(weight), grad, d_weight, d_bias);
            for (dx, grad) in dx.iter_mut().zip(grad) {
                *dx += *grad;
            }
            if let Some(branch) = &mut branch {
                branch.row(dx, (first + row) / tokens, columns, of_branch);
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

    /// Its backward: the gradient of such rows from that of the result, which is written again if
    /// there is an `again`.
    fn activate_gated_backward(x: &'a [T], grad: &'a [T], act: HiddenAct, mlp: usize, d_x: &'a mut [T], again: &'a mut [T]) {
        let rows = x.chunks_exact(2 * mlp).zip(grad.chunks_exact(mlp));
        for (number, (d_row, (row, grad))) in d_x.chunks_exact_mut(2 * mlp).zip(rows).enumerate() {
            let ((up, gate), (d_up, d_gate)) = (row.split_at(mlp), d_row.split_at_mut(mlp));
            let each = d_up.iter_mut().zip(d_gate).zip(up.iter().zip(gate).zip(grad));
            if again.is_empty() {
                for ((d_up, d_gate), ((up, gate), grad)) in each {
                    let (value, slope) = act.both(*gate);
                    *d_up = *grad * value;
                    *d_gate = *grad * *up * slope;
                }
            } else {
                let again = &mut again[number * mlp..][..mlp];
                for (((d_up, d_gate), ((up, gate), grad)), again) in each.zip(again) {
                    let (value, slope) = act.both(*gate);
                    *d_up = *grad * value;
                    *d_gate = *grad * *up * slope;
                    *again = value * *up;
                }
            }
        }
    }

    /// The backward of `activate`: `d_x = grad * act'(x)`, and the result again if there is an
    /// `again`.
    fn activate_backward(x: &'a [T], grad: &'a [T], act: HiddenAct, d_x: &'a mut [T], again: &'a mut [T]) {
        match act {
            HiddenAct::Gelu => activate_backward_row(x, grad, HiddenAct::Gelu, d_x, again),
            HiddenAct::Silu => activate_backward_row(x, grad, HiddenAct::Silu, d_x, again),
            HiddenAct::Relu => activate_backward_row(x, grad, HiddenAct::Relu, d_x, again),
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
                Some(norm) => normalize_row(row, statistics(row, norm.eps), norm.affine, out),
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
    /// sequence, at rows of its own; `sums` is `[2, d]`, for the norm's weight and bias.
    fn put_rotated_backward(
        head: &'a mut [T],
        projected: &'a [T],
        from: HeadRows,
        norm: Option<HeadNorm<'a, T>>,
        rotary: Rotary<'a, T>,
        to: HeadRows,
        d_projected: &'a mut [T],
        sums: &'a mut [T],
    ) {
        let half = to.size / 2;
        let (d_weight, d_bias) = sums.split_at_mut(to.size);
        for (token, grad) in head.chunks_exact_mut(to.size).enumerate() {
            rotate_row(grad, &rotary.cos[token * half..][..half], &rotary.sin[token * half..][..half], -T::one());
            if let Some(norm) = norm {
                let row = &projected[from.of_token(token)];
                norm_row_backward(row, statistics(row, norm.eps), norm.affine.weight, grad, d_weight, d_bias);
            }
            d_projected[to.of_token(token)].copy_from_slice(grad);
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

    /// Final norm, cosine loss, its gradient and the copy diagnostics of some rows of the stream.
    fn loss_rows(loss: LossRows<'a, T>) {
        let LossRows { x, next, current, weight, bias, eps, factor, patches, tokens, first, prediction, dx, mut branch, sums, found } = loss;
        let width = prediction.len();
        let (d_weight, rest) = sums.split_at_mut(width);
        let (d_bias, of_branch) = rest.split_at_mut(width);
        let affine = Affine { weight: Some(weight), bias: Some(bias) };
        let rows = x.chunks_exact(width).zip(current.chunks_exact(width));
        for (row, ((x, c), dx)) in rows.zip(dx.chunks_exact_mut(width)).enumerate() {
            let (image, token) = ((first + row) / tokens, (first + row) % tokens);
            if token < patches {
                let z = &next[(image * patches + token) * width..][..width];
                let of_row = statistics(x, eps);
                normalize_row(x, of_row, affine, prediction);
                let ((p_inverse, divided), (z_inverse, _)) = (inverse_length(prediction), inverse_length(z));
                let cosine = sum(prediction, z, |p, z| p * z) * p_inverse * z_inverse;
                let (c_inverse, _) = inverse_length(c);
                let here = sum(prediction, c, |p, c| p * c) * p_inverse * c_inverse;
                found[0] += cosine.to_f64();
                found[1] += here.to_f64();
                found[2] += f64::from(u8::from(here > cosine));
                // d cos / d p = (z / |z| - cos * p / |p|) / |p|; below the least length, p is
                // divided by a constant.
                let along = if divided { cosine * p_inverse } else { T::zero() };
                for ((dx, p), z) in dx.iter_mut().zip(&*prediction).zip(z) {
                    *dx = factor * p_inverse * (*z * z_inverse - along * *p);
                }
                norm_row_backward(x, of_row, affine.weight, dx, d_weight, d_bias);
            } else {
                // Without the causal mask the last token has an output that predicts nothing.
                dx.fill(T::zero());
            }
            if let Some(branch) = &mut branch {
                branch.row(dx, image, row * width..(row + 1) * width, of_branch);
            }
        }
    }

    /// `out = mean of Norm(x)` over rows of one image.
    fn pool_rows(x: &'a [T], weight: &'a [T], bias: &'a [T], eps: T, out: &'a mut [T]) {
        let width = weight.len();
        let part = T::one() / T::from_f64((x.len() / width) as f64);
        out.fill(T::zero());
        for x in x.chunks_exact(width) {
            let (mean, rstd) = statistics(x, eps);
            for (out, x) in out.iter_mut().zip(x) {
                *out += (*x - mean) * rstd;
            }
        }
        for (out, (weight, bias)) in out.iter_mut().zip(weight.iter().zip(bias)) {
            *out = *out * part * *weight + *bias;
        }
    }

    /// Its backward on some rows of the stream.
    fn pool_rows_backward(pool: PoolBackwardRows<'a, T>) {
        let PoolBackwardRows { x, d_pooled, weight, eps, taken, tokens, first, dx, mut branch, sums } = pool;
        let width = weight.len();
        let part = T::one() / T::from_f64(taken as f64);
        let (d_weight, rest) = sums.split_at_mut(width);
        let (d_bias, of_branch) = rest.split_at_mut(width);
        for (row, (x, dx)) in x.chunks_exact(width).zip(dx.chunks_exact_mut(width)).enumerate() {
            let (image, token) = ((first + row) / tokens, (first + row) % tokens);
            if token < tokens - taken {
                dx.fill(T::zero());
            } else {
                for (dx, of_mean) in dx.iter_mut().zip(&d_pooled[image * width..][..width]) {
                    *dx = *of_mean * part;
                }
                norm_row_backward(x, statistics(x, eps), Some(weight), dx, d_weight, d_bias);
            }
            if let Some(branch) = &mut branch {
                branch.row(dx, image, row * width..(row + 1) * width, of_branch);
            }
        }
    }

    /// One group's update by AdamW: `[keep, step_size, correction2, beta1, rest1, beta2, rest2, eps, clip]`.
    fn adamw(weights: &'a mut [T], gradient: &'a [T], m: &'a mut [T], v: &'a mut [T], numbers: [T; 9]) {
        let [keep, step_size, correction2, beta1, rest1, beta2, rest2, eps, clip] = numbers;
        for (((weight, gradient), m), v) in weights.iter_mut().zip(gradient).zip(m).zip(v) {
            let gradient = *gradient * clip;
            *m = beta1 * *m + rest1 * gradient;
            *v = beta2 * *v + rest2 * gradient * gradient;
            let denominator = v.sqrt() / correction2 + eps;
            *weight = *weight * keep - step_size * *m / denominator;
        }
    }

    /// `average = decay * average + rest * weights`; a decay of 0 makes a copy, whatever is there.
    fn average(weights: &'a [T], average: &'a mut [T], decay: T, rest: T) {
        if decay == T::zero() {
            average.copy_from_slice(weights);
            return;
        }
        for (average, weight) in average.iter_mut().zip(weights) {
            *average = decay * *average + rest * *weight;
        }
    }
}

/// `d_x = grad * act'(x)`, perhaps with the result.
#[expect(
    clippy::inline_always,
    reason = "compiled for the caller's instruction set"
)]
#[inline(always)]
fn activate_backward_row<T: Real>(
    x: &[T],
    grad: &[T],
    act: HiddenAct,
    d_x: &mut [T],
    again: &mut [T],
) {
    let each = d_x.iter_mut().zip(x).zip(grad);
    if again.is_empty() {
        for ((d_x, x), grad) in each {
            *d_x = *grad * act.both(*x).1;
        }
    } else {
        for (((d_x, x), grad), again) in each.zip(again) {
            let (value, slope) = act.both(*x);
            *d_x = *grad * slope;
            *again = value;
        }
    }
}

/// Arguments of [`norm_rows`]: N rows.
#[derive(Debug)]
pub(super) struct NormRows<'a, T> {
    pub(super) x: &'a [T],
    pub(super) weight: &'a [T],
    pub(super) bias: &'a [T],
    pub(super) eps: T,
    pub(super) out: &'a mut [T],
    pub(super) mean: &'a mut [T],
    pub(super) rstd: &'a mut [T],
}

/// Arguments of [`add_branch`].
#[derive(Debug)]
pub(super) struct BranchRows<'a, T> {
    pub(super) x: &'a [T],
    pub(super) y: &'a [T],
    pub(super) scale: Option<&'a [T]>,
    pub(super) factors: Option<&'a [T]>,
    pub(super) tokens: usize,
    pub(super) first: usize,
    pub(super) width: usize,
    pub(super) out: &'a mut [T],
}

/// Where the gradient of the last branch goes: rows as those of the stream.
#[derive(Debug)]
pub(super) struct BranchOut<'a, T> {
    pub(super) scale: Option<&'a [T]>,
    pub(super) factors: Option<&'a [T]>,
    pub(super) factored: Option<&'a mut [T]>,
    pub(super) scaled: Option<&'a mut [T]>,
}

impl<T: Real> BranchOut<'_, T> {
    #[expect(
        clippy::inline_always,
        reason = "compiled for the caller's instruction set"
    )]
    #[inline(always)]
    fn row(&mut self, dx: &[T], image: usize, columns: std::ops::Range<usize>, sums: &mut [T]) {
        let factor = self.factors.map_or(T::one(), |factors| factors[image]);
        let factored = self.factored.as_deref_mut();
        let scaled = self.scaled.as_deref_mut();
        branch_row(
            dx,
            factor,
            self.scale,
            factored.map(|all| &mut all[columns.clone()]),
            scaled.map(|all| &mut all[columns]),
            sums,
        );
    }
}

/// Arguments of [`norm_rows_backward`].
#[derive(Debug)]
pub(super) struct NormBackwardRows<'a, T> {
    pub(super) x: &'a [T],
    pub(super) mean: &'a [T],
    pub(super) rstd: &'a [T],
    pub(super) weight: &'a [T],
    pub(super) bias: &'a [T],
    pub(super) grad: &'a mut [T],
    pub(super) dx: &'a mut [T],
    /// Where the norm's result is written again.
    pub(super) again: Option<&'a mut [T]>,
    pub(super) branch: Option<BranchOut<'a, T>>,
    pub(super) tokens: usize,
    pub(super) first: usize,
    pub(super) sums: &'a mut [T],
}

/// What the forward pass and a sum of products know of each row of a softmax.
#[derive(Debug, Clone, Copy)]
pub(super) struct SoftmaxRows<'a, T> {
    pub(super) greatest: &'a [T],
    pub(super) inverse: &'a [T],
    pub(super) delta: &'a [T],
}

/// Arguments of [`pool_rows_backward`].
#[derive(Debug)]
pub(super) struct PoolBackwardRows<'a, T> {
    /// `[rows, D]`.
    pub(super) x: &'a [T],
    /// Of all images, `[B, D]`.
    pub(super) d_pooled: &'a [T],
    pub(super) weight: &'a [T],
    pub(super) eps: T,
    /// The last so many tokens of an image are in its mean.
    pub(super) taken: usize,
    pub(super) tokens: usize,
    /// Number of the first row.
    pub(super) first: usize,
    pub(super) dx: &'a mut [T],
    pub(super) branch: Option<BranchOut<'a, T>>,
    /// `[3, D]`: for weight, bias and the last branch.
    pub(super) sums: &'a mut [T],
}

/// Arguments of [`loss_rows`].
#[derive(Debug)]
pub(super) struct LossRows<'a, T> {
    /// `[rows, D]`.
    pub(super) x: &'a [T],
    /// Embeddings of all images, `[B P, D]`.
    pub(super) next: &'a [T],
    /// `[rows, D]`.
    pub(super) current: &'a [T],
    pub(super) weight: &'a [T],
    pub(super) bias: &'a [T],
    pub(super) eps: T,
    /// The gradient of the loss by one cosine.
    pub(super) factor: T,
    pub(super) patches: usize,
    pub(super) tokens: usize,
    /// Number of the first row.
    pub(super) first: usize,
    /// One row of scratch.
    pub(super) prediction: &'a mut [T],
    pub(super) dx: &'a mut [T],
    pub(super) branch: Option<BranchOut<'a, T>>,
    /// `[3, D]`: for weight, bias and the last branch.
    pub(super) sums: &'a mut [T],
    /// Sums of cosines with what comes next, with what is there, and wins of the second.
    pub(super) found: &'a mut [f64; 3],
}
