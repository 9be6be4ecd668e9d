//! Lanes: the same batches for every number of ranks, bad samples replaced within their lane, and
//! all ranks together fetch little more than the data.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use nepa_pipeline::{Dataset, IoConfig, Loader, LoaderConfig, SampleId, SampleRecord};
use nepa_tests::data;
use nepa_tests::photos::{PRESENT, Row, photo_shard};
use nepa_tests::s3::S3Server;

use super::{Kept, all, all_good, config, open, some_bad};

fn ranks_of(dataset: &Arc<Dataset>, config: &LoaderConfig, world_size: usize) -> Vec<Vec<Kept>> {
    let of_rank = |rank| {
        let config = LoaderConfig {
            rank,
            world_size,
            ..config.clone()
        };
        all(dataset, config)
    };
    (0..world_size).map(of_rank).collect()
}

/// The sample that a position was due to.
fn due(sample: &SampleRecord) -> SampleId {
    sample.replaces.unwrap_or(sample.id)
}

#[test]
fn every_number_of_ranks_gives_the_same_batches() {
    let folder = some_bad();
    let dataset = open(&folder);
    for (shuffle_window_bytes, drop_last, shuffle) in [
        (1, true, true),
        (10_000, false, true),
        (1 << 30, false, false),
    ] {
        for lanes in [2, 4, 8] {
            let config = LoaderConfig {
                lanes,
                shuffle_window_bytes,
                drop_last,
                shuffle,
                ..config()
            };
            let whole = all(&dataset, config.clone());
            let epochs = whole.iter().flat_map(|batch| &batch.samples).map(due);
            let epochs = epochs.collect::<Vec<_>>();
            let used = if drop_last { PRESENT / 8 * 8 } else { PRESENT };
            for epoch in epochs.chunks(used as usize) {
                let distinct: BTreeSet<_> = epoch.iter().collect();
                assert_eq!(distinct.len() as u64, used, "{lanes} lanes");
            }
            for world_size in [2, 4, 8] {
                if !lanes.is_multiple_of(world_size) {
                    continue;
                }
                let ranks = ranks_of(&dataset, &config, world_size);
                for (i, batch) in whole.iter().enumerate() {
                    let place = format!("batch {i} of {world_size} ranks in {lanes} lanes");
                    let own = || ranks.iter().map(|rank| &rank[i]);
                    let samples: Vec<_> = own().flat_map(|kept| kept.samples.clone()).collect();
                    let pixels: Vec<_> = own().flat_map(|kept| kept.pixels.clone()).collect();
                    assert_eq!(samples, batch.samples, "{place}");
                    assert!(pixels == batch.pixels, "{place}");
                }
                assert!(ranks.iter().all(|rank| rank.len() == whole.len()));
            }
        }
    }
}

#[test]
fn a_bad_sample_is_replaced_by_one_of_its_lane() {
    let folder = some_bad();
    let dataset = open(&folder);
    let config = LoaderConfig {
        lanes: 4,
        drop_last: false,
        ..config()
    };
    let mut replaced = BTreeSet::new();
    let mut lanes = BTreeMap::new();
    // A rank each: its samples are those of its lane.
    for (lane, batches) in ranks_of(&dataset, &config, 4).iter().enumerate() {
        let samples = || batches.iter().flat_map(|batch| &batch.samples);
        let own: BTreeSet<SampleId> = samples().map(due).collect();
        assert!((PRESENT / 4..=PRESENT.div_ceil(4)).contains(&(own.len() as u64)));
        for sample in samples() {
            assert!(own.contains(&sample.id), "{sample:?} is not of lane {lane}");
            replaced.extend(sample.replaces);
        }
        lanes.extend(own.into_iter().map(|id| (id, lane)));
    }
    assert_eq!(lanes.len() as u64, PRESENT, "no sample is in two lanes");
    assert_eq!(replaced.len(), 8, "all bad ones were met");
}

#[test]
fn a_lane_may_be_empty() {
    let folder = all_good();
    let config = LoaderConfig {
        lanes: 88,
        global_batch: 88,
        drop_last: false,
        epochs: None,
        ..config()
    };
    let lengths = |rank| {
        let config = LoaderConfig {
            rank,
            world_size: 4,
            ..config.clone()
        };
        let loader = Loader::new(open(&folder), config, None).unwrap();
        let lengths = loader.take(3).map(|batch| batch.unwrap().len());
        lengths.collect::<Vec<_>>()
    };
    // Of 66 samples, one in each of the first lanes.
    let ranks: Vec<_> = (0..4).map(lengths).collect();
    assert_eq!(ranks, [vec![22; 3], vec![22; 3], vec![22; 3], vec![0; 3]]);
}

/// Shards of small row groups, of different numbers of rows.
fn server() -> S3Server {
    let server = S3Server::start();
    for shard in 0..8 {
        let rows = (0..24).map(|row_group| 5 + (row_group * 7 + shard * 5) % 11);
        let row_groups: Vec<_> = rows.map(|rows| vec![Row::Good; rows]).collect();
        let bytes = photo_shard(shard as u32, &row_groups);
        server.put("bucket", &format!("train-{shard}.parquet"), bytes);
    }
    server
}

/// What one rank asks the store for from its first batch to its last, having opened the data set
/// itself, and the bytes of all parts.
fn asked_for(server: &S3Server, io: &IoConfig, config: &LoaderConfig) -> (u64, u64) {
    let dataset = data::open("s3://bucket", io).unwrap();
    let parts = dataset.shards().iter().flat_map(|shard| &shard.parts);
    let data = parts.map(|part| part.fetch_bytes).sum();
    server.take_log();
    let config = LoaderConfig {
        shuffle_window_bytes: data / 8,
        ..config.clone()
    };
    for batch in Loader::new(dataset, config, None).unwrap() {
        drop(batch.unwrap());
    }
    let ranges = server.take_log().into_iter();
    let ranges = ranges.filter_map(|request| request.range);
    (ranges.map(|range| range.end - range.start).sum(), data)
}

/// What each rank asks for in two epochs, over the bytes of the data.
fn shares(server: &S3Server, lanes: usize, world_size: usize) -> Vec<f64> {
    let io = IoConfig {
        coalesce_gap_bytes: 0,
        ..data::io(server)
    };
    let of_rank = |rank| {
        let config = LoaderConfig {
            lanes,
            rank,
            world_size,
            epochs: Some(2),
            ..config()
        };
        let (asked, data) = asked_for(server, &io, &config);
        asked as f64 / (2 * data) as f64
    };
    (0..world_size).map(of_rank).collect()
}

#[test]
fn all_ranks_together_fetch_little_more_than_the_data() {
    let server = server();
    for world_size in [1, 2, 4, 8] {
        let ranks = shares(&server, 8, world_size);
        let (all, most) = (
            ranks.iter().sum::<f64>(),
            ranks.iter().copied().fold(0.0, f64::max),
        );
        println!("{world_size} ranks: {all:.3} times the data, a rank at most {most:.3}");
        // A twentieth of all requests may be sent a second time, where an answer is late.
        assert!((0.98..=1.1).contains(&all), "{world_size} ranks: {ranks:?}");
        assert!(
            most < 1.2 / world_size as f64,
            "{world_size} ranks: {ranks:?}"
        );
    }
    // What lanes are for: in one, each rank fetches everything.
    let ranks = shares(&server, 1, 4);
    assert!(ranks.iter().all(|&share| share > 0.98), "{ranks:?}");
}

#[test]
fn the_cache_of_a_rank_holds_its_lane_for_all_epochs() {
    let server = server();
    let cache = tempfile::tempdir().unwrap();
    let io = IoConfig {
        coalesce_gap_bytes: 0,
        cache_dir: Some(cache.path().to_owned()),
        ..data::io(&server)
    };
    let config = LoaderConfig {
        lanes: 8,
        rank: 3,
        world_size: 8,
        epochs: Some(6),
        ..config()
    };
    let (asked, data) = asked_for(&server, &io, &config);
    // A part that two epochs want at once may be fetched twice.
    let share = asked as f64 / data as f64;
    assert!((0.12..0.2).contains(&share), "{share:.3} of the data");
}
