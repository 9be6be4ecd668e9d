//! How often something took how long, for JSON and pages.
use nepa_pipeline::Latencies;
use serde::Serialize;

/// What took from so long to so long, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Bucket {
    pub(super) from_s: f64,
    pub(super) to_s: f64,
    pub(super) count: u64,
}

/// Buckets from the first to the last that hold anything.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub(super) struct Histogram(pub(super) Vec<Bucket>);

impl Histogram {
    /// The sum of several.
    pub(super) fn of<'a>(all: impl Iterator<Item = &'a Latencies>) -> Self {
        let mut sum = Vec::<Bucket>::new();
        for latencies in all {
            for (number, (range, count)) in latencies.buckets().enumerate() {
                if sum.len() <= number {
                    sum.push(Bucket {
                        from_s: range.start.as_secs_f64(),
                        to_s: range.end.as_secs_f64(),
                        count: 0,
                    });
                }
                sum[number].count += count;
            }
        }
        let holds = |bucket: &Bucket| bucket.count > 0;
        let end = sum.iter().rposition(holds).map_or(0, |last| last + 1);
        sum.truncate(end);
        let begin = sum.iter().position(holds).unwrap_or(0);
        Self(sum.split_off(begin))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn buckets_are_summed_and_empty_ends_left_out() {
        let of = |times: &[u64]| {
            let mut latencies = Latencies::default();
            for ms in times {
                latencies.add(Duration::from_millis(*ms));
            }
            latencies
        };
        let all = [of(&[5, 5, 80]), of(&[5])];
        let Histogram(buckets) = Histogram::of(all.iter());
        let (first, last) = (&buckets[0], buckets.last().unwrap());
        assert!(first.from_s <= 0.005 && 0.005 < first.to_s && first.count == 3);
        assert!(last.from_s <= 0.08 && 0.08 < last.to_s && last.count == 1);
        assert_eq!(buckets.len(), 13, "four doublings in thirds: {buckets:?}");
        assert_eq!(Histogram::of(std::iter::empty()), Histogram::default());
    }
}
