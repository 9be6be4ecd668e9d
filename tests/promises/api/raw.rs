//! A loader that does not decode.
use nepa_pipeline::{AugmentConfig, SampleId};
use nepa_tests::photos::{PRESENT, photo_at, some_bad};

use super::builder;

/// Whether the row's bytes are no image.
fn is_garbage(id: SampleId) -> bool {
    (id.row_group, id.row) == (3, 4) || (id.shard, id.row_group, id.row) == (1, 1, 0)
}

/// Whether its JPEG ends in the middle.
fn is_truncated(id: SampleId) -> bool {
    (id.row_group, id.row) == (2, 0) || (id.shard, id.row_group, id.row) == (1, 1, 1)
}

#[test]
fn raw_batches_hold_the_bytes_as_they_are_stored() {
    let folder = some_bad();
    let loader = builder(&folder).drop_last(false).open_raw().unwrap();
    let (mut tried, mut replaced) = (0, Vec::new());
    for batch in loader {
        let batch = batch.unwrap();
        assert_eq!(batch.encoded().len(), batch.len());
        tried += batch.len() as u64;
        for (sample, encoded) in batch.samples().iter().zip(batch.encoded()) {
            let id = sample.id;
            let photo = photo_at(id.shard, id.row_group, id.row);
            assert!(!is_garbage(id), "{id} is bad");
            // Nothing is decoded, so where its header is whole nobody knows that the rest is not.
            let stored = if is_truncated(id) {
                &photo[..photo.len() / 2]
            } else {
                &photo[..]
            };
            assert!(*encoded == stored, "{id}");
            assert_eq!(sample.views.len(), 1);
            assert!(sample.label.is_some(), "{id}");
            replaced.extend(sample.replaces);
        }
    }
    assert_eq!(tried, 2 * PRESENT);
    assert!(
        replaced
            .iter()
            .all(|&id| is_garbage(id) || is_truncated(id)),
        "{replaced:?}"
    );
    let garbage = replaced.iter().filter(|&&id| is_garbage(id));
    assert_eq!(garbage.count(), 2 * 4, "each, in both epochs");
}

#[test]
fn raw_batches_come_in_the_order_and_with_the_views_of_decoded_ones() {
    let folder = nepa_tests::photos::all_good();
    let views = || builder(&folder).augment(AugmentConfig::multi_crop((2, 8), (3, 4)));
    let decoded = views().open().unwrap().map(Result::unwrap);
    let raw = views().open_raw().unwrap().map(Result::unwrap);
    let decoded = decoded.map(|batch| batch.samples().to_vec());
    let raw = raw.map(|batch| batch.samples().to_vec());
    let raw = raw.collect::<Vec<_>>();
    assert_eq!(raw.len(), 16);
    assert_eq!(raw, decoded.collect::<Vec<_>>());
}
