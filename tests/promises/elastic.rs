//! A run that stops anywhere, by SIGKILL too, goes on with any number of ranks: the same global batches, sample by sample and pixel by pixel.
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nepa_pipeline::{
    Dataset, DatasetError, IoConfig, Loader, LoaderConfig, LoaderState, SampleRecord,
    random::{Purpose, below, epoch_stream},
};
use nepa_tests::data;
use nepa_tests::loading::config_of_rank;
use nepa_tests::photos::{all_good, some_bad};

fn mixture(folders: &[(&Path, f64)]) -> Result<Arc<Dataset>, DatasetError> {
    let url = |folder: &Path| folder.to_str().unwrap().to_owned();
    let sources = folders
        .iter()
        .map(|&(folder, weight)| (url(folder), weight));
    data::open_as(&data::mixture(sources), &IoConfig::default())
}

/// The next `count` global batches of `world_size` ranks that start at `state`, and the state after them.
fn batches(
    dataset: &Arc<Dataset>,
    lanes: usize,
    world_size: usize,
    state: Option<&LoaderState>,
    count: usize,
) -> (Vec<Vec<SampleRecord>>, LoaderState) {
    let mut loaders: Vec<Loader> = (0..world_size)
        .map(|rank| {
            let config = LoaderConfig {
                lanes,
                ..config_of_rank(rank, world_size)
            };
            Loader::new(Arc::clone(dataset), config, state).unwrap()
        })
        .collect();
    let batches = (0..count)
        .map(|_| {
            loaders
                .iter_mut()
                .flat_map(|loader| loader.next_batch().unwrap().unwrap().samples().to_vec())
                .collect()
        })
        .collect();
    (batches, loaders[0].state())
}

#[test]
fn ranks_may_come_and_go() {
    let (good, bad) = (all_good(), some_bad());
    for dataset in [
        mixture(&[(bad.path(), 1.0)]).unwrap(),
        mixture(&[(bad.path(), 3.0), (good.path(), 1.0)]).unwrap(),
    ] {
        // 1 rank, then 8, then 3, then 24, then 1; of lanes as many as share them.
        for (lanes, numbers_of_ranks) in [(1, [8, 3, 24, 1]), (12, [4, 3, 12, 1])] {
            let (whole, _) = batches(&dataset, lanes, 1, None, 20);
            let (mut joined, mut state) = batches(&dataset, lanes, 1, None, 3);
            for world_size in numbers_of_ranks {
                let json = serde_json::to_string(&state).unwrap();
                assert!(json.len() <= 4096, "{} bytes of state", json.len());
                let (more, next) = batches(&dataset, lanes, world_size, Some(&state), 4);
                joined.extend(more);
                state = next;
            }
            assert!(joined == whole[..19], "{lanes} lanes");
        }
    }
}

#[test]
fn a_mixture_gives_each_data_set_its_share() {
    let (good, bad) = (all_good(), some_bad());
    let dataset = mixture(&[(bad.path(), 3.0), (good.path(), 1.0)]).unwrap();
    assert_eq!(dataset.sources().len(), 2);
    let of_lanes = |lanes| {
        let (batches, _) = batches(&dataset, lanes, 2, None, 22);
        for batch in &batches {
            let from_first = batch
                .iter()
                .filter(|sample| dataset.source_of(sample.id.shard) == 0);
            assert_eq!(from_first.count(), 18, "3 of 4 in 24, in {lanes} lanes");
        }
        batches
    };
    of_lanes(8);
    let batches = of_lanes(1);
    // In one epoch of a data set each of its samples comes once, or another one of the same data set stands for it.
    let mut first: Vec<_> = batches
        .iter()
        .flatten()
        .map(|sample| sample.replaces.unwrap_or(sample.id))
        .filter(|id| dataset.source_of(id.shard) == 1)
        .take(66)
        .collect();
    first.sort_unstable();
    first.dedup();
    assert_eq!(first.len(), 66);
    let other = mixture(&[(bad.path(), 2.0), (good.path(), 1.0)]).unwrap();
    assert_ne!(dataset.fingerprint(), other.fingerprint());
}

#[test]
fn a_mixture_that_cannot_be_is_refused() {
    let good = all_good();
    let text = mixture(&[(good.path(), 1.0), (good.path(), 0.0)])
        .unwrap_err()
        .to_string();
    assert!(text.contains("weight") && text.contains(" 0,"), "{text}");
    let mut config = data::mixture([("/elsewhere", 1.0)]);
    config.urls.push("/somewhere".to_owned());
    let text = data::open_as(&config, &IoConfig::default())
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("/somewhere") && text.contains("mixture"),
        "{text}"
    );
}

/// Starts `nepa-test-ranks`.
fn start(
    folder: &Path,
    lanes: usize,
    world_size: usize,
    sources: &[String],
) -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_nepa-test-ranks"))
        .env("NEPA_TEST_LANES", lanes.to_string())
        .arg(folder)
        .arg(world_size.to_string())
        .args(sources)
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// `NEPA_KILLS` says how often.
fn kills(without_it: u64) -> u64 {
    std::env::var("NEPA_KILLS").map_or(without_it, |text| text.parse().unwrap())
}

#[test]
fn a_run_killed_at_random_points_gives_the_same_batches() {
    kill_at_random(1, &[1, 2, 3, 4, 8, 24], kills(100));
}

#[test]
fn a_run_in_lanes_killed_at_random_points_gives_the_same_batches() {
    kill_at_random(12, &[1, 2, 3, 4, 6, 12], kills(30));
}

/// Kills runs of so many lanes, each with another of these numbers of ranks.
fn kill_at_random(lanes: usize, numbers_of_ranks: &[usize], kills: u64) {
    let seed: u64 = std::env::var("NEPA_SEED").map_or_else(
        |_| u64::from(std::process::id()),
        |text| text.parse().unwrap(),
    );
    println!("NEPA_SEED={seed}, {lanes} lanes, {kills} kills");
    let (good, bad) = (all_good(), some_bad());
    let sources = [
        format!("{}:3", bad.path().display()),
        format!("{}:1", good.path().display()),
    ];
    let output = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let mut whole = start(output.path(), lanes, 1, &sources);
    assert!(whole.wait().unwrap().success());
    let whole_run = started.elapsed();
    let expected = std::fs::read_to_string(output.path().join("trace.jsonl")).unwrap();
    assert_eq!(expected.lines().count(), 40 * (132 / 24));

    let mut rng = epoch_stream(seed, 0, 0, Purpose::Order);
    let mut killed = 0;
    let (mut in_progress, mut grown) = (0, 0);
    while killed < kills {
        let output = tempfile::tempdir().unwrap();
        loop {
            let number = below(&mut rng, numbers_of_ranks.len() as u64) as usize;
            let mut child = start(output.path(), lanes, numbers_of_ranks[number], &sources);
            let limit = whole_run.as_micros() as u64 / 2;
            std::thread::sleep(Duration::from_micros(below(&mut rng, limit.max(1))));
            if killed < kills && child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                child.wait().unwrap();
                killed += 1;
                let lines = std::fs::read_to_string(output.path().join("trace.jsonl"))
                    .map_or(0, |text| text.lines().count());
                in_progress += u64::from(lines > 0);
                grown = grown.max(lines);
                continue;
            }
            assert!(child.wait().unwrap().success(), "seed {seed}");
            break;
        }
        let trace = std::fs::read_to_string(output.path().join("trace.jsonl")).unwrap();
        assert!(
            trace == expected,
            "another trace after {killed} kills, seed {seed}"
        );
    }
    println!(
        "{killed} kills, {in_progress} of them after the first batch, the latest after {grown} batches"
    );
    assert!(in_progress * 4 >= kills, "too few kills met a run at work");
}
