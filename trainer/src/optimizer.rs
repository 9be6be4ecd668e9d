//! The optimiser's settings, its groups of weights, and its state; and AdamW over flat f32 buffers
//! in the order of `nepa_model::Weights`, for the engine of candle's autograd. The rule is
//! `nepa_model::step::adamw`'s.
use nepa_model::ParamSpec;
use nepa_model::cpu::{AdamWArrays, apply_adamw};
use nepa_model::step::adamw::{AdamW, AdamWSettings, Group, WeightGroup, clip_factor};
use serde::{Deserialize, Serialize};

/// The optimiser of a recipe; the defaults are those published for pretraining.
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

/// What holds for all updates of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UpdateSettings {
    /// AdamW's numbers, and the moving average's.
    pub adamw: AdamWSettings,
    /// Global norm to which gradients are clipped; none does not clip.
    pub max_grad_norm: Option<f64>,
}

/// AdamW over one flat buffer.
#[derive(Debug, Clone)]
pub struct Optimizer {
    settings: UpdateSettings,
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

/// Whether the settings are possible and a saved state fits the model.
pub fn check_state(
    settings: &UpdateSettings,
    specs: &[ParamSpec],
    state: &OptimizerState,
) -> Result<(), OptimizerError> {
    settings.validate()?;
    let expected = specs.iter().map(ParamSpec::len).sum();
    let averaged = if settings.adamw.average_decay.is_some() && state.step > 0 {
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
        settings: UpdateSettings,
        group: impl Fn(&str) -> WeightGroup,
        specs: &[ParamSpec],
        state: OptimizerState,
    ) -> Result<Self, OptimizerError> {
        check_state(&settings, specs, &state)?;
        let mut groups: Vec<Group> = Vec::new();
        for spec in specs {
            let of = group(&spec.name);
            match groups.last_mut() {
                Some(last) if last.of == of => last.range.end = spec.range().end,
                _ => groups.push(Group {
                    range: spec.range(),
                    of,
                }),
            }
        }
        Ok(Self {
            settings,
            groups,
            state,
        })
    }

    /// Goes on from another state of the same model.
    pub fn set_state(
        &mut self,
        specs: &[ParamSpec],
        state: OptimizerState,
    ) -> Result<(), OptimizerError> {
        check_state(&self.settings, specs, &state)?;
        self.state = state;
        Ok(())
    }

    /// What it remembers.
    pub fn state(&self) -> &OptimizerState {
        &self.state
    }

    /// Learning rates that an update needs.
    pub fn num_rates(&self) -> usize {
        Group::rates(&self.groups)
    }

    /// Forgets the gradient of what is frozen, so that it has no share in the norm.
    pub fn forget_frozen(&self, gradients: &mut [f32]) {
        for group in self.groups.iter().filter(|group| group.of.frozen) {
            gradients[group.range.clone()].fill(0.0);
        }
    }

    /// One update of `weights` by `gradients` of that norm, at the learning rates to which the
    /// groups refer. Where the norm is not finite, nothing is changed.
    pub fn step_with_norm(
        &mut self,
        weights: &mut [f32],
        gradients: &[f32],
        rates: &[f64],
        norm: f64,
    ) {
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
        let has_average = !self.state.ema.is_empty();
        let rule = AdamW::new(&self.settings.adamw, self.state.step, rates, has_average);
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
        let clip = clip_factor(norm, self.settings.max_grad_norm);
        apply_adamw(arrays, &self.groups, &rule, clip);
    }
}

impl OptimizerConfig {
    /// What holds for all updates.
    pub fn settings(&self) -> UpdateSettings {
        UpdateSettings {
            adamw: AdamWSettings {
                beta1: self.beta1,
                beta2: self.beta2,
                eps: self.eps,
                average_decay: self.ema_decay,
            },
            max_grad_norm: self.max_grad_norm,
        }
    }

    /// What pretraining's updates do with the weight of that name, at one of [`Self::rates`].
    pub fn group(&self, name: &str) -> WeightGroup {
        WeightGroup {
            weight_decay: if decays(name) { self.weight_decay } else { 0.0 },
            rate: is_embedding(name).into(),
            frozen: false,
        }
    }

    /// The learning rates of one of pretraining's updates: of all weights, and of the embeddings.
    pub fn rates(&self, lr: f64) -> [f64; 2] {
        [lr, lr * self.embedding_lr_factor]
    }

    /// Checks the values.
    pub fn validate(&self) -> Result<(), OptimizerError> {
        self.settings().validate()?;
        for (key, value) in [
            ("weight_decay", self.weight_decay),
            ("embedding_lr_factor", self.embedding_lr_factor),
        ] {
            let holds = value.is_finite() && value >= 0.0;
            check(key, value, holds, "it must be finite and not negative")?;
        }
        Ok(())
    }
}

impl UpdateSettings {
    /// Checks the values.
    pub fn validate(&self) -> Result<(), OptimizerError> {
        let adamw = &self.adamw;
        for (key, value) in [
            ("beta1", adamw.beta1),
            ("beta2", adamw.beta2),
            ("ema_decay", adamw.average_decay.unwrap_or(0.0)),
        ] {
            let holds = (0.0..1.0).contains(&value);
            check(key, value, holds, "it must be at least 0 and less than 1")?;
        }
        let norm = self.max_grad_norm.unwrap_or(1.0);
        for (key, value) in [("eps", adamw.eps), ("max_grad_norm", norm)] {
            let holds = value.is_finite() && value > 0.0;
            check(key, value, holds, "it must be finite and positive")?;
        }
        Ok(())
    }
}

fn check(
    key: &'static str,
    value: f64,
    holds: bool,
    rule: &'static str,
) -> Result<(), OptimizerError> {
    if holds {
        Ok(())
    } else {
        Err(OptimizerError::Setting { key, value, rule })
    }
}

#[cfg(test)]
#[path = "optimizer_tests.rs"]
mod tests;
