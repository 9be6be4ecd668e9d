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
