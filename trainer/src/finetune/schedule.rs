//! Learning rates of fine-tuning: a function from the step and from how far a weight lies below the
//! head. Nothing is remembered, so a run that goes on needs the step alone.
//!
//! t is the step from 0, N all steps, W those of the warm-up, f the layer-wise factor and s the
//! exponent of a group: how many blocks lie between it and the head.
use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// How the rates of all layers go over a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerSchedule {
    /// As the released scripts have it (`schedulers.py`, `llrd_cosine_warmup`): f is fixed, and a
    /// warm-up of `W - round(W f^s)` steps, one at least, precedes the cosine: none but that one
    /// step for the head and the last block, nearly W for the lowest.
    #[default]
    LayerwiseWarmup,
    /// The released `llrd_cosine` with `llrd_end`: W steps of warm-up for all, and f rises to its
    /// end by half a cosine.
    RisingCosine,
    /// The paper (arXiv 2512.16922, appendix D): as [`Self::RisingCosine`], but f rises linearly.
    RisingLinear,
}

impl LayerSchedule {
    /// Whether the factor changes over the run.
    pub fn is_rising(self) -> bool {
        self != Self::LayerwiseWarmup
    }
}

/// The factors of one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerRates {
    /// Which of the three.
    pub schedule: LayerSchedule,
    /// f, at the first step.
    pub layer_decay: f64,
    /// f at the end, where it rises.
    pub layer_decay_end: f64,
    /// W.
    pub warmup_steps: u64,
    /// N.
    pub total_steps: u64,
}

impl LayerRates {
    /// Share of its peak that the rate of a group has at `step`; 0 from N on. `exponent` is s.
    pub fn factor(&self, step: u64, exponent: usize) -> f64 {
        if step >= self.total_steps {
            return 0.0;
        }
        let warmup = self.warmup_of(exponent);
        let over_time = if step < warmup {
            step as f64 / warmup as f64
        } else {
            let done = (step - warmup) as f64 / (self.total_steps - warmup) as f64;
            0.5 * (1.0 + libm::cos(PI * done))
        };
        power(self.layer_decay_at(step), exponent) * over_time
    }

    /// Steps of warm-up of a group.
    pub fn warmup_of(&self, exponent: usize) -> u64 {
        let whole = self.warmup_steps;
        if self.schedule.is_rising() || whole == 0 {
            return whole;
        }
        let head_start = whole as f64 * power(self.layer_decay, exponent);
        (whole - head_start.round_ties_even() as u64).max(1)
    }

    /// f at a step.
    fn layer_decay_at(&self, step: u64) -> f64 {
        let done = step as f64 / self.total_steps as f64;
        let risen = match self.schedule {
            LayerSchedule::LayerwiseWarmup => 0.0,
            LayerSchedule::RisingCosine => 0.5 * (1.0 - libm::cos(PI * done)),
            LayerSchedule::RisingLinear => done,
        };
        self.layer_decay + (self.layer_decay_end - self.layer_decay) * risen
    }
}

/// The same bits on every machine.
fn power(base: f64, exponent: usize) -> f64 {
    libm::pow(base, exponent as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `schedule.json` of `NEPA_GOLDEN`: factors of the published functions at whole size, and of
    /// the paper's rule.
    #[test]
    fn factors_are_the_published_ones() {
        let Some(root) = std::env::var_os("NEPA_GOLDEN") else {
            eprintln!("SKIPPED: schedules: NEPA_GOLDEN is not set");
            return;
        };
        let path = std::path::Path::new(&root).join("schedule.json");
        let text = std::fs::read_to_string(path).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut compared = 0;
        for (run, table, schedule) in [
            (
                "base",
                "factor_by_step_and_scale",
                LayerSchedule::LayerwiseWarmup,
            ),
            (
                "large",
                "factor_by_step_and_scale",
                LayerSchedule::LayerwiseWarmup,
            ),
            (
                "paper_base",
                "published_function_half_cosine_rise",
                LayerSchedule::RisingCosine,
            ),
            (
                "paper_large",
                "published_function_half_cosine_rise",
                LayerSchedule::RisingCosine,
            ),
            (
                "paper_base",
                "paper_linear_rise_own_arithmetic",
                LayerSchedule::RisingLinear,
            ),
            (
                "paper_large",
                "paper_linear_rise_own_arithmetic",
                LayerSchedule::RisingLinear,
            ),
        ] {
            let run = &golden[run];
            let rates = LayerRates {
                schedule,
                layer_decay: run["llrd"].as_f64().unwrap(),
                layer_decay_end: run["llrd_end"].as_f64().unwrap_or(f64::NAN),
                warmup_steps: run["warmup_steps"].as_u64().unwrap(),
                total_steps: run["total_steps"].as_u64().unwrap(),
            };
            // Where the factor does not rise, its end says nothing.
            let rates = LayerRates {
                layer_decay_end: if schedule.is_rising() {
                    rates.layer_decay_end
                } else {
                    0.0
                },
                ..rates
            };
            for (step, factors) in run[table].as_object().unwrap() {
                let step = step.parse().unwrap();
                for (exponent, expected) in factors.as_array().unwrap().iter().enumerate() {
                    let (found, expected) =
                        (rates.factor(step, exponent), expected.as_f64().unwrap());
                    assert!(
                        (found - expected).abs() <= 1e-12 * expected.abs().max(1e-12),
                        "{table}, step {step}, exponent {exponent}: {found} {expected}"
                    );
                    compared += 1;
                }
            }
            let warmups = run["warmup_of_scale"].as_array().into_iter().flatten();
            for (exponent, expected) in warmups.enumerate() {
                assert_eq!(Some(rates.warmup_of(exponent)), expected.as_u64());
            }
        }
        assert!(compared > 1000, "{compared}");
    }

    #[test]
    fn edges() {
        let rates = LayerRates {
            schedule: LayerSchedule::LayerwiseWarmup,
            layer_decay: 0.5,
            layer_decay_end: 0.5,
            warmup_steps: 0,
            total_steps: 4,
        };
        // Without a warm-up the first step has the whole rate; at the end nothing is left.
        assert!((rates.factor(0, 1) - 0.5).abs() < 1e-15);
        assert!(rates.factor(4, 0).abs() < 1e-15 && rates.factor(9, 3).abs() < 1e-15);
        // Half a step goes to the even number: 5 - round(2.5) = 3.
        let odd = LayerRates {
            warmup_steps: 5,
            total_steps: 20,
            ..rates
        };
        assert_eq!((odd.warmup_of(0), odd.warmup_of(1)), (1, 3));
        assert!(
            odd.factor(0, 0).abs() < 1e-15,
            "one step at 0, for the head too"
        );
        let rising = LayerRates {
            schedule: LayerSchedule::RisingLinear,
            layer_decay_end: 1.0,
            ..odd
        };
        assert_eq!((rising.warmup_of(0), rising.warmup_of(9)), (5, 5));
    }
}
