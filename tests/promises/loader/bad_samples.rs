//! Bad samples are replaced alike and listed; too many of them end the run.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use nepa_pipeline::{Loader, LoaderConfig, LoaderError, SampleId};
use nepa_tests::loading::{failure, rest_of};
use nepa_tests::photos::{PRESENT, Row, photo_folder};

use super::{all, config, open, some_bad};

/// The list as (object's name, row group, row) to reasons.
fn listed(path: &Path) -> BTreeMap<(String, u64, u64), BTreeSet<String>> {
    let mut rows: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = line["object"]
            .as_str()
            .unwrap()
            .rsplit('/')
            .next()
            .unwrap()
            .to_owned();
        let place = (
            name,
            line["row_group"].as_u64().unwrap(),
            line["row"].as_u64().unwrap(),
        );
        rows.entry(place)
            .or_default()
            .insert(line["reason"].as_str().unwrap().to_owned());
    }
    rows
}

#[test]
fn bad_samples_are_replaced_alike_and_listed() {
    let folder = some_bad();
    let dataset = open(&folder);
    let output = tempfile::tempdir().unwrap();
    let mut runs = Vec::new();
    for decode_threads in [1, 4] {
        let list = output.path().join(format!("{decode_threads}.jsonl"));
        let config = LoaderConfig {
            decode_threads,
            drop_last: false,
            bad_samples_path: Some(list.clone()),
            ..config()
        };
        let mut loader = Loader::new(Arc::clone(&dataset), config, None).unwrap();
        let batches = rest_of(&mut loader);
        assert_eq!(loader.state().samples_tried, 3 * PRESENT);
        // Two in each shard, and two more in the one.
        assert_eq!(loader.state().samples_bad, 3 * 8);
        runs.push((batches, std::fs::read_to_string(&list).unwrap()));
    }
    assert!(runs[0] == runs[1], "replacements depend on the threads");

    let rows = listed(&output.path().join("1.jsonl"));
    assert_eq!(rows.len(), 8);
    let reason = |shard: u32, row_group: u64, row: u64| {
        let reasons = &rows[&(format!("train-{shard}.parquet"), row_group, row)];
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        reasons.first().unwrap().to_lowercase()
    };
    assert!(reason(0, 2, 0).contains("jpeg"), "{}", reason(0, 2, 0));
    assert!(
        reason(0, 3, 4).contains("not an image"),
        "{}",
        reason(0, 3, 4)
    );

    let samples = runs[0].0.iter().flat_map(|batch| &batch.samples);
    let mut tried = BTreeMap::<SampleId, u32>::new();
    for sample in samples {
        *tried
            .entry(sample.replaces.unwrap_or(sample.id))
            .or_default() += 1;
        let place = |id: SampleId| {
            (
                format!("train-{}.parquet", id.shard),
                u64::from(id.row_group),
                u64::from(id.row),
            )
        };
        assert!(
            !rows.contains_key(&place(sample.id)),
            "{sample:?} is bad itself"
        );
        if let Some(replaced) = sample.replaces {
            assert!(rows.contains_key(&place(replaced)), "{sample:?} was good");
            if replaced.row_group == 1 && replaced.shard == 1 {
                assert_eq!(
                    sample.id,
                    SampleId { row: 2, ..replaced },
                    "the only good neighbour"
                );
            }
        }
    }
    // Every sample's turn comes once an epoch, be it bad.
    assert_eq!(tried.len() as u64, PRESENT);
    assert!(tried.values().all(|&times| times == 3));
}

#[test]
fn too_many_bad_samples_end_the_run_with_the_list() {
    let folder = some_bad();
    let dataset = open(&folder);
    let output = tempfile::tempdir().unwrap();
    let list = output.path().join("bad_samples.jsonl");
    let config = LoaderConfig {
        epochs: None,
        max_bad_fraction: 0.05,
        bad_samples_path: Some(list.clone()),
        ..config()
    };
    let mut loader = Loader::new(Arc::clone(&dataset), config.clone(), None).unwrap();
    let error = loop {
        match loader.next_batch() {
            Ok(batch) => drop(batch.unwrap()),
            Err(error) => break error,
        }
    };
    assert_eq!(
        loader.state().samples_tried,
        992,
        "the batch that was not handed out does not count as handed out"
    );
    let LoaderError::TooManyBad { bad, tried, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(*tried, 1000, "judged after the first 1,000");
    assert_eq!(
        std::fs::read_to_string(&list).unwrap().lines().count() as u64,
        *bad
    );
    let text = error.to_string();
    for part in [
        "max_bad_fraction",
        "row group 2, row 0",
        "bad_samples.jsonl",
        "5.00 %",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // Within the budget the run goes on.
    let config = LoaderConfig {
        epochs: Some(20),
        max_bad_fraction: 0.3,
        ..config
    };
    assert_eq!(all(&dataset, config).len() as u64, 20 * (PRESENT / 8));
}

#[test]
fn a_window_without_a_good_sample_is_a_clear_error() {
    // Row groups with enough rows to be windows of their own.
    let folder = photo_folder(|shard, row_groups| {
        row_groups.fill(vec![Row::Good; 16]);
        if shard == 1 {
            row_groups[3] = vec![Row::Garbage; 16];
        }
    });
    let dataset = open(&folder);
    for decode_threads in [1, 4] {
        let config = LoaderConfig {
            decode_threads,
            shuffle_window_bytes: 1,
            ..config()
        };
        let error = failure(&dataset, config);
        assert!(
            matches!(error, LoaderError::NothingToReplace { .. }),
            "{error}"
        );
        let text = error.to_string();
        assert!(
            text.contains("train-1.parquet, row group 3") && text.contains("not an image"),
            "{text}"
        );
    }
    // In a wider window its neighbours stand in, each epoch for each of its 16 rows.
    let batches = all(
        &dataset,
        LoaderConfig {
            shuffle_window_bytes: 1 << 30,
            ..config()
        },
    );
    let samples = batches.iter().flat_map(|batch| &batch.samples);
    let replaced = samples.filter_map(|sample| sample.replaces);
    let mut times = BTreeMap::<SampleId, u32>::new();
    for id in replaced {
        *times.entry(id).or_default() += 1;
    }
    assert_eq!(times.len(), 16);
    let of_row_group =
        |(id, &times): (&SampleId, &u32)| (id.shard, id.row_group, times) == (1, 3, 3);
    assert!(times.iter().all(of_row_group), "{times:?}");
}

#[test]
fn a_small_row_group_without_a_good_sample_borrows_from_its_neighbours() {
    let folder = photo_folder(|shard, row_groups| {
        if shard == 1 {
            row_groups[3] = vec![Row::Garbage; 8];
        }
    });
    let config = LoaderConfig {
        shuffle_window_bytes: 1,
        ..config()
    };
    let batches = all(&open(&folder), config);
    // Each turn of a row of it is another sample's, a good one; no other row is replaced.
    let is_bad = |id: SampleId| (id.shard, id.row_group) == (1, 3);
    let samples = batches.iter().flat_map(|batch| &batch.samples);
    let replaced: Vec<SampleId> = samples
        .inspect(|sample| assert!(!is_bad(sample.id), "{sample:?} is bad"))
        .filter_map(|sample| sample.replaces)
        .collect();
    assert!(replaced.iter().copied().all(is_bad), "{replaced:?}");
    // An epoch of 66 samples leaves out the last two, which may be two of the eight.
    assert!((3 * 6..=3 * 8).contains(&replaced.len()), "{replaced:?}");
    assert_eq!(batches.len(), 3 * 8);
}
