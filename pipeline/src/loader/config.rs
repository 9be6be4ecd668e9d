//! The loader's settings and its saved position, and what is refused of both.
use std::fmt::Display;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::mixture::Mixture;
use crate::image::Normalize;
use crate::{AugmentConfig, Dataset, LoaderError};

/// How a data set becomes batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderConfig {
    /// Seed of order and augmentation.
    pub seed: u64,
    /// Samples in one batch over all ranks.
    pub global_batch: usize,
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
    /// Bytes (decompressed) of row groups, or parts of them, whose samples are mixed with each other. The first windows of a run are smaller.
    pub shuffle_window_bytes: u64,
    /// Share of bad samples at which the run ends, judged after the first 1,000.
    pub max_bad_fraction: f64,
    /// Where bad samples are listed, one JSON line each.
    pub bad_samples_path: Option<PathBuf>,
}

impl Default for LoaderConfig {
    /// One rank, batches of 256 without end, shuffled in windows of 512 MiB, torchvision's `RandomResizedCrop(224)` with a flip, a decode thread for each
    /// processor core.
    fn default() -> Self {
        Self {
            seed: 0,
            global_batch: 256,
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
            shuffle_window_bytes: 512 << 20,
            max_bad_fraction: 0.01,
            bad_samples_path: None,
        }
    }
}

/// Where a loader stands: small, versioned; a loader restored from it yields the very batches that would have come next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Format version, 3.
    pub version: u32,
    /// [`Dataset::fingerprint`].
    pub dataset: String,
    /// Seed.
    pub seed: u64,
    /// Samples in one batch over all ranks.
    pub global_batch: u64,
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

/// Version of [`LoaderState`].
pub(super) const STATE_VERSION: u32 = 3;

pub(super) fn check(
    config: &LoaderConfig,
    mixture: &Mixture,
    dataset: &Dataset,
) -> Result<(), LoaderError> {
    let wrong = |setting, value: String, why: &str| {
        Err(LoaderError::Setting {
            setting,
            value,
            why: why.to_owned(),
        })
    };
    if config.global_batch == 0 {
        return wrong(
            "global_batch",
            "0".to_owned(),
            "a batch holds at least one sample",
        );
    }
    if config.world_size == 0 || config.rank >= config.world_size {
        let value = format!("{} of {}", config.rank, config.world_size);
        return wrong("rank", value, "ranks count from 0 to world_size - 1");
    }
    if !config.global_batch.is_multiple_of(config.world_size) {
        let why = format!(
            "it does not divide evenly among {} ranks",
            config.world_size
        );
        return wrong("global_batch", config.global_batch.to_string(), &why);
    }
    if config.decode_threads == 0 {
        return wrong(
            "decode_threads",
            "0".to_owned(),
            "at least one thread has to decode",
        );
    }
    if config.prefetch_batches == 0 {
        return wrong(
            "prefetch_batches",
            "0".to_owned(),
            "at least one batch has to be under way",
        );
    }
    if config.shuffle_window_bytes == 0 {
        return wrong(
            "shuffle_window_bytes",
            "0".to_owned(),
            "a window holds something; the smallest, 1, holds one part of a row group",
        );
    }
    if !(0.0..=1.0).contains(&config.max_bad_fraction) {
        return wrong(
            "max_bad_fraction",
            config.max_bad_fraction.to_string(),
            "it is a share from 0 to 1",
        );
    }
    if config
        .normalize
        .std
        .iter()
        .any(|std| std.is_nan() || *std <= 0.0)
    {
        return wrong(
            "normalize.std",
            format!("{:?}", config.normalize.std),
            "each must be positive",
        );
    }
    if mixture.batches_per_epoch(config) == 0 {
        let num_samples = dataset.num_samples();
        let why = format!(
            "the data set holds {num_samples} samples, fewer than one batch; use a smaller batch, or keep incomplete batches (drop_last = false)"
        );
        return wrong("global_batch", config.global_batch.to_string(), &why);
    }
    Ok(())
}

pub(super) fn check_state(
    state: &LoaderState,
    dataset: &Dataset,
    config: &LoaderConfig,
) -> Result<(), LoaderError> {
    let fingerprint = dataset.fingerprint();
    let settings: [(_, &dyn Display, &dyn Display); 7] = [
        ("state version", &state.version, &STATE_VERSION),
        ("data set (fingerprint)", &state.dataset, &fingerprint),
        ("seed", &state.seed, &config.seed),
        ("batch size", &state.global_batch, &config.global_batch),
        ("shuffle", &state.shuffle, &config.shuffle),
        (
            "shuffle_window_bytes",
            &state.shuffle_window_bytes,
            &config.shuffle_window_bytes,
        ),
        ("drop_last", &state.drop_last, &config.drop_last),
    ];
    for (field, saved, current) in settings {
        let (saved, current) = (saved.to_string(), current.to_string());
        if saved != current {
            return Err(LoaderError::StateMismatch {
                field,
                saved,
                current,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Filter;

    /// Settings for tests of single parts.
    pub(crate) fn config() -> LoaderConfig {
        LoaderConfig {
            seed: 1,
            global_batch: 8,
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
            shuffle_window_bytes: 1 << 20,
            max_bad_fraction: 0.0,
            bad_samples_path: None,
        }
    }
}
