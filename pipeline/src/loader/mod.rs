//! The loader: order, fetch, unpack, decode, assemble.
//!
//! Fetching runs on the I/O runtime, unpacking and decoding on a fixed pool of threads, the walk along the order on a thread
//! of its own. A batch is handed out when all its samples are rendered or replaced, strictly in order.
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::{BatchRenderer, CpuBackend, ImageBackend, Router};
use crate::batch::{Batch, BatchPool};
use crate::stats::{DecoderStats, PipelineCounters, PipelineStats, Sizes};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use crate::{Dataset, SampleId};
use futures::Stream;

mod bad_samples;
mod batch_decode;
mod builder;
mod config;
mod decode;
mod dispatch;
mod error;
mod mixing;
mod mixture;
mod order;
#[cfg(all(test, not(nepa_interleavings)))]
mod simulation;
mod window;

pub use builder::LoaderBuilder;
pub use config::{LoaderConfig, LoaderState};
pub use error::LoaderError;
pub use mixing::{EpochReport, Mixing, MixingForecast};

use bad_samples::{BadSample, BadSamples, Replacement};
use config::{STATE_VERSION, check, check_state};
use decode::{Done, Outcome};
use dispatch::{Dispatcher, Ended, PendingBatch};
use mixing::EpochMeter;
use mixture::Mixture;

/// Samples that wait for a decode thread, per thread: enough that none idles, few enough to stop at once.
const JOBS_PER_THREAD: usize = 4;

/// Runs the stages and hands out batches in order. Dropping it stops and joins all its threads.
///
/// `prefetch_batches + 2` batches exist at most: a consumer that keeps more than two at once waits for itself.
#[derive(Debug)]
pub struct Loader<B: ImageBackend = CpuBackend> {
    dataset: Arc<Dataset>,
    config: LoaderConfig,
    /// Sides of the views.
    sides: Arc<[u32]>,
    per_epoch: u64,
    backend: Arc<B>,
    pool: BatchPool<B::Slot>,
    pending: Receiver<PendingBatch<B::Slot>>,
    /// The batch that comes next, as far as it is there.
    coming: Option<ComingBatch<B::Slot>>,
    /// Since when the next batch is waited for, and how often that was reported.
    waiting_since: Option<(Instant, u32)>,
    failure: Receiver<LoaderError>,
    bad_samples: BadSamples,
    /// Epoch and batch that come next.
    next: (u64, u64),
    mixture: Mixture,
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

/// A batch on its way, and its samples that are rendered.
#[derive(Debug)]
struct ComingBatch<S> {
    pending: PendingBatch<S>,
    done: Vec<Done<S>>,
}

impl Loader {
    /// Starts the stages, from the beginning or from `state`; decodes on the CPU.
    pub fn new(
        dataset: Arc<Dataset>,
        config: LoaderConfig,
        state: Option<&LoaderState>,
    ) -> Result<Self, LoaderError> {
        let backend = CpuBackend::new(config.normalize, config.exif_orientation, None);
        Self::with_backend(dataset, config, state, Arc::new(backend))
    }
}

impl<B: ImageBackend> Loader<B> {
    /// Starts the stages, from the beginning or from `state`, with any image backend. Order, plans and labels do not depend
    /// on it; `normalize` and `exif_orientation` of the configuration are the backend's own matter.
    pub fn with_backend(
        dataset: Arc<Dataset>,
        config: LoaderConfig,
        state: Option<&LoaderState>,
        backend: Arc<B>,
    ) -> Result<Self, LoaderError> {
        let mixture = Mixture::of(&dataset);
        check(&config, &mixture, &dataset)?;
        let augment = config.augment.build()?;
        let sides: Arc<[u32]> = std::iter::once(augment.output_size())
            .chain(augment.more_views().iter().copied())
            .collect();
        if sides.len() > 1 && !backend.takes_more_views() {
            return Err(LoaderError::Setting {
                setting: "augment.kind",
                value: "multi_crop".to_owned(),
                why: "this image backend renders one view of a sample".to_owned(),
            });
        }
        let per_epoch = mixture.batches_per_epoch(&config);
        if let absent @ 1.. = dataset.num_absent() {
            let rows = dataset.num_samples() + absent;
            tracing::info!("{absent} of {rows} rows hold no image and are left out");
        }
        if let Some(state) = state {
            check_state(state, &dataset, &config)?;
        }
        let next = state.map_or((0, 0), |state| (state.epoch, state.batch_in_epoch));
        let (tried, bad) = state.map_or((0, 0), |state| (state.samples_tried, state.samples_bad));
        let bad_samples = BadSamples::open(
            config.bad_samples_path.as_deref(),
            config.max_bad_fraction,
            tried,
            bad,
        )?;

        let counters = Arc::new(PipelineCounters::default());
        let sizes = Sizes {
            max_requests: dataset.io().max_requests,
            decode_threads: config.decode_threads,
            job_queue: config.decode_threads * JOBS_PER_THREAD,
            batch_queue: config.prefetch_batches,
        };
        let local_batch = config.global_batch / config.world_size;
        let sets = (0..config.prefetch_batches + 2).map(|_| backend.slots(local_batch, &sides));
        let pool = BatchPool::new(sets.collect::<Result<_, _>>()?);
        let batch_renderers = backend.batch_renderers()?;
        let (stop_sender, stop) = bounded::<()>(0);
        let (pending_sender, pending) = bounded(config.prefetch_batches);
        let (failure_sender, failure) = bounded(1);
        let (job_sender, jobs) = bounded(sizes.job_queue);
        // Two windows of row groups at most are under way, so these two hold no more than that.
        let (fetched_sender, fetched) = unbounded();
        let (unpacked_sender, unpacked) = unbounded();

        let dispatcher = Dispatcher {
            dataset: Arc::clone(&dataset),
            config: config.clone(),
            mixture: mixture.clone(),
            pool: pool.clone(),
            counters: Arc::clone(&counters),
            stop: stop.clone(),
            fetched: fetched_sender,
            unpacked,
            jobs: job_sender,
            pending: pending_sender,
        };
        let shared = Arc::new(decode::Shared {
            dataset: Arc::clone(&dataset),
            augment,
            backend: Arc::clone(&backend),
            router: Router::default(),
            seed: config.seed,
            counters: Arc::clone(&counters),
        });
        let has_classes = has_classes(&dataset);
        let mut loader = Self {
            dataset,
            sides,
            per_epoch,
            backend,
            pool,
            pending,
            coming: None,
            waiting_since: None,
            failure,
            bad_samples,
            next,
            mixture,
            meter: EpochMeter::new(has_classes, next.1),
            last_epoch: None,
            warned_of_mixing: false,
            counters,
            sizes,
            started: Instant::now(),
            returned: None,
            stop: Some(stop_sender),
            threads: Vec::new(),
            config,
        };
        // No more jobs than the router lets out and than exist at once are in these two.
        let (batch_sender, batch_queue) = unbounded();
        let (returned_sender, returned) = unbounded();
        let queues = decode::Queues {
            stop: stop.clone(),
            fetched,
            unpacked: unpacked_sender,
            jobs,
            returned,
            batch: (!batch_renderers.is_empty()).then_some(batch_sender),
            batch_size: batch_renderers.first().map_or(0, BatchRenderer::max_images),
        };
        let turn = bounded(1);
        let _ = turn.0.send(());
        let batch_queues = batch_decode::Queues {
            stop,
            jobs: batch_queue,
            returned: returned_sender,
            turn,
        };
        for (i, mut renderer) in batch_renderers.into_iter().enumerate() {
            let (shared, queues) = (Arc::clone(&shared), batch_queues.clone());
            loader.spawn(format!("nepa-batch-decode-{i}"), move || {
                batch_decode::run(&shared, &mut renderer, &queues);
            })?;
        }
        // The decode threads end when nobody can give anything back any more.
        drop(batch_queues);
        for i in 0..sizes.decode_threads {
            let (shared, queues) = (Arc::clone(&shared), queues.clone());
            loader.spawn(format!("nepa-decode-{i}"), move || {
                decode::run(&shared, queues);
            })?;
        }
        drop(queues);
        loader.spawn("nepa-dispatch".to_owned(), move || {
            // The failure goes first: dropping the dispatcher is what wakes whoever waits for a batch.
            if let Err(Ended::Failed(error)) = dispatcher.run(next.0, next.1) {
                let _ = failure_sender.send(error);
            }
        })?;
        Ok(loader)
    }

    fn spawn(
        &mut self,
        name: String,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), LoaderError> {
        let thread = thread::Builder::new()
            .name(name)
            .spawn(body)
            .map_err(LoaderError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

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
        let after = self.stall_report_after();
        while !self.wait(after) {}
        let batch = self.assemble();
        self.returned = Some(Instant::now());
        batch
    }

    /// Waits for the next batch, but not longer than `timeout`. If it is there, or none will come, this is true and
    /// [`Self::next_batch`] does not wait. For programs that look at something else meanwhile, as for a signal to stop.
    pub fn wait(&mut self, timeout: Duration) -> bool {
        if let Some(returned) = self.returned.take() {
            self.counters.consume.busy(returned);
            self.counters.consume.fill(self.pending.len());
        }
        let waiting = Instant::now();
        let (since, reports) = *self.waiting_since.get_or_insert((waiting, 0));
        let is_there = self.collect(timeout);
        self.counters.consume.blocked_in(waiting);
        if is_there {
            self.waiting_since = None;
        } else if since.elapsed() >= self.stall_report_after() * (reports + 1) {
            self.waiting_since = Some((since, reports + 1));
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
        while coming.done.len() < coming.pending.num_samples {
            match coming.pending.done.recv_timeout(left()) {
                Ok(done) => coming.done.push(done),
                Err(RecvTimeoutError::Disconnected) => return true,
                Err(RecvTimeoutError::Timeout) => return false,
            }
        }
        true
    }

    /// Makes a batch of what was collected.
    fn assemble(&mut self) -> Result<Option<Batch<B>>, LoaderError> {
        let Some(ComingBatch { pending, mut done }) = self.coming.take() else {
            return match self.failure.try_recv() {
                Ok(error) => Err(error),
                Err(_)
                    if self
                        .config
                        .epochs
                        .is_some_and(|epochs| self.next.0 >= epochs) =>
                {
                    Ok(None)
                }
                Err(_) => Err(LoaderError::ThreadDied),
            };
        };
        if done.len() < pending.num_samples {
            // Either the walk failed within this batch, and says why, or a thread died, and the walk may not have noticed.
            self.stop = None;
            return Err(self.failure.recv().unwrap_or(LoaderError::ThreadDied));
        }
        done.sort_by_key(|done| done.position);
        let mut samples = Vec::with_capacity(done.len());
        let mut slots = Vec::with_capacity(done.len() + pending.spare.len());
        let (mut bad, mut absent) = (Vec::new(), 0);
        let (mut exhausted, mut failed) = (None, None);
        for Done { slot, outcome, .. } in done {
            slots.push(slot);
            match outcome {
                Outcome::Good(record) => samples.push(record),
                Outcome::Replaced(record, flaw) => {
                    let id = record.replaces.unwrap_or(record.id);
                    if flaw.absent {
                        absent += 1;
                    } else {
                        bad.push(self.bad_sample(pending.epoch, id, record.id, flaw.reason));
                    }
                    samples.push(record);
                }
                Outcome::Exhausted(id, reason) => {
                    exhausted.get_or_insert((id, reason));
                }
                Outcome::Failed(error) => {
                    failed.get_or_insert(error);
                }
            }
        }
        slots.extend(pending.spare);
        if let Some(error) = failed {
            self.pool.give_back(slots);
            return Err(error.into());
        }
        if let Some((id, reason)) = exhausted {
            self.pool.give_back(slots);
            return Err(LoaderError::NothingToReplace {
                place: self.place(id),
                reason,
            });
        }
        self.backend.hand_over(&mut slots[..samples.len()])?;
        let batch = Batch::new(
            pending.epoch,
            Arc::clone(&self.sides),
            samples,
            slots,
            self.pool.clone(),
            Arc::clone(&self.backend),
        );
        let replaced = bad.len() as u64;
        // First, so that a batch which is not handed out does not count as handed out.
        self.bad_samples.record(batch.len() as u64, bad)?;
        self.counters.consume.item(0);
        self.meter.batch(batch.samples(), replaced, absent);
        if pending.batch_in_epoch + 1 == self.per_epoch {
            self.next = (pending.epoch + 1, 0);
            self.end_epoch(pending.epoch);
        } else {
            self.next = (pending.epoch, pending.batch_in_epoch + 1);
        }
        Ok(Some(batch))
    }

    /// Says what became of the epoch's samples.
    fn end_epoch(&mut self, epoch: u64) {
        let report = self.meter.report(
            epoch,
            self.dataset.num_samples(),
            self.mixture.used_samples(&self.config),
            &self.config,
        );
        // The first windows of a run are small: where they are much of the epoch, it says little about the later ones.
        let parts = self.dataset.shards().iter().flat_map(|shard| &shard.parts);
        let bytes = parts.map(|part| part.memory_bytes).sum::<u64>();
        let settled = epoch > 0 || bytes / 20 > self.config.shuffle_window_bytes;
        tracing::debug!("{report}");
        if settled && report.is_badly_mixed() && !self.warned_of_mixing {
            // Once: every epoch is as long, in the same windows.
            self.warned_of_mixing = true;
            tracing::warn!(
                "the rows are sorted more than the shuffle window can mix, so that batches are less even than random ones: enlarge \
                 shuffle_window_bytes ({}), or shuffle the rows before writing the shards (`nepa pack` does)",
                self.config.shuffle_window_bytes
            );
        }
        self.last_epoch = Some(report);
        self.meter = EpochMeter::new(has_classes(&self.dataset), 0);
    }

    /// What became of the samples of the last epoch that ended.
    pub fn last_epoch(&self) -> Option<&EpochReport> {
        self.last_epoch.as_ref()
    }

    fn place(&self, id: SampleId) -> crate::Place {
        crate::Place {
            object: self.dataset.shards()[id.shard as usize].url.clone(),
            row_group: Some(id.row_group as usize),
            row: Some(id.row as usize),
            bytes: None,
        }
    }

    fn bad_sample(&self, epoch: u64, id: SampleId, by: SampleId, reason: String) -> BadSample {
        BadSample {
            epoch,
            object: self.dataset.shards()[id.shard as usize].url.clone(),
            row_group: id.row_group,
            row: id.row,
            reason,
            replaced_by: Replacement {
                shard: by.shard,
                row_group: by.row_group,
                row: by.row,
            },
        }
    }

    /// The position after the last batch handed out.
    pub fn state(&self) -> LoaderState {
        LoaderState {
            version: STATE_VERSION,
            dataset: self.dataset.fingerprint(),
            seed: self.config.seed,
            global_batch: self.config.global_batch as u64,
            shuffle: self.config.shuffle,
            shuffle_window_bytes: self.config.shuffle_window_bytes,
            drop_last: self.config.drop_last,
            epoch: self.next.0,
            batch_in_epoch: self.next.1,
            samples_tried: self.bad_samples.tried,
            samples_bad: self.bad_samples.bad,
        }
    }

    /// What each stage did since the loader started, and who decoded.
    pub fn stats(&self) -> PipelineStats {
        let wall = self.started.elapsed();
        let io = self.dataset.io_counters();
        PipelineStats {
            decoders: self.decoder_stats(),
            ..self.counters.read(wall, self.sizes, &io)
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
    /// The batches as a stream, for asynchronous programs on tokio; each is waited for on a thread for blocking work. Ends after the first error.
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
