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
                lanes: 0,
                ..good.clone()
            },
            "lanes",
            "0",
        ),
        (
            LoaderConfig {
                lanes: 3,
                ..good.clone()
            },
            "lanes",
            "3",
        ),
        (
            LoaderConfig {
                lanes: 2,
                world_size: 4,
                ..good.clone()
            },
            "lanes",
            "2",
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

#[test]
fn lanes_that_cannot_be_shared_are_refused_with_what_to_do() {
    let folders = [(); 3].map(|()| all_good());
    let refused = |dataset: &Arc<nepa_pipeline::Dataset>, config: LoaderConfig| {
        let error = Loader::new(Arc::clone(dataset), config, None).unwrap_err();
        error.to_string()
    };
    let of = |lanes, global_batch, world_size| LoaderConfig {
        lanes,
        global_batch,
        world_size,
        ..config()
    };
    let one = open(&folders[0]);
    let text = refused(&one, of(3, 8, 1));
    assert!(
        text.contains("global_batch = 8") && text.contains("divisor"),
        "{text}"
    );
    let text = refused(&one, of(4, 24, 3));
    for part in ["lanes = 4", "among 3 ranks", "multiple of 3", "lanes = 1"] {
        assert!(text.contains(part), "{text}");
    }
    // A data set of a mixture without a sample for each lane, and one without one in each batch.
    let mixture = |weights: &[f64]| {
        let urls = folders.iter().map(|folder| folder.path().to_str().unwrap());
        let config = nepa_tests::data::mixture(urls.zip(weights.iter().copied()));
        nepa_tests::data::open_as(&config, &nepa_pipeline::IoConfig::default()).unwrap()
    };
    let text = refused(&mixture(&[1.0, 1.0]), of(88, 88, 1));
    assert!(text.contains("66 samples, fewer than lanes"), "{text}");
    let three = mixture(&[1.0, 0.1, 1.0]);
    let text = refused(&three, of(4, 32, 1));
    for part in [
        "lanes = 4",
        "8 samples",
        "0.38",
        "data set 2",
        "first or last",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let text = refused(&three, of(1, 8, 1));
    assert!(text.contains("global_batch = 8"), "{text}");
    Loader::new(three, of(1, 32, 1), None).unwrap();
}
