//! Why a run cannot start or go on: the errors of its parts, and what only a run as a whole can
//! find wrong.
use nepa_model::ModelError;
use nepa_pipeline::{DatasetError, LoaderError, MixError, SampleId};

use crate::checkpoint::CheckpointError;
use crate::console::messages::quoted;
use crate::device::DeviceError;
use crate::engine::EngineError;
use crate::exporter::ExporterError;
use crate::logs::LogError;
use crate::output::OutputError;
use crate::ranks::RanksError;
use crate::recipe::RecipeError;
use crate::trace::TraceError;
use crate::weights::WeightsError;

/// A run cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    #[error(transparent)]
    Loader(#[from] LoaderError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Trace(#[from] TraceError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Exporter(#[from] ExporterError),
    #[error(transparent)]
    Ranks(#[from] RanksError),
    /// A thread or signal handler cannot be set up.
    #[error("cannot start the threads or signal handlers of the run")]
    Start(#[source] std::io::Error),
    #[error(
        "{} already holds a run; nothing was changed\ntip: go on with --resume, or give another \
         --out",
        quoted(place)
    )]
    HoldsRun { place: String },
    #[error(
        "the recipe.toml in {place} is not readable; it is needed to check that --resume continues \
         the same run"
    )]
    SavedRecipe {
        place: String,
        source: Box<toml::de::Error>,
    },
    #[error(
        "cannot resume {} with another {key}: the run was started with {saved}, \
         the recipe and command line now say {current}\
         \ntip: use the value of the saved run, or start a new one with another --out",
        quoted(place)
    )]
    OtherRun {
        place: String,
        key: String,
        saved: String,
        current: String,
    },
    #[error(
        "cannot resume {}: it holds a run of `{command}`\ntip: go on with that command, or give \
         another --out",
        quoted(place)
    )]
    OtherKind {
        place: String,
        command: &'static str,
    },
    #[error(
        "cannot resume {} with fewer steps: the run has train.steps = {saved}{}, \
         the recipe and command line now say {current}\
         \ntip: --set train.steps={saved} goes on with it; --max-steps STEP stops early",
        quoted(place), how_lengthened(*begun, *saved)
    )]
    Shorter {
        place: String,
        /// Length that the run was begun with.
        begun: u64,
        saved: u64,
        current: u64,
    },
    #[error(
        "cannot resume {} with another data set: {changes}\
         \ntip: give the data of the saved run, or start a new one with another --out",
        quoted(place)
    )]
    OtherData { place: String, changes: String },
    /// Pretraining would begin with a classifier.
    #[error(
        "{} holds a classifier; pretraining begins with weights of pretraining\
         \ntip: give the run or folder that it was fine-tuned from",
        quoted(place)
    )]
    InitClassifier { place: String },
    /// Pretraining would begin with weights of another architecture.
    #[error(
        "the weights in {} are of another architecture than the recipe's: their {key} is {theirs}, \
         model.{key} of the recipe is {ours}\
         \ntip: --set model.{key}={theirs}, or begin with other weights",
        quoted(place)
    )]
    InitArchitecture {
        place: String,
        /// The first key of `config.json` that differs.
        key: String,
        theirs: String,
        ours: String,
    },
    /// Resuming with shards of the same names and sizes, but other content.
    #[error(
        "cannot resume {place}: since its step {step} these shards have other content: {shards}. \
         Give the old ones back, or go on with the new ones with --accept-data; the numbers are \
         then not those that the run would have had"
    )]
    ReplacedData {
        place: String,
        step: u64,
        shards: String,
    },
    #[error(
        "the {what} of step {step} is not finite (loss {loss}, gradient norm {grad_norm}). The \
         step before is saved as a checkpoint; the batch is listed in {file}: {first_ids}, ... \
         Lower train.lr, lengthen the warm-up, or look at these images"
    )]
    NonFinite {
        /// `loss` or `gradient`.
        what: &'static str,
        step: u64,
        loss: f64,
        grad_norm: f64,
        /// Where all ids of the batch are.
        file: String,
        /// Some of them.
        first_ids: String,
    },
    #[error(
        "there are no labels to fine-tune with: {why}\ntip: finetune.label_column names a column; \
         `nepa inspect` shows those of the shards"
    )]
    NoLabels { why: String },
    /// Labels and classes do not go together.
    #[error("labels in {labels}: {problem}\ntip: {tip}")]
    Classes {
        labels: String,
        problem: String,
        tip: &'static str,
    },
    /// An image of a step has no class.
    #[error(
        "the image ({id}) of step {step} cannot be trained on: {problem}. The step before is \
         saved\ntip: leave such rows out of the shards, or set finetune.classes, \
         finetune.num_classes or finetune.label_column for what they hold"
    )]
    Label {
        step: u64,
        id: SampleId,
        problem: String,
    },
    #[error(transparent)]
    Mix(#[from] MixError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(
        "the weights in {} cannot become the classifier of the recipe",
        quoted(place)
    )]
    From { place: String, source: ModelError },
    #[error("cannot evaluate")]
    Evaluation {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The loader had no batch, though it runs without end.
    #[error("the loader ended at step {step} of {steps}; this is a bug")]
    LoaderEnded { step: u64, steps: u64 },
}

fn how_lengthened(begun: u64, saved: u64) -> String {
    if begun == saved {
        String::new()
    } else {
        format!(" (it was begun with {begun} and lengthened)")
    }
}
