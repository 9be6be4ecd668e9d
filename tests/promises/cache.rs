//! The cache on a local disk: later epochs fetch nothing, damage and kills never give a wrong byte, processes share it, limits hold.
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nepa_pipeline::{
    IoConfig, Loader, LoaderConfig,
    random::{Purpose, below, epoch_stream},
};
use nepa_tests::data;
use nepa_tests::loading::config;
use nepa_tests::photos::all_good;
use nepa_tests::s3::S3Server;

fn server() -> (S3Server, tempfile::TempDir) {
    let folder = all_good();
    let server = S3Server::start();
    server.load_folder("bucket", "", folder.path()).unwrap();
    (server, folder)
}

fn io(server: &S3Server, cache: &Path) -> IoConfig {
    IoConfig {
        cache_dir: Some(cache.to_owned()),
        coalesce_gap_bytes: 0,
        ..data::io(server)
    }
}

/// All pixels of three epochs, and the I/O's counters.
fn run(io: &IoConfig) -> (Vec<Vec<f32>>, nepa_pipeline::IoCounters) {
    let dataset = data::open("s3://bucket", io).unwrap();
    let config = LoaderConfig {
        drop_last: false,
        ..config()
    };
    let loader = Loader::new(dataset.clone(), config, None).unwrap();
    let pixels = loader
        .map(|batch| batch.unwrap().array().to_vec())
        .collect();
    (pixels, dataset.io_counters())
}

#[test]
fn later_epochs_and_later_runs_fetch_nothing() {
    let (server, _folder) = server();
    let cache = tempfile::tempdir().unwrap();
    let without = IoConfig {
        cache_dir: None,
        ..io(&server, cache.path())
    };
    let (expected, plain) = run(&without);
    let (pixels, first) = run(&io(&server, cache.path()));
    assert!(pixels == expected);
    // Row groups that two epochs want at once may be fetched twice; all else once.
    assert!(first.cache_hits >= 12, "{first:?}");
    assert!(first.bytes < plain.bytes * 2 / 3, "{first:?}, {plain:?}");
    server.take_log();
    let (pixels, second) = run(&io(&server, cache.path()));
    assert!(pixels == expected);
    assert_eq!((second.cache_hits, second.cache_damaged), (36, 0));
    // Footers alone.
    let gets = server.take_log();
    let gets = gets.iter().filter(|request| request.range.is_some());
    assert_eq!(gets.count(), 3);
}

#[test]
fn limits_hold_even_below_one_row_group() {
    let (server, _folder) = server();
    let (expected, _) = run(&IoConfig {
        cache_dir: None,
        ..io(&server, Path::new(""))
    });
    for cache_bytes in [0, 100, 10_000] {
        let cache = tempfile::tempdir().unwrap();
        let (pixels, _) = run(&IoConfig {
            cache_bytes,
            ..io(&server, cache.path())
        });
        assert!(pixels == expected);
        let held: u64 = std::fs::read_dir(cache.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_name() != "NEPA-CACHE")
            .map(|entry| entry.metadata().unwrap().len())
            .sum();
        assert!(held <= cache_bytes, "{held} of at most {cache_bytes}");
    }
}

fn start(output: &Path, cache: &Path, server: &S3Server) -> Child {
    Command::new(env!("CARGO_BIN_EXE_nepa-test-ranks"))
        .arg(output)
        .args(["1", "s3://bucket/:1"])
        .env("NEPA_TEST_CACHE", cache)
        .envs(server.env())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// What a finished run has traced.
fn trace(output: &Path) -> String {
    std::fs::read_to_string(output.join("trace.jsonl")).unwrap()
}

#[test]
fn kills_and_damage_never_give_a_wrong_byte() {
    let kills: u64 = std::env::var("NEPA_KILLS").map_or(30, |text| text.parse().unwrap());
    let seed: u64 = std::env::var("NEPA_SEED").map_or_else(
        |_| u64::from(std::process::id()),
        |text| text.parse().unwrap(),
    );
    println!("NEPA_SEED={seed}, {kills} kills");
    let (server, _folder) = server();
    let output = tempfile::tempdir().unwrap();
    let never = tempfile::tempdir().unwrap();
    assert!(
        start(output.path(), never.path(), &server)
            .wait()
            .unwrap()
            .success()
    );
    let expected = trace(output.path());
    let mut rng = epoch_stream(seed, 0, 0, Purpose::Order);
    let cache = tempfile::tempdir().unwrap();
    let mut damaged = 0;
    for kill in 0..kills {
        // Each time it starts to fill a cache that lost some entries.
        let output = tempfile::tempdir().unwrap();
        let mut child = start(output.path(), cache.path(), &server);
        std::thread::sleep(Duration::from_micros(below(&mut rng, 150_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        for entry in std::fs::read_dir(cache.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap() == "NEPA-CACHE" {
                continue;
            }
            match below(&mut rng, 6) {
                0 => std::fs::remove_file(&path).unwrap(),
                1 => {
                    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                    let length = file.metadata().unwrap().len();
                    file.set_len(below(&mut rng, length + 1)).unwrap();
                    damaged += 1;
                }
                2 => {
                    let mut bytes = std::fs::read(&path).unwrap();
                    if !bytes.is_empty() {
                        let at = below(&mut rng, bytes.len() as u64) as usize;
                        bytes[at] ^= 1 << below(&mut rng, 8);
                        std::fs::write(&path, bytes).unwrap();
                        damaged += 1;
                    }
                }
                _ => {}
            }
        }
        if kill % 5 == 4 {
            let output = tempfile::tempdir().unwrap();
            let ended = start(output.path(), cache.path(), &server).wait().unwrap();
            assert!(ended.success(), "seed {seed}");
            assert!(trace(output.path()) == expected, "seed {seed}, kill {kill}");
        }
    }
    println!("{damaged} entries were cut or flipped");
    assert!(damaged > 0);
}

#[test]
fn two_processes_share_one_cache() {
    let (server, _folder) = server();
    let outputs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let cache = tempfile::tempdir().unwrap();
    let mut children: Vec<Child> = outputs
        .iter()
        .map(|output| start(output.path(), cache.path(), &server))
        .collect();
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert!(trace(outputs[0].path()) == trace(outputs[1].path()));
    server.take_log();
    let output = tempfile::tempdir().unwrap();
    assert!(
        start(output.path(), cache.path(), &server)
            .wait()
            .unwrap()
            .success()
    );
    let gets = server.take_log();
    let gets = gets.iter().filter(|request| request.range.is_some());
    assert_eq!(gets.count(), 3, "footers alone: the others have filled it");
}
