//! Settings that cannot work are refused by name.
use std::sync::Arc;

use nepa_pipeline::{Loader, LoaderConfig, LoaderError};

use super::{all, all_good, config, open};

#[test]
fn settings_that_cannot_work_are_refused_by_name() {
    let folder = all_good();
    let dataset = open(&folder);
    let good = config();
    for (wrong, setting, value) in [
        (
            LoaderConfig {
                global_batch: 9,
                world_size: 2,
                ..good.clone()
            },
            "global_batch",
            "9",
        ),
        (
            LoaderConfig {
                global_batch: 0,
                ..good.clone()
            },
            "global_batch",
            "0",
        ),
        (
            LoaderConfig {
                global_batch: 67,
                ..good.clone()
            },
            "global_batch",
            "67",
        ),
        (
            LoaderConfig {
                decode_threads: 0,
                ..good.clone()
            },
            "decode_threads",
            "0",
        ),
        (
            LoaderConfig {
                prefetch_batches: 0,
                ..good.clone()
            },
            "prefetch_batches",
            "0",
        ),
        (
            LoaderConfig {
                rank: 2,
                world_size: 2,
                ..good.clone()
            },
            "rank",
            "2 of 2",
        ),
        (
            LoaderConfig {
                world_size: 0,
                ..good.clone()
            },
            "rank",
            "0 of 0",
        ),
        (
            LoaderConfig {
                max_bad_fraction: -0.1,
                ..good.clone()
            },
            "max_bad_fraction",
            "-0.1",
        ),
        (
            LoaderConfig {
                max_bad_fraction: f64::NAN,
                ..good.clone()
            },
            "max_bad_fraction",
            "NaN",
        ),
    ] {
        let error = Loader::new(Arc::clone(&dataset), wrong, None).unwrap_err();
        assert!(matches!(error, LoaderError::Setting { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&format!("{setting} = {value} cannot work")),
            "{text}"
        );
    }
    // A batch larger than the data set is one short batch where that is allowed.
    let short = all(
        &dataset,
        LoaderConfig {
            global_batch: 67,
            drop_last: false,
            epochs: Some(2),
            ..good
        },
    );
    assert_eq!(
        short
            .iter()
            .map(|batch| batch.samples.len())
            .collect::<Vec<_>>(),
        [66, 66]
    );
}
