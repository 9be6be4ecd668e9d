//! Learning rate over steps: linear warm-up from 0, then half a cosine to 0.
use std::f64::consts::PI;

use crate::engine::LearningRates;
use crate::recipe::ResolvedTrain;

/// A pure function from the step to the learning rates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Greatest learning rates, reached at the end of the warm-up.
    pub peak: LearningRates,
    /// Steps of the warm-up; the first has rate 0, if there is any.
    pub warmup_steps: u64,
    /// Steps of the whole run; at this step, one after the last, the rate is 0.
    pub total_steps: u64,
}

impl Schedule {
    /// The schedule of a resolved recipe.
    pub fn new(train: &ResolvedTrain) -> Self {
        let peak = LearningRates {
            main: train.lr,
            embedding: train.embedding_lr,
        };
        Self {
            peak,
            warmup_steps: train.warmup_steps,
            total_steps: train.steps,
        }
    }

    /// The rates of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> LearningRates {
        let factor = self.factor(step);
        LearningRates {
            main: self.peak.main * factor,
            embedding: self.peak.embedding * factor,
        }
    }

    /// Share of the greatest rate.
    fn factor(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        if step >= self.total_steps {
            return 0.0;
        }
        let done =
            (step - self.warmup_steps) as f64 / (self.total_steps - self.warmup_steps) as f64;
        0.5 * (1.0 + libm::cos(PI * done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(warmup_steps: u64, total_steps: u64) -> Schedule {
        Schedule {
            peak: LearningRates {
                main: 0.002,
                embedding: 0.004,
            },
            warmup_steps,
            total_steps,
        }
    }

    #[test]
    fn published_rates() {
        // From the published code's trajectory.
        let published = [
            0.0,
            0.001,
            0.002,
            0.001_951_056_516_295_153_6,
            0.001_809_016_994_374_947_5,
            0.001_587_785_252_292_473_1,
            0.001_309_016_994_374_947_5,
            0.001,
        ];
        for (step, rate) in published.into_iter().enumerate() {
            let rates = schedule(2, 12).at(step as u64);
            assert!((rates.main - rate).abs() < 1e-17, "step {step}");
            assert!((rates.embedding - 2.0 * rate).abs() < 1e-17, "step {step}");
        }
    }

    #[test]
    fn edges() {
        assert!(schedule(2, 12).at(11).main > 0.0);
        assert_eq!(schedule(2, 12).at(12).main.to_bits(), 0);
        assert!(
            (schedule(0, 4).at(0).main - 0.002).abs() < 1e-18,
            "without a warm-up the first step has the full rate"
        );
        assert!((schedule(4, 4).at(3).main - 0.0015).abs() < 1e-18);
        assert_eq!(schedule(4, 4).at(4).main.to_bits(), 0);
    }
}
