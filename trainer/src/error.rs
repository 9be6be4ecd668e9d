//! Why a run cannot start or go on: the errors of its parts, and what only a run as a whole can
//! find wrong.
use nepa_pipeline::{DatasetError, LoaderError};

use crate::checkpoint::CheckpointError;
use crate::console::messages::quoted;
use crate::device::DeviceError;
use crate::engine::EngineError;
use crate::logs::LogError;
use crate::output::OutputError;
use crate::recipe::RecipeError;

/// A run cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The recipe is wrong.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The data set cannot be opened.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The loader cannot go on.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// The output cannot be opened.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A log file cannot be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The model cannot be computed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A thread or signal handler cannot be set up.
    #[error("cannot start the threads or signal handlers of the run")]
    Start(#[source] std::io::Error),
    /// The output is taken.
    #[error(
        "{} already holds a run; nothing was changed\ntip: go on with --resume, or give another \
         --out",
        quoted(place)
    )]
    HoldsRun {
        /// The output.
        place: String,
    },
    /// The saved recipe cannot be read.
    #[error(
        "the recipe.toml in {place} is not readable; it is needed to check that --resume continues \
         the same run"
    )]
    SavedRecipe {
        /// The output.
        place: String,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// Resuming with something else.
    #[error(
        "cannot resume {} with another {key}: the run was started with {saved}, \
         the recipe and command line now say {current}\
         \ntip: use the value of the saved run, or start a new one with another --out",
        quoted(place)
    )]
    OtherRun {
        /// The output.
        place: String,
        /// Dotted key.
        key: String,
        /// Value in the checkpoint.
        saved: String,
        /// Value now.
        current: String,
    },
    /// Resuming with fewer steps.
    #[error(
        "cannot resume {} with fewer steps: the run has train.steps = {saved}{}, \
         the recipe and command line now say {current}\
         \ntip: --set train.steps={saved} goes on with it; --max-steps STEP stops early",
        quoted(place), how_lengthened(*begun, *saved)
    )]
    Shorter {
        /// The output.
        place: String,
        /// Length that the run was begun with.
        begun: u64,
        /// Its length as saved.
        saved: u64,
        /// The length asked for.
        current: u64,
    },
    /// Resuming with another data set.
    #[error(
        "cannot resume {} with another data set: {changes}\
         \ntip: give the data of the saved run, or start a new one with another --out",
        quoted(place)
    )]
    OtherData {
        /// The output.
        place: String,
        /// What has changed, in shards.
        changes: String,
    },
    /// Resuming with shards of the same names and sizes, but other content.
    #[error(
        "cannot resume {place}: since its step {step} these shards have other content: {shards}. \
         Give the old ones back, or go on with the new ones with --accept-data; the numbers are \
         then not those that the run would have had"
    )]
    ReplacedData {
        /// The output.
        place: String,
        /// The checkpoint's step.
        step: u64,
        /// The shards.
        shards: String,
    },
    /// The loss or the gradient is not finite.
    #[error(
        "the {what} of step {step} is not finite (loss {loss}, gradient norm {grad_norm}). The \
         step before is saved as a checkpoint; the batch is listed in {file}: {first_ids}, ... \
         Lower train.lr, lengthen the warm-up, or look at these images"
    )]
    NonFinite {
        /// `loss` or `gradient`.
        what: &'static str,
        /// The step that failed.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        grad_norm: f64,
        /// Where all ids of the batch are.
        file: String,
        /// Some of them.
        first_ids: String,
    },
    /// The loader had no batch, though it runs without end.
    #[error("the loader ended at step {step} of {steps}; this is a bug")]
    LoaderEnded {
        /// The step.
        step: u64,
        /// Steps of the run.
        steps: u64,
    },
}

fn how_lengthened(begun: u64, saved: u64) -> String {
    if begun == saved {
        String::new()
    } else {
        format!(" (it was begun with {begun} and lengthened)")
    }
}
