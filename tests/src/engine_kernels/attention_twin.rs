//! Attention of one head, forward and backward, in f64 and as plain loops; rows of 64 values.
use super::attention::HEAD;
use super::twins::{layer_norm, layer_norm_backward, statistics};

/// Of a norm of queries or keys.
#[derive(Debug, Clone)]
pub struct TwinNorm {
    /// `[64]`.
    pub weight: Vec<f64>,
    /// `[64]`.
    pub bias: Vec<f64>,
    /// Of the norm.
    pub eps: f64,
}

/// One head of one image.
#[derive(Debug, Clone)]
pub struct TwinHead {
    /// `[T, 64]` each: queries, keys, values.
    pub qkv: [Vec<f64>; 3],
    /// Of queries and keys.
    pub norms: Option<[TwinNorm; 2]>,
    /// `[T, 32]` each: cosines and sines.
    pub rotary: [Vec<f64>; 2],
    /// Whether a token sees only those before it, and itself.
    pub causal: bool,
    /// What happens to normalised and rotated queries and keys: the kernels round them to bf16.
    pub rounded: fn(f64) -> f64,
}

/// The forward's results, with what a rounding of the probabilities may do to them.
#[derive(Debug, Clone)]
pub struct TwinForward {
    /// `[T, 64]`.
    pub out: Vec<f64>,
    /// `[T, 64]`: what `out` is off by if each probability is off by its whole self, one this way and one the other: the root of the sum of squares.
    pub size: Vec<f64>,
    /// `[T]`.
    pub lse: Vec<f64>,
    /// `[T, T]`.
    probabilities: Vec<f64>,
}

/// The backward's results.
#[derive(Debug, Clone)]
pub struct TwinGradients {
    /// `[T, 64]` each: of queries, keys, values.
    pub d_qkv: [Vec<f64>; 3],
    /// `[T, 64]` each: what they are off by if probabilities, gradients of scores and outputs are off by their whole selves, each its own way.
    pub sizes: [Vec<f64>; 3],
    /// `[64]` each: query's weight and bias, key's weight and bias.
    pub norms: [Vec<f64>; 4],
    /// `[64]` each: the same as `sizes`.
    pub norm_sizes: [Vec<f64>; 4],
}

const SCALE: f64 = 0.125;

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn roots(values: &mut [f64]) {
    for value in values {
        *value = value.sqrt();
    }
}

fn row(values: &[f64], token: usize) -> &[f64] {
    &values[token * HEAD..][..HEAD]
}

impl TwinHead {
    fn tokens(&self) -> usize {
        self.qkv[0].len() / HEAD
    }

    fn sees(&self, query: usize, key: usize) -> bool {
        !self.causal || key <= query
    }

    /// Pairs (c, c + 32) of a token's row turned by its angle, or back.
    fn turned(&self, token: usize, row: &[f64], direction: f64) -> Vec<f64> {
        let half = HEAD / 2;
        let mut turned = vec![0.0; HEAD];
        for c in 0..half {
            let cos = self.rotary[0][token * half + c];
            let sin = direction * self.rotary[1][token * half + c];
            turned[c] = row[c] * cos - row[c + half] * sin;
            turned[c + half] = row[c + half] * cos + row[c] * sin;
        }
        turned
    }

    /// Queries (part 0) or keys (part 1) as the scores see them.
    fn prepared(&self, part: usize) -> Vec<f64> {
        (0..self.tokens())
            .flat_map(|token| {
                let mut values = row(&self.qkv[part], token).to_vec();
                if let Some(norms) = &self.norms {
                    let norm = &norms[part];
                    values = layer_norm(&values, &norm.weight, &norm.bias, norm.eps);
                }
                self.turned(token, &values, 1.0)
            })
            .map(self.rounded)
            .collect()
    }

    /// Output and the logarithms of the softmax's sums.
    pub fn forward(&self) -> TwinForward {
        let tokens = self.tokens();
        let (queries, keys) = (self.prepared(0), self.prepared(1));
        let mut result = TwinForward {
            out: vec![0.0; tokens * HEAD],
            size: vec![0.0; tokens * HEAD],
            lse: vec![0.0; tokens],
            probabilities: vec![0.0; tokens * tokens],
        };
        for query in 0..tokens {
            let scores: Vec<f64> = (0..tokens)
                .map(|key| SCALE * dot(row(&queries, query), row(&keys, key)))
                .collect();
            let seen = (0..tokens).filter(|&key| self.sees(query, key));
            let sum: f64 = seen.clone().map(|key| scores[key].exp()).sum();
            result.lse[query] = sum.ln();
            for key in seen {
                let probability = scores[key].exp() / sum;
                result.probabilities[query * tokens + key] = probability;
                for c in 0..HEAD {
                    let term = probability * row(&self.qkv[2], key)[c];
                    result.out[query * HEAD + c] += term;
                    result.size[query * HEAD + c] += term * term;
                }
            }
        }
        roots(&mut result.size);
        result
    }

    /// Gradients, from that of the output.
    pub fn backward(&self, d_out: &[f64]) -> TwinGradients {
        let tokens = self.tokens();
        let forward = self.forward();
        let (queries, keys) = (self.prepared(0), self.prepared(1));
        let zeros = || vec![0.0; tokens * HEAD];
        let (mut d_prepared, mut sizes) =
            ([zeros(), zeros(), zeros()], [zeros(), zeros(), zeros()]);
        for query in 0..tokens {
            let grad = row(d_out, query);
            let delta = dot(grad, row(&forward.out, query));
            // The kernels take the output as bf16; what that makes of `delta` goes to all keys of the query, which add up.
            let delta_size = (0..HEAD)
                .map(|c| (grad[c] * row(&forward.out, query)[c]).powi(2))
                .sum::<f64>()
                .sqrt();
            let mut along = vec![0.0; HEAD];
            for key in (0..tokens).filter(|&key| self.sees(query, key)) {
                let probability = forward.probabilities[query * tokens + key];
                let d_score = SCALE * probability * (dot(grad, row(&self.qkv[2], key)) - delta);
                let by_delta = SCALE * probability * delta_size;
                for (c, grad) in grad.iter().enumerate() {
                    let (at_query, at_key) = (query * HEAD + c, key * HEAD + c);
                    d_prepared[0][at_query] += d_score * keys[at_key];
                    sizes[0][at_query] += (d_score * keys[at_key]).powi(2);
                    along[c] += by_delta * keys[at_key];
                    d_prepared[1][at_key] += d_score * queries[at_query];
                    sizes[1][at_key] +=
                        (d_score.powi(2) + by_delta.powi(2)) * queries[at_query].powi(2);
                    d_prepared[2][at_key] += probability * grad;
                    sizes[2][at_key] += (probability * grad).powi(2);
                }
            }
            for (size, along) in sizes[0][query * HEAD..][..HEAD].iter_mut().zip(along) {
                *size += along * along;
            }
        }
        for sizes in &mut sizes {
            roots(sizes);
        }
        let [d_query, d_key, d_value] = d_prepared;
        let sums = || vec![0.0; HEAD];
        let mut result = TwinGradients {
            d_qkv: [d_query, d_key, d_value],
            sizes,
            norms: [sums(), sums(), sums(), sums()],
            norm_sizes: [sums(), sums(), sums(), sums()],
        };
        for part in 0..2 {
            for token in 0..tokens {
                let range = token * HEAD..(token + 1) * HEAD;
                let mut grad = self.turned(token, &result.d_qkv[part][range.clone()], -1.0);
                // The greatest of the row stands for all, which turning and normalising mix.
                let mut most = 1.5
                    * result.sizes[part][range.clone()]
                        .iter()
                        .fold(0.0, |most: f64, size| most.max(*size));
                if let Some(norms) = &self.norms {
                    let norm = &norms[part];
                    let x = row(&self.qkv[part], token);
                    let (mean, rstd) = statistics(x, norm.eps);
                    let (dx, d_weight, d_bias) =
                        layer_norm_backward(x, &norm.weight, norm.eps, &grad);
                    for c in 0..HEAD {
                        result.norms[2 * part][c] += d_weight[c];
                        result.norm_sizes[2 * part][c] += (most * (x[c] - mean) * rstd).powi(2);
                        result.norms[2 * part + 1][c] += d_bias[c];
                        result.norm_sizes[2 * part + 1][c] += most * most;
                    }
                    grad = dx;
                    let weight = norm.weight.iter().fold(0.0, |a: f64, w| a.max(w.abs()));
                    most *= 1.2 * rstd * weight;
                }
                result.d_qkv[part][range.clone()].copy_from_slice(&grad);
                result.sizes[part][range].fill(most);
            }
        }
        for sizes in &mut result.norm_sizes {
            roots(sizes);
        }
        result
    }
}
