//! One short run of a loader, and what was measured in it.
use std::time::{Duration, Instant};

use bytes::Bytes;
use nepa_pipeline::{
    Dataset, DecoderStats, IoCounters, Loader, LoaderError, PipelineStats, RawBackend, SampleId,
};

use super::kernel::{Reading, Use};
use super::moments::{Moment, Watch};
use crate::run::Batches;
use crate::signals::received;

/// Between two looks for a signal.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Whose batches are taken.
pub(super) enum Source {
    /// As a run takes them.
    Decoded(Batches),
    /// Without decoding: what is left is the store, unpacking and the order.
    Encoded(Box<Loader<RawBackend>>),
}

/// What a batch held.
pub(super) struct Taken {
    images: u64,
    bad: u64,
    /// Of a source that does not decode, its images as they are stored.
    encoded: Vec<(SampleId, Bytes)>,
}

impl Source {
    fn wait(&mut self, timeout: Duration) -> bool {
        match self {
            Self::Decoded(batches) => batches.wait(timeout),
            Self::Encoded(loader) => loader.wait(timeout),
        }
    }

    fn take(&mut self) -> Result<Option<Taken>, LoaderError> {
        Ok(match self {
            Self::Decoded(batches) => batches.next_batch()?.map(|batch| Taken {
                images: batch.samples().len() as u64,
                bad: bad(batch.samples()),
                encoded: Vec::new(),
            }),
            Self::Encoded(loader) => loader.next_batch()?.map(|batch| {
                let ids = batch.samples().iter().map(|sample| sample.id);
                Taken {
                    images: batch.len() as u64,
                    bad: bad(batch.samples()),
                    encoded: ids.zip(batch.encoded().iter().cloned()).collect(),
                }
            }),
        })
    }

    fn stats(&self) -> PipelineStats {
        match self {
            Self::Decoded(batches) => batches.stats(),
            Self::Encoded(loader) => loader.stats(),
        }
    }
}

fn bad(samples: &[nepa_pipeline::SampleRecord]) -> u64 {
    let replaced = samples.iter().filter(|sample| sample.replaces.is_some());
    replaced.count() as u64
}

/// What was measured.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    /// Time that was measured, after the first batch, in seconds.
    pub(super) seconds: f64,
    /// Time to the first batch; none where it did not come in time.
    pub(super) first_batch_s: Option<f64>,
    /// Images that were taken, in so many batches.
    pub(super) images: u64,
    pub(super) batches: u64,
    /// From the beginning of measuring to the last batch, in seconds.
    pub(super) last_s: f64,
    /// Bad ones among them.
    pub(super) bad: u64,
    /// What the store did.
    pub(super) io: IoCounters,
    /// What the stages did.
    pub(super) stats: PipelineStats,
    /// What the processor did.
    pub(super) kernel: Use,
    /// What the stages did from moment to moment.
    pub(super) moments: Vec<Moment>,
}

impl Trial {
    /// Images taken a second. Where batches come steadily, the time after the last of them is left
    /// out: a trial is short, and a batch may be large.
    pub(super) fn rate(&self) -> f64 {
        let between = self.last_s / self.batches.max(1) as f64;
        let is_steady = self.batches > 0 && self.seconds - self.last_s < 2.0 * between;
        let seconds = if is_steady { self.last_s } else { self.seconds };
        self.images as f64 / seconds
    }

    /// Bytes that came a second, from the store or its cache.
    pub(super) fn bytes_a_second(&self) -> f64 {
        (self.io.bytes + self.io.cache_hit_bytes) as f64 / self.seconds
    }

    /// Requests in flight, on average.
    pub(super) fn in_flight(&self) -> f64 {
        self.io.busy_ns as f64 / 1e9 / self.seconds
    }

    /// Who decoded on a GPU.
    pub(super) fn decoders(&self) -> Option<&DecoderStats> {
        self.stats.decoders.as_ref()
    }
}

/// Takes images as they are stored.
pub(super) type Keep<'a> = dyn FnMut(&[(SampleId, Bytes)]) + 'a;

/// How a trial is run.
pub(super) struct Rules<'a> {
    /// Time to measure.
    pub(super) length: Duration,
    /// Longest wait for the first batch; then measuring begins without it.
    pub(super) warm_up: Duration,
    /// Images a second that are taken at most.
    pub(super) consumer: Option<f64>,
    /// Is given the images of each batch, of a source that does not decode.
    pub(super) keep: &'a mut Keep<'a>,
    /// Looks at it now and then.
    pub(super) watch: Watch<'a>,
}

/// Runs a loader for a while; `None` where a signal came before there was enough to tell.
pub(super) fn run(
    mut source: Source,
    dataset: &Dataset,
    mut rules: Rules<'_>,
) -> Result<Option<Trial>, LoaderError> {
    let begun = Instant::now();
    let mut first_batch_s = None;
    while begun.elapsed() < rules.warm_up {
        if received().is_some() {
            return Ok(None);
        }
        rules.watch.look(|| source.stats());
        if source.wait(LOOK_EVERY) {
            first_batch_s = Some(begun.elapsed().as_secs_f64());
            if let Some(taken) = source.take()? {
                (rules.keep)(&taken.encoded);
            }
            break;
        }
    }
    let (before_io, before) = (dataset.io_counters(), source.stats());
    rules.watch.begin();
    let (kernel, since) = (Reading::now(), Instant::now());
    let (mut images, mut bad, mut batches, mut last_s) = (0, 0, 0, 0.0);
    while since.elapsed() < rules.length && received().is_none() {
        rules.watch.look(|| source.stats());
        let left = rules.length.saturating_sub(since.elapsed());
        if !source.wait(left.min(LOOK_EVERY)) {
            continue;
        }
        let Some(taken) = source.take()? else { break };
        (images, bad, batches) = (images + taken.images, bad + taken.bad, batches + 1);
        last_s = since.elapsed().as_secs_f64();
        (rules.keep)(&taken.encoded);
        if let Some(rate) = rules.consumer {
            let due = Duration::from_secs_f64(images as f64 / rate);
            let end = rules.length.saturating_sub(since.elapsed());
            std::thread::sleep(due.saturating_sub(since.elapsed()).min(end));
            last_s = since.elapsed().as_secs_f64();
        }
    }
    let seconds = since.elapsed().as_secs_f64();
    if seconds < rules.length.as_secs_f64() / 4.0 {
        return Ok(None);
    }
    Ok(Some(Trial {
        seconds,
        first_batch_s,
        images,
        batches,
        last_s,
        bad,
        io: dataset.io_counters().since(&before_io),
        stats: source.stats().since(&before),
        kernel: kernel.until(&Reading::now()),
        moments: rules.watch.into_moments(),
    }))
}
