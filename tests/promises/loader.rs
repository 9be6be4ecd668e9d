//! The loader gives the same batches whatever the threads and the timing, every sample once, resumes from anywhere,
//! replaces bad samples alike, and stops when told.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nepa_pipeline::{
    AugmentConfig, Dataset, DatasetConfig, Filter, HostBatch, IoConfig, IoRuntime, Loader,
    LoaderConfig, LoaderError, LoaderState, SampleId, SampleRecord,
};
use nepa_tests::photos::{Row, photo_shard};
use nepa_tests::s3::{Fault, Rule, S3Server};

const SHARDS: u32 = 3;
/// Rows of each of a shard's row groups: sizes that fit neither each other nor any batch.
const ROW_GROUPS: [u32; 4] = [7, 5, 2, 8];
const SAMPLES: u64 = 66;
/// Rows of [`some_bad`] that hold an image, be it bad.
const PRESENT: u64 = 59;

fn good() -> Vec<Vec<Row>> {
    ROW_GROUPS
        .iter()
        .map(|&rows| vec![Row::Good; rows as usize])
        .collect()
}

/// Shards in a new folder; `shape` may spoil some rows.
fn folder(shape: impl Fn(u32, &mut Vec<Vec<Row>>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for shard in 0..SHARDS {
        let mut row_groups = good();
        shape(shard, &mut row_groups);
        let path = folder.path().join(format!("train-{shard}.parquet"));
        std::fs::write(path, photo_shard(shard, &row_groups)).unwrap();
    }
    folder
}

pub(crate) fn all_good() -> tempfile::TempDir {
    folder(|_, _| {})
}

/// Two kinds of rows without an image and two of bad ones, one row group with a single good row.
pub(crate) fn some_bad() -> tempfile::TempDir {
    folder(|shard, row_groups| {
        row_groups[0][(shard * 2) as usize] = Row::Null;
        row_groups[1][1] = Row::PathOnly;
        row_groups[2][0] = Row::Truncated;
        row_groups[3][4] = Row::Garbage;
        if shard == 1 {
            row_groups[1] = vec![
                Row::Garbage,
                Row::Truncated,
                Row::Good,
                Row::Null,
                Row::PathOnly,
            ];
        }
    })
}

fn open_with(url: &str, io: &IoConfig) -> Arc<Dataset> {
    let config = DatasetConfig {
        urls: vec![url.to_owned()],
        ..DatasetConfig::default()
    };
    Dataset::open(&config, io, &IoRuntime::new(2).unwrap()).unwrap()
}

pub(crate) fn open(folder: &tempfile::TempDir) -> Arc<Dataset> {
    open_with(folder.path().to_str().unwrap(), &IoConfig::default())
}

pub(crate) fn config() -> LoaderConfig {
    LoaderConfig {
        seed: 7,
        global_batch: 8,
        rank: 0,
        world_size: 1,
        epochs: Some(3),
        shuffle: true,
        drop_last: true,
        augment: AugmentConfig::RandomResizedCrop {
            size: 8,
            scale: [0.2, 1.0],
            ratio: [0.75, 1.33],
            flip: 0.5,
            filter: Filter::Bilinear,
        },
        normalize: nepa_pipeline::Normalize::default(),
        exif_orientation: true,
        decode_threads: 2,
        prefetch_batches: 2,
        // About three row groups a window.
        shuffle_window_bytes: 10_000,
        max_bad_fraction: 1.0,
        bad_samples_path: None,
    }
}

/// A batch, kept.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Kept {
    pub(crate) epoch: u64,
    pub(crate) samples: Vec<SampleRecord>,
    pub(crate) pixels: Vec<f32>,
}

impl Kept {
    fn of(batch: &HostBatch) -> Self {
        for (i, pixels) in batch.to_vec().chunks_exact(3 * 8 * 8).enumerate() {
            assert_eq!(batch.pixels(i), pixels);
        }
        Self {
            epoch: batch.epoch(),
            samples: batch.samples().to_vec(),
            pixels: batch.to_vec(),
        }
    }
}

fn rest_of(loader: &mut Loader) -> Vec<Kept> {
    let mut batches = Vec::new();
    while let Some(batch) = loader.next_batch().unwrap() {
        batches.push(Kept::of(&batch));
    }
    batches
}

pub(crate) fn all(dataset: &Arc<Dataset>, config: LoaderConfig) -> Vec<Kept> {
    rest_of(&mut Loader::new(Arc::clone(dataset), config, None).unwrap())
}

fn ids(batches: &[Kept]) -> Vec<SampleId> {
    batches
        .iter()
        .flat_map(|batch| batch.samples.iter().map(|sample| sample.id))
        .collect()
}

fn failure(dataset: &Arc<Dataset>, config: LoaderConfig) -> LoaderError {
    let mut loader = Loader::new(Arc::clone(dataset), config, None).unwrap();
    loop {
        match loader.next_batch() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the run came to its end"),
            Err(error) => return error,
        }
    }
}

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
            .any(|sample| sample.plan.flip)
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
        let batches = all(&open_with(url, &io), config);
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

#[test]
fn every_state_resumes_the_very_same_stream() {
    let folder = some_bad();
    let dataset = open(&folder);
    let output = tempfile::tempdir().unwrap();
    let list = output.path().join("bad_samples.jsonl");
    for drop_last in [true, false] {
        let _ = std::fs::remove_file(&list);
        let config = LoaderConfig {
            drop_last,
            bad_samples_path: Some(list.clone()),
            ..config()
        };
        let mut loader = Loader::new(Arc::clone(&dataset), config.clone(), None).unwrap();
        let mut states = vec![loader.state()];
        let mut batches = Vec::new();
        while let Some(batch) = loader.next_batch().unwrap() {
            batches.push(Kept::of(&batch));
            states.push(loader.state());
        }
        drop(loader);
        let listed = std::fs::read_to_string(&list).unwrap();
        for (i, state) in states.iter().enumerate() {
            let json = serde_json::to_string(state).unwrap();
            assert!(json.len() < 4096, "{json}");
            let state: LoaderState = serde_json::from_str(&json).unwrap();
            // The killed run had gone some batches further than its last state.
            let mut killed =
                Loader::new(Arc::clone(&dataset), config.clone(), Some(&state)).unwrap();
            for _ in 0..2 {
                drop(killed.next_batch().unwrap());
            }
            drop(killed);
            let mut resumed = Loader::new(open(&folder), config.clone(), Some(&state)).unwrap();
            assert_eq!(resumed.state(), state);
            assert!(
                rest_of(&mut resumed) == batches[i..],
                "resumed after {i} batches"
            );
            assert_eq!(&resumed.state(), states.last().unwrap());
            assert_eq!(std::fs::read_to_string(&list).unwrap(), listed);
        }
    }
}

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
    let folder = folder(|shard, row_groups| {
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
    // In a wider window its neighbours stand in.
    all(
        &dataset,
        LoaderConfig {
            shuffle_window_bytes: 1 << 30,
            ..config()
        },
    );
}

#[test]
fn a_small_row_group_without_a_good_sample_borrows_from_its_neighbours() {
    let folder = folder(|shard, row_groups| {
        if shard == 1 {
            row_groups[3] = vec![Row::Garbage; 8];
        }
    });
    let config = LoaderConfig {
        shuffle_window_bytes: 1,
        ..config()
    };
    all(&open(&folder), config);
}

#[test]
fn a_state_of_another_run_is_refused() {
    let folder = all_good();
    let dataset = open(&folder);
    let state = Loader::new(Arc::clone(&dataset), config(), None)
        .unwrap()
        .state();
    let refused = |dataset: &Arc<Dataset>, config: LoaderConfig, state: &LoaderState| {
        let error = Loader::new(Arc::clone(dataset), config, Some(state)).unwrap_err();
        assert!(
            matches!(error, LoaderError::StateMismatch { .. }),
            "{error}"
        );
        error.to_string()
    };
    let text = refused(
        &dataset,
        LoaderConfig {
            seed: 12_345,
            ..config()
        },
        &state,
    );
    assert!(
        text.contains("seed was 7") && text.contains("is 12345 now"),
        "{text}"
    );
    let text = refused(
        &dataset,
        LoaderConfig {
            global_batch: 16,
            ..config()
        },
        &state,
    );
    assert!(
        text.contains("batch size was 8") && text.contains("is 16 now"),
        "{text}"
    );
    let folder = some_bad();
    let other = open(&folder);
    let text = refused(&other, config(), &state);
    assert!(
        text.contains("data set") && text.contains(&state.dataset),
        "{text}"
    );
    assert!(text.contains(&other.fingerprint()), "{text}");
    let text = refused(
        &dataset,
        config(),
        &LoaderState {
            version: 9,
            ..state.clone()
        },
    );
    assert!(
        text.contains("version was 9") && text.contains("is 3 now"),
        "{text}"
    );
    // Each of these is another order.
    let window = LoaderConfig {
        shuffle_window_bytes: config().shuffle_window_bytes + 1,
        ..config()
    };
    let unshuffled = LoaderConfig {
        shuffle: !config().shuffle,
        ..config()
    };
    let whole = LoaderConfig {
        drop_last: !config().drop_last,
        ..config()
    };
    for (other, setting) in [
        (window, "shuffle_window_bytes"),
        (unshuffled, "shuffle"),
        (whole, "drop_last"),
    ] {
        let text = refused(&dataset, other, &state);
        assert!(
            text.contains(&format!("cannot resume: {setting} was")),
            "{text}"
        );
    }
}

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

#[test]
fn a_page_that_is_damaged_ends_the_run() {
    let folder = all_good();
    let path = folder.path().join("train-1.parquet");
    let mut bytes = std::fs::read(&path).unwrap();
    // The first page's header.
    bytes[4..24].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    for decode_threads in [1, 4] {
        let error = failure(
            &open(&folder),
            LoaderConfig {
                decode_threads,
                ..config()
            },
        );
        assert!(matches!(error, LoaderError::Dataset(_)), "{error}");
        assert!(error.to_string().contains("train-1.parquet"), "{error}");
    }
}

/// Threads of this process whose names begin with `prefix`.
fn threads_named(prefix: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // A thread may end while the list is read.
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.starts_with(prefix)).count()
}

const IN_OWN_PROCESS: &str = "NEPA_TEST_LOADER_DROPS";

/// Counting threads needs a process without other tests in it.
#[test]
fn a_dropped_loader_joins_its_threads() {
    if std::env::var_os(IN_OWN_PROCESS).is_some() {
        return drop_in_every_state();
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "loader::a_dropped_loader_joins_its_threads"])
        .env(IN_OWN_PROCESS, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

fn drop_in_every_state() {
    let decode_threads = 5;
    let folder = all_good();
    let dataset = open(&folder);
    let config = LoaderConfig {
        decode_threads,
        epochs: None,
        ..config()
    };
    for taken in [0, 1, 5, 8, 13] {
        let mut loader = Loader::new(Arc::clone(&dataset), config.clone(), None).unwrap();
        // A new thread gives itself its name.
        let deadline = Instant::now() + Duration::from_secs(10);
        while threads_named("nepa-d") != decode_threads + 1 {
            assert!(
                Instant::now() < deadline,
                "{} threads",
                threads_named("nepa-d")
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut kept = None;
        for _ in 0..taken {
            kept = loader.next_batch().unwrap();
        }
        drop_promptly(loader);
        // What was lent stays whole, and can be given back to nobody.
        if let Some(batch) = kept {
            assert_eq!(batch.len(), 8);
            assert!(batch.to_vec().iter().all(|value| value.abs() <= 1.0));
        }
    }
    // A consumer that keeps every batch it may have: the walk waits for slots.
    let mut loader = Loader::new(Arc::clone(&dataset), config.clone(), None).unwrap();
    let kept: Vec<_> = (0..4)
        .map(|_| loader.next_batch().unwrap().unwrap())
        .collect();
    std::thread::sleep(Duration::from_millis(50));
    drop_promptly(loader);
    drop(kept);

    // Slots come back, epoch after epoch.
    let mut loader = Loader::new(Arc::clone(&dataset), config.clone(), None).unwrap();
    for _ in 0..100 {
        let two = [loader.next_batch().unwrap(), loader.next_batch().unwrap()];
        assert!(two.iter().all(Option::is_some));
    }
    drop_promptly(loader);

    // A server that stalls in the middle of every body.
    let server = S3Server::start();
    server.put("bucket", "train-0.parquet", photo_shard(0, &good()));
    let io = IoConfig {
        store_options: server.store_options(),
        ..IoConfig::default()
    };
    let dataset = open_with("s3://bucket", &io);
    server.add_fault(Rule::get("", 0..1000, Fault::Stall(100)));
    let loader = Loader::new(Arc::clone(&dataset), config, None).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(dataset.io_counters().in_flight > 0, "nothing stalls");
    drop_promptly(loader);
    let since = Instant::now();
    while dataset.io_counters().in_flight > 0 || dataset.io_counters().held_bytes > 0 {
        assert!(
            since.elapsed() < Duration::from_secs(2),
            "the requests go on"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn drop_promptly(loader: Loader) {
    let since = Instant::now();
    drop(loader);
    assert!(
        since.elapsed() < Duration::from_secs(1),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(threads_named("nepa-d"), 0);
}
