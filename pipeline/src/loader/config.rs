//! The loader's settings and its saved position. What is refused of both: `start`.
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::image::Normalize;
use crate::{AugmentConfig, Dataset};

/// How a data set becomes batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderConfig {
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Samples in one batch over all ranks.
    pub global_batch: usize,
    /// Equal shares of the data, each shuffled and read by itself; a divisor of `global_batch`.
    /// Each gives as many samples to every batch. With several, a rank reads its own lanes alone,
    /// whose number `world_size` divides; with 1, each rank reads everything. Another number of
    /// lanes is another order, another number of ranks is not.
    #[serde(default = "default_lanes")]
    pub lanes: usize,
    /// This rank.
    pub rank: usize,
    /// Number of ranks; divides `global_batch`.
    pub world_size: usize,
    /// Epochs to run; `None` means without end.
    pub epochs: Option<u64>,
    /// Whether samples are shuffled; off for evaluation.
    pub shuffle: bool,
    /// Whether an epoch's last incomplete batch is dropped.
    pub drop_last: bool,
    /// Augmentation.
    pub augment: AugmentConfig,
    /// Normalisation.
    pub normalize: Normalize,
    /// Whether EXIF orientation is applied.
    pub exif_orientation: bool,
    /// Decode threads.
    pub decode_threads: usize,
    /// Finished batches ahead of the consumer.
    pub prefetch_batches: usize,
    /// Most batches that the consumer may keep at once; the next one is an error then. Memory is
    /// made for as many as it keeps, and not before.
    #[serde(default = "default_kept_batches")]
    pub max_kept_batches: usize,
    /// Bytes (decompressed) of row groups, or parts of them, whose samples are mixed with each
    /// other; over all lanes, so a rank holds its share of them. The first windows of a run are
    /// smaller.
    pub shuffle_window_bytes: u64,
    /// Share of bad samples at which the run ends, judged after the first 1,000.
    pub max_bad_fraction: f64,
    /// Where bad samples are listed, one JSON line each.
    pub bad_samples_path: Option<PathBuf>,
}

fn default_kept_batches() -> usize {
    16
}

fn default_lanes() -> usize {
    1
}

impl Default for LoaderConfig {
    /// One rank, batches of 256 without end, shuffled in windows of 512 MiB, torchvision's
    /// `RandomResizedCrop(224)` with a flip, a decode thread for each processor core.
    fn default() -> Self {
        Self {
            seed: 0,
            global_batch: 256,
            lanes: default_lanes(),
            rank: 0,
            world_size: 1,
            epochs: None,
            shuffle: true,
            drop_last: true,
            augment: AugmentConfig::default(),
            normalize: Normalize::default(),
            exif_orientation: true,
            decode_threads: std::thread::available_parallelism().map_or(1, usize::from),
            prefetch_batches: 2,
            max_kept_batches: default_kept_batches(),
            shuffle_window_bytes: 512 << 20,
            max_bad_fraction: 0.01,
            bad_samples_path: None,
        }
    }
}

/// Where a loader stands: small, versioned; a loader restored from it yields the very batches that
/// would have come next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Format version, 4. One of version 3 is that of a single lane, and goes on as such.
    pub version: u32,
    /// [`crate::Dataset::fingerprint`].
    pub dataset: String,
    /// Seed.
    pub seed: u64,
    /// Samples in one batch over all ranks.
    pub global_batch: u64,
    /// Shares in which the data is shuffled and read; with others the order is another.
    #[serde(default = "one_lane")]
    pub lanes: u64,
    /// Whether samples are shuffled.
    pub shuffle: bool,
    /// Bytes of a shuffle window; with others the order is another.
    pub shuffle_window_bytes: u64,
    /// Whether an epoch's last incomplete batch is dropped.
    pub drop_last: bool,
    /// Epoch of the next batch.
    pub epoch: u64,
    /// Global batches of that epoch already handed out.
    pub batch_in_epoch: u64,
    /// Samples tried so far (over all epochs), for the budget of bad ones.
    pub samples_tried: u64,
    /// Bad samples so far.
    pub samples_bad: u64,
}

impl LoaderState {
    /// Before the first batch.
    pub fn beginning(dataset: &Dataset, config: &LoaderConfig) -> Self {
        Self {
            version: STATE_VERSION,
            dataset: dataset.fingerprint(),
            seed: config.seed,
            global_batch: config.global_batch as u64,
            lanes: config.lanes as u64,
            shuffle: config.shuffle,
            shuffle_window_bytes: config.shuffle_window_bytes,
            drop_last: config.drop_last,
            epoch: 0,
            batch_in_epoch: 0,
            samples_tried: 0,
            samples_bad: 0,
        }
    }
}

fn one_lane() -> u64 {
    1
}

/// Version of [`LoaderState`].
pub(super) const STATE_VERSION: u32 = 4;
/// The version before there were lanes.
pub(super) const STATE_VERSION_WITHOUT_LANES: u32 = 3;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Filter;

    /// A state holds no more for more shards, samples, lanes or ranks.
    #[test]
    fn a_state_is_small_whatever_it_is_of() {
        let state = LoaderState {
            version: u32::MAX,
            dataset: "f".repeat(64),
            seed: u64::MAX,
            global_batch: u64::MAX,
            lanes: u64::MAX,
            shuffle: false,
            shuffle_window_bytes: u64::MAX,
            drop_last: false,
            epoch: u64::MAX,
            batch_in_epoch: u64::MAX,
            samples_tried: u64::MAX,
            samples_bad: u64::MAX,
        };
        let text = serde_json::to_string(&state).expect("plain data");
        assert!(text.len() <= 4096, "{} bytes", text.len());
    }

    /// Settings for tests of single parts.
    pub(crate) fn config() -> LoaderConfig {
        LoaderConfig {
            seed: 1,
            global_batch: 8,
            lanes: default_lanes(),
            rank: 0,
            world_size: 1,
            epochs: Some(1),
            shuffle: true,
            drop_last: true,
            augment: AugmentConfig::CenterCrop {
                size: 8,
                resize: 8,
                filter: Filter::Bilinear,
            },
            normalize: Normalize::default(),
            exif_orientation: true,
            decode_threads: 1,
            prefetch_batches: 1,
            max_kept_batches: default_kept_batches(),
            shuffle_window_bytes: 1 << 20,
            max_bad_fraction: 0.0,
            bad_samples_path: None,
        }
    }
}
