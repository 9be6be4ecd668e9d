//! Packing keeps what it is given: every image once, byte for byte, with its label, in an order that the seed decides.
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nepa_pipeline::{Dataset, DatasetError, IoConfig, full_text};
use nepa_schemas::Label;
use nepa_tests::data::{self, open_folder};
use nepa_tests::program::{jpeg, nepa, text};
use nepa_tests::s3::{Options, S3Server};

const CLASSES: [&str; 3] = ["ant", "bee", "wasp nest"];
/// About 64 KiB a shard and 16 KiB a row group.
const SMALL: [&str; 4] = ["--shard-mib", "0.0625", "--row-group-mib", "0.015625"];
const SHARD_BYTES: u64 = 64 << 10;
const ROW_GROUP_BYTES: u64 = 16 << 10;

/// What an image is in a data set: its bytes and its class.
type Images = BTreeMap<Vec<u8>, i64>;

/// Writes `count` different JPEGs into the three classes, some of them in a folder below.
fn photos(folder: &Path, count: u32) -> Images {
    let mut images = Images::new();
    for number in 0..count {
        let class = number as usize % CLASSES.len();
        let folder = folder
            .join(CLASSES[class])
            .join(if number % 5 == 0 { "more" } else { "" });
        std::fs::create_dir_all(&folder).unwrap();
        let bytes = jpeg(number);
        std::fs::write(folder.join(format!("{number}.jpg")), &bytes).unwrap();
        images.insert(bytes, class as i64);
    }
    assert_eq!(images.len(), count as usize, "the images shall differ");
    images
}

fn pack(folder: &Path, url: &str, options: &[&str], env: &[(&str, String)]) -> Output {
    let mut command = nepa();
    command.arg("pack").arg(folder).arg(url).args(options);
    command.envs(env.iter().cloned());
    command.output().unwrap()
}

#[track_caller]
fn packed(folder: &Path, url: &str, options: &[&str]) -> String {
    let output = pack(folder, url, options, &[]);
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// Encoded images with their labels.
type RowGroup = Vec<(Vec<u8>, i64)>;

/// All images with their labels, row group by row group, in the order of the data set.
fn read(dataset: &Arc<Dataset>) -> Result<Vec<RowGroup>, Arc<DatasetError>> {
    let row_groups = data::read_all(dataset)?.into_iter().map(|(place, batch)| {
        let row = |row| match batch.label(row) {
            Some(Label::Index(label)) => (batch.image(row).unwrap().to_vec(), label),
            label => panic!("{place:?}, row {row}: label {label:?}"),
        };
        (0..batch.num_rows()).map(row).collect()
    });
    Ok(row_groups.collect())
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                std::fs::read(entry.path()).unwrap(),
            )
        })
        .collect()
}

#[test]
fn every_image_is_kept_with_its_label_in_bounded_row_groups() {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, target) = (scratch.path().join("photos"), scratch.path().join("packed"));
    let images = photos(&folder, 150);
    packed(&folder, target.to_str().unwrap(), &SMALL);

    let dataset = open_folder(&target);
    assert_eq!(dataset.class_names().unwrap(), CLASSES);
    let groups = read(&dataset).unwrap();
    assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), images.len());
    assert_eq!(groups.iter().flatten().cloned().collect::<Images>(), images);

    let largest = images.keys().map(|bytes| bytes.len() as u64).max().unwrap();
    for group in &groups {
        let bytes = group
            .iter()
            .map(|(bytes, _)| bytes.len() as u64)
            .sum::<u64>();
        assert!(
            bytes < ROW_GROUP_BYTES + largest,
            "a row group of {bytes} bytes"
        );
    }
    let shards = dataset.shards();
    assert!(shards.len() >= 3, "{} shards", shards.len());
    for shard in shards {
        // Names, labels, page headers and footer come on top of the images.
        assert!(
            shard.size < SHARD_BYTES + largest + 16 * 1024,
            "{} has {} bytes",
            shard.url,
            shard.size
        );
        assert!(shard.parts.len() > 1, "{}", shard.url);
    }
    // Classes are mixed, not one after the other.
    let first = groups[0]
        .iter()
        .chain(&groups[1])
        .map(|(_, label)| label)
        .collect::<BTreeSet<_>>();
    assert_eq!(first.len(), CLASSES.len());
}

#[test]
fn the_seed_decides_the_order_and_the_splits_share_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path().join("photos");
    let images = photos(&folder, 60);
    let target = |name: &str| scratch.path().join(name);
    for (name, seed) in [("a", "5"), ("again", "5"), ("b", "6")] {
        let options = [&SMALL[..], &["--seed", seed, "--val-fraction", "0.2"]].concat();
        packed(&folder, target(name).to_str().unwrap(), &options);
    }
    assert_eq!(files(&target("a")), files(&target("again")));
    assert_ne!(files(&target("a")), files(&target("b")));

    let read_split = |split: &str| {
        let url = format!("{}/{split}-*.parquet", target("a").display());
        read(&open_folder(&url)).unwrap().concat()
    };
    let (train, val) = (read_split("train"), read_split("val"));
    assert_eq!((train.len(), val.len()), (48, 12));
    for class in 0..CLASSES.len() as i64 {
        assert_eq!(
            val.iter().filter(|(_, label)| *label == class).count(),
            4,
            "class {class}"
        );
    }
    // 60 in sum and 60 different ones: none is in both.
    assert_eq!(train.into_iter().chain(val).collect::<Images>(), images);
}

#[test]
fn nothing_is_overwritten_and_the_message_lists_what_is_there() {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, target) = (scratch.path().join("photos"), scratch.path().join("packed"));
    photos(&folder, 60);
    packed(&folder, target.to_str().unwrap(), &SMALL);
    let before = files(&target);
    let output = pack(&folder, target.to_str().unwrap(), &["--seed", "9"], &[]);
    assert!(!output.status.success());
    for name in before.keys() {
        assert!(
            text(&output).contains(name.as_str()),
            "{name} is not in: {}",
            text(&output)
        );
    }
    assert_eq!(files(&target), before);
    // Another split is another matter.
    packed(&folder, target.to_str().unwrap(), &["--split", "test"]);
    assert_eq!(files(&target).len(), before.len() + 1);
}

#[test]
fn other_files_are_counted_and_named() {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, target) = (scratch.path().join("photos"), scratch.path().join("packed"));
    let images = photos(&folder, 12);
    std::fs::write(folder.join("README.txt"), "about these photos").unwrap();
    std::fs::write(folder.join("bee/list.jpg"), "not what its name says").unwrap();
    std::fs::write(folder.join("ant/empty.png"), "").unwrap();
    std::fs::write(folder.join("ant/.DS_Store"), "hidden").unwrap();
    let said = packed(&folder, target.to_str().unwrap(), &[]);
    for part in [
        "12 images",
        "3 classes",
        "skipped 3 files",
        "README.txt",
        "bee/list.jpg",
        "ant/empty.png",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    let read = read(&open_folder(&target)).unwrap();
    assert_eq!(read.concat().into_iter().collect::<Images>(), images);

    let output = pack(
        &folder.join("missing"),
        target.to_str().unwrap(),
        &["--split", "x"],
        &[],
    );
    assert!(
        !output.status.success() && text(&output).contains("missing"),
        "{}",
        text(&output)
    );
}

#[test]
fn a_bucket_gets_the_same_shards() {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, target) = (scratch.path().join("photos"), scratch.path().join("packed"));
    let images = photos(&folder, 60);
    packed(&folder, target.to_str().unwrap(), &SMALL);

    let server = S3Server::start();
    server.create_bucket("bucket");
    let output = pack(&folder, "s3://bucket/my set", &SMALL, &server.env());
    assert!(output.status.success(), "{}", text(&output));
    let local = files(&target);
    assert_eq!(server.keys("bucket").len(), local.len());
    for (name, bytes) in &local {
        assert!(
            server.get("bucket", &format!("my set/{name}")).unwrap() == bytes.as_slice(),
            "{name} differs"
        );
    }
    let io = IoConfig {
        store_options: server.store_options(),
        ..IoConfig::default()
    };
    let read = read(&data::open("s3://bucket/my set", &io).unwrap()).unwrap();
    assert_eq!(read.concat().into_iter().collect::<Images>(), images);

    let others = [&SMALL[..], &["--seed", "9"]].concat();
    let output = pack(&folder, "s3://bucket/my set", &others, &server.env());
    assert!(
        !output.status.success() && text(&output).contains("train-00000-of-"),
        "{}",
        text(&output)
    );
    let output = pack(&folder, "s3://no-such-bucket/set", &SMALL, &server.env());
    assert!(
        !output.status.success() && text(&output).contains("no-such-bucket"),
        "{}",
        text(&output)
    );
}

/// Starts packing and waits until so many shards are written, or all.
fn start(folder: &Path, url: &str, env: &[(&str, String)], num_shards: usize) -> Child {
    let mut command = nepa();
    command
        .arg("pack")
        .arg(folder)
        .arg(url)
        .args(SMALL)
        .stdout(Stdio::piped());
    let mut child = command.envs(env.iter().cloned()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let written = lines
        .map_while(Result::ok)
        .filter(|line| line.contains(".parquet: "));
    let mut written = written.take(num_shards);
    while written.next().is_some() {}
    child
}

#[test]
fn what_a_kill_left_is_gone_on_with() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let folder = path("photos");
    photos(&folder, 600);
    packed(&folder, path("whole").to_str().unwrap(), &SMALL);
    let whole = files(&path("whole"));
    let num_shards = whole.len();
    assert!(num_shards >= 10, "{num_shards} shards");

    // Killed again and again after one more shard; on a busy machine a kill may come when all is done, and the next place is tried.
    let mut num_kills = (0..20).map(|place| {
        let target = path(&format!("killed-{place}"));
        let mut num_kills = 0;
        loop {
            let mut child = start(&folder, target.to_str().unwrap(), &[], 1);
            child.kill().unwrap();
            if child.wait().unwrap().success() {
                break;
            }
            num_kills += 1;
            for (name, bytes) in files(&target) {
                let is_whole = name.contains('#') || bytes == whole[&name];
                assert!(is_whole, "{name} is another");
            }
            assert!(num_kills <= num_shards, "no progress");
        }
        assert!(files(&target) == whole);
        num_kills
    });
    assert!(
        num_kills.any(|count| count > 0),
        "no kill came before the end"
    );

    // Three shards and the beginning of a fourth, which others' files do not resemble.
    let target = path("left");
    std::fs::create_dir(&target).unwrap();
    for (name, bytes) in whole.iter().take(3) {
        std::fs::write(target.join(name), bytes).unwrap();
    }
    let (name, bytes) = whole.iter().nth(3).unwrap();
    let left = [format!("{name}#1"), format!("{name}#12")];
    for left in &left {
        std::fs::write(target.join(left), &bytes[..bytes.len() / 2]).unwrap();
    }
    for kept in [
        format!("{name}#x"),
        "notes#1".to_owned(),
        format!("{name}.txt"),
    ] {
        std::fs::write(target.join(kept), "mine").unwrap();
    }
    let said = packed(&folder, target.to_str().unwrap(), &SMALL);
    assert!(
        said.contains(&format!("3 of {num_shards} shards were there already")),
        "{said}"
    );
    let mut after = files(&target);
    for kept in [
        format!("{name}#x"),
        "notes#1".to_owned(),
        format!("{name}.txt"),
    ] {
        assert!(after.remove(&kept).is_some(), "{kept}");
    }
    assert!(after == whole);

    // All are there: nothing is written.
    let said = packed(&folder, target.to_str().unwrap(), &SMALL);
    let all = format!("{num_shards} of {num_shards} shards were there already");
    assert!(
        said.contains(&all) && !said.contains(".parquet: "),
        "{said}"
    );
}

#[test]
fn shards_of_other_images_or_options_are_not_gone_on_with() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let folder = path("photos");
    photos(&folder, 60);
    packed(&folder, path("whole").to_str().unwrap(), &SMALL);
    let whole = files(&path("whole"));
    let target = path("target");
    let refuses = |options: &[&str], what: &str| {
        let before = files(&target);
        let output = pack(&folder, target.to_str().unwrap(), options, &[]);
        let said = text(&output);
        assert!(
            !output.status.success() && said.contains("nothing is overwritten"),
            "{what}: {said}"
        );
        assert!(files(&target) == before, "{what}");
    };
    let place = |name: &str, bytes: &[u8]| {
        let _ = std::fs::remove_dir_all(&target);
        std::fs::create_dir(&target).unwrap();
        std::fs::write(target.join(name), bytes).unwrap();
    };
    let mut shards = whole.iter();
    let ((first, bytes), (second, _)) = (shards.next().unwrap(), shards.next().unwrap());
    place(second, bytes);
    refuses(&SMALL, "a shard under another's name");
    place(first, &bytes[..bytes.len() - 20]);
    refuses(&SMALL, "a shard cut off");
    place(first, b"PAR1");
    refuses(&SMALL, "a few bytes");
    place(first, b"");
    refuses(&SMALL, "no byte");
    place("train-00000-of-00099.parquet", bytes);
    refuses(&SMALL, "another number of shards");
    place(first, bytes);
    refuses(&["--shard-mib", "0.0625"], "another size of row groups");
    refuses(&[&SMALL[..], &["--seed", "9"]].concat(), "another seed");
    refuses(
        &[&SMALL[..], &["--val-fraction", "0.2"]].concat(),
        "another share",
    );
    // One image more, or one that has grown.
    let photo = folder.join("bee/1.jpg");
    let grown = [std::fs::read(&photo).unwrap(), vec![0]].concat();
    let original = std::fs::read(&photo).unwrap();
    std::fs::write(&photo, grown).unwrap();
    refuses(&SMALL, "an image that has grown");
    std::fs::write(&photo, original).unwrap();
    std::fs::write(folder.join("bee/new.jpg"), jpeg(1000)).unwrap();
    refuses(&SMALL, "one more image");
    std::fs::remove_file(folder.join("bee/new.jpg")).unwrap();
    packed(&folder, target.to_str().unwrap(), &SMALL);
    assert!(files(&target) == whole);
}

#[test]
fn in_a_bucket_a_kill_and_signals_are_gone_on_from() {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, target) = (scratch.path().join("photos"), scratch.path().join("packed"));
    photos(&folder, 250);
    packed(&folder, target.to_str().unwrap(), &SMALL);
    let local = files(&target);
    let server = S3Server::start_with(Options {
        latency: Duration::from_millis(100),
        ..Options::default()
    });
    let server = server.unwrap();
    server.create_bucket("bucket");
    let url = "s3://bucket/set";
    let num_there = || server.keys("bucket").len();

    let mut child = start(&folder, url, &server.env(), 1);
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success());
    assert!((1..local.len()).contains(&num_there()), "{}", num_there());
    for (signal, code) in [("-TERM", 143), ("-INT", 130)] {
        let unfinished = server.num_unfinished_uploads();
        let child = start(&folder, url, &server.env(), 1);
        let id = child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &id])
                .status()
                .unwrap()
                .success()
        );
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        // By its code, it stopped at the signal and did not pack on; its own upload is given up.
        assert!(server.num_unfinished_uploads() <= unfinished);
    }
    assert!(num_there() < local.len(), "the test is over too early");
    let output = pack(&folder, url, &SMALL, &server.env());
    let said = text(&output);
    assert!(
        output.status.success() && said.contains("shards were there already"),
        "{said}"
    );
    assert_eq!(num_there(), local.len());
    for (name, bytes) in &local {
        assert!(
            server.get("bucket", &format!("set/{name}")).unwrap() == bytes.as_slice(),
            "{name} differs"
        );
    }
}

#[test]
fn a_damaged_page_is_told_by_its_checksum() {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, target) = (scratch.path().join("photos"), scratch.path().join("packed"));
    let image = photos(&folder, 12).into_keys().next().unwrap();
    packed(&folder, target.to_str().unwrap(), &[]);
    let shard = target.join("train-00000-of-00001.parquet");
    let mut bytes = std::fs::read(&shard).unwrap();
    // In the midst of one image: nothing but a checksum can tell.
    let start = bytes
        .windows(image.len())
        .position(|window| window == image)
        .expect("images are stored as they are");
    bytes[start + image.len() / 2] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let error = read(&open_folder(&target)).unwrap_err();
    assert!(
        matches!(*error, DatasetError::PageChecksum { .. }),
        "{error:?}"
    );
    let said = full_text(&error);
    assert!(
        said.contains("wrong checksum")
            && said.contains("train-00000-of-00001.parquet, row group 0"),
        "{said}"
    );
}
