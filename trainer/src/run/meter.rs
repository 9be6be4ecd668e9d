//! Reads the loader's counters for a run: from line to line of its metrics, and while it waits.
use std::time::Duration;

use nepa_pipeline::{IoCounters, PipelineStats, Stage, StatsReader};

use super::waiting::{Known, Verdict, Waits};
use crate::logs::LoaderMetrics;

/// The counters at one moment.
pub(super) type Reading = (PipelineStats, IoCounters);

/// What the loader of a run did.
#[derive(Debug)]
pub(super) struct Meter {
    reader: StatsReader,
    /// At the last line.
    line: Reading,
    /// When the first batch came.
    first: Option<IoCounters>,
    waits: Waits,
}

impl Meter {
    pub(super) fn new(reader: StatsReader) -> Self {
        Self {
            line: reader.read(),
            reader,
            first: None,
            waits: Waits::default(),
        }
    }

    /// The counters now.
    pub(super) fn read(&self) -> Reading {
        self.reader.read()
    }

    /// A wait that began at this reading ends.
    pub(super) fn end_wait(&mut self, (stats, io): &Reading) {
        if self.first.is_some() {
            let (stats_now, io_now) = self.read();
            self.waits.add(&stats_now.since(stats), &io_now.since(io));
        }
    }

    /// A batch was taken, after so long.
    pub(super) fn took_batch(&mut self, waited: Duration) {
        if self.first.is_some() {
            self.waits.waited += waited;
        } else {
            self.first = Some(self.read().1);
            self.waits.first = Some(waited);
        }
    }

    /// What was done since the line before. `batches_ready` knows how many batches wait, where so
    /// many images were decoded.
    pub(super) fn line(&mut self, batches_ready: impl FnOnce(u64) -> f64) -> LoaderMetrics {
        let now = self.read();
        let ready = batches_ready(now.0.stage(Stage::Decode).items);
        let (stats, io) = (now.0.since(&self.line.0), now.1.since(&self.line.1));
        self.line = now;
        LoaderMetrics::new(&stats, &io, ready)
    }

    /// What the run waited for in `time`, evaluations left out.
    pub(super) fn verdict(&self, time: Duration, is_remote: bool, gpu: bool) -> Option<Verdict> {
        let (stats, io) = self.read();
        let io = io.since(&self.first?);
        self.waits.verdict(&Known {
            time: time.saturating_sub(self.waits.first?),
            threads: stats.stage(Stage::Decode).workers,
            max_requests: stats.stage(Stage::Fetch).workers,
            is_remote,
            has_gpu_decoder: gpu,
            first_byte: io.first_byte.quantile(0.5),
            throttled: io.throttled,
        })
    }
}
