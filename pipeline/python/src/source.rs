//! A loader of any kind of pixels, behind one interface.
use std::sync::Arc;
use std::time::Duration;

use nepa_pipeline::{
    Batch, ImageBackend, IoCounters, Loader, LoaderError, LoaderState, PipelineStats, StatsReader,
};

use crate::pixels::Pixels;

/// A running loader.
pub(crate) trait Source: Send {
    /// Waits for the next batch, not longer than this; whether it is there, or none will come.
    fn wait(&mut self, timeout: Duration) -> bool;

    /// The next batch; `None` after the last one.
    fn next(&mut self) -> Result<Option<Arc<dyn Pixels>>, LoaderError>;

    /// The position after the last batch.
    fn state(&self) -> LoaderState;

    /// What was done since it was started.
    fn stats(&self) -> (PipelineStats, IoCounters);
}

struct Running<B: ImageBackend> {
    loader: Loader<B>,
    stats: StatsReader,
}

/// A loader as a source.
pub(crate) fn source<B: ImageBackend>(loader: Loader<B>) -> Box<dyn Source>
where
    Batch<B>: Pixels,
{
    let stats = loader.stats_reader();
    Box::new(Running { loader, stats })
}

impl<B: ImageBackend> Source for Running<B>
where
    Batch<B>: Pixels,
{
    fn wait(&mut self, timeout: Duration) -> bool {
        self.loader.wait(timeout)
    }

    fn next(&mut self) -> Result<Option<Arc<dyn Pixels>>, LoaderError> {
        let batch = self.loader.next_batch()?;
        Ok(batch.map(|batch| Arc::new(batch) as Arc<dyn Pixels>))
    }

    fn state(&self) -> LoaderState {
        self.loader.state()
    }

    fn stats(&self) -> (PipelineStats, IoCounters) {
        let (stats, io) = self.stats.read();
        let decoders = self.loader.decoder_stats();
        (PipelineStats { decoders, ..stats }, io)
    }
}
