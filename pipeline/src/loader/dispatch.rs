//! The walk along the order: fetches windows ahead, takes free slots, hands samples to the decode threads.
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, select};

use super::config::{LoaderConfig, batches_per_epoch};
use super::order::{EpochOrder, Part, Window};
use super::window::{LoadedWindow, LoadingWindow};
use super::worker::{Done, Fetched, Job, Unpacked};
use crate::batch::BatchPool;
use crate::dataset::FetchHandle;
use crate::stats::PipelineCounters;
use crate::{Dataset, LoaderError, SampleId};

/// Windows in memory or on their way, the one that is walked included.
const WINDOWS_AHEAD: usize = 2;

/// A batch whose samples are being rendered.
#[derive(Debug)]
pub(super) struct PendingBatch<S> {
    pub epoch: u64,
    pub batch_in_epoch: u64,
    pub num_samples: usize,
    pub done: Receiver<Done<S>>,
    /// Slots that a short batch leaves unused.
    pub spare: Vec<S>,
}

/// Why the walk ended early.
pub(super) enum Ended {
    /// The loader is being dropped.
    Stopped,
    /// The run is bad.
    Failed(LoaderError),
}

/// The walk and the ends of the queues that it holds.
pub(super) struct Dispatcher<S> {
    pub dataset: Arc<Dataset>,
    pub config: LoaderConfig,
    pub parts: Vec<Part>,
    pub num_samples: u64,
    pub pool: BatchPool<S>,
    pub counters: Arc<PipelineCounters>,
    pub stop: Receiver<()>,
    pub fetched: Sender<Fetched>,
    pub unpacked: Receiver<Unpacked>,
    pub jobs: Sender<Job<S>>,
    pub pending: Sender<PendingBatch<S>>,
}

/// The window that is walked.
struct Current {
    window: Window,
    loaded: Arc<LoadedWindow>,
    samples: Vec<SampleId>,
}

/// A window on its way.
struct Ahead {
    sequence: u64,
    order: Arc<EpochOrder>,
    loading: LoadingWindow,
    fetch: FetchHandle,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.fetch.cancel();
    }
}

impl<S> Dispatcher<S> {
    /// Walks from (epoch, batch) to the end of the last epoch.
    pub(super) fn run(&self, first_epoch: u64, first_batch: u64) -> Result<(), Ended> {
        let per_epoch = batches_per_epoch(self.num_samples, &self.config);
        let mut walk = WindowWalk::new(
            self,
            first_epoch,
            first_batch * self.config.global_batch as u64,
        );
        let mut epoch = first_epoch;
        let mut first_batch = first_batch;
        while self.config.epochs.is_none_or(|epochs| epoch < epochs) {
            for batch in first_batch..per_epoch {
                self.dispatch_batch(&mut walk, epoch, batch)?;
            }
            (epoch, first_batch) = (epoch + 1, 0);
            walk.current = None;
        }
        Ok(())
    }

    fn dispatch_batch(
        &self,
        walk: &mut WindowWalk<S>,
        epoch: u64,
        batch: u64,
    ) -> Result<(), Ended> {
        let global = self.config.global_batch as u64;
        let start = batch * global;
        let length = global.min(self.num_samples - start);
        let (rank, world) = (self.config.rank as u64, self.config.world_size as u64);
        let mine = start + length * rank / world..start + length * (rank + 1) / world;
        let num_samples = (mine.end - mine.start) as usize;

        let waiting = Instant::now();
        let mut slots = select! {
            recv(self.pool.free) -> slots => slots.expect("the pool keeps its own ends"),
            recv(self.stop) -> _ => return Err(Ended::Stopped),
        };
        let spare = slots.split_off(num_samples);
        let (done_sender, done) = crossbeam::channel::bounded(num_samples);
        let pending = PendingBatch {
            epoch,
            batch_in_epoch: batch,
            num_samples,
            done,
            spare,
        };
        select! {
            send(self.pending, pending) -> sent => sent.map_err(|_| Ended::Stopped)?,
            recv(self.stop) -> _ => return Err(Ended::Stopped),
        }
        self.counters.dispatch.blocked_out(waiting);

        for (position, (slot, index)) in slots.into_iter().zip(mine).enumerate() {
            let current = walk.window_of(epoch, index)?;
            let job = Job {
                epoch,
                id: current.samples[(index - current.window.start) as usize],
                window: Arc::clone(&current.loaded),
                position,
                slot,
                done: done_sender.clone(),
            };
            let waiting = Instant::now();
            select! {
                send(self.jobs, job) -> sent => sent.map_err(|_| Ended::Stopped)?,
                recv(self.stop) -> _ => return Err(Ended::Stopped),
            }
            self.counters.dispatch.blocked_out(waiting);
        }
        self.counters.dispatch.item(0);
        Ok(())
    }
}

/// The windows of all epochs in order, some of them fetched ahead.
struct WindowWalk<'a, S> {
    dispatcher: &'a Dispatcher<S>,
    /// Samples of an epoch that some batch uses.
    used_samples: u64,
    ahead: VecDeque<Ahead>,
    current: Option<Current>,
    /// The next window to fetch: epoch, its order, index of the window.
    next_epoch: u64,
    next_order: Arc<EpochOrder>,
    next_window: usize,
    next_sequence: u64,
}

impl<'a, S> WindowWalk<'a, S> {
    fn new(dispatcher: &'a Dispatcher<S>, epoch: u64, position: u64) -> Self {
        let config = &dispatcher.config;
        let used_samples = (batches_per_epoch(dispatcher.num_samples, config)
            * config.global_batch as u64)
            .min(dispatcher.num_samples);
        let order = Arc::new(Self::order(dispatcher, epoch));
        let next_window = order.window_at(position);
        Self {
            dispatcher,
            used_samples,
            ahead: VecDeque::new(),
            current: None,
            next_epoch: epoch,
            next_order: order,
            next_window,
            next_sequence: 0,
        }
    }

    fn order(dispatcher: &Dispatcher<S>, epoch: u64) -> EpochOrder {
        let config = &dispatcher.config;
        EpochOrder::new(
            &dispatcher.parts,
            config.seed,
            epoch,
            config.shuffle,
            config.shuffle_window_bytes,
        )
    }

    /// The window that holds the `index`-th sample of `epoch`; called with growing positions.
    fn window_of(&mut self, epoch: u64, index: u64) -> Result<&Current, Ended> {
        loop {
            let holds = self.current.as_ref().is_some_and(|current| {
                (current.window.start..current.window.start + current.window.num_samples())
                    .contains(&index)
            });
            if holds {
                return Ok(self.current.as_ref().expect("it was looked at"));
            }
            self.current = None;
            self.current = Some(self.advance(epoch)?);
            // The next window comes while this one is decoded.
            self.fetch_ahead();
        }
    }

    fn advance(&mut self, epoch: u64) -> Result<Current, Ended> {
        // A rank's last slice may end before the epoch's last window.
        self.ahead.retain(|ahead| ahead.order.epoch() >= epoch);
        if self.next_epoch < epoch {
            self.next_epoch = epoch;
            self.next_order = Arc::new(Self::order(self.dispatcher, epoch));
            self.next_window = 0;
        }
        self.fetch_ahead();
        let waiting = Instant::now();
        while !self.ahead[0].loading.is_settled() {
            let unpacked = select! {
                recv(self.dispatcher.unpacked) -> unpacked => unpacked.map_err(|_| Ended::Stopped)?,
                recv(self.dispatcher.stop) -> _ => return Err(Ended::Stopped),
            };
            // Deliveries of a window that failed and was left are of no use.
            if let Some(ahead) = self
                .ahead
                .iter_mut()
                .find(|ahead| ahead.sequence == unpacked.window)
            {
                ahead
                    .loading
                    .arrive(unpacked.shard, unpacked.part, unpacked.batch);
            }
        }
        self.dispatcher.counters.dispatch.blocked_in(waiting);
        let mut ahead = self.ahead.pop_front().expect("the first was looked at");
        let order = Arc::clone(&ahead.order);
        let loading = std::mem::replace(&mut ahead.loading, LoadingWindow::new(Window::default()));
        let (window, loaded) = loading
            .finish()
            .map_err(|error| Ended::Failed(error.into()))?;
        let samples = order.samples(&window);
        Ok(Current {
            window,
            loaded: Arc::new(loaded),
            samples,
        })
    }

    fn fetch_ahead(&mut self) {
        let config = &self.dispatcher.config;
        while self.ahead.len() + usize::from(self.current.is_some()) < WINDOWS_AHEAD {
            let exhausted = self
                .next_order
                .windows
                .get(self.next_window)
                .is_none_or(|window| window.start >= self.used_samples);
            if exhausted {
                if config
                    .epochs
                    .is_some_and(|epochs| self.next_epoch + 1 >= epochs)
                {
                    return;
                }
                self.next_epoch += 1;
                self.next_order = Arc::new(Self::order(self.dispatcher, self.next_epoch));
                self.next_window = 0;
                continue;
            }
            let loading = LoadingWindow::new(self.next_order.windows[self.next_window].clone());
            let sequence = self.next_sequence;
            let fetched = self.dispatcher.fetched.clone();
            let fetch = self.dispatcher.dataset.fetch(
                &loading.parts(),
                Arc::new(move |shard, part, bytes| {
                    // Nobody listens while the loader stops.
                    let _ = fetched.send(Fetched {
                        window: sequence,
                        shard,
                        part,
                        bytes,
                    });
                }),
            );
            self.ahead.push_back(Ahead {
                sequence,
                order: Arc::clone(&self.next_order),
                loading,
                fetch,
            });
            self.next_sequence += 1;
            self.next_window += 1;
        }
    }
}
