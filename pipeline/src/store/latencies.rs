//! How late answers came: a histogram that threads add to.
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets, each a third of a doubling wide, of 0.1 ms to 3.5 minutes.
const BUCKETS: usize = 64;
const IN_A_DOUBLING: f64 = 3.0;
/// Where the second bucket begins.
const LEAST: Duration = Duration::from_micros(100);

/// The bucket of a latency.
fn bucket(latency: Duration) -> usize {
    let doublings = latency.div_duration_f64(LEAST).log2();
    // From -inf on.
    let bucket = (doublings * IN_A_DOUBLING).floor().max(-1.0) as isize + 1;
    (bucket as usize).min(BUCKETS - 1)
}

fn nanos(latency: Duration) -> u64 {
    u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX)
}

/// Where a bucket ends.
fn end(bucket: usize) -> Duration {
    LEAST.mul_f64((bucket as f64 / IN_A_DOUBLING).exp2())
}

/// How many answers came how late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latencies {
    counts: [u64; BUCKETS],
    sum_ns: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            counts: [0; BUCKETS],
            sum_ns: 0,
        }
    }
}

impl Latencies {
    /// The answers that are counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of their times together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// How many came between one time and the next: 0, then 0.1 ms and each twice the one before;
    /// with the later of the two times. Those later than the last one, of 1.7 minutes, are not
    /// here.
    pub fn by_doublings(&self) -> impl Iterator<Item = (Duration, u64)> {
        let step = IN_A_DOUBLING as usize;
        let (first, later) = self.counts.split_at(1);
        let later = later.chunks_exact(step).take((BUCKETS - 1) / step - 1);
        std::iter::once(first)
            .chain(later)
            .enumerate()
            .map(|(doublings, counts)| (LEAST * (1 << doublings), counts.iter().sum()))
    }

    /// Adds an answer.
    pub fn add(&mut self, latency: Duration) {
        self.counts[bucket(latency)] += 1;
        self.sum_ns = self.sum_ns.saturating_add(nanos(latency));
    }

    /// Each bucket and the answers in it, the earliest first. All but the first are a third of a
    /// doubling wide.
    pub fn buckets(&self) -> impl Iterator<Item = (Range<Duration>, u64)> {
        let begin = |bucket: usize| bucket.checked_sub(1).map_or(Duration::ZERO, end);
        let counts = self.counts.iter().enumerate();
        counts.map(move |(bucket, count)| (begin(bucket)..end(bucket), *count))
    }

    /// What a share of the answers was not later than, to a sixth; `None` where there is no answer.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let at = (share.clamp(0.0, 1.0) * self.count() as f64)
            .ceil()
            .max(1.0) as u64;
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= at
        })?;
        // The middle of the bucket.
        let doublings = (found as f64 - 0.5) / IN_A_DOUBLING;
        Some(LEAST.mul_f64(doublings.exp2()))
    }

    /// Those that came after `earlier` was read.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut later = *self;
        for (now, before) in later.counts.iter_mut().zip(&earlier.counts) {
            *now = now.saturating_sub(*before);
        }
        later.sum_ns = later.sum_ns.saturating_sub(earlier.sum_ns);
        later
    }
}

/// What [`Latencies`] are read from.
#[derive(Debug)]
pub(super) struct CountedLatencies {
    counts: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Default for CountedLatencies {
    fn default() -> Self {
        Self {
            counts: [const { AtomicU64::new(0) }; BUCKETS],
            sum_ns: AtomicU64::new(0),
        }
    }
}

impl CountedLatencies {
    pub(super) fn add(&self, latency: Duration) {
        self.counts[bucket(latency)].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(nanos(latency), Relaxed);
    }

    pub(super) fn read(&self) -> Latencies {
        let mut read = Latencies::default();
        for (count, counted) in read.counts.iter_mut().zip(&self.counts) {
            *count = counted.load(Relaxed);
        }
        read.sum_ns = self.sum_ns.load(Relaxed);
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_sixth() {
        let counted = CountedLatencies::default();
        assert_eq!(counted.read().quantile(0.5), None);
        for ms in 1..=100 {
            counted.add(Duration::from_millis(ms));
        }
        let all = counted.read();
        for (share, ms) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)] {
            let found = all.quantile(share).unwrap().as_secs_f64() * 1e3;
            assert!((found / ms - 1.0).abs() < 1.0 / 6.0, "{share}: {found}");
        }
        for (range, count) in all.buckets() {
            let within = (1..=100).filter(|ms| range.contains(&Duration::from_millis(*ms)));
            assert_eq!(count, within.count() as u64, "{range:?}");
        }
        assert_eq!(all.sum(), Duration::from_millis(100 * 101 / 2));
        let buckets = all.by_doublings().collect::<Vec<_>>();
        assert_eq!(buckets.len(), 21);
        // 6.4 ms < 7, 8, ..., 12 ms < 12.8 ms.
        let from = Duration::from_micros(6_400);
        let [(least, few), (most, more)] = buckets[6..8] else {
            unreachable!("two of 21")
        };
        assert_eq!((least, few, most, more), (from, 3, 2 * from, 6));
        assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u64>(), 100);
        for odd in [Duration::ZERO, Duration::MAX] {
            counted.add(odd);
        }
        assert_eq!(counted.read().since(&all).count(), 2);
    }
}
