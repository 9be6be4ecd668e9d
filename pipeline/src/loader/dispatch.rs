//! The walk along the order: fetches windows ahead, takes free slots, hands samples to the decode threads.
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::config::LoaderConfig;
use super::decode::{Done, Fetched, Job, Unpacked, WindowId};
use super::mixture::{Mixture, SamplePlace, WalkSource};
use super::order::{EpochOrder, Window};
use super::window::{LoadedWindow, LoadingWindow};
use crate::batch::BatchPool;
use crate::dataset::FetchTask;
use crate::stats::PipelineCounters;
use crate::sync::{Receiver, Sender, bounded, select};
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
    pub mixture: Mixture,
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
    epoch: u64,
    window: Window,
    loaded: Arc<LoadedWindow>,
    samples: Vec<SampleId>,
}

/// A window on its way.
struct Ahead {
    id: WindowId,
    order: Arc<EpochOrder>,
    loading: LoadingWindow,
    /// Ends when it is dropped.
    _fetch: FetchTask,
}

impl<S> Dispatcher<S> {
    /// Walks from (epoch, batch) to the end of the last epoch.
    pub(super) fn run(&self, first_epoch: u64, first_batch: u64) -> Result<(), Ended> {
        let per_epoch = self.mixture.batches_per_epoch(&self.config);
        let mut walks = self.walks(first_epoch, first_batch);
        let mut epoch = first_epoch;
        let mut first_batch = first_batch;
        while self.config.epochs.is_none_or(|epochs| epoch < epochs) {
            for batch in first_batch..per_epoch {
                self.dispatch_batch(&mut walks, epoch, batch)?;
            }
            (epoch, first_batch) = (epoch + 1, 0);
        }
        Ok(())
    }

    /// The walks through all data sets from (epoch, batch) on.
    pub(super) fn walks(&self, epoch: u64, batch: u64) -> Vec<WindowWalk<'_, S>> {
        let sources = self.mixture.sources(&self.config, &self.dataset);
        let walk = |(index, source)| {
            let (own_epoch, position) = self.mixture.position(index, epoch, batch, &self.config);
            WindowWalk::new(self, index, source, own_epoch, position)
        };
        sources.into_iter().enumerate().map(walk).collect()
    }

    fn dispatch_batch(
        &self,
        walks: &mut [WindowWalk<S>],
        epoch: u64,
        batch: u64,
    ) -> Result<(), Ended> {
        let mine = self.mixture.slice(epoch, batch, &self.config);
        let num_samples = mine.len();

        let waiting = Instant::now();
        let mut slots = select! {
            recv(self.pool.free) -> slots => slots.expect("the pool keeps its own ends"),
            recv(self.stop) -> _ => return Err(Ended::Stopped),
        };
        let spare = slots.split_off(num_samples);
        let (done_sender, done) = bounded(num_samples);
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

        for (position, (slot, place)) in slots.into_iter().zip(mine).enumerate() {
            self.enter_window(walks, place)?;
            let job = walks[place.source].job(place, position, slot, done_sender.clone());
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

    /// Makes the window that holds `place` its walk's current one; called with growing places of each data set.
    fn enter_window(&self, walks: &mut [WindowWalk<S>], place: SamplePlace) -> Result<(), Ended> {
        while !walks[place.source].holds(place) {
            walks[place.source].leave(place.epoch);
            let waiting = Instant::now();
            while !walks[place.source].next_is_settled() {
                let unpacked = select! {
                    recv(self.unpacked) -> unpacked => unpacked.map_err(|_| Ended::Stopped)?,
                    recv(self.stop) -> _ => return Err(Ended::Stopped),
                };
                walks[unpacked.window.source].arrive(unpacked);
            }
            self.counters.dispatch.blocked_in(waiting);
            walks[place.source].enter()?;
        }
        Ok(())
    }
}

/// The windows of all epochs of one data set in order, some of them fetched ahead.
pub(super) struct WindowWalk<'a, S> {
    dispatcher: &'a Dispatcher<S>,
    index: usize,
    source: WalkSource,
    ahead: VecDeque<Ahead>,
    current: Option<Current>,
    /// The next window to fetch: epoch, its order, index of the window.
    next_epoch: u64,
    next_order: Arc<EpochOrder>,
    next_window: usize,
    next_sequence: u64,
}

impl<'a, S> WindowWalk<'a, S> {
    fn new(
        dispatcher: &'a Dispatcher<S>,
        index: usize,
        source: WalkSource,
        epoch: u64,
        position: u64,
    ) -> Self {
        let order = Arc::new(source.order(&dispatcher.config, epoch));
        let next_window = order.window_at(position);
        Self {
            dispatcher,
            index,
            source,
            ahead: VecDeque::new(),
            current: None,
            next_epoch: epoch,
            next_order: order,
            next_window,
            next_sequence: 0,
        }
    }

    pub(super) fn holds(&self, place: SamplePlace) -> bool {
        self.current.as_ref().is_some_and(|current| {
            let window = &current.window;
            current.epoch == place.epoch
                && (window.start..window.start + window.num_samples()).contains(&place.index)
        })
    }

    /// The job of a sample in the current window.
    pub(super) fn job(
        &self,
        place: SamplePlace,
        position: usize,
        slot: S,
        done: Sender<Done<S>>,
    ) -> Job<S> {
        let current = self.current.as_ref().expect("it was entered");
        Job {
            epoch: place.epoch,
            id: current.samples[(place.index - current.window.start) as usize],
            window: Arc::clone(&current.loaded),
            position,
            slot,
            done,
        }
    }

    /// Gives the current window up for the next one, of `epoch` or a later one.
    pub(super) fn leave(&mut self, epoch: u64) {
        self.current = None;
        // A rank's last slice may end before the epoch's last window.
        self.ahead.retain(|ahead| ahead.order.epoch() >= epoch);
        if self.next_epoch < epoch {
            self.next_epoch = epoch;
            self.next_order = Arc::new(self.source.order(&self.dispatcher.config, epoch));
            self.next_window = 0;
        }
        self.fetch_ahead();
    }

    pub(super) fn next_is_settled(&self) -> bool {
        self.ahead[0].loading.is_settled()
    }

    /// Takes a part of one of the windows ahead; that of a window that failed and was left is of no use.
    pub(super) fn arrive(&mut self, unpacked: Unpacked) {
        if let Some(ahead) = self
            .ahead
            .iter_mut()
            .find(|ahead| ahead.id == unpacked.window)
        {
            ahead.loading.arrive(unpacked.part, unpacked.batch);
        }
    }

    /// Makes the next window, which is settled, the current one.
    pub(super) fn enter(&mut self) -> Result<(), Ended> {
        let mut ahead = self.ahead.pop_front().expect("the first was looked at");
        let order = Arc::clone(&ahead.order);
        let loading = std::mem::replace(&mut ahead.loading, LoadingWindow::new(Window::default()));
        let (window, loaded) = loading
            .finish()
            .map_err(|error| Ended::Failed(error.into()))?;
        let samples = order.samples(&window, |part| loaded.samples(part));
        self.current = Some(Current {
            epoch: order.epoch(),
            window,
            loaded: Arc::new(loaded),
            samples,
        });
        // The next window comes while this one is decoded.
        self.fetch_ahead();
        Ok(())
    }

    fn fetch_ahead(&mut self) {
        while self.ahead.len() + usize::from(self.current.is_some()) < WINDOWS_AHEAD {
            let exhausted = self
                .next_order
                .windows
                .get(self.next_window)
                .is_none_or(|window| window.start >= self.source.used_samples);
            if exhausted {
                if self
                    .source
                    .epochs
                    .is_some_and(|epochs| self.next_epoch + 1 >= epochs)
                {
                    return;
                }
                self.next_epoch += 1;
                self.next_order =
                    Arc::new(self.source.order(&self.dispatcher.config, self.next_epoch));
                self.next_window = 0;
                continue;
            }
            let loading = LoadingWindow::new(self.next_order.windows[self.next_window].clone());
            let id = WindowId {
                source: self.index,
                sequence: self.next_sequence,
            };
            let fetched = self.dispatcher.fetched.clone();
            let deliver = Arc::new(move |part, bytes| {
                // Nobody listens while the loader stops.
                let _ = fetched.send(Fetched {
                    window: id,
                    part,
                    bytes,
                });
            });
            let fetch = FetchTask::new(&self.dispatcher.dataset, &loading.parts(), deliver);
            self.ahead.push_back(Ahead {
                id,
                order: Arc::clone(&self.next_order),
                loading,
                _fetch: fetch,
            });
            self.next_sequence += 1;
            self.next_window += 1;
        }
    }
}
