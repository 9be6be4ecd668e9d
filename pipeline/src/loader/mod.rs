//! The loader: order, fetch, unpack, decode, assemble.
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::render::Normalize;
use crate::{AugmentConfig, Dataset, HostBatch, LoaderError};

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
    /// Bytes (decompressed) of row groups whose samples are mixed with each other.
    pub shuffle_window_bytes: u64,
    /// Share of bad samples at which the run ends, judged after the first 1,000.
    pub max_bad_fraction: f64,
    /// Where bad samples are listed, one JSON line each.
    pub bad_samples_path: Option<PathBuf>,
}

/// Where a loader stands: small, versioned; a loader restored from it yields the very batches that would have come next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoaderState {
    /// Format version, 1.
    pub version: u32,
    /// [`Dataset::fingerprint`].
    pub dataset: String,
    /// Seed.
    pub seed: u64,
    /// Samples in one batch over all ranks.
    pub global_batch: u64,
    /// Epoch of the next batch.
    pub epoch: u64,
    /// Global batches of that epoch already handed out.
    pub batch_in_epoch: u64,
    /// Samples tried so far (over all epochs), for the budget of bad ones.
    pub samples_tried: u64,
    /// Bad samples so far.
    pub samples_bad: u64,
}

/// Runs the stages and hands out batches in order. Dropping it stops and joins all its threads.
#[derive(Debug)]
pub struct Loader {}

impl Loader {
    /// Starts the stages, from the beginning or from `state`.
    pub fn new(_dataset: Arc<Dataset>, _config: LoaderConfig, _state: Option<&LoaderState>) -> Result<Self, LoaderError> {
        unimplemented!()
    }

    /// Global batches in one epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        unimplemented!()
    }

    /// The next batch of this rank (its slice of the global batch), or `None` after the last epoch.
    pub fn next_batch(&mut self) -> Result<Option<HostBatch>, LoaderError> {
        unimplemented!()
    }

    /// The position after the last batch handed out.
    pub fn state(&self) -> LoaderState {
        unimplemented!()
    }
}
