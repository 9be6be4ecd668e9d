//! AdamW, the rule: its coefficients are computed here, and each device executes them. Semantics
//! are those of PyTorch's `AdamW` (decoupled weight decay, arXiv 1711.05101) and
//! `clip_grad_norm_`.
use std::ops::Range;

/// What holds for a whole run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of the moving average of the weights; none keeps no average.
    pub average_decay: Option<f64>,
}

/// What an update does with a weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightGroup {
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Which of the update's learning rates is its own.
    pub rate: usize,
    /// Whether it stays as it is: it has no share in the gradient's norm, and neither it nor its
    /// moments change by a bit. The moving average has it all the same.
    pub frozen: bool,
}

/// Consecutive weights of the same kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Which.
    pub range: Range<usize>,
    /// Their kind.
    pub of: WeightGroup,
}

impl Group {
    /// Learning rates that an update of these groups must have: what is frozen needs none.
    pub fn rates(groups: &[Self]) -> usize {
        let trained = groups.iter().filter(|group| !group.of.frozen);
        trained.map(|group| group.of.rate + 1).max().unwrap_or(0)
    }
}

/// The numbers of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW<'a> {
    /// Learning rates, of which each group has one.
    pub rates: &'a [f64],
    /// `1 - beta1^step`.
    pub correction1: f64,
    /// `sqrt(1 - beta2^step)`.
    pub correction2: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decay of the moving average; 0 makes it a copy of the new weights. None keeps none.
    pub average_decay: Option<f64>,
}

impl<'a> AdamW<'a> {
    /// Update number `step`, from 1. The average starts as a copy after the first update.
    pub fn new(settings: &AdamWSettings, step: u64, rates: &'a [f64], has_average: bool) -> Self {
        // `powf`, since a long run has more steps than `powi` counts.
        let step = step as f64;
        Self {
            rates,
            correction1: 1.0 - settings.beta1.powf(step),
            correction2: (1.0 - settings.beta2.powf(step)).sqrt(),
            beta1: settings.beta1,
            beta2: settings.beta2,
            eps: settings.eps,
            average_decay: settings
                .average_decay
                .map(|decay| if has_average { decay } else { 0.0 }),
        }
    }

    /// Factor of the weights of a group before their step, and the size of the step; none for
    /// what is frozen.
    pub fn of_group(&self, group: &WeightGroup) -> Option<(f64, f64)> {
        if group.frozen {
            return None;
        }
        let lr = self.rates[group.rate];
        Some((1.0 - lr * group.weight_decay, lr / self.correction1))
    }
}

/// PyTorch's `clip_grad_norm_`: scales by `max_norm / (norm + 1e-6)`, but never up.
pub fn clip_factor(norm: f64, max_norm: Option<f64>) -> f64 {
    max_norm.map_or(1.0, |max_norm| (max_norm / (norm + 1e-6)).min(1.0))
}
