//! The walk along the order: which windows are fetched, which sample comes next. No thread, no
//! queue, no clock: [`Walk::next`] says what is to be done, and is told of parts that arrived.
use std::collections::VecDeque;
use std::sync::Arc;

use super::job::{Unpacked, WindowId};
use super::mixture::{LaneSource, Mixture, SamplePlace};
use super::order::{EpochOrder, Window};
use super::window::{LoadedWindow, LoadingWindow};
use crate::{Dataset, DatasetError, PartId, SampleId};

/// Windows of a lane in memory or on their way, the one that is walked included.
const WINDOWS_AHEAD: usize = 2;

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Step {
    /// A batch begins, of so many samples of this rank.
    Batch {
        epoch: u64,
        batch_in_epoch: u64,
        num_samples: usize,
    },
    /// These parts are to be fetched, as one window.
    Fetch(WindowId, Vec<PartId>),
    /// Nothing can be done before another part has arrived.
    Await,
    /// The next sample of the batch.
    Sample {
        /// The epoch of its data set.
        epoch: u64,
        id: SampleId,
        window: Arc<LoadedWindow>,
        /// Position in the batch.
        position: usize,
    },
    /// The batch has all its samples.
    BatchEnd,
    /// The last epoch has ended.
    End,
}

/// Where the walk through all batches stands.
#[derive(Debug)]
pub(super) struct Walk {
    mixture: Mixture,
    epochs: Option<u64>,
    /// Of each data set each lane that this rank has.
    walks: Vec<LaneWalk>,
    /// Epoch and batch that come next.
    epoch: u64,
    batch: u64,
    /// The samples of the batch that has begun, and how many of them were given.
    current: Option<(Vec<SamplePlace>, usize)>,
}

impl Walk {
    /// A walk from (epoch, batch) to the end of the last epoch.
    pub(super) fn new(
        mixture: Mixture,
        dataset: &Dataset,
        epochs: Option<u64>,
        (epoch, batch): (u64, u64),
    ) -> Self {
        let sources = mixture.sources(dataset).into_iter().enumerate();
        let walks = sources.map(|(index, source)| {
            let (own_epoch, position) = mixture.position(index, epoch, batch);
            LaneWalk::new(index, source, own_epoch, position)
        });
        Self {
            walks: walks.collect(),
            mixture,
            epochs,
            epoch,
            batch,
            current: None,
        }
    }

    /// What is to be done next. An error is that of a part that is needed now.
    pub(super) fn next(&mut self) -> Result<Step, Arc<DatasetError>> {
        let Some((places, given)) = &mut self.current else {
            return Ok(self.begin_batch());
        };
        let position = *given;
        let Some(&place) = places.get(position) else {
            self.current = None;
            return Ok(Step::BatchEnd);
        };
        let walk = &mut self.walks[place.walk];
        while !walk.holds(place) {
            walk.leave(place.epoch);
            if !walk.enter()? {
                return Ok(fetch_ahead(&mut self.walks).unwrap_or(Step::Await));
            }
        }
        // The next windows come while these are decoded.
        if let Some(step) = fetch_ahead(&mut self.walks) {
            return Ok(step);
        }
        *given += 1;
        let (id, window) = self.walks[place.walk].sample(place);
        Ok(Step::Sample {
            epoch: place.epoch,
            id,
            window,
            position,
        })
    }

    fn begin_batch(&mut self) -> Step {
        if self.batch == self.mixture.batches_per_epoch() {
            (self.epoch, self.batch) = (self.epoch + 1, 0);
        }
        if self.epochs.is_some_and(|epochs| self.epoch >= epochs) {
            return Step::End;
        }
        let places = self.mixture.slice(self.epoch, self.batch);
        let step = Step::Batch {
            epoch: self.epoch,
            batch_in_epoch: self.batch,
            num_samples: places.len(),
        };
        self.current = Some((places, 0));
        self.batch += 1;
        step
    }

    /// Takes a part of one of the windows ahead; that of a window that was left is of no use.
    pub(super) fn arrive(&mut self, unpacked: Unpacked) {
        let walk = &mut self.walks[unpacked.window.walk];
        let mut ahead = walk.ahead.iter_mut();
        if let Some(ahead) = ahead.find(|ahead| ahead.id == unpacked.window) {
            ahead.loading.arrive(unpacked.part, unpacked.batch);
        }
    }

    /// Whether parts of a window are still of use.
    pub(super) fn awaits(&self, id: WindowId) -> bool {
        let mut ahead = self.walks[id.walk].ahead.iter();
        ahead.any(|ahead| ahead.id == id)
    }
}

/// The next window to fetch, if it is time to: one of a lane that has fewest, so that the first
/// windows of all lanes come before the second of any.
fn fetch_ahead(walks: &mut [LaneWalk]) -> Option<Step> {
    (0..WINDOWS_AHEAD).find_map(|held| {
        let mut walks = walks.iter_mut().filter(|walk| walk.num_held() == held);
        let (id, parts) = walks.find_map(LaneWalk::fetch_next)?;
        Some(Step::Fetch(id, parts))
    })
}

/// The window that is walked.
#[derive(Debug)]
struct Current {
    epoch: u64,
    window: Window,
    loaded: Arc<LoadedWindow>,
    samples: Vec<SampleId>,
}

/// A window on its way.
#[derive(Debug)]
struct Ahead {
    id: WindowId,
    order: Arc<EpochOrder>,
    loading: LoadingWindow,
}

/// The windows of all epochs of one lane of a data set in order, some of them fetched ahead.
#[derive(Debug)]
struct LaneWalk {
    index: usize,
    source: LaneSource,
    ahead: VecDeque<Ahead>,
    current: Option<Current>,
    /// The next window to fetch: its epoch's order, its index in it.
    next_order: Arc<EpochOrder>,
    next_window: usize,
    next_sequence: u64,
}

impl LaneWalk {
    fn new(index: usize, source: LaneSource, epoch: u64, position: u64) -> Self {
        let order = Arc::new(source.order(epoch));
        let next_window = order.window_at(position);
        Self {
            index,
            source,
            ahead: VecDeque::new(),
            current: None,
            next_order: order,
            next_window,
            next_sequence: 0,
        }
    }

    fn holds(&self, place: SamplePlace) -> bool {
        self.current.as_ref().is_some_and(|current| {
            let window = &current.window;
            current.epoch == place.epoch
                && (window.start..window.start + window.num_samples()).contains(&place.index)
        })
    }

    /// A sample of the current window.
    fn sample(&self, place: SamplePlace) -> (SampleId, Arc<LoadedWindow>) {
        let current = self.current.as_ref().expect("it holds the sample");
        let id = current.samples[(place.index - current.window.start) as usize];
        (id, Arc::clone(&current.loaded))
    }

    /// Gives the current window up for the next one, of `epoch` or a later one.
    fn leave(&mut self, epoch: u64) {
        self.current = None;
        // A rank's last slice may end before the epoch's last window.
        self.ahead.retain(|ahead| ahead.order.epoch() >= epoch);
        if self.next_order.epoch() < epoch {
            self.begin_epoch(epoch);
        }
    }

    fn begin_epoch(&mut self, epoch: u64) {
        self.next_order = Arc::new(self.source.order(epoch));
        self.next_window = 0;
    }

    /// Makes the next window the current one, if all of it is there.
    fn enter(&mut self) -> Result<bool, Arc<DatasetError>> {
        let next = self.ahead.pop_front_if(|next| next.loading.is_settled());
        let Some(Ahead { order, loading, .. }) = next else {
            return Ok(false);
        };
        let (window, loaded) = loading.finish()?;
        let samples = order.samples(&window, |part| loaded.samples(part));
        self.current = Some(Current {
            epoch: order.epoch(),
            window,
            loaded: Arc::new(loaded),
            samples,
        });
        Ok(true)
    }

    /// Windows in memory or on their way.
    fn num_held(&self) -> usize {
        self.ahead.len() + usize::from(self.current.is_some())
    }

    /// The next window to fetch, if there is one.
    fn fetch_next(&mut self) -> Option<(WindowId, Vec<PartId>)> {
        // Fewer samples than lanes: this one has none in any epoch.
        if self.source.used_samples == 0 {
            return None;
        }
        let window = loop {
            let next = self.next_order.windows.get(self.next_window);
            if let Some(window) = next.filter(|window| window.start < self.source.used_samples) {
                break window.clone();
            }
            let epoch = self.next_order.epoch() + 1;
            if self.source.epochs.is_some_and(|epochs| epoch >= epochs) {
                return None;
            }
            self.begin_epoch(epoch);
        };
        let loading = LoadingWindow::new(window);
        let parts = loading.parts();
        let id = WindowId {
            walk: self.index,
            sequence: self.next_sequence,
        };
        self.ahead.push_back(Ahead {
            id,
            order: Arc::clone(&self.next_order),
            loading,
        });
        self.next_sequence += 1;
        self.next_window += 1;
        Some((id, parts))
    }
}
