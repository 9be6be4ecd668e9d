//! What a step tells of its batch.
use nepa_model::PretrainReport;
use nepa_model::objective::ClassificationReport;

/// What one forward and backward pass over a whole batch found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean loss.
    pub loss: f64,
    /// Global norm of the gradient before clipping, without that of frozen weights.
    pub grad_norm: f64,
    /// What is told beside the loss.
    pub found: Found,
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

/// What one micro-batch found, of as many as `all` others.
pub(crate) trait MicroReport: Sized {
    /// The mean over equal micro-batches.
    fn mean(all: &[Self], grad_norm: f64) -> StepReport;
}

fn mean<R>(all: &[R], of: impl Fn(&R) -> f64) -> f64 {
    let share = 1.0 / all.len() as f64;
    all.iter().fold(0.0, |sum, one| sum + share * of(one))
}

impl MicroReport for PretrainReport {
    fn mean(all: &[Self], grad_norm: f64) -> StepReport {
        StepReport {
            loss: mean(all, |one| one.loss),
            grad_norm,
            found: Found::Pretraining {
                cos_target: mean(all, |one| one.cos_target),
                cos_previous: mean(all, |one| one.cos_previous),
                copy_win: mean(all, |one| one.copy_win),
            },
        }
    }
}

impl MicroReport for ClassificationReport {
    fn mean(all: &[Self], grad_norm: f64) -> StepReport {
        StepReport {
            loss: mean(all, |one| one.loss),
            grad_norm,
            found: Found::Classification {
                accuracy: mean(all, |one| one.correct as f64 / one.images as f64),
            },
        }
    }
}
