//! One short run of a loader, and what was measured in it.
use std::time::{Duration, Instant};

use bytes::Bytes;
use nepa_pipeline::{
    Dataset, DecoderStats, IoCounters, Loader, PipelineStats, RawBackend, SampleId, Stage,
};

use super::kernel::{Reading, Threads, Use};
use super::moments::{Moment, Watch};
use crate::run::{Batches, Stepper, num_replaced};
use crate::signals::received;

/// Between two looks for a signal and for bytes that have come.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Share of a trial for which batches are taken before it is measured: queues are full by then.
const SETTLE: f64 = 0.2;
/// So many batches tell a rate.
const ENOUGH_BATCHES: u64 = 5;

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

    /// Takes the next batch; one that is decoded is given to `stepper`.
    fn take(&mut self, stepper: Option<&mut Stepper>) -> anyhow::Result<Option<Taken>> {
        Ok(match self {
            Self::Decoded(batches) => {
                let Some(batch) = batches.next_batch()? else {
                    return Ok(None);
                };
                if let Some(stepper) = stepper {
                    stepper.step(&batch)?;
                }
                Some(Taken {
                    images: batch.samples().len() as u64,
                    bad: num_replaced(batch.samples()) as u64,
                    encoded: Vec::new(),
                })
            }
            Self::Encoded(loader) => loader.next_batch()?.map(|batch| {
                let ids = batch.samples().iter().map(|sample| sample.id);
                Taken {
                    images: batch.len() as u64,
                    bad: num_replaced(batch.samples()) as u64,
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

/// How long the first batch took.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub(super) struct FirstBatch {
    /// From the start of the loader, in seconds.
    pub(super) seconds: f64,
    /// For so long of it row groups were waited for, in seconds: fetched and unpacked.
    pub(super) fetch_s: f64,
}

/// What was measured.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    /// Time that was measured, in seconds.
    pub(super) seconds: f64,
    /// None where it did not come in time.
    pub(super) first_batch: Option<FirstBatch>,
    /// Images that were taken, in so many batches.
    pub(super) images: u64,
    pub(super) batches: u64,
    /// Images of the first batch.
    pub(super) first_images: u64,
    /// From the beginning of measuring until the first batch was there, and until the last one was
    /// done with, in seconds.
    pub(super) first_s: f64,
    pub(super) last_s: f64,
    /// Whether a consumer was done with it, and not the trial.
    pub(super) is_consumed: bool,
    /// Bad ones among them.
    pub(super) bad: u64,
    /// What the store did.
    pub(super) io: IoCounters,
    /// When its bytes came.
    pub(super) arrivals: Arrivals,
    /// What the stages did.
    pub(super) stats: PipelineStats,
    /// What the processor did.
    pub(super) kernel: Use,
    /// What each kind of thread did, the busiest first.
    pub(super) threads: Vec<Threads>,
    /// What the stages did from moment to moment.
    pub(super) moments: Vec<Moment>,
}

impl Trial {
    /// Images a second: those that a consumer took; else from the first batch to the last, as the
    /// first one was begun before; of few batches, which may be large, those that were decoded.
    pub(super) fn rate(&self) -> f64 {
        if self.is_consumed && self.batches > 0 {
            self.images as f64 / self.last_s
        } else if self.batches > ENOUGH_BATCHES {
            (self.images - self.first_images) as f64 / (self.last_s - self.first_s)
        } else {
            self.stats.stage(Stage::Decode).items as f64 / self.seconds
        }
    }

    /// Bytes that came a second, from the store or its cache.
    pub(super) fn bytes_a_second(&self) -> f64 {
        let all = all_bytes(&self.io) as f64 / self.seconds;
        self.arrivals.rate(self.seconds).unwrap_or(all)
    }

    /// Requests in flight, on average.
    pub(super) fn in_flight(&self) -> f64 {
        self.io.busy_ns as f64 / 1e9 / self.seconds
    }

    /// From sending a request to its last byte, on average, in seconds; none without a request.
    pub(super) fn request_s(&self) -> Option<f64> {
        let requests = (self.io.requests > 0).then_some(self.io.requests as f64)?;
        Some(self.io.busy_ns as f64 / 1e9 / requests)
    }

    /// Who decoded on a GPU.
    pub(super) fn decoders(&self) -> Option<&DecoderStats> {
        self.stats.decoders.as_ref()
    }
}

/// Bytes from the store or its cache.
fn all_bytes(io: &IoCounters) -> u64 {
    io.bytes + io.cache_hit_bytes
}

/// When bytes came: answers to requests that were sent together come together, a wave in each time
/// to the first byte, so whether a trial holds four waves or five is chance. The slope of the line
/// through all looks (least squares) hardly depends on that.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Arrivals {
    /// Bytes when measuring began, and when it was looked at last.
    begun: u64,
    seen: u64,
    /// The first and the last time at which more were seen, in seconds.
    ends: Option<[f64; 2]>,
    looks: f64,
    mean_s: f64,
    mean_bytes: f64,
    /// Sums of products of distances from the means: of time with itself, and with bytes.
    time_time: f64,
    time_bytes: f64,
}

impl Arrivals {
    fn since(bytes: u64) -> Self {
        Self {
            begun: bytes,
            seen: bytes,
            ..Self::default()
        }
    }

    fn look(&mut self, at_s: f64, bytes: u64) {
        if bytes > self.seen {
            self.ends = Some([self.ends.map_or(at_s, |ends| ends[0]), at_s]);
        }
        self.seen = bytes;
        // Welford's way: no differences of large sums.
        let bytes = (bytes - self.begun) as f64;
        self.looks += 1.0;
        let (ahead_s, ahead_bytes) = (at_s - self.mean_s, bytes - self.mean_bytes);
        self.mean_s += ahead_s / self.looks;
        self.mean_bytes += ahead_bytes / self.looks;
        self.time_time += ahead_s * (at_s - self.mean_s);
        self.time_bytes += ahead_s * (bytes - self.mean_bytes);
    }

    /// Bytes a second; none where they came in less than half of the time.
    fn rate(&self, seconds: f64) -> Option<f64> {
        let [first, last] = self.ends?;
        (last - first > seconds / 2.0).then(|| self.time_bytes / self.time_time)
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
    pub(super) most: Option<f64>,
    /// Trains on each decoded batch.
    pub(super) stepper: Option<&'a mut Stepper>,
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
) -> anyhow::Result<Option<Trial>> {
    let begun = Instant::now();
    let mut first_batch = None;
    while begun.elapsed() < rules.warm_up {
        if received().is_some() {
            return Ok(None);
        }
        rules.watch.look(|| source.stats());
        if source.wait(LOOK_EVERY) {
            first_batch = Some(FirstBatch {
                seconds: begun.elapsed().as_secs_f64(),
                fetch_s: source.stats().stage(Stage::Dispatch).blocked_in_s,
            });
            break;
        }
    }
    // What came ahead is taken before time is measured.
    take_for(
        &mut source,
        dataset,
        rules.length.mul_f64(SETTLE),
        &mut rules,
    )?;
    let (before_io, before) = (dataset.io_counters(), source.stats());
    rules.watch.begin();
    let kernel = Reading::now();
    let length = rules.length.mul_f64(1.0 - SETTLE);
    let taken = take_for(&mut source, dataset, length, &mut rules)?;
    let kernel_now = Reading::now();
    if taken.seconds < length.as_secs_f64() / 4.0 {
        return Ok(None);
    }
    Ok(Some(Trial {
        seconds: taken.seconds,
        first_batch,
        images: taken.images,
        batches: taken.batches,
        first_images: taken.first_images,
        first_s: taken.first_s,
        last_s: taken.last_s,
        bad: taken.bad,
        io: dataset.io_counters().since(&before_io),
        arrivals: taken.arrivals,
        stats: source.stats().since(&before),
        kernel: kernel.until(&kernel_now),
        threads: kernel.threads_until(&kernel_now),
        is_consumed: rules.most.is_some() || rules.stepper.is_some(),
        moments: rules.watch.into_moments(),
    }))
}

/// What was taken in a while.
#[derive(Debug, Default)]
struct Sum {
    seconds: f64,
    images: u64,
    bad: u64,
    batches: u64,
    first_images: u64,
    first_s: f64,
    last_s: f64,
    arrivals: Arrivals,
}

/// Takes batches for so long, or until a signal comes.
fn take_for(
    source: &mut Source,
    dataset: &Dataset,
    length: Duration,
    rules: &mut Rules<'_>,
) -> anyhow::Result<Sum> {
    let (since, mut sum) = (Instant::now(), Sum::default());
    sum.arrivals = Arrivals::since(all_bytes(&dataset.io_counters()));
    let mut look_at = Duration::ZERO;
    while since.elapsed() < length && received().is_none() {
        rules.watch.look(|| source.stats());
        if since.elapsed() >= look_at {
            let bytes = all_bytes(&dataset.io_counters());
            sum.arrivals.look(since.elapsed().as_secs_f64(), bytes);
            look_at = since.elapsed() + LOOK_EVERY;
        }
        let left = length.saturating_sub(since.elapsed());
        if !source.wait(left.min(LOOK_EVERY)) {
            continue;
        }
        let Some(taken) = source.take(rules.stepper.as_deref_mut())? else {
            break;
        };
        if sum.batches == 0 {
            sum.first_images = taken.images;
            sum.first_s = since.elapsed().as_secs_f64();
        }
        sum.images += taken.images;
        sum.bad += taken.bad;
        sum.batches += 1;
        (rules.keep)(&taken.encoded);
        sum.last_s = since.elapsed().as_secs_f64();
        if let Some(rate) = rules.most {
            let due = Duration::from_secs_f64(sum.images as f64 / rate);
            let end = length.saturating_sub(since.elapsed());
            std::thread::sleep(due.saturating_sub(since.elapsed()).min(end));
            // The consumer may be done with it after the trial.
            sum.last_s = sum.last_s.max(due.as_secs_f64());
        }
    }
    sum.seconds = since.elapsed().as_secs_f64();
    Ok(sum)
}

/// Gives one batch to a step again and again: its rate without a loader, in images a second. `None`
/// where a signal came before there was enough to tell.
pub(super) fn step_alone(
    mut batches: Batches,
    length: Duration,
    stepper: &mut Stepper,
) -> anyhow::Result<Option<f64>> {
    while !batches.wait(LOOK_EVERY) {
        if received().is_some() {
            return Ok(None);
        }
    }
    let Some(batch) = batches.next_batch()? else {
        return Ok(None);
    };
    drop(batches);
    // The first step makes its memory.
    stepper.step(&batch)?;
    let (since, mut steps) = (Instant::now(), 0);
    while since.elapsed() < length && received().is_none() {
        stepper.step(&batch)?;
        steps += 1;
    }
    let images = f64::from(steps) * batch.samples().len() as f64;
    Ok((steps > 0).then(|| images / since.elapsed().as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wave_more_or_less_changes_no_rate() {
        // A hundred bytes each 200 ms, from a moment on, which come within some time.
        for (first_ms, spread_ms) in [(10, 0), (190, 0), (100, 0), (10, 60), (150, 60)] {
            let mut arrivals = Arrivals::since(0);
            for ms in (0..2400).step_by(10) {
                let since_first = ms + 200 - first_ms;
                let of_wave = (since_first % 200).min(spread_ms) + i32::from(spread_ms == 0);
                let bytes = since_first / 200 * 100 + of_wave * 100 / spread_ms.max(1);
                arrivals.look(f64::from(ms) / 1e3, bytes as u64);
            }
            let rate = arrivals.rate(2.4).unwrap();
            let case = format!("from {first_ms} ms on, in {spread_ms} ms: {rate}");
            assert!((rate / 500.0 - 1.0).abs() < 0.02, "{case}");
        }
        // One wave tells no rate.
        let mut arrivals = Arrivals::since(0);
        arrivals.look(0.5, 10);
        arrivals.look(0.9, 10);
        assert_eq!(arrivals.rate(1.0), None);
    }
}
