//! The limiting stage that the loader names is the one that was made slow.
use std::path::Path;
use std::time::Duration;

use nepa_pipeline::{AugmentConfig, Filter, IoConfig, Loader, LoaderConfig, PipelineStats, Stage};
use nepa_tests::program::{nepa, text, write_photo_shards};
use nepa_tests::s3::{Fault, Rule, S3Server};
use nepa_tests::{data, loading};

const BATCH: usize = 8;

/// Runs `batches` batches after the first, with `pause` after each, and returns what the stages did in that time.
fn stats(url: &str, io: &IoConfig, size: u32, batches: usize, pause: Duration) -> PipelineStats {
    let dataset = data::open(url, io).unwrap();
    let config = LoaderConfig {
        global_batch: BATCH,
        epochs: None,
        augment: AugmentConfig::CenterCrop {
            size,
            resize: size,
            filter: Filter::Bicubic,
        },
        decode_threads: 1,
        // A window is one row group.
        shuffle_window_bytes: 1,
        max_bad_fraction: 0.0,
        ..loading::config()
    };
    let mut loader = Loader::new(dataset, config, None).unwrap();
    let first = loader.next_batch().unwrap();
    let before = loader.stats();
    drop(first);
    for _ in 0..batches {
        let batch = loader.next_batch().unwrap().unwrap();
        assert_eq!(batch.len(), BATCH);
        std::thread::sleep(pause);
    }
    loader.stats().since(&before)
}

/// One shard of four row groups of eight small photos.
fn photos(folder: &Path) {
    write_photo_shards(folder, 1, 4, BATCH as u32);
}

#[test]
fn a_distant_store_with_two_connections_limits_by_fetch() {
    let folder = tempfile::tempdir().unwrap();
    photos(folder.path());
    let server = S3Server::start();
    server.load_folder("bucket", "", folder.path()).unwrap();
    let first_byte = Fault::Latency(Duration::from_millis(200));
    server.add_fault(Rule::get("", 0..u64::MAX, first_byte));
    let io = IoConfig {
        max_requests: 2,
        store_options: server.store_options(),
        ..IoConfig::default()
    };
    let stats = stats("s3://bucket", &io, 28, 12, Duration::ZERO);
    let (stage, share) = stats.limiting_stage();
    assert_eq!(stage, Stage::Fetch, "{stats:#?}");
    assert!(share > 0.5, "{share} {stats:#?}");
}

#[test]
fn one_thread_with_large_photos_limits_by_decode() {
    let folder = tempfile::tempdir().unwrap();
    photos(folder.path());
    // Small files made large: all the work is in the decode threads.
    let path = folder.path().to_str().unwrap();
    let stats = stats(path, &IoConfig::default(), 512, 12, Duration::ZERO);
    let (stage, share) = stats.limiting_stage();
    assert_eq!(stage, Stage::Decode, "{stats:#?}");
    assert!(share > 0.5, "{share} {stats:#?}");
}

#[test]
fn a_slow_consumer_limits_by_consume() {
    let folder = tempfile::tempdir().unwrap();
    photos(folder.path());
    let path = folder.path().to_str().unwrap();
    let pause = Duration::from_millis(100);
    let stats = stats(path, &IoConfig::default(), 28, 12, pause);
    let (stage, share) = stats.limiting_stage();
    assert_eq!(stage, Stage::Consume, "{stats:#?}");
    assert!(share > 0.5, "{share} {stats:#?}");
}

#[test]
fn the_program_writes_the_same_as_a_table_and_as_json() {
    let folder = tempfile::tempdir().unwrap();
    photos(folder.path());
    let json = folder.path().join("profile.json");
    let output = nepa()
        .arg("profile")
        .arg(folder.path())
        .args(["--seconds", "1", "--batch", "8", "--image-size", "448"])
        .args(["--decode-threads", "1", "--json"])
        .arg(&json)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(report["limiting_stage"], "decode", "{table}");
    assert_eq!(report["image_size"], 448);
    let rate = report["images_per_second"].as_f64().unwrap();
    assert!(
        rate > 0.0 && table.contains(&format!("{rate:.0} images/s")),
        "{table}"
    );
    assert!(report["cpu_ms_per_image"].as_f64().unwrap() > 0.0);
    let stages = report["stages"].as_array().unwrap();
    for stage in ["fetch", "unpack", "decode", "dispatch", "consume"] {
        assert!(stages.iter().any(|row| row["stage"] == stage), "{report}");
        assert!(table.contains(&format!("\n{stage}")), "{table}");
    }
}
