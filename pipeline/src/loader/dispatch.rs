//! Drives the walk: fetches its windows, lends slots to its batches, hands its samples to the
//! decode threads.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::LoaderError;
use super::job::{Done, Fetched, Job, PendingBatch, Unpacked, WindowId};
use super::walk::{Step, Walk};
use crate::backend::ImageBackend;
use crate::batch::BatchPool;
use crate::dataset::FetchTask;
use crate::spans::SPANS_ACROSS_THREADS;
use crate::stats::PipelineCounters;
use crate::sync::{Receiver, Sender, bounded, select};
use crate::{Dataset, PartId};

/// Why the walk ended early.
pub(super) enum Ended {
    /// The loader is being dropped.
    Stopped,
    /// The run is bad.
    Failed(LoaderError),
}

/// What the walk's thread holds: the data set, the pool, the ends of its queues.
pub(super) struct Dispatcher<B: ImageBackend> {
    pub dataset: Arc<Dataset>,
    pub pool: BatchPool<B>,
    pub counters: Arc<PipelineCounters>,
    pub stop: Receiver<()>,
    pub fetched: Sender<Fetched>,
    pub unpacked: Receiver<Unpacked>,
    pub jobs: Sender<Job<B::Slot>>,
    pub pending: Sender<PendingBatch<B::Slot>>,
}

/// The batch whose samples are being handed out.
struct Current<S> {
    slots: std::vec::IntoIter<S>,
    done: Sender<Done<S>>,
}

impl<B: ImageBackend> Dispatcher<B> {
    /// Walks to the end.
    pub(super) fn run(&self, mut walk: Walk) -> Result<(), Ended> {
        // Each ends when it is dropped.
        let mut fetches: HashMap<WindowId, FetchTask> = HashMap::new();
        let mut current = None;
        loop {
            let step = walk.next();
            match step.map_err(|error| Ended::Failed(error.into()))? {
                Step::Fetch(id, parts) => {
                    fetches.retain(|&id, _| walk.awaits(id));
                    fetches.insert(id, self.fetch(id, &parts));
                }
                Step::Await => {
                    let waiting = self.counters.dispatch.waits();
                    let unpacked = select! {
                        recv(self.unpacked) -> unpacked => unpacked.map_err(|_| Ended::Stopped)?,
                        recv(self.stop) -> _ => return Err(Ended::Stopped),
                    };
                    drop(waiting);
                    walk.arrive(unpacked);
                }
                Step::Batch {
                    epoch,
                    batch_in_epoch,
                    num_samples,
                } => current = Some(self.begin(epoch, batch_in_epoch, num_samples)?),
                Step::Sample {
                    epoch,
                    id,
                    window,
                    position,
                } => {
                    let batch = current.as_mut().expect("a batch has begun");
                    let job = Job {
                        epoch,
                        id,
                        window,
                        position,
                        slot: batch.slots.next().expect("a slot for each sample"),
                        done: batch.done.clone(),
                    };
                    let waiting = Instant::now();
                    select! {
                        send(self.jobs, job) -> sent => sent.map_err(|_| Ended::Stopped)?,
                        recv(self.stop) -> _ => return Err(Ended::Stopped),
                    }
                    self.counters.dispatch.blocked_out(waiting);
                }
                Step::BatchEnd => {
                    current = None;
                    self.counters.dispatch.item(0);
                }
                Step::End => return Ok(()),
            }
        }
    }

    fn fetch(&self, window: WindowId, parts: &[PartId]) -> FetchTask {
        let fetched = self.fetched.clone();
        let deliver = move |part, bytes| {
            // Nobody listens while the loader stops.
            let _ = fetched.send(Fetched {
                window,
                part,
                bytes,
            });
        };
        FetchTask::new(&self.dataset, parts, Arc::new(deliver))
    }

    /// Takes slots for a batch and announces it to whoever waits for the next one.
    fn begin(
        &self,
        epoch: u64,
        batch_in_epoch: u64,
        num_samples: usize,
    ) -> Result<Current<B::Slot>, Ended> {
        let waiting = Instant::now();
        let memory = select! {
            recv(self.pool.free) -> memory => memory.expect("the pool keeps its own ends"),
            recv(self.stop) -> _ => return Err(Ended::Stopped),
        };
        let mut slots = self.pool.backend().slots(memory);
        let spare = slots.split_off(num_samples);
        let (done_sender, done) = bounded(num_samples);
        let pending = PendingBatch {
            epoch,
            batch_in_epoch,
            num_samples,
            done,
            spare,
            span: tracing::trace_span!(
                target: SPANS_ACROSS_THREADS,
                "batch",
                epoch,
                batch = batch_in_epoch,
                images = num_samples,
            ),
        };
        select! {
            send(self.pending, pending) -> sent => sent.map_err(|_| Ended::Stopped)?,
            recv(self.stop) -> _ => return Err(Ended::Stopped),
        }
        self.counters.dispatch.blocked_out(waiting);
        Ok(Current {
            slots: slots.into_iter(),
            done: done_sender,
        })
    }
}
