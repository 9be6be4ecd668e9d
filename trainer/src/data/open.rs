//! Opening a data set, for people: how many of its shards have been looked at is told, and what is
//! doubtful about them.
use std::sync::Arc;

use nepa_pipeline::{Dataset, DatasetConfig, DatasetError, IoConfig, IoRuntime};

use crate::console::progress::{Progress, Unit};

/// As [`Dataset::open`].
pub(crate) fn open_data(
    config: &DatasetConfig,
    io: &IoConfig,
    runtime: &IoRuntime,
) -> Result<Arc<Dataset>, DatasetError> {
    let progress = Arc::new(Progress::new("opening shards", None, Unit::Count("shards")));
    // What is shown goes at the end of this function, even where a task holds the closure longer.
    let watched = Arc::downgrade(&progress);
    let watch = move |done, total| {
        if let Some(progress) = watched.upgrade() {
            progress.set_total(total);
            progress.set(done);
        }
    };
    Dataset::open_watched(config, io, runtime, Some(Arc::new(watch)))
}

/// Says on standard error what is doubtful about a data set.
pub(crate) fn show_warnings(dataset: &Dataset) {
    for warning in dataset.warnings() {
        crate::console::print::message("warning: ", &warning.to_string());
    }
}
