//! What the loader did, as a line of `metrics.jsonl` and TensorBoard have it.
use nepa_pipeline::{IoCounters, PipelineStats, Stage};
use serde::{Deserialize, Serialize};

/// What the loader did since the line before. It works ahead, so this is not about the images of
/// the step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LoaderMetrics {
    /// Share of the time in which the walk waited for row groups and the decode threads had
    /// nothing to do, from 0 to 1.
    pub fetch: f64,
    /// Mean share of the decode threads that unpacked row groups.
    pub unpack: f64,
    /// Mean share of the decode threads that decoded images.
    pub decode: f64,
    /// Requests in flight, on average.
    pub in_flight: f64,
    /// Megabytes (1e6 bytes) a second that came from the store or the disk.
    pub mb_per_second: f64,
    /// Megabytes in flight, or fetched and not yet let go.
    pub held_mb: f64,
    /// Batches that are decoded and wait for their step, in full batches.
    pub batches_ready: f64,
    /// Requests that were sent once more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u64,
    /// Second requests, as the first was late.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hedges: u64,
    /// Answers by which the store asked to be asked less.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub throttled: u64,
    /// Parts that came from the local cache.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cache_hits: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde gives it by reference"
)]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Three significant digits; the rest is noise.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    // A power of ten above 1 is exact, one below is not, and would show as 0.30000000000000004.
    let digits = 2 - value.abs().log10().floor() as i32;
    if digits >= 0 {
        let scale = 10_f64.powi(digits);
        (value * scale).round() / scale
    } else {
        value.round()
    }
}

/// Two decimals.
fn share(value: f64) -> f64 {
    (100.0 * value).round() / 100.0
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

impl LoaderMetrics {
    /// From what the stages and the I/O did in a time; `batches_ready` is that at its end.
    pub(crate) fn new(stats: &PipelineStats, io: &IoCounters, batches_ready: f64) -> Self {
        let wall = stats.wall_s.max(1e-9);
        Self {
            fetch: share(stats.share(Stage::Fetch)),
            unpack: share(stats.share(Stage::Unpack)),
            decode: share(stats.share(Stage::Decode)),
            in_flight: rounded(io.busy_ns as f64 / 1e9 / wall),
            mb_per_second: rounded(megabytes(io.bytes) / wall),
            held_mb: rounded(megabytes(io.held_bytes)),
            batches_ready: rounded(batches_ready),
            retries: io.retries,
            hedges: io.hedges,
            throttled: io.throttled,
            cache_hits: io.cache_hits,
        }
    }

    /// The values that TensorBoard draws.
    pub(super) fn scalars(&self) -> [(&'static str, f64); 11] {
        [
            ("loader/fetch", self.fetch),
            ("loader/unpack", self.unpack),
            ("loader/decode", self.decode),
            ("loader/in_flight", self.in_flight),
            ("loader/mb_per_second", self.mb_per_second),
            ("loader/held_mb", self.held_mb),
            ("loader/batches_ready", self.batches_ready),
            ("loader/retries", self.retries as f64),
            ("loader/hedges", self.hedges as f64),
            ("loader/throttled", self.throttled as f64),
            ("loader/cache_hits", self.cache_hits as f64),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_what_did_not_happen_is_left_out() {
        for (value, short) in [
            (0.0, "0.0"),
            (0.000_123_456, "0.000123"),
            (0.3, "0.3"),
            (1.0 / 3.0, "0.333"),
            (12.345, "12.3"),
            (99.96, "100.0"),
            (123_456.7, "123457.0"),
            (f64::NAN, "0.0"),
        ] {
            assert_eq!(
                serde_json::to_string(&rounded(value)).unwrap(),
                short,
                "{value}"
            );
        }
        assert_eq!(serde_json::to_string(&share(0.286_999)).unwrap(), "0.29");
        let quiet = LoaderMetrics::default();
        let line = serde_json::to_string(&quiet).unwrap();
        assert!(line.ends_with("\"batches_ready\":0.0}"), "{line}");
        assert_eq!(serde_json::from_str::<LoaderMetrics>(&line).unwrap(), quiet);
        let throttled = LoaderMetrics {
            throttled: 3,
            ..quiet
        };
        let line = serde_json::to_string(&throttled).unwrap();
        assert!(line.ends_with(",\"throttled\":3}"), "{line}");
    }
}
