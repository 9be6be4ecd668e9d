//! What each stage did: items, bytes, busy and blocked time, queue fill; and which stage limits.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

mod decoders;

pub use decoders::{DecoderCounters, DecoderStats, JpegEngine, RefusalPhase, Refusals};

/// The counters of one stage, added to by its threads.
#[derive(Debug, Default)]
pub(crate) struct StageCounters {
    pub items: AtomicU64,
    pub bytes: AtomicU64,
    busy_ns: AtomicU64,
    blocked_in_ns: AtomicU64,
    /// The wait for input that lasts, where one thread waits and [`Self::waits`] counts it.
    waits_since: Mutex<Option<Instant>>,
    blocked_out_ns: AtomicU64,
    fill_sum: AtomicU64,
    fill_samples: AtomicU64,
}

impl StageCounters {
    pub(crate) fn busy(&self, since: Instant) {
        self.busy_ns.fetch_add(nanos(since.elapsed()), Relaxed);
    }

    /// Waited for input.
    pub(crate) fn blocked_in(&self, since: Instant) {
        self.blocked_in_ns
            .fetch_add(nanos(since.elapsed()), Relaxed);
    }

    /// Waits for input until the guard is dropped; the wait counts while it lasts. For one thread.
    pub(crate) fn waits(&self) -> Waiting<'_> {
        *self.waits_since() = Some(Instant::now());
        Waiting(self)
    }

    fn waits_since(&self) -> MutexGuard<'_, Option<Instant>> {
        let since = self.waits_since.lock();
        since.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waited for room in its output.
    pub(crate) fn blocked_out(&self, since: Instant) {
        self.blocked_out_ns
            .fetch_add(nanos(since.elapsed()), Relaxed);
    }

    pub(crate) fn item(&self, bytes: usize) {
        self.items.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Samples the fill of the stage's input queue.
    pub(crate) fn fill(&self, len: usize) {
        self.fill_sum.fetch_add(len as u64, Relaxed);
        self.fill_samples.fetch_add(1, Relaxed);
    }

    fn read(&self, stage: Stage, workers: usize, queue_capacity: usize) -> StageStats {
        let samples = self.fill_samples.load(Relaxed);
        let blocked_in_ns = {
            let since = self.waits_since();
            let lasting = since.map_or(0, |since| nanos(since.elapsed()));
            self.blocked_in_ns.load(Relaxed) + lasting
        };
        StageStats {
            stage,
            workers,
            items: self.items.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            busy_s: seconds(self.busy_ns.load(Relaxed)),
            blocked_in_s: seconds(blocked_in_ns),
            blocked_out_s: seconds(self.blocked_out_ns.load(Relaxed)),
            queue_capacity,
            queue_fill: if samples == 0 {
                0.0
            } else {
                self.fill_sum.load(Relaxed) as f64 / samples as f64
            },
        }
    }
}

/// A wait that lasts.
#[derive(Debug)]
pub(crate) struct Waiting<'a>(&'a StageCounters);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // Under the lock, so that no reading counts it twice or not at all.
        let mut since = self.0.waits_since();
        if let Some(since) = since.take() {
            self.0.blocked_in(since);
        }
    }
}

/// The counters of all stages of a loader.
#[derive(Debug, Default)]
pub(crate) struct PipelineCounters {
    pub unpack: StageCounters,
    pub decode: StageCounters,
    /// Walks the order: waits for row groups, free slots and room for jobs.
    pub dispatch: StageCounters,
    /// Waits for finished batches; busy between two calls of `next_batch`.
    pub consume: StageCounters,
}

/// The fixed sizes beside the counters.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub max_requests: usize,
    pub decode_threads: usize,
    pub job_queue: usize,
    pub batch_queue: usize,
}

impl PipelineCounters {
    pub(crate) fn read(
        &self,
        wall: Duration,
        sizes: Sizes,
        io: &crate::store::IoCounters,
    ) -> PipelineStats {
        let fetch = StageStats {
            stage: Stage::Fetch,
            workers: sizes.max_requests,
            items: io.requests,
            bytes: io.bytes,
            busy_s: seconds(io.busy_ns),
            blocked_in_s: 0.0,
            blocked_out_s: seconds(io.budget_wait_ns),
            queue_capacity: sizes.max_requests,
            queue_fill: io.in_flight as f64,
        };
        let threads = sizes.decode_threads;
        PipelineStats {
            wall_s: wall.as_secs_f64(),
            stages: vec![
                fetch,
                self.unpack.read(Stage::Unpack, threads, 0),
                self.decode.read(Stage::Decode, threads, sizes.job_queue),
                self.dispatch.read(Stage::Dispatch, 1, 0),
                self.consume.read(Stage::Consume, 1, sizes.batch_queue),
            ],
            decoders: None,
        }
    }
}

/// The stages of the loader, in the order of a sample's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Requests to the store.
    Fetch,
    /// Decompression of row groups and proof of their columns.
    Unpack,
    /// Decoding, cropping, resizing, normalising.
    Decode,
    /// The walk along the order; hands samples to the decode threads.
    Dispatch,
    /// Whoever takes the batches.
    Consume,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Fetch => "fetch",
            Self::Unpack => "unpack",
            Self::Decode => "decode",
            Self::Dispatch => "dispatch",
            Self::Consume => "consume",
        })
    }
}

/// What one stage did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageStats {
    /// Which stage.
    pub stage: Stage,
    /// How many can work at once: requests, or threads (unpack and decode share the same).
    pub workers: usize,
    /// Requests, row groups, images, batches.
    pub items: u64,
    /// Bytes that came in.
    pub bytes: u64,
    /// Time at work, summed over the workers, in seconds.
    pub busy_s: f64,
    /// Time waiting for input, summed, in seconds.
    pub blocked_in_s: f64,
    /// Time waiting for room in the output, summed, in seconds.
    pub blocked_out_s: f64,
    /// Capacity of the input queue; 0 if there is none of its own.
    pub queue_capacity: usize,
    /// Mean fill of the input queue.
    pub queue_fill: f64,
}

/// What all stages did since the loader started.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PipelineStats {
    /// Time since the start, in seconds.
    pub wall_s: f64,
    /// In the order of a sample's path.
    pub stages: Vec<StageStats>,
    /// Who decoded; absent where there is only the processor to do it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoders: Option<DecoderStats>,
}

impl PipelineStats {
    /// The numbers of one stage.
    pub fn stage(&self, stage: Stage) -> &StageStats {
        self.stages
            .iter()
            .find(|stats| stats.stage == stage)
            .expect("every stage is listed")
    }

    /// What the stages did since `earlier`, so that the start of a run does not count; the queues'
    /// fill stays the mean.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let stages = self
            .stages
            .iter()
            .zip(&earlier.stages)
            .map(|(now, before)| StageStats {
                items: now.items.saturating_sub(before.items),
                bytes: now.bytes.saturating_sub(before.bytes),
                busy_s: (now.busy_s - before.busy_s).max(0.0),
                blocked_in_s: (now.blocked_in_s - before.blocked_in_s).max(0.0),
                blocked_out_s: (now.blocked_out_s - before.blocked_out_s).max(0.0),
                ..now.clone()
            });
        let decoders = self.decoders.as_ref().map(|now| {
            let before = earlier.decoders.as_ref();
            before.map_or_else(|| now.clone(), |before| now.since(before))
        });
        Self {
            wall_s: self.wall_s - earlier.wall_s,
            stages: stages.collect(),
            decoders,
        }
    }

    /// The share of the time in which the others waited for a stage, from 0 to 1: for the fetch,
    /// while the walk along the order waits for row groups and the decode threads are idle; for
    /// unpacking and decoding, the mean share of the decode threads that are at it; for the
    /// consumer, while it does not wait for a batch; for the walk, which computes next to nothing,
    /// 0.
    pub fn share(&self, stage: Stage) -> f64 {
        let wall = self.wall_s.max(1e-9);
        let share = |seconds: f64| (seconds / wall).clamp(0.0, 1.0);
        let threads = self.stage(Stage::Decode).workers.max(1) as f64;
        let busy = |stage| share(self.stage(stage).busy_s / threads);
        match stage {
            Stage::Fetch => {
                let idle = 1.0 - busy(Stage::Unpack) - busy(Stage::Decode);
                share(self.stage(Stage::Dispatch).blocked_in_s).min(idle.max(0.0))
            }
            Stage::Unpack | Stage::Decode => busy(stage),
            Stage::Dispatch => 0.0,
            Stage::Consume => share(self.stage(stage).busy_s),
        }
    }

    /// The stage with the greatest [`Self::share`], and that share.
    pub fn limiting_stage(&self) -> (Stage, f64) {
        [Stage::Fetch, Stage::Unpack, Stage::Decode, Stage::Consume]
            .map(|stage| (stage, self.share(stage)))
            .into_iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .expect("the list is not empty")
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_waited_for_limits() {
        let stats = |wait: f64, decode: f64, consume: f64| {
            let counters = PipelineCounters::default();
            counters
                .dispatch
                .blocked_in_ns
                .store((wait * 1e9) as u64, Relaxed);
            counters
                .decode
                .busy_ns
                .store((decode * 1e9) as u64, Relaxed);
            counters
                .consume
                .busy_ns
                .store((consume * 1e9) as u64, Relaxed);
            let sizes = Sizes {
                max_requests: 2,
                decode_threads: 2,
                job_queue: 8,
                batch_queue: 2,
            };
            counters
                .read(
                    Duration::from_secs(10),
                    sizes,
                    &crate::store::IoCounters::default(),
                )
                .limiting_stage()
                .0
        };
        assert_eq!(stats(9.0, 2.0, 0.1), Stage::Fetch);
        assert_eq!(stats(0.5, 19.0, 0.1), Stage::Decode);
        assert_eq!(stats(0.5, 4.0, 9.5), Stage::Consume);
    }

    #[test]
    fn a_wait_counts_while_it_lasts_and_once() {
        let counters = StageCounters::default();
        let read = || counters.read(Stage::Dispatch, 1, 0).blocked_in_s;
        let begun = Instant::now();
        let waiting = counters.waits();
        std::thread::sleep(Duration::from_millis(20));
        let during = read();
        assert!((0.02..=begun.elapsed().as_secs_f64()).contains(&during));
        drop(waiting);
        let after = read();
        assert!((during..=begun.elapsed().as_secs_f64()).contains(&after));
        assert!((read() - after).abs() < 1e-12);
    }
}
