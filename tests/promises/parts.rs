//! A large row group is read in parts, by the pages that its offset index names: bounded memory, the same rows, few bytes twice.
use std::collections::BTreeSet;
use std::sync::Arc;

use nepa_pipeline::{Dataset, IoConfig, Loader, SampleId};
use nepa_schemas::Label;
use nepa_tests::data::{self, part_id};
use nepa_tests::loading::config;
use nepa_tests::photos::photo;
use nepa_tests::s3::S3Server;
use nepa_tests::shards::{LabelledRow, labelled_shard_in_pages};

const ROWS: u32 = 400;
const ROWS_PER_PAGE: usize = 7;
const PART_BYTES: u64 = 16 << 10;

fn rows(shard: u32) -> Vec<LabelledRow> {
    (0..ROWS)
        .map(|row| (Some(photo(shard * ROWS + row)), None, i64::from(row)))
        .collect()
}

/// Two shards of one row group each.
fn server(offset_index: bool) -> S3Server {
    let server = S3Server::start();
    for shard in 0..2 {
        let bytes = labelled_shard_in_pages([rows(shard)], ROWS_PER_PAGE, offset_index);
        server.put("bucket", &format!("{shard}.parquet"), bytes);
    }
    server
}

fn open(server: &S3Server, part_bytes: u64) -> Arc<Dataset> {
    let io = IoConfig {
        part_bytes,
        coalesce_gap_bytes: 0,
        ..data::io(server)
    };
    data::open("s3://bucket", &io).unwrap()
}

#[test]
fn every_row_of_a_large_row_group_is_in_one_part() {
    let server = server(true);
    let dataset = open(&server, PART_BYTES);
    let whole = open(&server, u64::MAX);
    assert_eq!(dataset.num_samples(), u64::from(2 * ROWS));
    assert_ne!(dataset.fingerprint(), whole.fingerprint());
    server.take_log();
    let mut fetched = 0;
    for (number, shard) in (0..).zip(dataset.shards()) {
        assert!(
            shard.parts.len() >= 10,
            "{} parts of {} bytes",
            shard.parts.len(),
            shard.size
        );
        let mut next = 0;
        for (index, part) in (0..).zip(&shard.parts) {
            assert_eq!((part.row_group, part.first_row), (0, next));
            assert!(part.memory_bytes <= PART_BYTES, "{part:?}");
            next += part.num_rows;
            let (_, bytes) = dataset.fetch(&[part_id(number, index)]).next().unwrap();
            let bytes = bytes.unwrap();
            fetched += bytes.num_bytes();
            let batch = bytes.unpack().unwrap();
            assert_eq!(batch.num_rows(), part.num_rows as usize);
            for i in 0..part.num_rows {
                let row = part.first_row + i;
                assert_eq!(batch.image(i as usize).unwrap(), photo(number * ROWS + row));
                assert_eq!(batch.label(i as usize), Some(Label::Index(i64::from(row))));
            }
        }
        assert_eq!(next, ROWS);
    }
    let needed: u64 = whole
        .shards()
        .iter()
        .flat_map(|shard| &shard.parts)
        .map(|part| part.fetch_bytes)
        .sum();
    assert!(
        fetched as f64 <= 1.05 * needed as f64,
        "{fetched} bytes were fetched for {needed}"
    );
    let log = server.take_log();
    assert!(log.iter().all(|request| request.status == 206));
}

#[test]
fn a_loader_over_parts_gives_every_sample_once_and_resumes() {
    let server = server(true);
    let dataset = open(&server, PART_BYTES);
    let config = nepa_pipeline::LoaderConfig {
        epochs: Some(2),
        shuffle_window_bytes: 4 * PART_BYTES,
        ..config()
    };
    let mut loader = Loader::new(Arc::clone(&dataset), config.clone(), None).unwrap();
    let mut seen: Vec<SampleId> = Vec::new();
    let mut middle = None;
    while let Some(batch) = loader.next_batch().unwrap() {
        seen.extend(batch.samples().iter().map(|sample| sample.id));
        drop(batch);
        if seen.len() == 480 {
            middle = Some(loader.state());
        }
    }
    for epoch in seen.chunks(2 * ROWS as usize) {
        assert_eq!(
            epoch.iter().collect::<BTreeSet<_>>().len(),
            2 * ROWS as usize
        );
    }
    let mut resumed = Loader::new(dataset, config, middle.as_ref()).unwrap();
    let mut rest: Vec<SampleId> = Vec::new();
    while let Some(batch) = resumed.next_batch().unwrap() {
        rest.extend(batch.samples().iter().map(|sample| sample.id));
    }
    assert_eq!(rest, seen[480..]);
}

#[test]
fn without_an_offset_index_a_row_group_is_read_whole() {
    let server = server(false);
    let dataset = open(&server, PART_BYTES);
    let parts: Vec<_> = dataset
        .shards()
        .iter()
        .map(|shard| shard.parts.len())
        .collect();
    assert_eq!(parts, [1, 1]);
    assert_eq!(dataset.fingerprint(), open(&server, u64::MAX).fingerprint());
}
