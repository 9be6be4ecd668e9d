//! AdamW with groups, clipping and a moving average of the weights, over flat f32 buffers in the
//! order of `nepa_model::Weights`. Semantics are those of PyTorch's `AdamW` and `clip_grad_norm_`.
//! Every element is a function of its own history and of the norm, which is summed in f64 in a
//! fixed order: the number of threads changes no bit. Called by the run loop and `nepa verify`.
use nepa_model::ParamSpec;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Settings of [`Optimizer`]; the defaults are the published ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, for the names that [`decays`].
    pub weight_decay: f64,
    /// Global norm to which gradients are clipped; `None`, in a recipe 0, does not clip.
    #[serde(with = "zero_is_none")]
    pub max_grad_norm: Option<f64>,
    /// Factor of the learning rate for `vit_nepa.embeddings.*`; 1 is the same rate.
    pub embedding_lr_factor: f64,
    /// Decay of the moving average; `None`, in a recipe 0, keeps no average.
    #[serde(with = "zero_is_none")]
    pub ema_decay: Option<f64>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.05,
            max_grad_norm: Some(1.0),
            embedding_lr_factor: 1.0,
            ema_decay: Some(0.9999),
        }
    }
}

/// An optional number of a recipe that 0 switches off; left out, it has its default.
pub(crate) mod zero_is_none {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(
        clippy::ref_option,
        reason = "serde calls it with a reference to the field"
    )]
    pub(crate) fn serialize<S: Serializer>(
        value: &Option<f64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(value.unwrap_or(0.0))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<f64>, D::Error> {
        Ok(Some(f64::deserialize(deserializer)?).filter(|value| *value != 0.0))
    }
}

/// Whether weight decay applies to a weight of that name: not to biases, norms and layer scales; it
/// does to the class token.
pub fn decays(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let named = ["bias", "layernorm", "rmsnorm", "layer_scale"]
        .iter()
        .any(|part| name.contains(part));
    let norm = name
        .split('.')
        .any(|part| part == "norm" || part.ends_with("_norm"));
    !(named || norm)
}

/// Whether a weight belongs to the embeddings, which may have a learning rate of their own.
pub fn is_embedding(name: &str) -> bool {
    name.starts_with("vit_nepa.embeddings.")
}

/// All that the optimiser remembers; saved whole in a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizerState {
    /// Updates so far.
    pub step: u64,
    /// First moments.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
    /// Moving average of the weights; empty before the first step and if none is kept.
    pub ema: Vec<f32>,
}

/// Consecutive weights with the same settings.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Run {
    start: usize,
    end: usize,
    decay: f64,
    lr_factor: f64,
}

/// AdamW over one flat buffer.
#[derive(Debug, Clone)]
pub struct Optimizer {
    config: OptimizerConfig,
    runs: Vec<Run>,
    state: OptimizerState,
}

/// The optimiser cannot be built from what was given.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OptimizerError {
    /// A setting is impossible.
    #[error("optimizer: {key} = {value} is not possible: {rule}")]
    Setting {
        /// Its name.
        key: &'static str,
        /// Its value.
        value: f64,
        /// What it must satisfy.
        rule: &'static str,
    },
    /// A saved state belongs to another model.
    #[error(
        "optimizer: the saved {what} has {got} values, the model {expected}; the checkpoint is of another model"
    )]
    StateLength {
        /// Which buffer.
        what: &'static str,
        /// Its length.
        got: usize,
        /// Weights of the model.
        expected: usize,
    },
}

/// Elements in one piece of the norm and of an update.
const PIECE: usize = 1 << 14;

/// The global norm of all gradients, in f64 and in a fixed order.
pub fn global_norm(gradients: &[f32]) -> f64 {
    let piece = |values: &[f32]| {
        let mut lanes = [0.0f64; 8];
        let chunks = values.chunks_exact(8);
        let tail: f64 = chunks
            .remainder()
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum();
        for chunk in chunks {
            for (lane, g) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(*g) * f64::from(*g);
            }
        }
        lanes.iter().sum::<f64>() + tail
    };
    let pieces: Vec<f64> = gradients.par_chunks(PIECE).map(piece).collect();
    pieces.iter().sum::<f64>().sqrt()
}

/// PyTorch's `clip_grad_norm_`: scales by `max_norm / (norm + 1e-6)`, but never up.
pub fn clip_factor(norm: f64, max_norm: Option<f64>) -> f64 {
    max_norm.map_or(1.0, |max_norm| (max_norm / (norm + 1e-6)).min(1.0))
}

impl Optimizer {
    /// Starts with zero moments.
    pub fn new(config: &OptimizerConfig, specs: &[ParamSpec]) -> Result<Self, OptimizerError> {
        let len = specs.iter().map(ParamSpec::len).sum();
        let state = OptimizerState {
            step: 0,
            m: vec![0.0; len],
            v: vec![0.0; len],
            ema: Vec::new(),
        };
        Self::from_state(config, specs, state)
    }

    /// Goes on from a saved state.
    pub fn from_state(
        config: &OptimizerConfig,
        specs: &[ParamSpec],
        state: OptimizerState,
    ) -> Result<Self, OptimizerError> {
        config.validate()?;
        let mut runs: Vec<Run> = Vec::new();
        for spec in specs {
            let (decay, lr_factor) = config.group(&spec.name);
            let run = Run {
                start: spec.offset,
                end: spec.range().end,
                decay,
                lr_factor,
            };
            match runs.last_mut() {
                Some(last) if (last.decay, last.lr_factor) == (run.decay, run.lr_factor) => {
                    last.end = run.end;
                }
                _ => runs.push(run),
            }
        }
        let expected = runs.last().map_or(0, |run| run.end);
        let averaged = if config.ema_decay.is_some() && state.step > 0 {
            expected
        } else {
            0
        };
        for (what, got, expected) in [
            ("first moment", state.m.len(), expected),
            ("second moment", state.v.len(), expected),
            ("moving average", state.ema.len(), averaged),
        ] {
            if got != expected {
                return Err(OptimizerError::StateLength {
                    what,
                    got,
                    expected,
                });
            }
        }
        Ok(Self {
            config: config.clone(),
            runs,
            state,
        })
    }

    /// What it remembers.
    pub fn state(&self) -> &OptimizerState {
        &self.state
    }

    /// Its settings.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// One update of `weights` by `gradients` at learning rate `lr`; returns the norm before
    /// clipping.
    pub fn step(&mut self, weights: &mut [f32], gradients: &[f32], lr: f64) -> f64 {
        let norm = global_norm(gradients);
        self.step_with_norm(weights, gradients, lr, norm);
        norm
    }

    /// As [`Optimizer::step`], with the norm already known; the caller checks first that it is
    /// finite.
    pub fn step_with_norm(&mut self, weights: &mut [f32], gradients: &[f32], lr: f64, norm: f64) {
        let len = self.state.m.len();
        assert_eq!(
            (weights.len(), gradients.len()),
            (len, len),
            "flat buffers of one model"
        );
        self.state.step += 1;
        let config = &self.config;
        let clip = clip_factor(norm, config.max_grad_norm);
        // `powf`, since a long run has more steps than `powi` counts.
        let step = self.state.step as f64;
        let correction1 = 1.0 - config.beta1.powf(step);
        let correction2 = (1.0 - config.beta2.powf(step)).sqrt();
        let state = &mut self.state;
        let starts = config.ema_decay.is_some() && state.ema.is_empty();
        if starts {
            // The average starts as a copy after the first step.
            state.ema.resize(len, 0.0);
        }
        let average_decay = match config.ema_decay {
            _ if starts => Some(0.0),
            decay => decay,
        };
        for run in &self.runs {
            let lr = lr * run.lr_factor;
            let rule = Update {
                clip: clip as f32,
                keep: (1.0 - lr * run.decay) as f32,
                step_size: (lr / correction1) as f32,
                correction2: correction2 as f32,
                beta1: config.beta1 as f32,
                beta2: config.beta2 as f32,
                rest1: (1.0 - config.beta1) as f32,
                rest2: (1.0 - config.beta2) as f32,
                eps: config.eps as f32,
            };
            let range = run.start..run.end;
            let pieces = (
                weights[range.clone()].par_chunks_mut(PIECE),
                gradients[range.clone()].par_chunks(PIECE),
                state.m[range.clone()].par_chunks_mut(PIECE),
                state.v[range.clone()].par_chunks_mut(PIECE),
            );
            let Some(decay) = average_decay else {
                pieces
                    .into_par_iter()
                    .for_each(|(weights, gradients, m, v)| rule.apply(weights, gradients, m, v));
                continue;
            };
            // While the weights are in the cache.
            let (decay, rest) = (decay as f32, (1.0 - decay) as f32);
            (
                pieces.into_par_iter(),
                state.ema[range].par_chunks_mut(PIECE),
            )
                .into_par_iter()
                .for_each(|((weights, gradients, m, v), average)| {
                    rule.apply(weights, gradients, m, v);
                    for (average, weight) in average.iter_mut().zip(weights) {
                        *average = decay * *average + rest * *weight;
                    }
                });
        }
    }
}

impl OptimizerConfig {
    /// Weight decay, and factor of the learning rate, of the weight of that name.
    pub fn group(&self, name: &str) -> (f64, f64) {
        let decay = if decays(name) { self.weight_decay } else { 0.0 };
        let lr_factor = if is_embedding(name) {
            self.embedding_lr_factor
        } else {
            1.0
        };
        (decay, lr_factor)
    }

    /// Checks the values.
    pub fn validate(&self) -> Result<(), OptimizerError> {
        let fraction = "it must be at least 0 and less than 1";
        let positive = "it must be finite and positive";
        let not_negative = "it must be finite and not negative";
        let is_positive = |value: f64| value.is_finite() && value > 0.0;
        let is_not_negative = |value: f64| value.is_finite() && value >= 0.0;
        let norm = self.max_grad_norm.unwrap_or(1.0);
        let average = self.ema_decay.unwrap_or(0.0);
        for (key, value, holds, rule) in [
            (
                "beta1",
                self.beta1,
                (0.0..1.0).contains(&self.beta1),
                fraction,
            ),
            (
                "beta2",
                self.beta2,
                (0.0..1.0).contains(&self.beta2),
                fraction,
            ),
            ("eps", self.eps, is_positive(self.eps), positive),
            (
                "weight_decay",
                self.weight_decay,
                is_not_negative(self.weight_decay),
                not_negative,
            ),
            ("max_grad_norm", norm, is_positive(norm), positive),
            (
                "embedding_lr_factor",
                self.embedding_lr_factor,
                is_not_negative(self.embedding_lr_factor),
                not_negative,
            ),
            (
                "ema_decay",
                average,
                (0.0..1.0).contains(&average),
                fraction,
            ),
        ] {
            if !holds {
                return Err(OptimizerError::Setting { key, value, rule });
            }
        }
        Ok(())
    }
}

/// The numbers of one update, the same for a whole run.
#[derive(Debug, Clone, Copy)]
struct Update {
    clip: f32,
    keep: f32,
    step_size: f32,
    correction2: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    eps: f32,
}

impl Update {
    /// Element by element, so that it may be split over threads as it comes.
    fn apply(self, weights: &mut [f32], gradients: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((weight, gradient), m), v) in weights.iter_mut().zip(gradients).zip(m).zip(v) {
            let gradient = gradient * self.clip;
            *m = self.beta1 * *m + self.rest1 * gradient;
            *v = self.beta2 * *v + self.rest2 * gradient * gradient;
            let denominator = v.sqrt() / self.correction2 + self.eps;
            *weight = *weight * self.keep - self.step_size * *m / denominator;
        }
    }
}

#[cfg(test)]
#[path = "optimizer_tests.rs"]
mod tests;
