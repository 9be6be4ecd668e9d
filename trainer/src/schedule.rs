//! Learning rate over steps: linear warm-up from 0, then half a cosine down to `final_lr`.
use std::f64::consts::PI;

/// A pure function from the step to the learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Greatest learning rate, reached at the end of the warm-up.
    pub lr: f64,
    /// Steps of the warm-up; the first has rate 0, if there is any.
    pub warmup_steps: u64,
    /// Steps of the whole run; at this step, one after the last, the rate is `final_lr`.
    pub total_steps: u64,
    /// What the cosine ends at; the published runs end at 0.
    pub final_lr: f64,
}

impl Schedule {
    /// The rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * step as f64 / self.warmup_steps as f64;
        }
        if step >= self.total_steps {
            return self.final_lr;
        }
        let done =
            (step - self.warmup_steps) as f64 / (self.total_steps - self.warmup_steps) as f64;
        self.final_lr + (self.lr - self.final_lr) * 0.5 * (1.0 + libm::cos(PI * done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_rates() {
        let schedule = Schedule {
            lr: 0.002,
            warmup_steps: 2,
            total_steps: 12,
            final_lr: 0.0,
        };
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
            assert!(
                (schedule.at(step as u64) - rate).abs() < 1e-17,
                "step {step}"
            );
        }
        assert!(
            schedule.at(11) > 0.0
                && schedule.at(12).abs() < 1e-18
                && schedule.at(1000).abs() < 1e-18
        );
    }

    #[test]
    fn edges() {
        let no_warmup = Schedule {
            lr: 1.0,
            warmup_steps: 0,
            total_steps: 4,
            final_lr: 0.1,
        };
        assert!((no_warmup.at(0) - 1.0).abs() < 1e-15 && (no_warmup.at(4) - 0.1).abs() < 1e-15);
        assert!((no_warmup.at(2) - 0.55).abs() < 1e-15);
        let only_warmup = Schedule {
            lr: 1.0,
            warmup_steps: 4,
            total_steps: 4,
            final_lr: 0.0,
        };
        assert!((only_warmup.at(3) - 0.75).abs() < 1e-15 && only_warmup.at(4).abs() < 1e-15);
    }
}
