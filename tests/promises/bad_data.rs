//! Bad data and wrong settings: each has its own error, whose text says what is wrong, where, and what to do.
use std::sync::Arc;
use std::time::{Duration, Instant};

use nepa_pipeline::{
    Dataset, DatasetConfig, DatasetError, IoConfig, StoreError, StoreOptions, full_text,
};
use nepa_schemas::ShardBatch;
use nepa_tests::data;
use nepa_tests::s3::{Fault, Rule, S3Server};
use nepa_tests::shards::{flat_shard, flat_shard_of, hugging_face_shard};

fn io(server: &S3Server) -> IoConfig {
    IoConfig {
        request_timeout_s: 2.0,
        outage_s: 1.0,
        ..data::io(server)
    }
}

/// The server's settings, but for one.
fn io_but(server: &S3Server, name: &str, value: &str) -> IoConfig {
    let settings = server
        .env()
        .into_iter()
        .map(|(key, old)| (key, if key == name { value.to_owned() } else { old }));
    IoConfig {
        store_options: StoreOptions::new(settings),
        ..io(server)
    }
}

fn open(urls: &[&str], io: &IoConfig) -> Result<Arc<Dataset>, DatasetError> {
    let config = DatasetConfig {
        urls: urls.iter().map(|&url| url.to_owned()).collect(),
        ..DatasetConfig::default()
    };
    data::open_as(&config, io)
}

/// Longer than any error takes on a busy machine, and far less than the ten minutes (`outage_s`)
/// for which a store that is away is waited for.
const AT_ONCE: Duration = Duration::from_mins(1);

/// The error of opening `urls`, as a user sees it, which holds all `parts`.
#[track_caller]
fn fails(urls: &[&str], io: &IoConfig, parts: &[&str]) -> DatasetError {
    let since = Instant::now();
    let error = open(urls, io).expect_err("this data set is bad");
    let text = full_text(&error);
    println!("{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert!(!text.contains("test-secret"), "a secret is shown: {text}");
    assert!(since.elapsed() < AT_ONCE, "{:?}: {text}", since.elapsed());
    error
}

/// Fetches one row group of the first shard and unpacks it.
fn read(dataset: &Arc<Dataset>, row_group: u32) -> Result<ShardBatch, Arc<DatasetError>> {
    data::read_part(dataset, 0, row_group)
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn nothing_named_or_nothing_there() {
    let server = S3Server::start();
    server.put("bucket", "in1k/train-0.parquet", flat_shard(3));
    server.put("bucket", "docs/README.md", "hello");
    server.create_bucket("empty");
    let io = io(&server);
    fails(
        &[],
        &io,
        &["no data set is named", "s3://bucket/train-*.parquet"],
    );
    fails(
        &["s3://bucket/docs"],
        &io,
        &[
            "no *.parquet object below s3://bucket/docs",
            "s3://bucket/docs/README.md",
        ],
    );
    fails(
        &["s3://bucket/in2k/"],
        &io,
        &[
            "no *.parquet object below s3://bucket/in2k/",
            "nothing at all",
        ],
    );
    fails(
        &["s3://empty"],
        &io,
        &["no *.parquet object below s3://empty/", "nothing at all"],
    );
    let error = fails(
        &["s3://bucket/in1k/val-*.parquet"],
        &io,
        &["matches no object", "s3://bucket/in1k/train-0.parquet"],
    );
    assert!(matches!(
        error,
        DatasetError::Store(StoreError::NoMatch { .. })
    ));
    fails(
        &["s3://bucket/in1k/train-1.parquet"],
        &io,
        &["s3://bucket/in1k/train-1.parquet does not exist"],
    );
    fails(
        &["s3://bucket/[in1k"],
        &io,
        &["glob in s3://bucket/[in1k", "unclosed"],
    );
    fails(
        &["/no/such/folder"],
        &io,
        &[
            "no *.parquet object below /no/such/folder",
            "nothing at all",
        ],
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.txt"), "x").unwrap();
    fails(
        &[folder.path().to_str().unwrap()],
        &io,
        &["no *.parquet object below", "a.txt"],
    );
    fails(
        &["ftp://host/x"],
        &io,
        &["scheme ftp:// is unknown", "s3://"],
    );
    server.put("bucket", "none.parquet", flat_shard(0));
    fails(&["s3://bucket/none.parquet"], &io, &["hold no rows"]);
}

#[test]
fn wrong_credentials_endpoint_and_bucket() {
    let server = S3Server::start();
    server.put("bucket", "x.parquet", flat_shard(3));
    let none = IoConfig {
        store_options: StoreOptions::new([
            ("AWS_ACCESS_KEY_ID", ""),
            ("AWS_SECRET_ACCESS_KEY", ""),
            ("AWS_PROFILE", ""),
            ("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]),
        ..IoConfig::default()
    };
    let parts = [
        "no credentials for s3://bucket/x.parquet",
        "AWS_ACCESS_KEY_ID",
        "AWS_SKIP_SIGNATURE",
    ];
    assert!(matches!(
        fails(&["s3://bucket/x.parquet"], &none, &parts),
        DatasetError::Store(StoreError::NoCredentials { .. })
    ));

    let io = io_but(&server, "AWS_SECRET_ACCESS_KEY", "wrong");
    let error = fails(
        &["s3://bucket/x.parquet"],
        &io,
        &["refuses access to s3://bucket/x.parquet", "credentials"],
    );
    assert!(matches!(
        error,
        DatasetError::Store(StoreError::Denied { .. })
    ));
    let error = fails(
        &["s3://bucket"],
        &io,
        &["refuses access to s3://bucket", "SignatureDoesNotMatch"],
    );
    assert!(matches!(
        error,
        DatasetError::Store(StoreError::Denied { .. })
    ));

    // Port 1: nobody listens there.
    let io = io_but(&server, "AWS_ENDPOINT_URL", "http://127.0.0.1:1");
    let parts = [
        "cannot connect to http://127.0.0.1:1",
        "AWS_ENDPOINT_URL",
        "refused",
    ];
    for url in [
        "s3://bucket/x.parquet",
        "s3://bucket/",
        "s3://bucket/*.parquet",
    ] {
        assert!(matches!(
            fails(&[url], &io, &parts),
            DatasetError::Store(StoreError::Unreachable { .. })
        ));
    }

    let io = self::io(&server);
    let error = fails(
        &["s3://absent/"],
        &io,
        &["bucket of s3://absent/ does not exist", "region"],
    );
    assert!(matches!(
        error,
        DatasetError::Store(StoreError::NoBucket { .. })
    ));
    server.add_fault(Rule::get("x.parquet", 0..100, Fault::Forbidden));
    fails(
        &["s3://bucket/x.parquet"],
        &io,
        &["refuses access to s3://bucket/x.parquet", "AccessDenied"],
    );
    server.clear_faults();
    server.add_fault(Rule::get("x.parquet", 0..100, Fault::Unavailable));
    fails(
        &["s3://bucket/x.parquet"],
        &io,
        &[
            "cannot read s3://bucket/x.parquet",
            "nothing has come from the store for 1 s",
            "SlowDown",
        ],
    );
}

#[test]
fn a_profile_file_gives_credentials() {
    let server = S3Server::start();
    server.put("bucket", "x.parquet", flat_shard(3));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let text = "[default]\naws_access_key_id = other\n[mine]\naws_access_key_id = test-key\naws_secret_access_key = test-secret\n";
    std::fs::write(&file, text).unwrap();
    let with_profile = |profile: &str| IoConfig {
        store_options: StoreOptions::new([
            ("AWS_ACCESS_KEY_ID", ""),
            ("AWS_SECRET_ACCESS_KEY", ""),
            ("AWS_ENDPOINT_URL", &server.endpoint()),
            ("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap()),
            ("AWS_CONFIG_FILE", "/nonexistent"),
            ("AWS_PROFILE", profile),
        ]),
        ..IoConfig::default()
    };
    assert_eq!(
        open(&["s3://bucket"], &with_profile("mine"))
            .unwrap()
            .num_samples(),
        3
    );
    fails(
        &["s3://bucket"],
        &with_profile(""),
        &["no aws_secret_access_key", "credentials"],
    );
    fails(
        &["s3://bucket"],
        &with_profile("absent"),
        &[
            "AWS_PROFILE names the profile \"absent\"",
            "there are: default, mine",
        ],
    );
}

#[test]
fn objects_that_are_no_good_parquet() {
    let server = S3Server::start();
    let good = hugging_face_shard(0, 2, 20);
    let io = io(&server);
    let bad = |name: &str, bytes: Vec<u8>, parts: &[&str]| {
        server.put("bucket", name, bytes);
        let url = format!("s3://bucket/{name}");
        fails(&[&url], &io, &[&[url.as_str()], parts].concat())
    };
    bad("empty.parquet", Vec::new(), &["is not a Parquet file"]);
    bad(
        "text.parquet",
        b"<!DOCTYPE html><html>not here</html>".to_vec(),
        &["is not a Parquet file", "a web page"],
    );
    bad(
        "cut.parquet",
        good[..good.len() / 2].to_vec(),
        &["is truncated", "upload it again"],
    );
    let mut long_footer = good.clone();
    let end = long_footer.len();
    long_footer[end - 8..end - 4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    bad(
        "long.parquet",
        long_footer,
        &["is truncated", "longer than the file"],
    );
    let mut garbled = good.clone();
    garbled[end - 300..end - 8].fill(0xff);
    bad("garbled.parquet", garbled, &["footer of", "is damaged"]);
    // The middle is missing: the footer is whole, and points beyond the end.
    let footer = u32::from_le_bytes(good[end - 8..end - 4].try_into().unwrap()) as usize + 8;
    let hole = [&good[..1000], &good[end - footer..]].concat();
    bad("hole.parquet", hole, &["is truncated", "beyond its end"]);
    let error = bad(
        "secret.parquet",
        fixture("encrypted.parquet"),
        &["is encrypted", "write it again"],
    );
    assert!(matches!(error, DatasetError::Encrypted { .. }));
    // Not one error is hidden behind a good shard.
    server.put("other", "0.parquet", good);
    server.put("other", "1.parquet", "nonsense, but longer than a footer");
    fails(
        &["s3://other"],
        &io,
        &["s3://other/1.parquet is not a Parquet file"],
    );
}

#[test]
fn damaged_pages_are_told_from_damaged_storage() {
    let server = S3Server::start();
    let io = io(&server);
    let sound = fixture("page_checksum.parquet");
    server.put("bucket", "sum.parquet", sound.clone());
    let dataset = open(&["s3://bucket/sum.parquet"], &io).unwrap();
    assert_eq!(read(&dataset, 0).unwrap().image(3).unwrap(), vec![21; 100]);
    // One bit of an image.
    let mut flipped = sound;
    flipped[400] ^= 1;
    server.put("bucket", "sum.parquet", flipped);
    let dataset = open(&["s3://bucket/sum.parquet"], &io).unwrap();
    let error = read(&dataset, 0).unwrap_err();
    let text = full_text(&error);
    assert!(
        matches!(*error, DatasetError::PageChecksum { .. }),
        "{text}"
    );
    assert!(
        text.contains("s3://bucket/sum.parquet, row group 0") && text.contains("wrong checksum"),
        "{text}"
    );
    // A page header that makes no sense, in a file without checksums.
    let mut garbled = hugging_face_shard(0, 1, 20);
    garbled[4..40].fill(0xff);
    server.put("bucket", "garbled.parquet", garbled);
    let dataset = open(&["s3://bucket/garbled.parquet"], &io).unwrap();
    let error = read(&dataset, 0).unwrap_err();
    let text = full_text(&error);
    assert!(matches!(*error, DatasetError::BadPage { .. }), "{text}");
    assert!(
        text.contains("s3://bucket/garbled.parquet, row group 0"),
        "{text}"
    );
}

#[test]
fn shards_must_go_together() {
    let server = S3Server::start();
    server.put("bucket", "0.parquet", hugging_face_shard(0, 1, 5));
    server.put("bucket", "1.parquet", flat_shard_of("content", 5));
    let parts = [
        "do not go together",
        "first s3://bucket/0.parquet",
        "then s3://bucket/1.parquet",
        "the images are in `image` (struct<bytes, path>) in the one and in `content` (binary) in the other",
    ];
    let error = fails(&["s3://bucket"], &io(&server), &parts);
    assert!(matches!(error, DatasetError::SchemasDiffer { .. }));
}

#[test]
fn a_shard_replaced_during_the_run_is_noticed() {
    let server = S3Server::start();
    let io = IoConfig {
        coalesce_gap_bytes: 0,
        ..io(&server)
    };
    let other = hugging_face_shard(1, 2, 20);
    server.put("bucket", "x.parquet", hugging_face_shard(0, 2, 20));
    let dataset = open(&["s3://bucket/x.parquet"], &io).unwrap();
    read(&dataset, 0).unwrap();
    // Replaced between two requests of one row group.
    server.add_fault(Rule::get(
        "x.parquet",
        1..2,
        Fault::Replace(other.clone().into()),
    ));
    let mut failed = false;
    for row_group in [1, 0] {
        match read(&dataset, row_group) {
            Ok(_) => {}
            Err(error) => {
                let text = full_text(&error);
                assert!(
                    matches!(*error, DatasetError::Store(StoreError::Replaced { .. })),
                    "{text}"
                );
                assert!(
                    text.contains("s3://bucket/x.parquet") && text.contains("was replaced"),
                    "{text}"
                );
                failed = true;
            }
        }
    }
    assert!(failed);
    // Replaced in the middle of a body that breaks off: the bytes of the two objects are never joined.
    server.clear_faults();
    server.put("bucket", "y.parquet", hugging_face_shard(0, 2, 20));
    let dataset = open(&["s3://bucket/y.parquet"], &io).unwrap();
    server.add_fault(Rule::get("y.parquet", 0..1, Fault::Truncate(50)));
    server.add_fault(Rule::get("y.parquet", 1..2, Fault::Replace(other.into())));
    let error = read(&dataset, 0).unwrap_err();
    assert!(
        matches!(*error, DatasetError::Store(StoreError::Replaced { .. })),
        "{}",
        full_text(&error)
    );

    // The same on disk.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    std::fs::write(&path, hugging_face_shard(0, 2, 20)).unwrap();
    let dataset = open(&[path.to_str().unwrap()], &io).unwrap();
    read(&dataset, 0).unwrap();
    std::fs::write(&path, hugging_face_shard(1, 2, 20)).unwrap();
    let error = read(&dataset, 0).unwrap_err();
    assert!(
        matches!(*error, DatasetError::Store(StoreError::Replaced { .. })),
        "{}",
        full_text(&error)
    );
}

#[test]
fn a_server_that_ignores_ranges_is_refused() {
    let server = S3Server::start();
    server.put("bucket", "x.parquet", hugging_face_shard(0, 1, 20));
    let io = io(&server);
    let dataset = open(&["s3://bucket/x.parquet"], &io).unwrap();
    server.add_fault(Rule::get("x.parquet", 0..100, Fault::WholeObject));
    let error = read(&dataset, 0).unwrap_err();
    let text = full_text(&error);
    assert!(
        matches!(*error, DatasetError::Store(StoreError::WrongRange { .. })),
        "{text}"
    );
    assert!(
        text.contains("does not support range requests") && text.contains("s3://bucket/x.parquet"),
        "{text}"
    );
    fails(
        &["s3://bucket/x.parquet"],
        &io,
        &["does not support range requests"],
    );
}
