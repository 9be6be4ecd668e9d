//! What the kernels of the training step compute, in f64 and as plain loops. `N` rows of `D` values; a function for one row has no `N`.
//! Each backward is held to finite differences of its forward by a test.

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
