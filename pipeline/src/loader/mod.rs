//! The loader: order, fetch, unpack, decode, assemble.
//!
//! Fetching runs on the I/O runtime, unpacking and decoding on a fixed pool of threads, the walk
//! along the order on a thread of its own. A batch is handed out when all its samples are rendered
//! or replaced, strictly in order.
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::Stream;

use crate::Dataset;
use crate::backend::{CpuBackend, ImageBackend};
use crate::batch::{Batch, BatchPool};
use crate::spans::SPANS_ON_A_THREAD;
use crate::stats::{DecoderStats, PipelineCounters, PipelineStats, Sizes};
use crate::sync::thread::JoinHandle;
use crate::sync::{Receiver, RecvTimeoutError, Sender};

mod assemble;
mod bad_samples;
mod batch_decode;
mod builder;
mod config;
mod decode;
mod dispatch;
mod error;
mod job;
mod lane;
mod mixing;
mod mixture;
mod order;
mod part;
mod rows;
#[cfg(all(test, not(nepa_interleavings)))]
mod simulation;
mod start;
mod stats_reader;
mod walk;
mod window;

pub use bad_samples::BadSampleList;
pub use builder::LoaderBuilder;
pub use config::{LoaderConfig, LoaderState};
pub use error::LoaderError;
pub use mixing::{EpochReport, Mixing, MixingForecast};
pub use stats_reader::StatsReader;

use bad_samples::BadSamples;
use job::{ComingBatch, PendingBatch};
use mixing::EpochMeter;

/// Runs the stages and hands out batches in order. Dropping it stops and joins all its threads.
///
/// Memory is made for `prefetch_batches + 2` batches, and for more where the consumer keeps more
/// than two at once, up to [`LoaderConfig::max_kept_batches`].
#[derive(Debug)]
pub struct Loader<B: ImageBackend = CpuBackend> {
    dataset: Arc<Dataset>,
    config: LoaderConfig,
    /// Global batches in one epoch, and the samples in them.
    per_epoch: u64,
    used_samples: u64,
    backend: Arc<B>,
    pool: BatchPool<B>,
    pending: Receiver<PendingBatch<B::Slot>>,
    /// The batch that comes next, as far as it is there.
    coming: Option<ComingBatch<B::Slot>>,
    waiting: Option<Waiting>,
    failure: Receiver<LoaderError>,
    bad_samples: BadSamples,
    /// Epoch and batch that come next.
    next: (u64, u64),
    meter: EpochMeter,
    last_epoch: Option<EpochReport>,
    warned_of_mixing: bool,
    counters: Arc<PipelineCounters>,
    sizes: Sizes,
    started: Instant,
    returned: Option<Instant>,
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// The next batch is waited for.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// How often that was reported.
    reports: u32,
    _span: tracing::Span,
}

impl<B: ImageBackend> Loader<B> {
    /// What is read.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// Who decodes.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Global batches in one epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.per_epoch
    }

    /// The next batch of this rank (its slice of the global batch), or `None` after the last epoch.
    pub fn next_batch(&mut self) -> Result<Option<Batch<B>>, LoaderError> {
        let kept = self.pool.kept();
        if kept >= self.config.max_kept_batches {
            return Err(LoaderError::TooManyKept { kept });
        }
        let after = self.stall_report_after();
        while !self.wait(after) {}
        let batch = self.assemble();
        self.returned = Some(Instant::now());
        batch
    }

    /// Waits for the next batch, but not longer than `timeout`. If it is there, or none will come,
    /// this is true and [`Self::next_batch`] does not wait. For programs that look at something
    /// else meanwhile, as for a signal to stop.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        if let Some(returned) = self.returned.take() {
            self.counters.consume.busy(returned);
            self.counters.consume.fill(self.pending.len());
        }
        let waiting = Instant::now();
        let is_collected = self.coming.as_ref().is_some_and(ComingBatch::is_complete);
        let state = self.waiting.get_or_insert_with(|| Waiting {
            since: waiting,
            reports: 0,
            _span: if is_collected {
                tracing::Span::none()
            } else {
                tracing::trace_span!(target: SPANS_ON_A_THREAD, "wait for batch")
            },
        });
        let (since, reports) = (state.since, state.reports);
        let is_there = self.collect(timeout);
        self.counters.consume.blocked_in(waiting);
        if is_there {
            self.waiting = None;
        } else if since.elapsed() >= self.stall_report_after() * (reports + 1)
            && let Some(state) = &mut self.waiting
        {
            state.reports += 1;
            // A store that is silent has been told of already.
            if !self.dataset.is_waited_for() {
                let waits_for = match self.dataset.oldest_request() {
                    Some(request) => format!("longest for {request}"),
                    None => "for decoding, not for the store".to_owned(),
                };
                tracing::warn!(
                    "no batch for {:.0} s; the loader waits {waits_for} (RUST_LOG=debug says what each stage does)",
                    since.elapsed().as_secs_f64()
                );
            }
            tracing::debug!("{:#?}\n{}", self.stats(), self.dataset.io_report());
        }
        is_there
    }

    fn stall_report_after(&self) -> Duration {
        crate::store::seconds(self.dataset.io().stall_report_s.max(0.1))
    }

    /// Takes what there is of the next batch within `timeout`; whether that is all that will come.
    fn collect(&mut self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        let left = || end.saturating_duration_since(Instant::now());
        let coming = match &mut self.coming {
            Some(coming) => coming,
            none => match self.pending.recv_timeout(left()) {
                Ok(pending) => none.insert(ComingBatch {
                    done: Vec::with_capacity(pending.num_samples),
                    pending,
                }),
                Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) => return false,
            },
        };
        while !coming.is_complete() {
            match coming.pending.done.recv_timeout(left()) {
                Ok(done) => coming.done.push(done),
                Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
        true
    }

    /// What became of the samples of the last epoch that ended.
    pub fn last_epoch(&self) -> Option<&EpochReport> {
        self.last_epoch.as_ref()
    }

    /// The position after the last batch handed out.
    pub fn state(&self) -> LoaderState {
        LoaderState {
            epoch: self.next.0,
            batch_in_epoch: self.next.1,
            samples_tried: self.bad_samples.tried,
            samples_bad: self.bad_samples.bad,
            ..LoaderState::beginning(&self.dataset, &self.config)
        }
    }

    /// What each stage did since the loader started, and who decoded.
    pub fn stats(&self) -> PipelineStats {
        PipelineStats {
            decoders: self.decoder_stats(),
            ..self.stats_reader().read().0
        }
    }

    /// Reads what the stages did, for other threads than the one that takes the batches.
    pub fn stats_reader(&self) -> StatsReader {
        StatsReader {
            dataset: Arc::clone(&self.dataset),
            counters: Arc::clone(&self.counters),
            sizes: self.sizes,
            started: self.started,
        }
    }

    /// Who decoded since the loader started; `None` where there is only the processor to do it.
    pub fn decoder_stats(&self) -> Option<DecoderStats> {
        self.backend.decoder_stats()
    }
}

impl<B: ImageBackend> Iterator for Loader<B> {
    type Item = Result<Batch<B>, LoaderError>;

    /// [`Loader::next_batch`].
    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}

impl<B: ImageBackend> Loader<B> {
    /// The batches as a stream, for asynchronous programs on tokio; each is waited for on a thread
    /// for blocking work. Ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Batch<B>, LoaderError>> {
        futures::stream::unfold(Some(self), async |loader| {
            let mut loader = loader?;
            let waited = tokio::task::spawn_blocking(move || {
                let batch = loader.next_batch();
                (batch, loader)
            });
            match waited.await {
                Ok((Ok(batch), loader)) => batch.map(|batch| (Ok(batch), Some(loader))),
                Ok((Err(error), _)) => Some((Err(error), None)),
                Err(_) => Some((Err(LoaderError::ThreadDied), None)),
            }
        })
    }
}

/// Whether equal labels mean equal classes: not in two data sets.
fn has_classes(dataset: &Dataset) -> bool {
    dataset.sources().len() == 1 && dataset.shards()[0].mapping.label.is_ok()
}

impl<B: ImageBackend> Drop for Loader<B> {
    fn drop(&mut self) {
        // Every thread waits on this channel beside its work, so none stays blocked.
        self.stop = None;
        for thread in self.threads.drain(..) {
            // A panic has been reported on standard error and by `ThreadDied`.
            let _ = thread.join();
        }
    }
}
