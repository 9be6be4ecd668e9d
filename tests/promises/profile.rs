//! What is made slow is what the loader and `nepa profile` name, with its cause.
use std::path::Path;
use std::time::Duration;

use image::ImageFormat;
use nepa_pipeline::{AugmentConfig, Filter, IoConfig, Loader, LoaderConfig, PipelineStats, Stage};
use nepa_tests::photos::encode_jpeg;
use nepa_tests::program::{
    assert_says, nepa, send_signal, start, succeed, text, tiny_recipe, write_photo_shards,
};
use nepa_tests::s3::{Fault, Options, Rule, S3Server};
use nepa_tests::shards::{labelled_shard_with, properties};
use nepa_tests::{data, loading};
use parquet::basic::{Compression, GzipLevel};
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};

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

/// What `nepa profile` finds, and its table.
fn profile(place: &str, server: Option<&S3Server>, flags: &[&str]) -> (Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("profile.json");
    let mut command = nepa();
    command.args(["profile", place]).args(flags);
    if let Some(server) = server {
        command.envs(server.env());
    }
    let output = succeed(command.arg("--json").arg(&json));
    let found = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    (found, String::from_utf8(output.stdout).unwrap())
}

/// The cause that it names, first or, where other programs run beside it as in a whole test run,
/// after them.
#[track_caller]
fn assert_cause((report, table): &(Value, String), limit: &str, cause: &str) {
    let verdict = &report["verdict"];
    assert_eq!(verdict["limit"], limit, "{table}");
    let causes = verdict["causes"].as_array().unwrap();
    let mut named = causes.iter().map(|cause| cause["name"].as_str().unwrap());
    let named = named.find(|named| *named != "another program" || *named == cause);
    assert_eq!(named, Some(cause), "{table}");
}

fn median(report: &Value, key: &str) -> f64 {
    report["ladder"][key]["median"].as_f64().unwrap()
}

/// Flags of a short profile of small crops.
pub(super) const SHORT: [&str; 8] = [
    "--seconds",
    "6",
    "--batch",
    "8",
    "--image-size",
    "28",
    "--decode-threads",
    "1",
];

/// A server with shards of 16 row groups of eight small photos.
fn served(options: Options) -> S3Server {
    let folder = tempfile::tempdir().unwrap();
    write_photo_shards(folder.path(), 2, 8, BATCH as u32);
    let server = S3Server::start_with(options).unwrap();
    server.load_folder("bucket", "", folder.path()).unwrap();
    server
}

#[test]
fn a_late_store_is_told_from_a_slow_line() {
    let latency = Duration::from_millis(100);
    let late = served(Options {
        latency,
        ..Options::default()
    });
    let flags = [&SHORT[..], &["--max-requests", "2"]].concat();
    let found = profile("s3://bucket", Some(&late), &flags);
    assert_cause(&found, "store", "latency");
    assert_eq!(found.0["verdict"]["causes"][0]["set"], "io.max_requests=4");
    assert_eq!(found.0["verdict"]["next"], "processor");
    assert_says(
        &found.1,
        &["the store answers late", "--set io.max_requests=4"],
    );
    let first_byte = found.0["store"]["first_byte_p50_s"].as_f64().unwrap();
    assert!((0.08..0.2).contains(&first_byte), "{first_byte}");
    // Twice as many give about twice as much, and the change gives what was said.
    let (few, more) = (median(&found.0, "store"), median(&found.0, "more_requests"));
    assert!(more > 1.5 * few, "{few} {more}\n{}", found.1);
    let flags = [&SHORT[..], &["--max-requests", "4"]].concat();
    let (changed, table) = profile("s3://bucket", Some(&late), &flags);
    let really = median(&changed, "as_is");
    assert!(
        (0.7..1.4).contains(&(really / more)),
        "{more} said\n{table}"
    );

    // 2 MB a second, whatever is asked for.
    let photos = shards_of(
        |n| picture(n, 200, 97, ImageFormat::Jpeg),
        properties().build(),
    );
    let slow = S3Server::start_with(Options {
        line_bytes_per_s: Some(2e6),
        ..Options::default()
    })
    .unwrap();
    slow.load_folder("bucket", "", photos.path()).unwrap();
    let found = profile("s3://bucket", Some(&slow), &SHORT);
    assert_cause(&found, "store", "bandwidth");
    let bytes = found.0["store"]["bytes_per_second"].as_f64().unwrap();
    assert!((1e6..3e6).contains(&bytes), "{bytes}\n{}", found.1);
    assert_says(&found.1, &["MB/s in all", "More requests do not help"]);
}

/// Shards of photos of this size in a folder, and as many of these bytes.
fn shards_of(images: impl Fn(u32) -> Vec<u8>, properties: WriterProperties) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let rows = |first: u32| {
        (first..first + 16)
            .map(|n| (Some(images(n)), None, 0))
            .collect()
    };
    let shard = labelled_shard_with([rows(0), rows(16), rows(32), rows(48)], properties);
    std::fs::write(folder.path().join("train-0.parquet"), shard).unwrap();
    folder
}

/// A picture of slow colours and so much noise.
fn picture(number: u32, side: u32, noise: u32, format: ImageFormat) -> Vec<u8> {
    let pixel = |x: u32, y: u32| {
        let hash = x.wrapping_mul(73_856_093) ^ (y + number).wrapping_mul(19_349_663);
        let grain = ((hash >> 7) % (noise + 1)) as u8;
        image::Rgb([x, y, number].map(|value| (value / 8) as u8 + grain))
    };
    let picture = image::RgbImage::from_fn(side, side, pixel);
    if format != ImageFormat::Jpeg {
        let mut bytes = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        return bytes.into_inner();
    }
    let side = side as usize;
    encode_jpeg(&picture, side, side, turbojpeg::Subsamp::Sub2x2)
}

#[test]
fn what_makes_decoding_slow_is_named() {
    let plain = || properties().build();
    let threads = std::thread::available_parallelism().unwrap().to_string();
    let all = [&SHORT[..6], &["--decode-threads", &threads]].concat();
    let path = |folder: &tempfile::TempDir| folder.path().to_str().unwrap().to_owned();

    let large = shards_of(|n| picture(n, 1200, 97, ImageFormat::Jpeg), plain());
    let found = profile(&path(&large), None, &all);
    assert_cause(&found, "processor", "large images");
    assert_says(&found.1, &["1.44 million pixels", "shorter side 42 px"]);
    assert!(
        median(&found.0, "stored_anew") > 2.0 * median(&found.0, "decode"),
        "{}",
        found.1
    );

    let mixed = shards_of(
        |n| {
            picture(
                n,
                200,
                2,
                [ImageFormat::Jpeg, ImageFormat::Png][n as usize % 2],
            )
        },
        plain(),
    );
    let mut larger = all.clone();
    larger[5] = "112";
    let found = profile(&path(&mixed), None, &larger);
    assert_cause(&found, "processor", "format");
    assert_says(
        &found.1,
        &[
            "50 % of the images are PNG",
            "every image stored as baseline JPEG",
        ],
    );
}

#[test]
fn a_store_that_asks_to_be_asked_less_and_a_small_window_are_named() {
    let busy = served(Options {
        latency: Duration::from_millis(50),
        ..Options::default()
    });
    busy.add_fault(Rule::randomly(3, 0.3, Fault::Unavailable));
    let found = profile("s3://bucket", Some(&busy), &SHORT);
    assert_cause(&found, "store", "throttling");
    assert_says(&found.1, &["answers were 503 or 429"]);

    // Two row groups are all that a window of one holds ahead.
    let late = served(Options {
        latency: Duration::from_millis(100),
        ..Options::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let recipe = std::fs::read_to_string(tiny_recipe()).unwrap();
    let file = folder.path().join("small-window.toml");
    std::fs::write(&file, recipe).unwrap();
    let file = file.to_str().unwrap();
    let set = "data.shuffle_window_bytes=1";
    let flags = [&SHORT[..], &["--recipe", file, "--set", set]].concat();
    let found = profile("s3://bucket", Some(&late), &flags);
    assert_cause(&found, "store", "read-ahead");
    assert!(
        median(&found.0, "more_ahead") > 1.3 * median(&found.0, "store"),
        "{}",
        found.1
    );
}

#[test]
fn unpacking_is_named_with_its_codec() {
    // Noise does not get smaller, and is unpacked all the same.
    let gzip = Compression::GZIP(GzipLevel::try_new(9).unwrap());
    let packed = shards_of(
        |n| picture(n, 160, 97, ImageFormat::Bmp),
        properties().set_compression(gzip).build(),
    );
    let found = profile(packed.path().to_str().unwrap(), None, &SHORT);
    let causes = found.0["verdict"]["causes"].to_string();
    assert!(causes.contains("unpacking (GZIP)"), "{}", found.1);
}

#[test]
fn training_steps_can_be_the_consumer() {
    let folder = tempfile::tempdir().unwrap();
    photos(folder.path());
    let recipe = tiny_recipe();
    let path = folder.path().to_str().unwrap();
    let flags = [
        "--recipe",
        recipe.to_str().unwrap(),
        "--consumer",
        "step",
        "--seconds",
        "6",
    ];
    let (found, table) = profile(path, None, &flags);
    assert_eq!(found["ladder"]["consumer_shares_cores"], true, "{table}");
    let (step, expected) = (
        median(&found, "consumer"),
        &found["expected_images_per_second"],
    );
    assert!(step > 0.0 && expected.as_f64().unwrap() < step, "{table}");
    // Steps were computed: the loader alone is faster.
    assert!(
        median(&found, "as_is") < median(&found, "decode"),
        "{table}"
    );
    let output = nepa()
        .args(["profile", path, "--consumer", "step"])
        .output();
    assert_says(
        &text(&output.unwrap()),
        &["--consumer step needs the --recipe"],
    );
}

#[test]
fn scenarios_are_computed_from_what_was_measured() {
    let late = served(Options {
        latency: Duration::from_millis(100),
        ..Options::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("measured.json");
    let flags = [
        &SHORT[..],
        &["--max-requests", "2", "--simulate", "requests=4"],
    ]
    .concat();
    let (found, table) = profile("s3://bucket", Some(&late), &flags);
    let simulated = &found["simulated"][0];
    let computed = simulated["images_per_second"].as_f64().unwrap();
    // The same was measured, as twice as many requests.
    let really = median(&found, "more_requests").min(median(&found, "decode"));
    assert!(
        (0.7..1.4).contains(&(computed / really)),
        "{computed} {really}\n{table}"
    );

    std::fs::write(&json, found.to_string()).unwrap();
    let mut command = nepa();
    command.args(["profile", "--simulate", "consumer=3", "--measured"]);
    let said = text(&succeed(command.arg(&json)));
    assert_says(
        &said,
        &["3.00 images/s, limited by the consumer", "(computed)"],
    );
    let mut command = nepa();
    command.args(["profile", "--simulate", "disks=3", "--measured"]);
    let output = command.arg(&json).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_says(&text(&output), &["\"disks\" cannot be changed"]);
}

#[test]
fn settings_that_make_it_faster_are_found_and_written() {
    let late = served(Options {
        latency: Duration::from_millis(30),
        ..Options::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("faster.toml");
    let tune = ["--max-requests", "1", "--tune", file.to_str().unwrap()];
    let flags = [&["--seconds", "2"], &SHORT[2..], &tune].concat();
    let (_, table) = profile("s3://bucket", Some(&late), &flags);
    let written = std::fs::read_to_string(&file).unwrap();
    let parsed = written.parse::<toml::Table>().expect(&written);
    let requests = parsed["io"]["max_requests"].as_integer().unwrap();
    assert!(requests > 1, "{written}\n{table}");
    assert_says(&table, &["Faster by", "--set io.max_requests="]);
}

#[test]
fn a_consumer_and_another_program_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    photos(folder.path());
    let path = folder.path().to_str().unwrap();
    let found = profile(path, None, &[&SHORT[..], &["--consumer", "40"]].concat());
    assert_cause(&found, "consumer", "consumer");
    let rate = median(&found.0, "as_is");
    assert!((35.0..42.0).contains(&rate), "{}", found.1);

    // Two threads a core that do nothing but turn.
    let cores = std::thread::available_parallelism().unwrap().get();
    let turning = std::sync::atomic::AtomicBool::new(true);
    let found = std::thread::scope(|scope| {
        for _ in 0..2 * cores {
            scope.spawn(|| {
                while turning.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let threads = cores.to_string();
        // Large images, so that decoding takes far longer than reading, whatever is slowed.
        let decoding = ["--image-size", "512", "--decode-threads", &threads];
        let all = [&SHORT[..4], &decoding].concat();
        let found = profile(path, None, &all);
        turning.store(false, std::sync::atomic::Ordering::Relaxed);
        found
    });
    assert_cause(&found, "processor", "another program");
    assert_says(&found.1, &["other programs take", "waited for a core"]);
}

#[test]
fn bad_images_end_nothing_and_are_counted() {
    let broken = |n: u32| {
        if n % 16 == 3 {
            b"no picture".to_vec()
        } else {
            picture(n, 60, 97, ImageFormat::Jpeg)
        }
    };
    let folder = shards_of(broken, properties().build());
    let (found, table) = profile(folder.path().to_str().unwrap(), None, &SHORT);
    assert!(found["bad_images"].as_u64().unwrap() > 0, "{table}");
    assert_says(
        &table,
        &[
            "could not be decoded (6 %)",
            "--set data.max_bad_fraction=0.09",
        ],
    );
}

#[test]
fn a_recipe_gives_data_and_settings() {
    let folder = tempfile::tempdir().unwrap();
    photos(folder.path());
    let recipe = std::fs::read_to_string(tiny_recipe()).unwrap();
    let urls = format!("urls = [{:?}]", folder.path());
    let file = folder.path().join("mine.toml");
    std::fs::write(&file, recipe.replace("urls = []", &urls)).unwrap();
    let json = folder.path().join("profile.json");
    let mut command = nepa();
    command.arg("profile").arg("--recipe").arg(&file);
    command.args(["--set", "train.batch=4", "--set", "train.micro_batch=4"]);
    succeed(command.args(["--seconds", "3", "--json"]).arg(&json));
    let found: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((&found["batch"], &found["version"]), (&json!(4), &json!(3)));

    // None has any.
    let output = nepa()
        .args(["profile", "--recipe", "tiny"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_says(
        &text(&output),
        &["data.urls is empty", "give the shards' URL"],
    );
}

#[test]
fn a_signal_shows_what_was_measured_so_far() {
    let folder = tempfile::tempdir().unwrap();
    photos(folder.path());
    let mut command = nepa();
    command.arg("profile").arg(folder.path());
    // Two seconds a trial.
    let child = start(command.args(["--seconds", "30"]).args(&SHORT[2..]));
    std::thread::sleep(Duration::from_secs(7));
    send_signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert_says(
        &said,
        &[
            "showing what was measured so far",
            "Ended by a signal",
            "store, without decoding",
        ],
    );
}
