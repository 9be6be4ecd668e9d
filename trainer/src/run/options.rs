//! What the command line adds to a recipe, and how a run can end.
use std::net::SocketAddr;
use std::path::PathBuf;

use nepa_pipeline::Dataset;

use crate::console::messages::quoted;
use crate::logs::TraceLines;
use crate::ranks::PlaceArgs;
use crate::recipe::{FromWeights, ResolvedRecipe};
use crate::trace::TraceSteps;
use crate::weights::Which;

/// What a run is begun for.
#[derive(Debug, Clone, Default)]
pub(crate) enum Kind {
    #[default]
    Pretrain,
    Finetune(StartingPoint),
}

/// Where a fine-tuning run begins, and what it is evaluated on.
#[derive(Debug, Clone)]
pub(crate) struct StartingPoint {
    /// Path or URL of weights.
    pub url: String,
    /// Which of them.
    pub weights: FromWeights,
    /// Data in place of the recipe's to evaluate on.
    pub eval_data: Vec<String>,
}

impl StartingPoint {
    /// The flags that say so.
    pub(super) fn flags(&self) -> Vec<String> {
        let from = quoted(&nepa_pipeline::redact(&self.url));
        let mut flags = vec![format!(" --from {from}")];
        flags.extend(match self.weights {
            FromWeights::Raw => None,
            FromWeights::Ema => Some(" --weights ema".to_owned()),
            FromWeights::Random => Some(" --random-weights".to_owned()),
        });
        flags
    }
}

impl Kind {
    /// The command as it is written.
    pub(super) fn command(&self) -> &'static str {
        match self {
            Self::Pretrain => "nepa pretrain",
            Self::Finetune(_) => "nepa finetune",
        }
    }
}

/// Weights that pretraining begins with, as the command line names them.
#[derive(Debug, Clone)]
pub(crate) struct Init {
    /// Path or URL.
    pub url: String,
    /// Which weights of it.
    pub which: Which,
}

/// What the command line adds to a recipe.
#[derive(Debug, Clone, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub(crate) struct Options {
    pub kind: Kind,
    /// What pretraining begins with, in place of new weights.
    pub init: Option<Init>,
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
    /// What is traced, and where to.
    pub trace: Option<TraceSteps>,
    /// Step at which to stop early; the schedule stays that of the whole run.
    pub max_steps: Option<u64>,
    /// Whether to take an output in a store from a run that still has it.
    pub take_over: bool,
    /// Whether to go on with shards that were replaced.
    pub accept_data: bool,
    /// Where the run's numbers can be scraped.
    pub metrics_addr: Option<SocketAddr>,
    /// Whether to check all that can be checked, and to train nothing.
    pub dry_run: bool,
    /// Over how many steps to measure instead of training.
    pub synthetic: Option<u64>,
    /// Which of several ranks this process is, where the command line says so.
    pub place: PlaceArgs,
}

impl Options {
    /// The last step of this process.
    pub(super) fn stop_at(&self, recipe: &ResolvedRecipe) -> u64 {
        recipe.train.steps.min(self.max_steps.unwrap_or(u64::MAX))
    }

    /// What makes the lines of the sample trace, where one is asked for.
    pub(super) fn trace_lines(&self, dataset: &Dataset) -> Option<TraceLines> {
        let asked = self.trace_samples.as_ref();
        asked.map(|_| TraceLines::new(dataset.shards()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// All steps are done (or those up to `max_steps`).
    Done,
    /// A signal asked to stop; everything is saved.
    Signal(i32),
}
