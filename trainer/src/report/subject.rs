//! What is reported on: runs as they were fetched and as they are shown, and what is asked for.
use candle_core::Device;

use super::evaluations::Evaluations;
use super::history::History;
use crate::eval::{ImageSet, Layer, Pool, ReadOptions, Scores, Source};
use crate::output::RunCopy;
use crate::recipe::ResolvedRecipe;
use crate::weights::WeightsFolder;

/// What a report shows besides its curves.
#[derive(Debug)]
pub(crate) struct ReportOptions<'a> {
    /// Labelled sets, for training classifiers and for testing them; left out: no accuracies.
    pub sets: Option<(&'a ImageSet, &'a ImageSet)>,
    /// Whether a token sees only what came before.
    pub causal: bool,
    /// How tokens become one feature.
    pub pool: Pool,
    /// The same, for people.
    pub tokens: String,
    /// What is computed.
    pub scores: Scores,
    /// Trained weights or their moving average.
    pub weights: Source,
    /// Images of which maps are drawn, and how many; left out: none.
    pub maps: Option<(&'a ImageSet, usize)>,
    /// Where models are.
    pub device: &'a Device,
}

/// A run as it was fetched.
#[derive(Debug)]
pub(crate) struct Subject {
    /// Path or URL as it was given.
    pub place: String,
    pub copy: RunCopy,
    /// Its newest checkpoint, if it was wanted and there is one.
    pub newest: Option<Newest>,
}

/// The newest checkpoint of a run.
#[derive(Debug)]
pub(crate) struct Newest {
    pub weights: WeightsFolder,
    /// How images are prepared for it.
    pub read: ReadOptions,
    /// Where features are taken.
    pub layers: Vec<Layer>,
}

/// A run as it is shown.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) place: String,
    pub(super) recipe: ResolvedRecipe,
    pub(super) recipe_text: String,
    pub(super) history: History,
    /// Of a run that fine-tunes, and evaluates.
    pub(super) evaluations: Evaluations,
    /// Steps of all checkpoints.
    pub(super) checkpoints: Vec<u64>,
}

impl Run {
    /// Whether it fine-tunes a classifier: its loss is a cross-entropy, and it predicts no patches.
    pub(super) fn is_classifier(&self) -> bool {
        self.recipe.finetune.is_some()
    }
}
