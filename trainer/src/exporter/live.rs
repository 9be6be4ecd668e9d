//! What a run does now: the training loop writes it down, whoever scrapes it reads it, at any time.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nepa_pipeline::StatsReader;

use crate::logs::{DecodedImages, StepMetrics};

/// Shared by the training loop and the exporter; each holds the lock for a moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Live(Arc<Mutex<Now>>);

/// Counts are of this process, unless they say otherwise.
#[derive(Debug, Clone, Default)]
pub(super) struct Now {
    /// Steps and images of the whole run, those of earlier processes included.
    pub(super) step: u64,
    pub(super) samples: u64,
    /// Step at which the run ends.
    pub(super) last_step: u64,
    /// The last step of this process.
    pub(super) metrics: Option<StepMetrics>,
    waited: Duration,
    waiting_since: Option<Instant>,
    pub(super) stepped: Duration,
    /// Images that were taken from the loader, and those of them that stand for another.
    pub(super) taken: u64,
    pub(super) replacements: u64,
    /// Bad images of the whole run, and those before this process.
    pub(super) bad: u64,
    bad_before: u64,
    /// Who decoded, on a GPU.
    pub(super) decoded: Option<DecodedImages>,
    pub(super) checkpoints: u64,
    pub(super) evaluations: u64,
    /// Images of a batch.
    pub(super) batch: u64,
    pub(super) loader: Option<StatsReader>,
}

impl Now {
    /// Time that steps waited for their batch, the wait that lasts included.
    pub(super) fn waited(&self) -> Duration {
        let lasting = self.waiting_since.map(|since| since.elapsed());
        self.waited + lasting.unwrap_or_default()
    }

    /// Rows without an image that were replaced.
    pub(super) fn absent(&self) -> u64 {
        self.replacements
            .saturating_sub(self.bad.saturating_sub(self.bad_before))
    }

    /// Batches that `decoded` images are, less those that were taken.
    pub(super) fn batches_ready(&self, decoded: u64) -> f64 {
        decoded.saturating_sub(self.taken) as f64 / self.batch.max(1) as f64
    }
}

impl Live {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it is at this moment.
    pub(super) fn snapshot(&self) -> Now {
        self.now().clone()
    }

    /// Training begins after `step` of `last_step`, and after `samples` images and `bad` ones; a
    /// step takes `batch` of them.
    pub(crate) fn begin(
        &self,
        step: u64,
        last_step: u64,
        (samples, bad): (u64, u64),
        batch: usize,
        loader: StatsReader,
    ) {
        let mut now = self.now();
        (now.bad, now.bad_before) = (bad, bad);
        (now.step, now.samples, now.last_step) = (step, samples, last_step);
        now.batch = batch as u64;
        now.loader = Some(loader);
    }

    /// A step waits for its batch since then.
    pub(crate) fn waits(&self, since: Instant) {
        self.now().waiting_since = Some(since);
    }

    /// A batch was taken, after so long. So many of its images stand for others, after which so
    /// many images of the run were bad.
    pub(crate) fn takes(&self, images: usize, replaced: Option<(usize, u64)>, waited: Duration) {
        let mut now = self.now();
        now.taken += images as u64;
        if let Some((replacements, bad)) = replaced {
            now.replacements += replacements as u64;
            now.bad = bad;
        }
        now.waiting_since = None;
        now.waited += waited;
    }

    /// Batches that are decoded and not yet taken, where so many images were decoded.
    pub(crate) fn batches_ready(&self, decoded: u64) -> f64 {
        self.now().batches_ready(decoded)
    }

    /// A step was made.
    pub(crate) fn step(&self, metrics: &StepMetrics) {
        let mut now = self.now();
        (now.step, now.samples) = (metrics.step, metrics.samples);
        now.stepped += Duration::from_secs_f64(metrics.step_ms.max(0.0) / 1e3);
        if let Some(since) = &metrics.decoders {
            let decoded = now.decoded.get_or_insert_default();
            decoded.hardware += since.hardware;
            decoded.hybrid += since.hybrid;
            decoded.cpu += since.cpu;
        }
        now.metrics = Some(metrics.clone());
    }

    /// A checkpoint was saved; in a store it is on its way.
    pub(crate) fn saved(&self) {
        self.now().checkpoints += 1;
    }

    /// An evaluation was made.
    pub(crate) fn evaluated(&self) {
        self.now().evaluations += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_counts_while_it_lasts_and_bad_images_of_before_are_no_absent_ones() {
        let live = Live::default();
        live.now().bad = 5;
        live.now().bad_before = 5;
        assert_eq!(live.snapshot().absent(), 0);
        let minute = Duration::from_mins(1);
        live.waits(Instant::now().checked_sub(minute).unwrap());
        assert!(live.snapshot().waited() >= minute);
        live.takes(8, Some((3, 7)), minute);
        live.takes(8, None, Duration::ZERO);
        let now = live.snapshot();
        assert_eq!((now.waited(), now.bad, now.absent()), (minute, 7, 1));
        assert_eq!(now.taken, 16);
    }
}
