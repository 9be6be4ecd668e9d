//! The loader's settings in tests of ranks: batches that 1, 2, 3, 4, 6, 8, 12 and 24 ranks can share.
use nepa_pipeline::Normalize;
use nepa_pipeline::{AugmentConfig, Filter, LoaderConfig};

/// Settings of one rank.
pub fn config(rank: usize, world_size: usize) -> LoaderConfig {
    LoaderConfig {
        seed: 11,
        global_batch: 24,
        rank,
        world_size,
        epochs: Some(40),
        shuffle: true,
        drop_last: true,
        augment: AugmentConfig::RandomResizedCrop {
            size: 8,
            scale: [0.2, 1.0],
            ratio: [0.75, 1.33],
            flip: 0.5,
            filter: Filter::Bilinear,
        },
        normalize: Normalize::default(),
        exif_orientation: true,
        decode_threads: 1,
        prefetch_batches: 2,
        // A few row groups a window.
        shuffle_window_bytes: 20_000,
        max_bad_fraction: 1.0,
        bad_samples_path: None,
    }
}
