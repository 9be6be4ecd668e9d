//! The loader in tests: its settings, and all that came of it.
use std::sync::Arc;

use nepa_pipeline::{
    AugmentConfig, Dataset, Filter, HostBatch, Loader, LoaderConfig, LoaderError, RandAugment,
    RandomErasing, SampleId, SampleRecord,
};

/// Three epochs of batches of 8 images of 8 x 8 pixels, about three small row groups a window,
/// however many samples are bad.
pub fn config() -> LoaderConfig {
    LoaderConfig {
        seed: 7,
        global_batch: 8,
        epochs: Some(3),
        augment: AugmentConfig::RandomResizedCrop {
            size: 8,
            scale: [0.2, 1.0],
            ratio: [0.75, 1.33],
            flip: 0.5,
            filter: Filter::Bilinear,
            rand_augment: None,
            erase: None,
        },
        decode_threads: 2,
        shuffle_window_bytes: 10_000,
        max_bad_fraction: 1.0,
        ..LoaderConfig::default()
    }
}

/// The same with operations on every view and a box on half of them.
pub fn changed() -> LoaderConfig {
    LoaderConfig {
        augment: AugmentConfig::RandomResizedCrop {
            size: 8,
            scale: [0.2, 1.0],
            ratio: [0.75, 1.33],
            flip: 0.5,
            filter: Filter::Bicubic,
            rand_augment: Some(RandAugment::default()),
            erase: Some(RandomErasing {
                probability: 0.5,
                ..RandomErasing::default()
            }),
        },
        ..config()
    }
}

/// One rank's settings: batches that 1, 2, 3, 4, 6, 8, 12 and 24 ranks can share, for long.
pub fn config_of_rank(rank: usize, world_size: usize) -> LoaderConfig {
    LoaderConfig {
        seed: 11,
        global_batch: 24,
        rank,
        world_size,
        epochs: Some(40),
        decode_threads: 1,
        // A few row groups a window.
        shuffle_window_bytes: 20_000,
        ..config()
    }
}

/// What was in a batch of images of 8 x 8 pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Its epoch.
    pub epoch: u64,
    /// Its samples.
    pub samples: Vec<SampleRecord>,
    /// The pixels of all of them.
    pub pixels: Vec<f32>,
}

impl Kept {
    /// Copies a batch.
    ///
    /// # Panics
    ///
    /// If the samples' pixels are not those of the array.
    pub fn of(batch: &HostBatch) -> Self {
        for (i, pixels) in batch.array().chunks_exact(3 * 8 * 8).enumerate() {
            assert_eq!(batch.pixels(i), pixels);
        }
        Self {
            epoch: batch.epoch(),
            samples: batch.samples().to_vec(),
            pixels: batch.array().to_vec(),
        }
    }
}

/// All batches that are still to come.
///
/// # Panics
///
/// If the run fails.
#[track_caller]
pub fn rest_of(loader: &mut Loader) -> Vec<Kept> {
    let mut batches = Vec::new();
    while let Some(batch) = loader.next_batch().expect("a good run") {
        batches.push(Kept::of(&batch));
    }
    batches
}

/// All batches of a run.
///
/// # Panics
///
/// If it fails.
#[track_caller]
pub fn all(dataset: &Arc<Dataset>, config: LoaderConfig) -> Vec<Kept> {
    rest_of(&mut Loader::new(Arc::clone(dataset), config, None).expect("good settings"))
}

/// The samples of batches, in order.
pub fn ids(batches: &[Kept]) -> Vec<SampleId> {
    let samples = batches.iter().flat_map(|batch| &batch.samples);
    samples.map(|sample| sample.id).collect()
}

/// The error that ends a run.
///
/// # Panics
///
/// If there is none.
#[track_caller]
pub fn failure(dataset: &Arc<Dataset>, config: LoaderConfig) -> LoaderError {
    let mut loader = Loader::new(Arc::clone(dataset), config, None).expect("good settings");
    let error = loader.find_map(Result::err);
    error.expect("the run came to its end")
}
