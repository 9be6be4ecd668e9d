//! What the command line adds to a recipe, and how a run can end.
use std::path::PathBuf;

use crate::recipe::ResolvedRecipe;

/// What the command line adds to a recipe.
#[derive(Debug, Clone, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub(crate) struct Options {
    pub recipe: PathBuf,
    /// `key=value` overrides.
    pub sets: Vec<String>,
    /// Data in place of the recipe's.
    pub data: Vec<String>,
    /// Path or URL of the output.
    pub out: String,
    /// Whether to go on from the newest checkpoint.
    pub resume: bool,
    /// Where every sample is listed.
    pub trace_samples: Option<PathBuf>,
    /// Step at which to stop early; the schedule stays that of the whole run.
    pub max_steps: Option<u64>,
    /// Whether to take an output in a store from a run that still has it.
    pub take_over: bool,
    /// Whether to go on with shards that were replaced.
    pub accept_data: bool,
    /// Whether to check all that can be checked, and to train nothing.
    pub dry_run: bool,
}

impl Options {
    /// The last step of this process.
    pub(super) fn stop_at(&self, recipe: &ResolvedRecipe) -> u64 {
        recipe.train.steps.min(self.max_steps.unwrap_or(u64::MAX))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// All steps are done (or those up to `max_steps`).
    Done,
    /// A signal asked to stop; everything is saved.
    Signal(i32),
}
