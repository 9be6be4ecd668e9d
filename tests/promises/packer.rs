//! Packing a stream of images through the library: shards are cut as they fill, appear when they are whole, and hold what was given.
use std::path::Path;

use nepa_pipeline::{IoConfig, full_text};
use nepa_schemas::Label;
use nepa_tests::data::{io, open_folder, read_all};
use nepa_tests::program::{assert_says, jpeg, nepa, succeed, text};
use nepa_tests::s3::{Fault, Rule, S3Server};
use nepa_trainer::pack::{ItemLabel, PackError, PackedShard, Packer, StreamOptions};

const ROW_GROUP_BYTES: u64 = 16 << 10;
const SHARD_BYTES: u64 = 64 << 10;

fn small() -> StreamOptions {
    StreamOptions {
        row_group_bytes: ROW_GROUP_BYTES,
        shard_bytes: SHARD_BYTES,
        ..StreamOptions::default()
    }
}

fn open(folder: &Path, options: StreamOptions) -> Result<Packer, PackError> {
    Packer::open(folder.to_str().unwrap(), &IoConfig::default(), options)
}

/// Adds an image and writes what is full.
fn add(packer: &mut Packer, number: u32, label: Option<ItemLabel>) -> Result<(), PackError> {
    let path = number.is_multiple_of(2).then(|| format!("{number}.jpg"));
    packer.add(jpeg(number).into(), label, path)?;
    if packer.is_full() {
        packer.write()?;
    }
    Ok(())
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect::<Vec<_>>();
    names.sort();
    names
}

fn shard_names(shards: &[PackedShard]) -> Vec<String> {
    shards.iter().map(|shard| shard.name.clone()).collect()
}

/// All images with their labels, in the order of the data set.
fn read(folder: &Path) -> Vec<(Vec<u8>, Option<Label>)> {
    let batches = read_all(&open_folder(folder)).unwrap();
    let rows = batches.values().flat_map(|batch| {
        (0..batch.num_rows()).map(move |row| (batch.image(row).unwrap().to_vec(), batch.label(row)))
    });
    rows.collect()
}

#[test]
fn numbers_without_names_and_nulls_are_kept_in_shards_that_are_cut_as_they_fill() {
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("packed");
    let label = |number: u32| (number % 7 != 3).then_some(1000 + i64::from(number));
    let mut packer = open(&target, small()).unwrap();
    for number in 0..150 {
        add(&mut packer, number, label(number).map(ItemLabel::Number)).unwrap();
    }
    let shards = packer.finish().unwrap().to_vec();
    drop(packer);
    assert!(shards.len() > 2, "{shards:?}");
    assert_eq!(shard_names(&shards), names(&target));
    assert_eq!(shards[1].name, "train-00001.parquet");
    assert_eq!(shards.iter().map(|shard| shard.num_rows).sum::<u64>(), 150);
    for shard in &shards {
        let size = std::fs::metadata(target.join(&shard.name)).unwrap().len();
        assert_eq!(size, shard.num_bytes);
        assert!(size < SHARD_BYTES + 2 * ROW_GROUP_BYTES, "{shard:?}");
    }
    let expected = (0..150).map(|number| (jpeg(number), label(number).map(Label::Index)));
    assert!(read(&target) == expected.collect::<Vec<_>>());

    let said = text(&succeed(nepa().arg("inspect").arg(&target)));
    assert_says(
        &said,
        &["labels       column `label`, int64", "rows         150\n"],
    );
    for wrong in ["are missing", "several splits", "without an image"] {
        assert!(!said.contains(wrong), "{said}");
    }
    let again = open(&target, small()).err().unwrap();
    assert!(matches!(again, PackError::Exists { count, .. } if count == shards.len()));
    // Another split is another set.
    let val = StreamOptions {
        split: "val".to_owned(),
        ..small()
    };
    assert!(open(&target, val).unwrap().finish().unwrap().is_empty());
}

#[test]
fn classes_are_given_by_number_or_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let options = StreamOptions {
        classes: Some(vec!["ant".to_owned(), "bee".to_owned()]),
        ..small()
    };
    let mut packer = open(scratch.path(), options).unwrap();
    let name = |name: &str| Some(ItemLabel::Name(name.to_owned()));
    for (number, label) in [None, name("bee"), Some(ItemLabel::Number(0))]
        .into_iter()
        .enumerate()
    {
        add(&mut packer, number as u32, label).unwrap();
    }
    for (label, what) in [
        (
            Some(ItemLabel::Number(2)),
            "label 2 of item 3 is not one of 0 to 1",
        ),
        (Some(ItemLabel::Number(-1)), "label -1 of item 4 (4.jpg)"),
        (
            name("wasp"),
            "label \"wasp\" of item 5 is none of the names in classes",
        ),
    ] {
        let number = what.split("item ").nth(1).unwrap()[..1].parse().unwrap();
        let error = add(&mut packer, number, label).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    // What was refused is left out, and the rest goes on.
    add(&mut packer, 6, name("ant")).unwrap();
    packer.finish().unwrap();
    let labels = read(scratch.path()).into_iter().map(|(_, label)| label);
    let index = |index| Some(Label::Index(index));
    assert_eq!(
        labels.collect::<Vec<_>>(),
        [None, index(1), index(0), index(0)]
    );
    let dataset = open_folder(scratch.path());
    assert_eq!(dataset.class_names().unwrap(), ["ant", "bee"]);
}

#[test]
fn what_cannot_be_packed_is_refused_by_number() {
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("packed");
    let mut packer = open(&target, small()).unwrap();
    let broken = packer.add(b"no image"[..].into(), None, Some("a.jpg".to_owned()));
    let said = full_text(&broken.unwrap_err());
    assert_says(
        &said,
        &["item 0 (a.jpg) cannot be read as an image", "known format"],
    );
    let named = Some(ItemLabel::Name("ant".to_owned()));
    let said = add(&mut packer, 1, named).unwrap_err().to_string();
    assert_says(&said, &["label \"ant\" of item 1", "give classes"]);
    while packer.written().is_empty() {
        add(&mut packer, 2, None).unwrap();
    }
    let late = add(&mut packer, 3, Some(ItemLabel::Number(1))).unwrap_err();
    assert!(matches!(late, PackError::LateLabel { .. }), "{late}");
    packer.finish().unwrap();
    // Without labels there is no column of them, and nothing to warn of.
    assert!(open_folder(&target).shards()[0].mapping.label.is_err());

    let unchecked = StreamOptions {
        check: false,
        split: "raw".to_owned(),
        ..small()
    };
    let mut packer = open(&target, unchecked).unwrap();
    packer.add(b"no image"[..].into(), None, None).unwrap();
    assert_eq!(packer.finish().unwrap()[0].num_rows, 1);

    for (options, what) in [
        (
            StreamOptions {
                split: "_train".to_owned(),
                ..small()
            },
            "split \"_train\" must be a name",
        ),
        (
            StreamOptions {
                shard_bytes: 0,
                ..small()
            },
            "shard_bytes must be at least 1",
        ),
        (
            StreamOptions {
                classes: Some(vec!["ant".to_owned(); 2]),
                ..small()
            },
            "classes names \"ant\" twice",
        ),
        (
            StreamOptions {
                classes: Some(Vec::new()),
                ..small()
            },
            "classes is empty",
        ),
    ] {
        let error = open(&target, options).err().unwrap().to_string();
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn a_packer_that_is_dropped_leaves_whole_shards_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let mut packer = open(scratch.path(), small()).unwrap();
    let mut number = 0;
    // Until a row group of the second shard is written.
    let mut row_groups = 0;
    while packer.written().is_empty() || row_groups < 2 {
        packer.add(jpeg(number).into(), None, None).unwrap();
        number += 1;
        if packer.is_full() {
            row_groups += usize::from(!packer.written().is_empty());
            packer.write().unwrap();
        }
    }
    let there = names(scratch.path());
    assert!(there.len() > 1, "nothing was being written: {there:?}");
    let whole = shard_names(packer.written());
    drop(packer);
    assert_eq!(names(scratch.path()), whole);
}

#[test]
fn a_store_that_fails_keeps_whole_shards_and_no_part_of_another() {
    let server = S3Server::start();
    server.create_bucket("bucket");
    server.add_fault(Rule::put(
        "set/train-00002.parquet",
        0..100,
        Fault::Forbidden,
    ));
    let mut packer = Packer::open("s3://bucket/set", &io(&server), small()).unwrap();
    let mut number = 0;
    let error = loop {
        if let Err(error) = add(&mut packer, number, None) {
            break error;
        }
        number += 1;
        assert!(number < 1000, "the fault never came");
    };
    let said = full_text(&error);
    assert_says(
        &said,
        &[
            "cannot write s3://bucket/set/train-00002.parquet",
            "refuses access",
        ],
    );
    assert_eq!(error.object(), Some("s3://bucket/set/train-00002.parquet"));
    let whole = ["train-00000.parquet", "train-00001.parquet"];
    assert_eq!(shard_names(packer.written()), whole);
    assert!(matches!(packer.finish(), Err(PackError::Ended)));
    drop(packer);
    assert_eq!(
        server.keys("bucket"),
        whole.map(|name| format!("set/{name}"))
    );
    assert_eq!(server.num_unfinished_uploads(), 0);
}
