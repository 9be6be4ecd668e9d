//! How a loader ends: at a damaged page, and when it is dropped in any state.
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use nepa_pipeline::{IoConfig, Loader, LoaderConfig, LoaderError};
use nepa_tests::data;
use nepa_tests::loading::failure;
use nepa_tests::photos::{good_rows, photo_shard};
use nepa_tests::program::wait_until;
use nepa_tests::s3::{Fault, Rule, S3Server};

use super::{all_good, config, open};

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
        .args([
            "--exact",
            "loader::ends::a_dropped_loader_joins_its_threads",
        ])
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
        wait_until("all threads", || {
            threads_named("nepa-d") == decode_threads + 1
        });
        let mut kept = None;
        for _ in 0..taken {
            kept = loader.next_batch().unwrap();
        }
        drop_promptly(loader);
        // What was lent stays whole, and can be given back to nobody.
        if let Some(batch) = kept {
            assert_eq!(batch.len(), 8);
            assert!(batch.array().iter().all(|value| value.abs() <= 1.0));
        }
    }
    // A consumer that keeps every batch it may have: the walk waits for memory.
    let full = LoaderConfig {
        max_kept_batches: 4,
        ..config.clone()
    };
    let mut loader = Loader::new(Arc::clone(&dataset), full, None).unwrap();
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

    // A server that stalls in the middle of every body, for longer than a test may take.
    let server = S3Server::start();
    server.put("bucket", "train-0.parquet", photo_shard(0, &good_rows()));
    let io = IoConfig {
        request_timeout_s: 3600.0,
        ..data::io(&server)
    };
    let dataset = data::open("s3://bucket", &io).unwrap();
    server.add_fault(Rule::get("", 0..1000, Fault::Stall(100)));
    let loader = Loader::new(Arc::clone(&dataset), config, None).unwrap();
    wait_until("a stall", || dataset.io_counters().in_flight > 0);
    drop_promptly(loader);
    wait_until("the end of the requests", || {
        let counters = dataset.io_counters();
        (counters.in_flight, counters.held_bytes) == (0, 0)
    });
}

/// Drops it, which ends; a minute of waiting is a hang.
fn drop_promptly(loader: Loader) {
    let (dropped, is_dropped) = mpsc::channel();
    std::thread::spawn(move || {
        drop(loader);
        dropped.send(())
    });
    let ended = is_dropped.recv_timeout(Duration::from_mins(1));
    ended.expect("the drop hangs");
    assert_eq!(threads_named("nepa-d"), 0);
}
