//! What a consumer does with batches: it keeps several, and reads each as one array.
use std::sync::Arc;
use std::time::Duration;

use nepa_pipeline::{AugmentConfig, HostBatch, Loader, LoaderConfig, LoaderError};
use nepa_tests::data::open_folder;
use nepa_tests::loading::{Kept, all, config};
use nepa_tests::photos::all_good;

use super::builder;

/// The next batch; a minute of waiting is a hang.
#[track_caller]
fn next(loader: &mut Loader) -> HostBatch {
    assert!(loader.wait(Duration::from_mins(1)), "no batch comes");
    loader.next_batch().unwrap().expect("one more batch")
}

#[test]
fn a_consumer_keeps_as_many_batches_as_max_kept_batches_says() {
    let folder = all_good();
    let dataset = open_folder(&folder);
    let expected = all(&dataset, config());
    for prefetch_batches in [1, 2] {
        let config = LoaderConfig {
            prefetch_batches,
            max_kept_batches: 4,
            ..config()
        };
        let mut loader = Loader::new(Arc::clone(&dataset), config, None).unwrap();
        let mut kept: Vec<HostBatch> = (0..4).map(|_| next(&mut loader)).collect();
        let state = loader.state();
        // Asking again changes nothing.
        for _ in 0..2 {
            let error = loader.next_batch().unwrap_err();
            assert!(
                matches!(error, LoaderError::TooManyKept { kept: 4 }),
                "{error}"
            );
            let text = error.to_string();
            assert!(
                text.contains("4 batches") && text.contains("max_kept_batches"),
                "{text}"
            );
        }
        assert_eq!(loader.state(), state);
        // It goes on with the very batch that came next, whichever is given up.
        drop(kept.remove(1));
        kept.push(next(&mut loader));
        for (batch, number) in kept.iter().zip([0, 2, 3, 4]) {
            assert_eq!(Kept::of(batch), expected[number], "batch {number}");
        }
        // Four are kept all along.
        for expected in &expected[5..] {
            drop(kept.remove(0));
            kept.push(next(&mut loader));
            assert_eq!(Kept::of(&kept[3]), *expected);
        }
        drop(kept.remove(0));
        assert!(loader.next_batch().unwrap().is_none());
    }
}

#[test]
fn batches_that_are_kept_stay_as_they_are() {
    let folder = all_good();
    let dataset = open_folder(&folder);
    let expected = all(&dataset, config());
    for prefetch_batches in [1, 2] {
        let config = LoaderConfig {
            prefetch_batches,
            max_kept_batches: expected.len() + 1,
            ..config()
        };
        let mut loader = Loader::new(Arc::clone(&dataset), config, None).unwrap();
        let kept: Vec<HostBatch> = expected.iter().map(|_| next(&mut loader)).collect();
        assert!(loader.next_batch().unwrap().is_none());
        // Longer than the loader itself.
        drop(loader);
        let kept: Vec<Kept> = kept.iter().map(Kept::of).collect();
        assert!(kept == expected, "{prefetch_batches} batches ahead");
    }
}

/// Each view of a batch is one array, in which the samples lie one behind the other.
fn check_arrays(batch: &HostBatch) {
    for (view, &side) in batch.view_sides().iter().enumerate() {
        let array = batch.view_array(view);
        let len = 3 * (side as usize).pow(2);
        assert_eq!(array.len(), batch.len() * len, "view {view}");
        for (i, expected) in array.chunks_exact(len).enumerate() {
            let pixels = batch.view(i, view);
            assert_eq!(
                pixels.as_ptr(),
                expected.as_ptr(),
                "sample {i}, view {view}"
            );
            assert_eq!(pixels.len(), len);
        }
    }
    assert_eq!(batch.array().as_ptr(), batch.view_array(0).as_ptr());
    assert_eq!(batch.array().len(), batch.view_array(0).len());
    for i in 0..batch.len() {
        let (pixels, view) = (batch.pixels(i), batch.view(i, 0));
        assert_eq!((pixels.as_ptr(), pixels.len()), (view.as_ptr(), view.len()));
    }
}

#[test]
fn a_batch_is_one_array_for_each_view() {
    let folder = all_good();
    let one = AugmentConfig::random_resized_crop(8, [0.2, 1.0]);
    let several = AugmentConfig::multi_crop((2, 8), (3, 4));
    for (augment, num_views) in [(one, 1), (several, 5)] {
        let loader = builder(&folder).augment(augment).drop_last(false);
        let mut lengths = Vec::new();
        for batch in loader.open().unwrap() {
            let batch = batch.unwrap();
            assert_eq!(batch.view_sides().len(), num_views);
            check_arrays(&batch);
            lengths.push(batch.len());
        }
        let epoch = [8, 8, 8, 8, 8, 8, 8, 8, 2];
        assert_eq!(lengths, [epoch, epoch].concat());
    }
}
