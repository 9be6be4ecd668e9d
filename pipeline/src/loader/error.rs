//! What ends a loader: a data set that cannot be read, settings that cannot work, a failed device.
use std::sync::Arc;

use crate::{DatasetError, Place};

/// The loader cannot go on: the run is bad.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoaderError {
    /// Reading the data set failed.
    #[error(transparent)]
    Dataset(Arc<DatasetError>),
    /// A setting cannot work.
    #[error("the loader's setting {setting} = {value} cannot work: {why}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// Its value.
        value: String,
        /// The rule that it breaks.
        why: String,
    },
    /// The augmentation cannot be built.
    #[error(transparent)]
    Augment(#[from] crate::augment::AugmentError),
    /// An augmentation of the program's own draws other views than it promises.
    #[error(
        "the augmentation draws views of {drawn:?} pixels, and its view_sides() says {promised:?}: \
         both must agree, for every image"
    )]
    Views {
        /// Sides by `view_sides`.
        promised: Vec<u32>,
        /// Sides of the views that it drew.
        drawn: Vec<u32>,
    },
    /// The further columns of a batch cannot be put together.
    #[error("cannot put the rows of extra_columns together")]
    Columns(#[source] arrow::error::ArrowError),
    /// The consumer keeps too many batches.
    #[error(
        "{kept} batches are kept at once, and max_kept_batches allows no more: drop them, copy what \
         is needed of them, or raise max_kept_batches"
    )]
    TooManyKept {
        /// Batches that the consumer has.
        kept: usize,
    },
    /// The saved position belongs to another run.
    #[error(
        "cannot resume: {field} was {saved} when the state was saved and is {current} now; resume with the same {field}, or start a new run"
    )]
    StateMismatch {
        /// What differs.
        field: &'static str,
        /// Its value in the state.
        saved: String,
        /// Its value now.
        current: String,
    },
    /// More samples are bad than the budget allows.
    #[error(
        "{bad} of {tried} samples are bad, more than the {:.2} % that max_bad_fraction allows. The \
         first:{}\nRaise max_bad_fraction and go on, or mend the shards and start anew (mended ones \
         are another data set).{}",
        max_fraction * 100.0,
        first.iter().map(|(place, reason)| format!("\n  {place}: {reason}")).collect::<String>(),
        list.as_ref().map_or_else(String::new, |list| format!(" All are in {list}."))
    )]
    TooManyBad {
        /// Bad samples.
        bad: u64,
        /// Samples tried.
        tried: u64,
        /// The budget.
        max_fraction: f64,
        /// The first of them, and why each is bad.
        first: Vec<(Place, String)>,
        /// Path or URL of the list of all of them.
        list: Option<String>,
    },
    /// No sample near a bad one can replace it.
    #[error(
        "{place} is bad ({reason}), and so is every other sample of its shuffle window: nothing can replace it; mend the shard"
    )]
    NothingToReplace {
        /// The bad sample.
        place: Place,
        /// Why it is bad.
        reason: String,
    },
    /// The list of bad samples cannot be written.
    #[error("cannot write the list of bad samples {}: {source}", path.display())]
    BadSampleList {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The image backend failed in a way that is no sample's fault.
    #[error("the device that decodes images failed")]
    Backend(#[from] crate::backend::BackendError),
    /// A thread cannot be started.
    #[error("cannot start a decode thread: {0}")]
    Thread(#[source] std::io::Error),
    /// A thread of the loader ended by a panic: our bug, already reported on standard error.
    #[error(
        "a thread of the loader panicked (its message is above); this is a bug, please report it"
    )]
    ThreadDied,
}

impl LoaderError {
    /// Where it happened, where that is one place; of too many bad samples, the first.
    pub fn place(&self) -> Option<Place> {
        match self {
            Self::Dataset(error) => error.place(),
            Self::TooManyBad { first, .. } => first.first().map(|(place, _)| place.clone()),
            Self::NothingToReplace { place, .. } => Some(place.clone()),
            _ => None,
        }
    }
}

impl From<DatasetError> for LoaderError {
    fn from(error: DatasetError) -> Self {
        Self::Dataset(Arc::new(error))
    }
}

impl From<Arc<DatasetError>> for LoaderError {
    fn from(error: Arc<DatasetError>) -> Self {
        Self::Dataset(error)
    }
}
