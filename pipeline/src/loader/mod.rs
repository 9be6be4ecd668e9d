//! The loader: order, fetch, unpack, decode, assemble.
//!
//! Fetching runs on the I/O runtime, unpacking and decoding on a fixed pool of threads, the walk along the order on a thread
//! of its own. A batch is handed out when all its samples are rendered or replaced, strictly in order.
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use serde::{Deserialize, Serialize};

use crate::backend::{BatchRenderer, CpuBackend, ImageBackend, Router};
use crate::batch::{Batch, BatchPool};
use crate::render::Normalize;
use crate::stats::{PipelineCounters, PipelineStats, Sizes};
use crate::{AugmentConfig, Dataset, LoaderError, SampleId};

mod bad_samples;
mod batch_decode;
mod dispatch;
mod order;
mod window;
mod worker;

use bad_samples::{BadSample, BadSamples, Replacement};
use dispatch::{Dispatcher, Ended, PendingBatch};
use worker::{Done, Outcome};

/// How a data set becomes batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderConfig {
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Samples in one batch over all ranks.
    pub global_batch: usize,
    /// This rank.
    pub rank: usize,
    /// Number of ranks; divides `global_batch`.
    pub world_size: usize,
    /// Epochs to run; `None` means without end.
    pub epochs: Option<u64>,
    /// Whether samples are shuffled; off for evaluation.
    pub shuffle: bool,
    /// Whether an epoch's last incomplete batch is dropped.
    pub drop_last: bool,
    /// Augmentation.
    pub augment: AugmentConfig,
    /// Normalisation.
    pub normalize: Normalize,
    /// Whether EXIF orientation is applied.
    pub exif_orientation: bool,
    /// Decode threads.
    pub decode_threads: usize,
    /// Finished batches ahead of the consumer.
    pub prefetch_batches: usize,
    /// Bytes (decompressed) of row groups, or parts of them, whose samples are mixed with each other. The first windows of a run are smaller.
    pub shuffle_window_bytes: u64,
    /// Share of bad samples at which the run ends, judged after the first 1,000.
    pub max_bad_fraction: f64,
    /// Where bad samples are listed, one JSON line each.
    pub bad_samples_path: Option<PathBuf>,
}

/// Where a loader stands: small, versioned; a loader restored from it yields the very batches that would have come next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Format version, 2.
    pub version: u32,
    /// [`Dataset::fingerprint`].
    pub dataset: String,
    /// Seed.
    pub seed: u64,
    /// Samples in one batch over all ranks.
    pub global_batch: u64,
    /// Epoch of the next batch.
    pub epoch: u64,
    /// Global batches of that epoch already handed out.
    pub batch_in_epoch: u64,
    /// Samples tried so far (over all epochs), for the budget of bad ones.
    pub samples_tried: u64,
    /// Bad samples so far.
    pub samples_bad: u64,
}

/// Samples that wait for a decode thread, per thread: enough that none idles, few enough to stop at once.
const JOBS_PER_THREAD: usize = 4;

/// Global batches in an epoch of `num_samples`.
fn batches_per_epoch(num_samples: u64, config: &LoaderConfig) -> u64 {
    let global = config.global_batch as u64;
    if config.drop_last {
        num_samples / global
    } else {
        num_samples.div_ceil(global)
    }
}

/// Runs the stages and hands out batches in order. Dropping it stops and joins all its threads.
///
/// `prefetch_batches + 2` batches exist at most: a consumer that keeps more than two at once waits for itself.
#[derive(Debug)]
pub struct Loader<B: ImageBackend = CpuBackend> {
    dataset: Arc<Dataset>,
    config: LoaderConfig,
    image_size: u32,
    per_epoch: u64,
    backend: Arc<B>,
    pool: BatchPool<B::Slot>,
    pending: Receiver<PendingBatch<B::Slot>>,
    failure: Receiver<LoaderError>,
    bad_samples: BadSamples,
    /// Epoch and batch that come next.
    next: (u64, u64),
    counters: Arc<PipelineCounters>,
    sizes: Sizes,
    started: Instant,
    returned: Option<Instant>,
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader {
    /// Starts the stages, from the beginning or from `state`; decodes on the CPU.
    pub fn new(
        dataset: Arc<Dataset>,
        config: LoaderConfig,
        state: Option<&LoaderState>,
    ) -> Result<Self, LoaderError> {
        let backend = CpuBackend {
            normalize: config.normalize,
            exif_orientation: config.exif_orientation,
        };
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
        let num_samples = dataset.num_samples();
        check(&config, num_samples)?;
        let augment = config.augment.build()?;
        let image_size = augment.output_size();
        let per_epoch = batches_per_epoch(num_samples, &config);
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
        let sets = (0..config.prefetch_batches + 2).map(|_| backend.slots(local_batch, image_size));
        let pool = BatchPool::new(sets.collect::<Result<_, _>>()?);
        let batch_renderer = backend.batch_renderer()?;
        let (stop_sender, stop) = bounded::<()>(0);
        let (pending_sender, pending) = bounded(config.prefetch_batches);
        let (failure_sender, failure) = bounded(1);
        let (job_sender, jobs) = bounded(sizes.job_queue);
        // Two windows of row groups at most are under way, so these two hold no more than that.
        let (fetched_sender, fetched) = unbounded();
        let (unpacked_sender, unpacked) = unbounded();

        let dispatcher = Dispatcher {
            dataset: Arc::clone(&dataset),
            parts: order::parts(dataset.shards()),
            config: config.clone(),
            num_samples,
            pool: pool.clone(),
            counters: Arc::clone(&counters),
            stop: stop.clone(),
            fetched: fetched_sender,
            unpacked,
            jobs: job_sender,
            pending: pending_sender,
        };
        let shared = Arc::new(worker::Shared {
            dataset: Arc::clone(&dataset),
            augment,
            backend: Arc::clone(&backend),
            router: Router::default(),
            seed: config.seed,
            counters: Arc::clone(&counters),
        });
        let mut loader = Self {
            dataset,
            image_size,
            per_epoch,
            backend,
            pool,
            pending,
            failure,
            bad_samples,
            next,
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
        let queues = worker::Queues {
            stop: stop.clone(),
            fetched,
            unpacked: unpacked_sender,
            jobs,
            returned,
            batch: batch_renderer.is_some().then_some(batch_sender),
            batch_size: batch_renderer.as_ref().map_or(0, BatchRenderer::max_images),
        };
        if let Some(mut renderer) = batch_renderer {
            let shared = Arc::clone(&shared);
            loader.spawn("nepa-batch-decode".to_owned(), move || {
                batch_decode::run(
                    &shared,
                    &mut renderer,
                    &stop,
                    &batch_queue,
                    &returned_sender,
                );
            })?;
        }
        for i in 0..sizes.decode_threads {
            let (shared, queues) = (Arc::clone(&shared), queues.clone());
            loader.spawn(format!("nepa-decode-{i}"), move || {
                worker::run(&shared, queues);
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
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(body)
            .map_err(LoaderError::Thread)?;
        self.threads.push(thread);
        Ok(())
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
        if let Some(returned) = self.returned.take() {
            self.counters.consume.busy(returned);
        }
        let waiting = Instant::now();
        self.counters.consume.fill(self.pending.len());
        let batch = self.assemble();
        self.counters.consume.blocked_in(waiting);
        self.returned = Some(Instant::now());
        batch
    }

    fn assemble(&mut self) -> Result<Option<Batch<B>>, LoaderError> {
        let Ok(pending) = self.pending.recv() else {
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
        let mut done: Vec<Done<B::Slot>> = pending.done.iter().take(pending.num_samples).collect();
        if done.len() < pending.num_samples {
            // Either the walk failed within this batch, and says why, or a thread died, and the walk may not have noticed.
            self.stop = None;
            return Err(self.failure.recv().unwrap_or(LoaderError::ThreadDied));
        }
        done.sort_by_key(|done| done.position);
        let mut samples = Vec::with_capacity(done.len());
        let mut slots = Vec::with_capacity(done.len() + pending.spare.len());
        let mut bad = Vec::new();
        let (mut exhausted, mut failed) = (None, None);
        for Done { slot, outcome, .. } in done {
            slots.push(slot);
            match outcome {
                Outcome::Good(record) => samples.push(record),
                Outcome::Replaced(record, reason) => {
                    let id = record.replaces.unwrap_or(record.id);
                    bad.push(self.bad_sample(pending.epoch, id, record.id, reason));
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
            self.image_size,
            samples,
            slots,
            self.pool.clone(),
            Arc::clone(&self.backend),
        );
        self.counters.consume.item(0);
        self.next = if pending.batch_in_epoch + 1 == self.per_epoch {
            (pending.epoch + 1, 0)
        } else {
            (pending.epoch, pending.batch_in_epoch + 1)
        };
        self.bad_samples.record(batch.len() as u64, bad)?;
        Ok(Some(batch))
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
            epoch: self.next.0,
            batch_in_epoch: self.next.1,
            samples_tried: self.bad_samples.tried,
            samples_bad: self.bad_samples.bad,
        }
    }

    /// What each stage did since the loader started.
    pub fn stats(&self) -> PipelineStats {
        self.counters.read(
            self.started.elapsed(),
            self.sizes,
            &self.dataset.io_counters(),
        )
    }
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

/// Version of [`LoaderState`].
const STATE_VERSION: u32 = 2;

fn check(config: &LoaderConfig, num_samples: u64) -> Result<(), LoaderError> {
    let wrong = |setting, value: String, why: &str| {
        Err(LoaderError::Setting {
            setting,
            value,
            why: why.to_owned(),
        })
    };
    if config.global_batch == 0 {
        return wrong(
            "global_batch",
            "0".to_owned(),
            "a batch holds at least one sample",
        );
    }
    if config.world_size == 0 || config.rank >= config.world_size {
        let value = format!("{} of {}", config.rank, config.world_size);
        return wrong("rank", value, "ranks count from 0 to world_size - 1");
    }
    if !config.global_batch.is_multiple_of(config.world_size) {
        let why = format!(
            "it does not divide evenly among {} ranks",
            config.world_size
        );
        return wrong("global_batch", config.global_batch.to_string(), &why);
    }
    if config.decode_threads == 0 {
        return wrong(
            "decode_threads",
            "0".to_owned(),
            "at least one thread has to decode",
        );
    }
    if config.prefetch_batches == 0 {
        return wrong(
            "prefetch_batches",
            "0".to_owned(),
            "at least one batch has to be under way",
        );
    }
    if !(0.0..=1.0).contains(&config.max_bad_fraction) {
        return wrong(
            "max_bad_fraction",
            config.max_bad_fraction.to_string(),
            "it is a share from 0 to 1",
        );
    }
    if config
        .normalize
        .std
        .iter()
        .any(|std| std.is_nan() || *std <= 0.0)
    {
        return wrong(
            "normalize.std",
            format!("{:?}", config.normalize.std),
            "each must be positive",
        );
    }
    if batches_per_epoch(num_samples, config) == 0 {
        let why = format!(
            "the data set holds {num_samples} samples, fewer than one batch; use a smaller batch, or keep incomplete batches (drop_last = false)"
        );
        return wrong("global_batch", config.global_batch.to_string(), &why);
    }
    Ok(())
}

fn check_state(
    state: &LoaderState,
    dataset: &Dataset,
    config: &LoaderConfig,
) -> Result<(), LoaderError> {
    let same = |field, saved: String, current: String| {
        if saved == current {
            Ok(())
        } else {
            Err(LoaderError::StateMismatch {
                field,
                saved,
                current,
            })
        }
    };
    same(
        "state version",
        state.version.to_string(),
        STATE_VERSION.to_string(),
    )?;
    same(
        "data set (fingerprint)",
        state.dataset.clone(),
        dataset.fingerprint(),
    )?;
    same("seed", state.seed.to_string(), config.seed.to_string())?;
    same(
        "batch size",
        state.global_batch.to_string(),
        config.global_batch.to_string(),
    )
}
