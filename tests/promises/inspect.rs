//! `nepa inspect`: says what a data set holds and what is wrong with it, and draws it.
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::record_batch::RecordBatch;
use nepa_tests::program::{assert_says, joined, jpeg, nepa, text, write_photo_shards};

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
        "labels       column `label`, int64",
        "shards       2",
        "rows         40",
        "row groups   4",
        "image.bytes: UNCOMPRESSED",
        "40 images decoded, 0 unreadable",
        "JPEG 40",
        "classes seen 10",
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
    assert_says(
        &one,
        &["labels       none", "37 images decoded, 1 unreadable"],
    );
    assert!(
        !one.contains("class-sorted") && !one.contains("several splits"),
        "{one}"
    );
}

/// The JSON says what is printed.
#[test]
fn all_that_is_found_is_written_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("train-0.parquet");
    write_sorted_shard(&shard);
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("inspected.json");
    let index = scratch.path().join("x.index");
    let said = inspect(&[
        folder.path().to_str().unwrap(),
        "--json",
        path.to_str().unwrap(),
        "--index",
        index.to_str().unwrap(),
    ]);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(report["version"], 1);
    assert_eq!(report["urls"].as_array().unwrap().len(), 1);
    assert!(said.contains(&format!(
        "schema       {}\n",
        report["schema"][0].as_str().unwrap()
    )));
    let labels = &report["labels"];
    assert!(said.contains(&format!(
        "labels       {}\n",
        labels["column"].as_str().unwrap()
    )));
    assert!(labels["classes"].is_null());
    assert_eq!(report["rows"], 40);
    assert_eq!(report["rows_without_image"], 2);
    assert_eq!(report["shards"]["count"], 1);
    assert_eq!(
        report["shards"]["bytes"],
        std::fs::metadata(&shard).unwrap().len()
    );
    assert_eq!(report["row_groups"]["count"], 4);
    let bytes_read = &report["row_groups"]["bytes_read"];
    assert!(bytes_read["least"].as_u64() <= bytes_read["most"].as_u64());
    assert_eq!(report["columns"][0]["path"], "image.bytes");
    assert_eq!(
        report["index"]["bytes"],
        std::fs::metadata(&index).unwrap().len()
    );
    let sample = &report["sample"];
    assert_eq!(sample["rows"], 40);
    assert_eq!(sample["decoded"], 37);
    assert_eq!(
        sample["formats"],
        serde_json::json!([{ "format": "JPEG", "images": 37 }])
    );
    assert_eq!(
        sample["classes"][3],
        serde_json::json!({ "class": "3", "rows": 10 })
    );
    let unreadable = &sample["unreadable"][0];
    assert_eq!(unreadable["row"], 3);
    assert!(
        unreadable["object"]
            .as_str()
            .unwrap()
            .ends_with("train-0.parquet")
    );
    assert_eq!(sample["failed"], serde_json::json!([]));
    let warnings = report["warnings"].as_array().unwrap();
    assert!(!warnings.is_empty());
    for warning in warnings {
        let line = format!("warning: {}\n", warning.as_str().unwrap());
        assert!(said.contains(&line), "{line}\n{said}");
    }
}

/// A shard of images under `image`, as they are.
fn write_images(path: &Path, images: Vec<Option<Vec<u8>>>) {
    let schema = Arc::new(Schema::new(vec![Field::new(
        "image",
        DataType::Binary,
        true,
    )]));
    let column: ArrayRef = Arc::new(images.into_iter().collect::<BinaryArray>());
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap();
    std::fs::write(path, nepa_tests::shards::write(&schema, [batch])).unwrap();
}

#[test]
fn a_grid_of_nothing_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let (shard, grid) = (
        folder.path().join("a.parquet"),
        folder.path().join("grid.png"),
    );
    let refused = || {
        let mut command = nepa();
        command.arg("inspect").arg(&shard).arg("--grid").arg(&grid);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(!grid.exists());
        let said = joined(&String::from_utf8(output.stderr).unwrap());
        said.lines().last().unwrap().to_owned()
    };
    // Cut-off JPEGs, and one that is none.
    let mut images = (0..5).map(|number| {
        let mut image = jpeg(number);
        image.truncate(image.len() - 2);
        Some(image)
    });
    let cut = images.by_ref().take(4).collect::<Vec<_>>();
    write_images(&shard, [cut, vec![Some(b"<html>".to_vec())]].concat());
    let parts = [
        "error: --grid: none of 5 images can be decoded. The first: ",
        "a.parquet, row group 0, row 0: the JPEG is truncated",
    ];
    assert_says(&refused(), &parts);
    write_images(&shard, vec![Some(Vec::new()); 3]);
    assert_says(&refused(), &["--grid: the sample of 3 rows holds no image"]);
    write_images(&shard, (0..3).map(|number| Some(jpeg(number))).collect());
    let mut bytes = std::fs::read(&shard).unwrap();
    // The pages of images, overwritten.
    bytes[4..40].fill(0xff);
    std::fs::write(&shard, bytes).unwrap();
    assert_says(
        &refused(),
        &[
            "--grid: none of 1 row groups can be read. The first: ",
            "a.parquet",
        ],
    );
}

#[test]
fn gray_of_16_bits_that_becomes_white_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("a.parquet");
    let png = |scale: u16, offset: u16| {
        let image = image::ImageBuffer::from_fn(20, 20, |x, y| {
            image::Luma([offset + (x + y) as u16 * scale])
        });
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::DynamicImage::ImageLuma16(image)
            .write_to(&mut bytes, image::ImageFormat::Png)
            .unwrap();
        Some(bytes.into_inner())
    };
    // Two that use 16 bits; one that uses 8 of them; one of 8 bits.
    let images = vec![png(1500, 300), png(900, 2000), png(6, 0), Some(jpeg(1))];
    write_images(&shard, images);
    let said = inspect(&[shard.to_str().unwrap()]);
    assert_says(
        &said,
        &[
            "warning: 2 of 4 sampled images are gray with more than 8 bits a sample",
            "convert them to 8 bits",
        ],
    );
    write_images(&shard, vec![png(6, 0), Some(jpeg(1))]);
    assert!(!inspect(&[shard.to_str().unwrap()]).contains("more than 8 bits"));
}
