//! What a checkpoint holds: where the run stands, and what it has trained.
use nepa_pipeline::LoaderState;
use serde::{Deserialize, Serialize};

use super::files::VERSION;
use crate::engine::TrainingState;
use crate::recipe::ResolvedRecipe;

/// Lengths of the run's growing files when the checkpoint was made; what stands behind is cut off
/// on resume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_field_names,
    reason = "as the keys of state.json are called"
)]
pub struct FileLengths {
    /// `metrics.jsonl`.
    pub metrics_bytes: u64,
    /// The TensorBoard event file, if written.
    pub events_bytes: Option<u64>,
    /// The sample trace, if written.
    pub trace_bytes: Option<u64>,
    /// `evals.jsonl`, of a run that evaluates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evals_bytes: Option<u64>,
}

/// What a run that evaluates remembers of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalState {
    /// The last step that was evaluated; 0 before there is one.
    pub last_step: u64,
    /// The best of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<BestEval>,
}

/// The best evaluation of a run so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BestEval {
    /// Optimiser steps done.
    pub step: u64,
    /// Epochs done.
    pub epoch: u64,
    /// Share of images that were right, by the moving average where there is one.
    pub top1: f64,
}

impl EvalState {
    /// Remembers an evaluation; whether it is the best so far. Of equal ones the first stays.
    pub(crate) fn note(&mut self, eval: BestEval) -> bool {
        self.last_step = eval.step;
        let is_best = self.best.is_none_or(|best| eval.top1 > best.top1);
        if is_best {
            self.best = Some(eval);
        }
        is_best
    }
}

/// `state.json`: where the run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    pub version: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Images trained on.
    pub samples: u64,
    /// Position in the data.
    pub loader: LoaderState,
    /// Lengths of the run's files.
    pub files: FileLengths,
    /// The run itself, seed and schedule included.
    pub recipe: ResolvedRecipe,
    /// How the engine decided to compute, where its results depend on that
    /// ([`crate::engine::Engine::choices`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<serde_json::Value>,
    /// What was evaluated, of a run that does so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluated: Option<EvalState>,
}

impl RunState {
    /// The version that this program writes.
    pub const VERSION: u32 = VERSION;
}

/// One step of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Where the run stands.
    pub state: RunState,
    /// Weights, moments and moving average.
    pub training: TrainingState,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_evaluation_is_the_first_of_the_greatest() {
        let mut state = EvalState::default();
        let noted = [0.3, 0.2, 0.5, 0.5, 0.4].into_iter().zip(1..);
        let noted = noted.map(|(top1, step)| {
            state.note(BestEval {
                step,
                epoch: step,
                top1,
            })
        });
        let noted = noted.collect::<Vec<_>>();
        assert_eq!(noted, [true, false, true, false, false]);
        assert_eq!((state.last_step, state.best.unwrap().step), (5, 3));
    }
}
