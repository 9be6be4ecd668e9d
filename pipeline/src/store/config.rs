//! How a store is used: how many requests at once, how much memory, how patient.
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::StoreOptions;

/// How the store is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IoConfig {
    /// Most requests in flight; eight times as many while the footers are read, which are small.
    pub max_requests: usize,
    /// Most bytes held: in flight, fetched and not yet released.
    pub max_bytes: u64,
    /// Ranges closer than this are fetched as one, in bytes.
    pub coalesce_gap_bytes: u64,
    /// Larger ranges are split into requests of this size, in bytes.
    pub request_bytes: u64,
    /// Larger row groups are read in parts of about this size (decompressed, in bytes), if the file
    /// has an offset index, which says where their pages lie. Smaller parts mix better and cost
    /// more requests. Decides the order of samples.
    pub part_bytes: u64,
    /// Longest time without a byte for one attempt of a request, in seconds; it is shorter once the
    /// store is known to be faster.
    pub request_timeout_s: f64,
    /// How long an outage of the store is waited out, in seconds without a byte; then the run is
    /// saved, if it can be, and ends.
    pub outage_s: f64,
    /// Has no effect any more: `outage_s` decides. Read so that older recipes and checkpoints are.
    #[serde(skip_serializing)]
    pub max_retries: Option<usize>,
    /// After how many seconds without a byte, while ranges are being asked for, the log says what
    /// is in flight, and after how many without a batch what the loader waits for.
    pub stall_report_s: f64,
    /// Folder on a local disk that keeps what was fetched, for later epochs and other processes;
    /// none without it. Local files are not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
    /// Most bytes in that folder.
    pub cache_bytes: u64,
    /// Settings above the clouds' environment variables; not part of a recipe.
    #[serde(skip)]
    pub store_options: StoreOptions,
}

impl Default for IoConfig {
    fn default() -> Self {
        Self {
            max_requests: 32,
            max_bytes: 1 << 30,
            coalesce_gap_bytes: 1 << 20,
            request_bytes: 16 << 20,
            part_bytes: 32 << 20,
            request_timeout_s: 30.0,
            outage_s: 600.0,
            max_retries: None,
            stall_report_s: 10.0,
            cache_dir: None,
            cache_bytes: 64 << 30,
            store_options: StoreOptions::default(),
        }
    }
}

/// What recipes of older checkpoints say where nobody has set anything.
pub(crate) const OLD_MAX_RETRIES: usize = 8;

/// A setting in seconds; whatever is no duration is none, or for ever.
pub(crate) fn seconds(setting: f64) -> Duration {
    const FOR_EVER: Duration = Duration::from_hours(24 * 365);
    Duration::try_from_secs_f64(setting.max(0.0)).map_or(FOR_EVER, |given| given.min(FOR_EVER))
}

#[cfg(test)]
mod tests {
    #[test]
    fn settings_of_older_checkpoints_are_read_and_not_written_again() {
        let old: super::IoConfig = serde_json::from_str(r#"{"max_retries": 8}"#).unwrap();
        assert_eq!(old.outage_s.to_bits(), 600f64.to_bits());
        let text = serde_json::to_string(&old).unwrap();
        assert!(!text.contains("max_retries"), "{text}");
    }
}
