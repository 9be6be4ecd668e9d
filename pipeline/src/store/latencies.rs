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

/// Where a bucket ends.
fn end(bucket: usize) -> Duration {
    LEAST.mul_f64((bucket as f64 / IN_A_DOUBLING).exp2())
}

/// How many answers came how late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latencies([u64; BUCKETS]);

impl Default for Latencies {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Latencies {
    /// The answers that are counted.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Adds an answer.
    pub fn add(&mut self, latency: Duration) {
        self.0[bucket(latency)] += 1;
    }

    /// Each bucket and the answers in it, the earliest first. All but the first are a third of a
    /// doubling wide.
    pub fn buckets(&self) -> impl Iterator<Item = (Range<Duration>, u64)> {
        let begin = |bucket: usize| bucket.checked_sub(1).map_or(Duration::ZERO, end);
        let counts = self.0.iter().enumerate();
        counts.map(move |(bucket, count)| (begin(bucket)..end(bucket), *count))
    }

    /// What a share of the answers was not later than, to a sixth; `None` where there is no answer.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let at = (share.clamp(0.0, 1.0) * self.count() as f64)
            .ceil()
            .max(1.0) as u64;
        let mut seen = 0;
        let found = self.0.iter().position(|count| {
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
        for (now, before) in later.0.iter_mut().zip(&earlier.0) {
            *now = now.saturating_sub(*before);
        }
        later
    }
}

/// What [`Latencies`] are read from.
#[derive(Debug)]
pub(super) struct CountedLatencies([AtomicU64; BUCKETS]);

impl Default for CountedLatencies {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }
}

impl CountedLatencies {
    pub(super) fn add(&self, latency: Duration) {
        self.0[bucket(latency)].fetch_add(1, Relaxed);
    }

    pub(super) fn read(&self) -> Latencies {
        let mut read = Latencies::default();
        for (count, counted) in read.0.iter_mut().zip(&self.0) {
            *count = counted.load(Relaxed);
        }
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
        for odd in [Duration::ZERO, Duration::MAX] {
            counted.add(odd);
        }
        assert_eq!(counted.read().since(&all).count(), 2);
    }
}
