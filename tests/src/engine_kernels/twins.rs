//! What the kernels of the training step compute, in f64 and as plain loops. `N` rows of `D` values; a function for one row has no `N`.
//! Each backward is held to finite differences of its forward by a test.

use super::activation::Kind;

/// Mean and 1 / sqrt(variance + eps).
pub fn statistics(row: &[f64], eps: f64) -> (f64, f64) {
    let count = row.len() as f64;
    let mean = row.iter().sum::<f64>() / count;
    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// LayerNorm of one row.
pub fn layer_norm(row: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let (mean, rstd) = statistics(row, eps);
    (0..row.len())
        .map(|i| (row[i] - mean) * rstd * weight[i] + bias[i])
        .collect()
}

/// Gradients of one row's input, and its parts of those of weight and bias.
pub fn layer_norm_backward(
    row: &[f64],
    weight: &[f64],
    eps: f64,
    grad: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let count = row.len() as f64;
    let (mean, rstd) = statistics(row, eps);
    let normed: Vec<f64> = row.iter().map(|x| (x - mean) * rstd).collect();
    let by_normed: Vec<f64> = (0..row.len()).map(|i| grad[i] * weight[i]).collect();
    let mean_g = by_normed.iter().sum::<f64>() / count;
    let mean_gn = (0..row.len())
        .map(|i| by_normed[i] * normed[i])
        .sum::<f64>()
        / count;
    let dx = (0..row.len())
        .map(|i| rstd * (by_normed[i] - mean_g - normed[i] * mean_gn))
        .collect();
    let d_weight = (0..row.len()).map(|i| grad[i] * normed[i]).collect();
    (dx, d_weight, grad.to_vec())
}

/// A row of the stream behind a block: `x + factor * scale * y`, where y is what the block's last
/// product makes of its input, with its bias.
pub fn add_branch(x: &[f64], y: &[f64], scale: &[f64], factor: f64) -> Vec<f64> {
    (0..x.len())
        .map(|i| x[i] + factor * scale[i] * y[i])
        .collect()
}

/// Of the gradient of such a row what the block's backward reads: `factor * dx`, whose sum over
/// rows, times scale, is the gradient of the bias; and the gradient of y.
pub fn branch_gradients(dx: &[f64], scale: &[f64], factor: f64) -> [Vec<f64>; 2] {
    let alone: Vec<f64> = dx.iter().map(|dx| factor * dx).collect();
    let scaled = alone.iter().zip(scale).map(|(a, s)| a * s).collect();
    [alone, scaled]
}

/// A sum, and the sum of its terms' sizes, by which its rounding is judged.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    /// Of the terms.
    pub value: f64,
    /// Of the absolute terms.
    pub size: f64,
}

impl Sum {
    /// One more term.
    pub fn add(&mut self, term: f64) {
        self.value += term;
        self.size += term.abs();
    }
}

/// Sums of the columns of rows of `width` values.
pub fn column_sums(values: &[f64], width: usize) -> Vec<Sum> {
    let mut sums = vec![Sum::default(); width];
    for row in values.chunks_exact(width) {
        for (sum, value) in sums.iter_mut().zip(row) {
            sum.add(*value);
        }
    }
    sums
}

/// The error function: its series up to 3, beyond that a continued fraction of what is missing to 1.
pub fn erf(x: f64) -> f64 {
    let size = x.abs();
    if size > 3.0 {
        let fraction = (1..=60)
            .rev()
            .fold(size, |below, k| size + f64::from(k) / 2.0 / below);
        let missing = (-size * size).exp() / (fraction * std::f64::consts::PI.sqrt());
        return (1.0 - missing).copysign(x);
    }
    let (mut term, mut sum) = (x, x);
    for k in 1..80 {
        term *= -x * x / f64::from(k);
        sum += term / f64::from(2 * k + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// An activation's value and slope.
pub fn activation(kind: Kind, x: f64) -> (f64, f64) {
    match kind {
        Kind::Gelu => {
            let below = 0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
            let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            (x * below, below + x * density)
        }
        Kind::Silu => {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
        }
        Kind::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
    }
}

/// Shorter vectors are divided by this.
pub const LEAST_LENGTH: f64 = 1e-12;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Cosine of two vectors, neither taken to be shorter than [`LEAST_LENGTH`].
pub fn cosine(p: &[f64], z: &[f64]) -> f64 {
    let length = |v: &[f64]| dot(v, v).sqrt().max(LEAST_LENGTH);
    dot(p, z) / length(p) / length(z)
}

/// Gradient of [`cosine`] by p.
pub fn cosine_backward(p: &[f64], z: &[f64]) -> Vec<f64> {
    let (p_length, z_length) = (dot(p, p).sqrt(), dot(z, z).sqrt().max(LEAST_LENGTH));
    let along = if p_length > LEAST_LENGTH {
        dot(p, z) / z_length / p_length.powi(3)
    } else {
        0.0
    };
    p.iter()
        .zip(z)
        .map(|(p, z)| z / z_length / p_length.max(LEAST_LENGTH) - along * p)
        .collect()
}

/// `act(gate) * up` of a row that holds all of up, then all of gate.
pub fn gated_activation(kind: Kind, row: &[f64]) -> Vec<f64> {
    let (up, gate) = row.split_at(row.len() / 2);
    up.iter()
        .zip(gate)
        .map(|(up, gate)| activation(kind, *gate).0 * up)
        .collect()
}

/// Its backward: the gradient of such a row.
pub fn gated_activation_backward(kind: Kind, row: &[f64], grad: &[f64]) -> Vec<f64> {
    let (up, gate) = row.split_at(row.len() / 2);
    let d_up = grad
        .iter()
        .zip(gate)
        .map(|(grad, gate)| grad * activation(kind, *gate).0);
    let d_gate = (0..grad.len()).map(|i| grad[i] * up[i] * activation(kind, gate[i]).1);
    d_up.chain(d_gate).collect()
}
