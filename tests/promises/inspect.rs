//! `nepa inspect`: says what a data set holds and what is wrong with it, and draws it.
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::record_batch::RecordBatch;
use nepa_tests::program::{assert_says, jpeg, nepa, text, write_photo_shards};

/// Runs `nepa inspect` with success and gives all that it says.
fn inspect(arguments: &[&str]) -> String {
    let output = nepa().arg("inspect").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// A shard whose row group `i` holds ten images of class `i`; in the first one stand a broken image, a null and a path alone.
fn write_sorted_shard(path: &Path) {
    let fields = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    let schema = Arc::new(Schema::new(vec![
        Field::new("image", DataType::Struct(fields.clone()), true),
        Field::new("label", DataType::Int64, true),
    ]));
    let batches = (0..4u32).map(|class| {
        let bytes = (0..10).map(|row| match (class, row) {
            (0, 3) => Some(b"not an image".to_vec()),
            (0, 4 | 5) => None,
            _ => Some(jpeg(class * 10 + row)),
        });
        let paths = (0..10).map(|row| (row != 4).then(|| format!("photos/{class}/{row}.jpg")));
        let children: Vec<ArrayRef> = vec![
            Arc::new(bytes.collect::<BinaryArray>()),
            Arc::new(paths.collect::<StringArray>()),
        ];
        let images: ArrayRef = Arc::new(StructArray::new(fields.clone(), children, None));
        let labels: ArrayRef = Arc::new(Int64Array::from(vec![i64::from(class); 10]));
        RecordBatch::try_new(Arc::clone(&schema), vec![images, labels]).unwrap()
    });
    std::fs::write(path, nepa_tests::shards::write(&schema, batches)).unwrap();
}

#[test]
fn a_sound_data_set_is_described_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    write_photo_shards(folder.path(), 2, 2, 10);
    let pictures = tempfile::tempdir().unwrap();
    let grid = pictures.path().join("grid.png");
    let said = inspect(&[
        folder.path().to_str().unwrap(),
        "--grid",
        grid.to_str().unwrap(),
        "--size",
        "32",
    ]);
    let parts = [
        "images in `image`",
        "labels in `label`",
        "shards       2",
        "rows         40",
        "row groups   4",
        "image.bytes: UNCOMPRESSED",
        "40 images decoded, 0 unreadable",
        "JPEG 40",
        "labels       10",
    ];
    assert_says(&said, &parts);
    for wrong in ["class-sorted", "without an image", "several splits"] {
        assert!(!said.contains(wrong), "{said}");
    }
    // 6 x 6 images of 32 pixels, 2 pixels around each.
    let picture = image::open(&grid).unwrap().into_rgb8();
    assert_eq!(picture.dimensions(), (6 * 34 + 2, 6 * 34 + 2));
    let colours = picture.pixels().collect::<std::collections::HashSet<_>>();
    assert!(colours.len() > 1000, "only {} colours", colours.len());

    // The same seed draws the same picture, another seed another one.
    let draw = |seed: &str| {
        let path = pictures.path().join("again.png");
        let arguments = [
            folder.path().to_str().unwrap(),
            "--seed",
            seed,
            "--size",
            "32",
        ];
        inspect(&[&arguments[..], &["--grid", path.to_str().unwrap()]].concat());
        image::open(path).unwrap().into_rgb8()
    };
    assert!(draw("1337") == picture);
    assert!(draw("1") != picture);
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("train-0.parquet");
    write_sorted_shard(&shard);
    std::fs::copy(&shard, folder.path().join("test-0.parquet")).unwrap();
    let said = inspect(&[folder.path().to_str().unwrap()]);
    let parts = [
        "warning: class-sorted order: in 8 of 8",
        "warning: tiny row groups: 8 of 8",
        "rows         80, 4 of them without an image (left out)",
        "warning: 2 of 80 sampled rows hold a path or URL and no image bytes (such as photos/0/5.jpg)",
        "several splits are read together: test (1), train (1)",
        "74 images decoded, 2 unreadable",
        "train-0.parquet, row group 0, row 3: ",
    ];
    assert_says(&said, &parts);

    let one = inspect(&[shard.to_str().unwrap(), "--label-column", ""]);
    assert_says(&one, &["no labels", "37 images decoded, 1 unreadable"]);
    assert!(
        !one.contains("class-sorted") && !one.contains("several splits"),
        "{one}"
    );
}
