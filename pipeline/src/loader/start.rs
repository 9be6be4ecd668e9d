//! Starting a loader: its settings are checked, its queues and threads made and wired to each
//! other.
use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use super::bad_samples::BadSamples;
use super::batch_decode;
use super::config::{STATE_VERSION, STATE_VERSION_WITHOUT_LANES};
use super::decode;
use super::dispatch::{Dispatcher, Ended};
use super::job::PendingBatch;
use super::mixing::EpochMeter;
use super::mixture::{Mixture, OrderSettings};
use super::walk::Walk;
use super::{Loader, LoaderConfig, LoaderError, LoaderState};
use crate::backend::{CpuBackend, ImageBackend, Router};
use crate::batch::BatchPool;
use crate::stats::{PipelineCounters, Sizes};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Receiver, Sender, bounded, unbounded};
use crate::{Augment, Dataset};

/// Samples that wait for a decode thread, per thread: enough that none idles, few enough to stop at
/// once.
const JOBS_PER_THREAD: usize = 4;

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
    /// Starts the stages, from the beginning or from `state`, with any image backend. Order, plans
    /// and labels do not depend on it; `normalize` and `exif_orientation` of the configuration are
    /// the backend's own matter.
    pub fn with_backend(
        dataset: Arc<Dataset>,
        config: LoaderConfig,
        state: Option<&LoaderState>,
        backend: Arc<B>,
    ) -> Result<Self, LoaderError> {
        let augment = config.augment.build()?;
        let start = Start {
            dataset,
            config,
            augment,
            backend,
        };
        start.start(state)
    }
}

impl LoaderConfig {
    /// Global batches in one epoch of a data set. Refuses settings that cannot work with it, as a
    /// loader does that is started with them.
    pub fn batches_per_epoch(&self, dataset: &Dataset) -> Result<u64, LoaderError> {
        mixture_of(self, dataset).map(|mixture| mixture.batches_per_epoch())
    }
}

/// What a loader is started with.
pub(super) struct Start<B> {
    pub dataset: Arc<Dataset>,
    pub config: LoaderConfig,
    pub augment: Arc<dyn Augment>,
    pub backend: Arc<B>,
}

/// The threads of a loader, and the ends of their queues that it keeps.
struct Stages<S> {
    pending: Receiver<PendingBatch<S>>,
    failure: Receiver<LoaderError>,
    stop: Sender<()>,
    threads: Vec<JoinHandle<()>>,
}

impl<B: ImageBackend> Start<B> {
    /// Starts the stages, from the beginning or from `state`.
    pub(super) fn start(self, state: Option<&LoaderState>) -> Result<Loader<B>, LoaderError> {
        let Self {
            dataset, config, ..
        } = &self;
        let mixture = mixture_of(config, dataset)?;
        let sides = self.augment.view_sides();
        if sides.is_empty() || (sides.len() > 1 && !self.backend.takes_views()) {
            let why = "this image backend renders one view of a sample";
            return Err(wrong("augment", format!("{} views", sides.len()), why));
        }
        if let absent @ 1.. = dataset.num_absent() {
            let rows = dataset.num_samples() + absent;
            tracing::info!("{absent} of {rows} rows hold no image and are left out");
        }
        if let Some(state) = state {
            state.check(dataset, config)?;
        }
        let next = state.map_or((0, 0), |state| (state.epoch, state.batch_in_epoch));
        let (tried, bad) = state.map_or((0, 0), |state| (state.samples_tried, state.samples_bad));
        let list = config.bad_samples_path.as_deref();
        let bad_samples = BadSamples::open(list, config.max_bad_fraction, tried, bad)?;
        let local_batch = config.global_batch / config.world_size;
        let backend = Arc::clone(&self.backend);
        let pool = BatchPool::new(backend, local_batch, &sides, config.prefetch_batches)?;
        let sizes = Sizes {
            max_requests: dataset.io().max_requests,
            decode_threads: config.decode_threads,
            job_queue: config.decode_threads * JOBS_PER_THREAD,
            batch_queue: config.prefetch_batches,
        };
        let counters = Arc::new(PipelineCounters::default());
        let walk = Walk::new(mixture.clone(), dataset, config.epochs, next);
        let stages = self.stages(walk, sides, &pool, &counters, sizes)?;
        let has_classes = super::has_classes(&self.dataset);
        Ok(Loader {
            per_epoch: mixture.batches_per_epoch(),
            used_samples: mixture.used_samples(),
            dataset: self.dataset,
            config: self.config,
            backend: self.backend,
            pool,
            pending: stages.pending,
            coming: None,
            waiting: None,
            failure: stages.failure,
            bad_samples,
            next,
            meter: EpochMeter::new(has_classes, next.1),
            last_epoch: None,
            warned_of_mixing: false,
            counters,
            sizes,
            started: Instant::now(),
            returned: None,
            stop: Some(stages.stop),
            threads: stages.threads,
        })
    }

    /// Makes the queues and starts the threads: the walk, the decode threads, the batch decoders.
    fn stages(
        &self,
        walk: Walk,
        sides: Vec<u32>,
        pool: &BatchPool<B>,
        counters: &Arc<PipelineCounters>,
        sizes: Sizes,
    ) -> Result<Stages<B::Slot>, LoaderError> {
        let batch_decoders = self.backend.batch_decoders()?;
        let (stop_sender, stop) = bounded::<()>(0);
        let (pending_sender, pending) = bounded(self.config.prefetch_batches);
        let (failure_sender, failure) = bounded(1);
        let (job_sender, jobs) = bounded(sizes.job_queue);
        // Two windows of row groups of each lane at most are under way, so these two hold no more
        // than that.
        let (fetched_sender, fetched) = unbounded();
        let (unpacked_sender, unpacked) = unbounded();
        // No more jobs than the router lets out and than exist at once are in these two.
        let (batch_sender, batch_queue) = unbounded();
        let (returned_sender, returned) = unbounded();
        let dispatcher = Dispatcher {
            dataset: Arc::clone(&self.dataset),
            pool: pool.clone(),
            counters: Arc::clone(counters),
            stop: stop.clone(),
            fetched: fetched_sender,
            unpacked,
            jobs: job_sender,
            pending: pending_sender,
        };
        let shared = Arc::new(decode::Shared {
            dataset: Arc::clone(&self.dataset),
            augment: Arc::clone(&self.augment),
            sides,
            backend: Arc::clone(&self.backend),
            router: Router::default(),
            seed: self.config.seed,
            counters: Arc::clone(counters),
        });
        let queues = decode::Queues {
            stop: stop.clone(),
            fetched,
            unpacked: unpacked_sender,
            jobs,
            returned,
            batch: (!batch_decoders.is_empty()).then_some(batch_sender),
            batch_size: batch_decoders
                .first()
                .map_or(0, |decoder| decoder.max_images()),
        };
        let turn = bounded(1);
        let _ = turn.0.send(());
        let batch_queues = batch_decode::Queues {
            stop,
            jobs: batch_queue,
            returned: returned_sender,
            turn,
        };
        // Dropping it on an error stops the threads that were started already.
        let mut stages = Stages {
            pending,
            failure,
            stop: stop_sender,
            threads: Vec::new(),
        };
        for (i, mut decoder) in batch_decoders.into_iter().enumerate() {
            let (shared, queues) = (Arc::clone(&shared), batch_queues.clone());
            stages.spawn(format!("nepa-batch-decode-{i}"), move || {
                batch_decode::run(&shared, decoder.as_mut(), &queues);
            })?;
        }
        // The decode threads end when nobody can give anything back any more.
        drop(batch_queues);
        for i in 0..sizes.decode_threads {
            let (shared, queues) = (Arc::clone(&shared), queues.clone());
            stages.spawn(format!("nepa-decode-{i}"), move || {
                decode::run(&shared, queues);
            })?;
        }
        drop(queues);
        stages.spawn("nepa-dispatch".to_owned(), move || {
            // The failure goes first: dropping the dispatcher is what wakes whoever waits for a
            // batch.
            if let Err(Ended::Failed(error)) = dispatcher.run(walk) {
                let _ = failure_sender.send(error);
            }
        })?;
        Ok(stages)
    }
}

impl<S> Stages<S> {
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
}

/// What of the settings decides the order.
pub(super) fn order_settings(config: &LoaderConfig) -> OrderSettings {
    OrderSettings {
        seed: config.seed,
        global_batch: config.global_batch as u64,
        lanes: config.lanes as u64,
        rank: config.rank as u64,
        world_size: config.world_size as u64,
        epochs: config.epochs,
        shuffle: config.shuffle,
        drop_last: config.drop_last,
        window_bytes: config.shuffle_window_bytes,
    }
}

fn wrong(setting: &'static str, value: String, why: &str) -> LoaderError {
    LoaderError::Setting {
        setting,
        value,
        why: why.to_owned(),
    }
}

/// The data sets and their shares; refuses settings that cannot work.
pub(super) fn mixture_of(config: &LoaderConfig, dataset: &Dataset) -> Result<Mixture, LoaderError> {
    check(config)?;
    let mixture = Mixture::of(dataset, order_settings(config));
    check_size(config, &mixture, dataset)?;
    check_mixture(config, &mixture)?;
    Ok(mixture)
}

/// Refuses settings that cannot work with any data set.
fn check(config: &LoaderConfig) -> Result<(), LoaderError> {
    let zero = |setting, why| Err(wrong(setting, "0".to_owned(), why));
    if config.global_batch == 0 {
        return zero("global_batch", "a batch holds at least one sample");
    }
    if config.world_size == 0 || config.rank >= config.world_size {
        let value = format!("{} of {}", config.rank, config.world_size);
        let why = "ranks count from 0 to world_size - 1";
        return Err(wrong("rank", value, why));
    }
    if !config.global_batch.is_multiple_of(config.world_size) {
        let ranks = config.world_size;
        let why = format!("it does not divide evenly among {ranks} ranks");
        return Err(wrong("global_batch", config.global_batch.to_string(), &why));
    }
    check_lanes(config)?;
    if config.decode_threads == 0 {
        return zero("decode_threads", "at least one thread has to decode");
    }
    if config.prefetch_batches == 0 {
        return zero("prefetch_batches", "at least one batch has to be under way");
    }
    if config.max_kept_batches == 0 {
        return zero("max_kept_batches", "the consumer has one batch at least");
    }
    if config.shuffle_window_bytes == 0 {
        let why = "a window holds something; the smallest, 1, holds one part of a row group";
        return zero("shuffle_window_bytes", why);
    }
    if !(0.0..=1.0).contains(&config.max_bad_fraction) {
        let value = config.max_bad_fraction.to_string();
        return Err(wrong(
            "max_bad_fraction",
            value,
            "it is a share from 0 to 1",
        ));
    }
    let std = config.normalize.std;
    if std.iter().any(|std| std.is_nan() || *std <= 0.0) {
        let why = "each must be positive";
        return Err(wrong("normalize.std", format!("{std:?}"), why));
    }
    Ok(())
}

/// Refuses lanes that do not give equally many samples to each batch and each rank.
fn check_lanes(config: &LoaderConfig) -> Result<(), LoaderError> {
    let (lanes, batch, ranks) = (config.lanes, config.global_batch, config.world_size);
    let refused = |why: &str| Err(wrong("lanes", lanes.to_string(), why));
    if lanes == 0 {
        return refused("there is at least one; 1 shuffles all data together");
    }
    if !batch.is_multiple_of(lanes) {
        return refused(&format!(
            "each lane gives as many samples to every batch, and global_batch = {batch} does not \
             divide by it; use a divisor of the batch, or another batch"
        ));
    }
    if lanes > 1 && !lanes.is_multiple_of(ranks) {
        return refused(&format!(
            "it does not divide evenly among {ranks} ranks, each of which reads whole lanes; use \
             a multiple of {ranks}, another number of ranks, or lanes = 1, with which each rank \
             reads everything"
        ));
    }
    Ok(())
}

/// Refuses a mixture whose shares the lanes cannot give.
fn check_mixture(config: &LoaderConfig, mixture: &Mixture) -> Result<(), LoaderError> {
    let (setting, value) = if config.lanes > 1 {
        ("lanes", config.lanes)
    } else {
        ("global_batch", config.global_batch)
    };
    match mixture.problem() {
        Some(why) => Err(wrong(setting, value.to_string(), &why)),
        None => Ok(()),
    }
}

/// Refuses a data set that does not fill one batch.
fn check_size(
    config: &LoaderConfig,
    mixture: &Mixture,
    dataset: &Dataset,
) -> Result<(), LoaderError> {
    if mixture.batches_per_epoch() > 0 {
        return Ok(());
    }
    let num_samples = dataset.num_samples();
    let why = format!(
        "the data set holds {num_samples} samples, fewer than one batch; use a smaller batch, or keep \
         incomplete batches (drop_last = false)"
    );
    Err(wrong("global_batch", config.global_batch.to_string(), &why))
}

impl LoaderState {
    /// Refuses a state of another data set or of other settings, as a loader does that is started
    /// from it.
    pub fn check(&self, dataset: &Dataset, config: &LoaderConfig) -> Result<(), LoaderError> {
        let fingerprint = dataset.fingerprint();
        // The order was that of one lane, which is what the state reads as.
        let version = match self.version {
            STATE_VERSION_WITHOUT_LANES => STATE_VERSION,
            other => other,
        };
        let settings: [(_, &dyn Display, &dyn Display); 8] = [
            ("state version", &version, &STATE_VERSION),
            ("data set (fingerprint)", &self.dataset, &fingerprint),
            ("seed", &self.seed, &config.seed),
            ("batch size", &self.global_batch, &config.global_batch),
            ("lanes", &self.lanes, &config.lanes),
            ("shuffle", &self.shuffle, &config.shuffle),
            (
                "shuffle_window_bytes",
                &self.shuffle_window_bytes,
                &config.shuffle_window_bytes,
            ),
            ("drop_last", &self.drop_last, &config.drop_last),
        ];
        for (field, saved, current) in settings {
            let (saved, current) = (saved.to_string(), current.to_string());
            if saved != current {
                return Err(LoaderError::StateMismatch {
                    field,
                    saved,
                    current,
                });
            }
        }
        Ok(())
    }
}
