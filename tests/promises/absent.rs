//! Rows without an image are no samples: the footers count them, the pages show which they are, and every other row comes once an epoch,
//! with any number of ranks, from any position, in mixtures and in parts of large row groups.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, NullArray};
use arrow::record_batch::RecordBatch;
use nepa_pipeline::{
    Dataset, DatasetError, IoConfig, Loader, LoaderConfig, LoaderError, LoaderState, SampleId,
    SampleRecord,
};
use nepa_tests::data::{self, open_folder as open};
use nepa_tests::loading::{all, config};
use nepa_tests::photos::photo;
use nepa_tests::program::{assert_says, nepa, succeed, text, tiny_recipe};
use nepa_tests::s3::S3Server;
use nepa_tests::shards::{
    LabelledRow, labelled_shard, labelled_shard_with, properties, with_other_footer,
};
use parquet::file::properties::EnabledStatistics;
use parquet::file::statistics::Statistics;

/// Whether the row holds an image: about two of three do, and none in row group 2.
fn is_present(shard: u32, row_group: u32, row: u32) -> bool {
    row_group != 2 && (row * 7 + shard * 3 + row_group) % 10 < 7
}

fn rows(shard: u32, row_group: u32, count: u32) -> Vec<LabelledRow> {
    let row = |row| {
        let present = is_present(shard, row_group, row);
        let number = (shard * 10 + row_group) * 1000 + row;
        let path = row.is_multiple_of(2).then(|| format!("{number}.jpg"));
        (present.then(|| photo(number)), path, i64::from(row))
    };
    (0..count).map(row).collect()
}

const ROW_GROUPS: [u32; 4] = [17, 24, 9, 31];

/// Two shards, and the rows of them that hold an image.
fn write(folder: &Path, statistics: EnabledStatistics) -> BTreeSet<SampleId> {
    let mut present = BTreeSet::new();
    for shard in 0..2 {
        let row_groups = (0..).zip(ROW_GROUPS);
        let groups = row_groups.map(|(group, count)| rows(shard, group, count));
        let properties = properties().set_statistics_enabled(statistics).build();
        let bytes = labelled_shard_with(groups, properties);
        std::fs::write(folder.join(format!("train-{shard}.parquet")), bytes).unwrap();
        for (row_group, count) in (0..).zip(ROW_GROUPS) {
            let held = (0..count).filter(|&row| is_present(shard, row_group, row));
            present.extend(held.map(|row| SampleId {
                shard,
                row_group,
                row,
            }));
        }
    }
    present
}

/// The samples of `count` global batches of `world_size` ranks that start at `state`, and the state after them.
fn batches(
    dataset: &Arc<Dataset>,
    config: &LoaderConfig,
    world_size: usize,
    state: Option<&LoaderState>,
    count: u64,
) -> (Vec<SampleRecord>, LoaderState) {
    let rank = |rank| {
        let config = LoaderConfig {
            rank,
            world_size,
            ..config.clone()
        };
        Loader::new(Arc::clone(dataset), config, state).unwrap()
    };
    let mut ranks: Vec<Loader> = (0..world_size).map(rank).collect();
    let mut samples = Vec::new();
    for _ in 0..count {
        for rank in &mut ranks {
            samples.extend_from_slice(rank.next_batch().unwrap().unwrap().samples());
        }
    }
    (samples, ranks[0].state())
}

fn times(samples: &[SampleRecord]) -> BTreeMap<SampleId, usize> {
    let mut times = BTreeMap::new();
    for sample in samples {
        assert_eq!(sample.replaces, None);
        *times.entry(sample.id).or_default() += 1;
    }
    times
}

#[test]
fn every_row_with_an_image_comes_once_an_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let present = write(folder.path(), EnabledStatistics::Chunk);
    let dataset = open(folder.path());
    let num_rows: u32 = 2 * ROW_GROUPS.iter().sum::<u32>();
    assert_eq!(dataset.num_samples(), present.len() as u64);
    assert_eq!(
        dataset.num_samples() + dataset.num_absent(),
        u64::from(num_rows)
    );
    for (shuffle, window) in [(true, 1), (true, 20_000), (true, 1 << 30), (false, 20_000)] {
        let config = LoaderConfig {
            shuffle,
            global_batch: 12,
            drop_last: false,
            shuffle_window_bytes: window,
            max_bad_fraction: 0.0,
            ..config()
        };
        let per_epoch = (present.len() as u64).div_ceil(12);
        let (whole, _) = batches(&dataset, &config, 1, None, 3 * per_epoch);
        for epoch in whole.chunks(present.len()) {
            let times = times(epoch);
            assert!(times.keys().eq(&present), "window {window}");
            assert!(times.values().all(|&times| times == 1));
        }
        // 1 rank, then 2, then 3, from the middle of windows, by another opening of the data set.
        let (mut joined, mut state) = batches(&dataset, &config, 1, None, 2);
        for (world_size, count) in [(2, 1), (3, per_epoch), (1, 4), (2, 2 * per_epoch - 7)] {
            let again = open(folder.path());
            let (more, next) = batches(&again, &config, world_size, Some(&state), count);
            joined.extend(more);
            state = next;
        }
        assert!(joined == whole, "window {window}");
    }
}

#[test]
fn each_data_set_of_a_mixture_gives_its_rows_once() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let present = write(first.path(), EnabledStatistics::Chunk);
    std::fs::write(
        second.path().join("x.parquet"),
        labelled_shard([rows(5, 1, 40)]),
    )
    .unwrap();
    let [first, second] = [&first, &second].map(|folder| folder.path().to_str().unwrap());
    let mixture = data::mixture([(first, 3.0), (second, 1.0)]);
    let dataset = data::open_as(&mixture, &IoConfig::default()).unwrap();
    let config = LoaderConfig {
        global_batch: 12,
        epochs: None,
        max_bad_fraction: 0.0,
        ..config()
    };
    let count = 2 * present.len() as u64 / 9 + 2;
    let (whole, _) = batches(&dataset, &config, 1, None, count);
    let of_source = |source| {
        let samples = whole.iter().inspect(|one| assert_eq!(one.replaces, None));
        let ids = samples.map(|sample| sample.id);
        ids.filter(|id| dataset.source_of(id.shard) == source)
            .collect::<Vec<_>>()
    };
    let of_first = of_source(0);
    for epoch in of_first.chunks_exact(present.len()) {
        assert!(
            epoch
                .iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .eq(&present)
        );
    }
    let in_second = dataset.sources()[1].num_samples as usize;
    let of_second = of_source(1);
    assert!(of_second.len() >= in_second);
    let distinct: BTreeSet<_> = of_second[..in_second].iter().collect();
    assert_eq!(distinct.len(), in_second);
    let (mut joined, state) = batches(&dataset, &config, 3, None, 5);
    joined.extend(batches(&dataset, &config, 2, Some(&state), count - 5).0);
    assert!(joined == whole);
}

const LARGE: u32 = 400;

/// One row group that is read in parts.
fn large(statistics: EnabledStatistics) -> (tempfile::TempDir, Arc<Dataset>) {
    let folder = tempfile::tempdir().unwrap();
    let properties = properties()
        .set_data_page_row_count_limit(7)
        .set_write_batch_size(7)
        .set_statistics_enabled(statistics);
    let bytes = labelled_shard_with([rows(0, 0, LARGE)], properties.build());
    std::fs::write(folder.path().join("a.parquet"), bytes).unwrap();
    let io = IoConfig {
        part_bytes: 16 << 10,
        ..IoConfig::default()
    };
    let dataset = data::open(folder.path().to_str().unwrap(), &io).unwrap();
    assert!(dataset.shards()[0].parts.len() >= 8);
    (folder, dataset)
}

#[test]
fn parts_of_a_large_row_group_are_counted_by_their_pages() {
    let (_folder, dataset) = large(EnabledStatistics::Page);
    let present = (0..LARGE).filter(|&row| is_present(0, 0, row)).count();
    assert_eq!(dataset.num_samples(), present as u64);
    let config = LoaderConfig {
        global_batch: 8,
        drop_last: false,
        ..config()
    };
    let (samples, _) = batches(&dataset, &config, 1, None, (present as u64).div_ceil(8));
    assert_eq!(times(&samples).len(), present);
    for (index, part) in (0..).zip(&dataset.shards()[0].parts) {
        let rows = part.first_row..part.first_row + part.num_rows;
        let absent = rows.filter(|&row| !is_present(0, 0, row)).count();
        assert_eq!(part.num_absent as usize, absent, "part {index}");
    }
}

#[test]
fn rows_that_no_footer_counts_are_replaced_and_are_not_bad() {
    let folder = tempfile::tempdir().unwrap();
    let present = write(folder.path(), EnabledStatistics::None);
    let (_large, of_parts) = large(EnabledStatistics::Chunk);
    let large_present = (0..LARGE).filter(|&row| is_present(0, 0, row)).count();
    for (dataset, num_present) in [
        (open(folder.path()), present.len()),
        (of_parts, large_present),
    ] {
        let num_rows = dataset.num_samples();
        assert_eq!(dataset.num_absent(), 0);
        let output = tempfile::tempdir().unwrap();
        let list = output.path().join("bad.jsonl");
        let config = LoaderConfig {
            global_batch: 9,
            epochs: Some(8),
            drop_last: false,
            shuffle_window_bytes: 1 << 20,
            max_bad_fraction: 0.0,
            bad_samples_path: Some(list.clone()),
            ..config()
        };
        let mut loader = Loader::new(dataset, config, None).unwrap();
        let mut own = BTreeMap::<_, u32>::new();
        while let Some(batch) = loader.next_batch().unwrap() {
            for sample in batch.samples().iter().filter(|one| one.replaces.is_none()) {
                *own.entry(sample.id).or_default() += 1;
            }
        }
        assert_eq!(own.len(), num_present);
        assert!(own.values().all(|&times| times == 8));
        assert_eq!(loader.state().samples_tried, 8 * num_rows);
        assert_eq!(loader.state().samples_bad, 0);
        assert_eq!(std::fs::read_to_string(&list).unwrap(), "");
        let report = loader.last_epoch().unwrap();
        assert_eq!(report.replaced, 0);
        assert_eq!(report.absent, num_rows - num_present as u64);
        assert!(report.to_string().contains("no footer counts"), "{report}");
    }
}

#[test]
fn a_row_group_without_images_is_not_fetched() {
    let server = S3Server::start();
    let empty = vec![(None, None, 0); 5000];
    let shard = labelled_shard([rows(0, 0, 20), empty, rows(0, 1, 20)]);
    let size = shard.len() as u64;
    server.put("bucket", "a.parquet", shard);
    let io = IoConfig {
        coalesce_gap_bytes: 0,
        store_options: server.store_options(),
        ..IoConfig::default()
    };
    let dataset = data::open("s3://bucket", &io).unwrap();
    let before = dataset.io_counters().bytes;
    let config = LoaderConfig {
        epochs: Some(1),
        ..config()
    };
    all(&dataset, config);
    let images: u64 = [0, 2]
        .map(|part: usize| dataset.shards()[0].parts[part].fetch_bytes)
        .iter()
        .sum();
    assert_eq!(dataset.io_counters().bytes - before, images);
    assert!(size > images + 10_000);
}

#[test]
fn a_data_set_without_any_image_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let paths = (0..30).map(|row| (None, Some(format!("{row}.jpg")), 0));
    std::fs::write(
        folder.path().join("a.parquet"),
        labelled_shard([paths.collect()]),
    )
    .unwrap();
    let error = data::open(folder.path().to_str().unwrap(), &IoConfig::default()).unwrap_err();
    assert!(
        matches!(error, DatasetError::NoImages { num_rows: 30, .. }),
        "{error}"
    );
    assert_says(
        &error.to_string(),
        &[
            "none of the 30 rows",
            "`image` is null",
            "download the images",
        ],
    );
}

/// A shard of 20 rows, 5 of them without an image, whose statistics count `said`.
fn miscounted(folder: &Path, said: u64) -> Arc<Dataset> {
    let row = |row: u32| ((!row.is_multiple_of(4)).then(|| photo(row)), None, 0);
    let shard = labelled_shard([(0..20).map(row).collect()]);
    let shard = with_other_footer(shard, None, |column, builder| {
        if column.column_path().string() == "image.bytes" {
            let nulls = Statistics::byte_array(None, None, None, Some(said), false);
            builder
                .set_statistics(nulls)
                .set_definition_level_histogram(None)
        } else {
            builder
        }
    });
    std::fs::write(folder.join("a.parquet"), shard).unwrap();
    open(folder)
}

#[test]
fn statistics_that_count_other_rows_neither_lose_nor_invent_an_image() {
    let config = LoaderConfig {
        epochs: Some(1),
        global_batch: 1,
        max_bad_fraction: 0.0,
        ..config()
    };
    let folder = tempfile::tempdir().unwrap();
    let dataset = miscounted(folder.path(), 7);
    assert_eq!(dataset.num_samples(), 13);
    let mut loader = Loader::new(dataset, config.clone(), None).unwrap();
    let error = loader.next_batch().unwrap_err();
    let LoaderError::Dataset(dataset_error) = &error else {
        panic!("{error}")
    };
    let DatasetError::AbsentCount { said, found, .. } = &**dataset_error else {
        panic!("{error}")
    };
    assert_eq!((*said, *found), (7, 5));
    assert_says(
        &error.to_string(),
        &[
            "a.parquet, row group 0",
            "count 7 rows without an image, and 5 are",
        ],
    );
    // Those that they do not count are met in the order.
    let dataset = miscounted(folder.path(), 3);
    assert_eq!(dataset.num_samples(), 17);
    let samples = all(&dataset, config);
    let samples = samples.iter().flat_map(|batch| &batch.samples);
    let (own, others): (Vec<_>, Vec<_>) = samples.partition(|sample| sample.replaces.is_none());
    assert_eq!(own.iter().map(|s| s.id).collect::<BTreeSet<_>>().len(), 15);
    assert_eq!((own.len(), others.len()), (15, 2));
}

#[test]
fn the_fingerprint_knows_which_rows_are_samples() {
    let folder = tempfile::tempdir().unwrap();
    let print = |said| miscounted(folder.path(), said).fingerprint();
    assert_ne!(print(3), print(5));
    // What holds an image in every row has the digest that it always had.
    let shard = labelled_shard([(0..20).map(|row| (Some(photo(row)), None, 0)).collect()]);
    std::fs::write(folder.path().join("a.parquet"), shard).unwrap();
    assert_eq!(open(folder.path()).fingerprint(), ALL_PRESENT);
}

/// Of the program of 2026-11-29, before rows without an image were left out.
const ALL_PRESENT: &str = "bcb19ed0ec380e966de63ce741fb002261751144edb2dbad397cda9937a44740";

#[test]
fn the_program_says_how_many_rows_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let present = write(folder.path(), EnabledStatistics::Chunk);
    let data = folder.path().to_str().unwrap();
    let left_out = 162 - present.len();
    let said = text(&succeed(nepa().args(["inspect", data])));
    let rows = format!("rows         162, {left_out} of them without an image (left out)");
    assert_says(&said, &[&rows]);
    assert!(!said.contains("do not count"), "{said}");
    let output = tempfile::tempdir().unwrap();
    let mut pretrain = nepa();
    pretrain.arg("pretrain").arg(tiny_recipe());
    pretrain.args([
        "--data",
        data,
        "--set",
        "train.batch=8",
        "--set",
        "data.max_bad_fraction=0",
    ]);
    pretrain.arg("--out").arg(output.path().join("run"));
    let said = text(&succeed(&mut pretrain));
    let line = format!("{left_out} of 162 rows hold no image and are left out");
    assert_eq!(said.matches(&line).count(), 1, "{said}");
    assert_says(&said, &[&format!(" shards, {} images, ", present.len())]);

    write(folder.path(), EnabledStatistics::None);
    let said = text(&succeed(nepa().args(["inspect", data])));
    assert_says(
        &said,
        &[&format!(
            "warning: {left_out} of 162 sampled rows hold no image and the footers do not count them"
        )],
    );
}

/// Writes a shard of binary columns.
fn write_columns(path: &Path, columns: Vec<(&str, Vec<Option<Vec<u8>>>)>) {
    let columns = columns.into_iter().map(|(name, values)| {
        let empty = values.is_empty();
        let array: ArrayRef = if empty {
            Arc::new(NullArray::new(10))
        } else {
            Arc::new(values.into_iter().collect::<BinaryArray>())
        };
        (name, array, true)
    });
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    std::fs::write(path, nepa_tests::shards::write(&batch.schema(), [batch])).unwrap();
}

#[test]
fn a_row_without_an_image_in_any_of_several_columns_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let images = |rows: &[u32]| -> Vec<_> {
        let held = |row: &u32| rows.contains(row);
        (0..10)
            .map(|row| Some(row).filter(held).map(photo))
            .collect()
    };
    let path = |name: &str| folder.path().join(name);
    let all: Vec<u32> = (0..10).collect();
    // Counted: the one column is all null, or the one has an image in every row.
    let one = vec![("jpg", images(&all[..7])), ("png", images(&[]))];
    write_columns(&path("a.parquet"), one);
    let every = vec![("jpg", images(&all)), ("png", images(&[1, 2]))];
    write_columns(&path("b.parquet"), every);
    assert_eq!(open(folder.path()).num_absent(), 3);
    // Not counted: who knows which rows are null in both.
    let both = vec![("jpg", images(&all[..5])), ("png", images(&all[4..8]))];
    write_columns(&path("c.parquet"), both);
    let dataset = open(folder.path());
    assert_eq!((dataset.num_samples(), dataset.num_absent()), (27, 3));
    let config = LoaderConfig {
        epochs: Some(1),
        global_batch: 9,
        max_bad_fraction: 0.0,
        ..config()
    };
    let mut loader = Loader::new(dataset, config, None).unwrap();
    let mut own = BTreeSet::new();
    while let Some(batch) = loader.next_batch().unwrap() {
        let samples = batch.samples().iter().filter(|one| one.replaces.is_none());
        own.extend(samples.map(|sample| sample.id));
    }
    assert_eq!(own.len(), 25);
    assert_eq!(loader.last_epoch().unwrap().absent, 2);
}

#[test]
fn a_shard_whose_images_are_of_no_type_holds_no_samples() {
    let folder = tempfile::tempdir().unwrap();
    let images = (0..10).map(|row| Some(photo(row)));
    write_columns(
        &folder.path().join("a.parquet"),
        vec![("image", images.collect())],
    );
    write_columns(&folder.path().join("b.parquet"), vec![("image", vec![])]);
    let dataset = open(folder.path());
    assert_eq!((dataset.num_samples(), dataset.num_absent()), (10, 10));
    let config = LoaderConfig {
        epochs: Some(1),
        global_batch: 5,
        ..config()
    };
    assert_eq!(all(&dataset, config).len(), 2);
}
