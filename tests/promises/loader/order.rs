//! The order: every sample once an epoch, the same whatever the threads and the number of ranks.
use std::collections::BTreeSet;

use nepa_pipeline::{IoConfig, LoaderConfig, SampleId, SampleRecord};
use nepa_tests::data;
use nepa_tests::loading::ids;
use nepa_tests::photos::{ROW_GROUPS, SAMPLES};

use super::{Kept, all, all_good, config, open, some_bad};

#[test]
fn every_sample_comes_exactly_once_an_epoch() {
    let folder = all_good();
    let dataset = open(&folder);
    assert_eq!(dataset.num_samples(), SAMPLES);
    let batches = all(
        &dataset,
        LoaderConfig {
            drop_last: false,
            ..config()
        },
    );
    assert_eq!(batches.len(), 3 * 9);
    let mut orders = Vec::new();
    for epoch in 0..3 {
        let of_epoch: Vec<Kept> = batches
            .iter()
            .filter(|batch| batch.epoch == epoch)
            .cloned()
            .collect();
        let lengths: Vec<usize> = of_epoch.iter().map(|batch| batch.samples.len()).collect();
        assert_eq!(
            lengths,
            [8, 8, 8, 8, 8, 8, 8, 8, 2],
            "the last batch is short"
        );
        let ids = ids(&of_epoch);
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len() as u64, SAMPLES);
        orders.push(ids);
    }
    assert_ne!(orders[0], orders[1]);
    // Labels say which row it really was.
    for sample in batches.iter().flat_map(|batch| &batch.samples) {
        let before: u32 = ROW_GROUPS[..sample.id.row_group as usize].iter().sum();
        let label = i64::from(before + sample.id.row);
        assert!(
            format!("{:?}", sample.label).contains(&format!("({label})")),
            "{sample:?}"
        );
    }
    // Dropping the last changes nothing else.
    let dropped = all(&dataset, config());
    let full: Vec<Kept> = batches
        .into_iter()
        .filter(|batch| batch.samples.len() == 8)
        .collect();
    assert_eq!(dropped, full);
}

#[test]
fn without_shuffling_the_order_is_the_natural_one() {
    let folder = all_good();
    let dataset = open(&folder);
    let batches = all(
        &dataset,
        LoaderConfig {
            shuffle: false,
            drop_last: false,
            ..config()
        },
    );
    let epoch: Vec<SampleId> = ids(&batches)[..SAMPLES as usize].to_vec();
    assert!(epoch.is_sorted());
    assert_eq!(ids(&batches), [&epoch[..], &epoch[..], &epoch[..]].concat());
}

#[test]
fn threads_and_depths_change_nothing() {
    let folder = some_bad();
    let url = folder.path().to_str().unwrap();
    let reference = all(
        &open(&folder),
        LoaderConfig {
            decode_threads: 1,
            ..config()
        },
    );
    assert!(
        reference
            .iter()
            .flat_map(|batch| &batch.samples)
            .any(|sample| sample.views[0].flip)
    );
    for (decode_threads, prefetch_batches, max_requests, max_bytes) in [
        (4, 2, 32, 1 << 30),
        (4, 9, 1, 1 << 30),
        (1, 1, 2, 1),
        (3, 1, 8, 20_000),
    ] {
        let io = IoConfig {
            max_requests,
            max_bytes,
            coalesce_gap_bytes: 0,
            ..IoConfig::default()
        };
        let config = LoaderConfig {
            decode_threads,
            prefetch_batches,
            ..config()
        };
        let batches = all(&data::open(url, &io).unwrap(), config);
        assert!(
            batches == reference,
            "{decode_threads} threads, {prefetch_batches} batches"
        );
    }
    // The seed decides.
    assert_ne!(
        ids(&all(
            &open(&folder),
            LoaderConfig {
                seed: 8,
                ..config()
            }
        )),
        ids(&reference)
    );
}

#[test]
fn ranks_share_the_same_global_batches() {
    let folder = some_bad();
    let dataset = open(&folder);
    // Windows of one row group are often left over at a rank's end of an epoch.
    for (shuffle_window_bytes, drop_last) in
        [(1, true), (1, false), (10_000, true), (1 << 30, false)]
    {
        let config = LoaderConfig {
            shuffle_window_bytes,
            drop_last,
            ..config()
        };
        let whole = all(&dataset, config.clone());
        for world_size in [2, 4, 8] {
            let ranks: Vec<Vec<Kept>> = (0..world_size)
                .map(|rank| {
                    all(
                        &dataset,
                        LoaderConfig {
                            rank,
                            world_size,
                            ..config.clone()
                        },
                    )
                })
                .collect();
            for (i, batch) in whole.iter().enumerate() {
                let joined: Vec<SampleRecord> = ranks
                    .iter()
                    .flat_map(|rank| rank[i].samples.clone())
                    .collect();
                let pixels: Vec<f32> = ranks
                    .iter()
                    .flat_map(|rank| rank[i].pixels.clone())
                    .collect();
                assert_eq!(joined, batch.samples, "batch {i} of {world_size} ranks");
                assert!(pixels == batch.pixels, "batch {i} of {world_size} ranks");
            }
            assert!(ranks.iter().all(|rank| rank.len() == whole.len()));
        }
    }
}
