//! The optimiser's settings, its groups of weights, and its state; and AdamW over flat f32 buffers
//! in the order of `nepa_model::Weights`, for the engine of candle's autograd. The rule is
//! `nepa_model::step::adamw`'s.
use nepa_model::ParamSpec;
use nepa_model::cpu::{AdamWArrays, apply_adamw};
use nepa_model::step::adamw::{AdamW, AdamWSettings, Group, clip_factor};
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

/// AdamW over one flat buffer.
#[derive(Debug, Clone)]
pub struct Optimizer {
    config: OptimizerConfig,
    groups: Vec<Group>,
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

impl From<&OptimizerConfig> for AdamWSettings {
    fn from(config: &OptimizerConfig) -> Self {
        Self {
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            average_decay: config.ema_decay,
        }
    }
}

/// Whether the settings are possible and a saved state fits the model.
pub fn check_state(
    config: &OptimizerConfig,
    specs: &[ParamSpec],
    state: &OptimizerState,
) -> Result<(), OptimizerError> {
    config.validate()?;
    let expected = specs.iter().map(ParamSpec::len).sum();
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
    Ok(())
}

impl Optimizer {
    /// Goes on from a saved state.
    pub fn from_state(
        config: &OptimizerConfig,
        specs: &[ParamSpec],
        state: OptimizerState,
    ) -> Result<Self, OptimizerError> {
        check_state(config, specs, &state)?;
        let mut groups: Vec<Group> = Vec::new();
        for spec in specs {
            let (weight_decay, lr_factor) = config.group(&spec.name);
            match groups.last_mut() {
                Some(last) if (last.weight_decay, last.lr_factor) == (weight_decay, lr_factor) => {
                    last.range.end = spec.range().end;
                }
                _ => groups.push(Group {
                    range: spec.range(),
                    weight_decay,
                    lr_factor,
                }),
            }
        }
        Ok(Self {
            config: config.clone(),
            groups,
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

    /// One update of `weights` by `gradients` of that norm, at learning rate `lr`. Where the norm is
    /// not finite, nothing is changed.
    pub fn step_with_norm(&mut self, weights: &mut [f32], gradients: &[f32], lr: f64, norm: f64) {
        let len = self.state.m.len();
        assert_eq!(
            (weights.len(), gradients.len()),
            (len, len),
            "flat buffers of one model"
        );
        self.state.step += 1;
        if !norm.is_finite() {
            return;
        }
        let settings = AdamWSettings::from(&self.config);
        let has_average = !self.state.ema.is_empty();
        let rule = AdamW::new(&settings, self.state.step, lr, has_average);
        if rule.average_decay.is_some() {
            self.state.ema.resize(len, 0.0);
        }
        let arrays = AdamWArrays {
            weights,
            gradient: gradients,
            m: &mut self.state.m,
            v: &mut self.state.v,
            average: &mut self.state.ema,
        };
        let clip = clip_factor(norm, self.config.max_grad_norm);
        apply_adamw(arrays, &self.groups, &rule, clip);
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

#[cfg(test)]
#[path = "optimizer_tests.rs"]
mod tests;
