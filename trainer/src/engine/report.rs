//! What a step tells of its batch.
use nepa_model::PretrainReport;
use nepa_model::objective::ClassificationReport;
use serde::{Deserialize, Serialize};

use super::{Exchange, ExchangeError, Task};

/// What one forward and backward pass over a whole batch found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean loss.
    pub loss: f64,
    /// Global norm of the gradient before clipping, without that of frozen weights.
    pub grad_norm: f64,
    /// What is told beside the loss.
    pub found: Found,
    /// Seconds that each of several ranks computed, without what it waited for the others.
    pub computed: Option<Spread>,
}

/// What a task tells beside its loss: means over the batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Found {
    /// Whether the model cheats by repeating its input.
    Pretraining {
        /// Mean cosine of the prediction with the next embedding.
        cos_target: f64,
        /// Mean cosine of the prediction with the current embedding.
        cos_previous: f64,
        /// Share of positions where the second is greater.
        copy_win: f64,
    },
    /// How often the model is right.
    Classification {
        /// Share of images whose greatest logit is that of their greatest target.
        accuracy: f64,
    },
}

/// How a time differs among ranks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The mean.
    pub mean: f64,
    /// The greatest.
    pub max: f64,
    /// The first rank that has it.
    pub slowest: usize,
}

impl Spread {
    /// Of a number of each rank, at least one.
    pub fn of(numbers: impl Iterator<Item = f64>) -> Self {
        let (mut sum, mut count) = (0.0, 0u32);
        let mut spread = Self {
            min: f64::INFINITY,
            mean: 0.0,
            max: f64::NEG_INFINITY,
            slowest: 0,
        };
        for (rank, number) in numbers.enumerate() {
            (sum, count) = (sum + number, count + 1);
            spread.min = spread.min.min(number);
            if number > spread.max {
                (spread.max, spread.slowest) = (number, rank);
            }
        }
        spread.mean = sum / f64::from(count.max(1));
        spread
    }

    /// In another unit, of which one of these has so many.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self {
            min: factor * self.min,
            mean: factor * self.mean,
            max: factor * self.max,
            ..self
        }
    }
}

/// What one micro-batch found, of as many images as all others: its loss, then what its task tells.
pub(crate) type MicroNumbers = [f64; 4];

/// A report of an objective as such numbers.
pub(crate) trait MicroReport {
    fn numbers(&self) -> MicroNumbers;
}

impl MicroReport for PretrainReport {
    fn numbers(&self) -> MicroNumbers {
        [self.loss, self.cos_target, self.cos_previous, self.copy_win]
    }
}

impl MicroReport for ClassificationReport {
    fn numbers(&self) -> MicroNumbers {
        let accuracy = self.correct as f64 / self.images as f64;
        [self.loss, accuracy, 0.0, 0.0]
    }
}

/// What the micro-batches of all ranks found, in order, and how long each rank computed.
pub(crate) fn gather(
    exchange: &dyn Exchange,
    own: &[MicroNumbers],
    seconds: f64,
) -> Result<(Vec<MicroNumbers>, Spread), ExchangeError> {
    let mut record = vec![seconds];
    record.extend_from_slice(own.as_flattened());
    let all = exchange.gather(&record)?;
    let numbers = all.iter().flat_map(|record| record[1..].as_chunks().0);
    let computed = Spread::of(all.iter().map(|record| record[0]));
    Ok((numbers.copied().collect(), computed))
}

impl StepReport {
    /// The means over all micro-batches of a step.
    pub(crate) fn new(task: Task, all: &[MicroNumbers], grad_norm: f64) -> Self {
        let share = 1.0 / all.len() as f64;
        let mean = |of: usize| all.iter().fold(0.0, |sum, one| sum + share * one[of]);
        Self {
            loss: mean(0),
            grad_norm,
            found: match task {
                Task::Pretraining => Found::Pretraining {
                    cos_target: mean(1),
                    cos_previous: mean(2),
                    copy_win: mean(3),
                },
                Task::Classification => Found::Classification { accuracy: mean(1) },
            },
            computed: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_names_the_slowest_rank() {
        let spread = Spread::of([2.0, 5.0, 1.0, 5.0].into_iter());
        let expected = Spread {
            min: 1.0,
            mean: 3.25,
            max: 5.0,
            slowest: 1,
        };
        assert_eq!(spread, expected);
    }
}
