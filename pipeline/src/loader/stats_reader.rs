//! What a loader does, read while it runs, from any thread.
use std::sync::Arc;
use std::time::Instant;

use crate::stats::{PipelineCounters, PipelineStats, Sizes};
use crate::{Dataset, IoCounters};

/// Reads what the stages of a loader did: [`super::Loader::stats_reader`] makes it, clones read the
/// same, and it goes on reading after the loader is gone.
#[derive(Debug, Clone)]
pub struct StatsReader {
    pub(super) dataset: Arc<Dataset>,
    pub(super) counters: Arc<PipelineCounters>,
    pub(super) sizes: Sizes,
    pub(super) started: Instant,
}

impl StatsReader {
    /// What the stages did since the loader started, and what the I/O of its data set did; who
    /// decoded is left out. Takes a few microseconds and stops nobody.
    pub fn read(&self) -> (PipelineStats, IoCounters) {
        let io = self.dataset.io_counters();
        let wall = self.started.elapsed();
        (self.counters.read(wall, self.sizes, &io), io)
    }
}
