//! Which labels are read, the same by every command, and what is said of those that are not.
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Float64Array, Int64Array, ListArray,
    NullArray, StringArray, StructArray,
};
use arrow::datatypes::{Field, Fields, Int64Type, Schema};
use arrow::record_batch::RecordBatch;
use image::{ImageFormat, Rgb, RgbImage};
use nepa_tests::program::{assert_says, nepa, succeed, text, tiny_recipe};
use nepa_tests::shards::write;
use tempfile::TempDir;

/// A picture of one hue a class, so that nearest neighbours among pixels are always right.
fn picture(class: u32, number: u32) -> Vec<u8> {
    let image = RgbImage::from_fn(32, 32, |x, y| {
        let mut pixel = [60 + ((x * 3 + y * 5 + number * 7) % 32) as u8; 3];
        pixel[class as usize] += 150;
        Rgb(pixel)
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Rows of a set: classes 0, 1, 2, 0, ...
const ROWS: u32 = 24;

/// The classes of the rows.
fn classes() -> impl Iterator<Item = u32> {
    (0..ROWS).map(|row| row % 3)
}

/// A column made of the classes.
fn column<A: Array + FromIterator<T> + 'static, T>(value: impl Fn(u32) -> T) -> ArrayRef {
    Arc::new(classes().map(value).collect::<A>())
}

/// A shard of pictures beside these columns.
fn shard(columns: Vec<(&str, ArrayRef)>, metadata: Option<&str>) -> Vec<u8> {
    let images = classes().zip(0..).map(|(class, row)| picture(class, row));
    let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(images));
    let columns: Vec<_> = [("image", images)].into_iter().chain(columns).collect();
    let fields = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true));
    let features = metadata.map(|features| {
        let text = format!(r#"{{"info":{{"features":{features}}}}}"#);
        ("huggingface".to_owned(), text)
    });
    let schema = Schema::new_with_metadata(
        fields.collect::<Vec<_>>(),
        features
            .into_iter()
            .collect::<std::collections::HashMap<_, _>>(),
    );
    let schema = Arc::new(schema);
    let columns = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
    write(&schema, [batch])
}

/// Three named classes.
const NAMED: &str = r#"{"label":{"names":["cat","dog","eel"],"_type":"ClassLabel"}}"#;

/// Sets in a folder, and a run to evaluate, the same for all tests.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> String {
        let path = self.0.path().join(name).join("part-0.parquet");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn set(&self, name: &str, label: ArrayRef) -> String {
        self.put(name, shard(vec![("label", label)], None))
    }
}

fn run() -> &'static Path {
    static RUN: LazyLock<(TempDir, PathBuf)> = LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data.parquet");
        std::fs::write(&data, shard(vec![], None)).unwrap();
        let run = folder.path().join("run");
        let mut command = nepa();
        command.arg("pretrain").arg(tiny_recipe());
        command.arg("--data").arg(&data).arg("--out").arg(&run);
        command.args(["--set", "train.steps=2", "--set", "train.warmup_steps=1"]);
        succeed(&mut command);
        (folder, run)
    });
    &RUN.1
}

fn inspect(set: &str, more: &[&str]) -> String {
    text(&succeed(nepa().args(["inspect", set]).args(more)))
}

fn eval(train: &str, test: &str, more: &[&str]) -> (bool, String) {
    let mut command = nepa();
    command.args(["eval", "knn", "--checkpoint"]).arg(run());
    command.args(["--train", train, "--test", test]);
    command
        .args(["--features", "pixels", "--k", "1"])
        .args(more);
    let output = command.output().unwrap();
    (output.status.success(), text(&output))
}

/// All test images are classified rightly.
#[track_caller]
fn right(train: &str, test: &str, more: &[&str], parts: &[&str]) {
    let (success, said) = eval(train, test, more);
    assert!(success, "{said}");
    assert_says(&said, &[&["| 100.0 \u{b1} "], parts].concat());
}

#[track_caller]
fn refused(train: &str, test: &str, more: &[&str], parts: &[&str]) {
    let (success, said) = eval(train, test, more);
    assert!(!success, "{said}");
    assert_says(&said, parts);
    assert!(!said.contains("epoch 0"), "images were read before: {said}");
}

fn lists(values: impl Fn(u32) -> Vec<i64>) -> ArrayRef {
    let rows = classes().map(|class| Some(values(class).into_iter().map(Some)));
    Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(rows))
}

#[test]
fn labels_of_each_type_are_read_and_told() {
    let place = Place::new();
    let integers: ArrayRef = column::<Int64Array, _>(|class| Some(i64::from(class)));
    let plain = place.set("plain", integers.clone());
    let sets: [(&str, ArrayRef, &str); 4] = [
        ("int", integers, "int64"),
        (
            "float",
            column::<Float64Array, _>(|class| Some(f64::from(class))),
            "float64",
        ),
        (
            "single",
            lists(|class| vec![i64::from(class)]),
            "list<int64>",
        ),
        (
            "one-hot",
            lists(|class| (0..3).map(|place| i64::from(place == class)).collect()),
            "list<int64>",
        ),
    ];
    for (name, label, type_name) in sets {
        let set = place.set(name, label);
        let line = format!("column `label`, {type_name}");
        assert_says(
            &inspect(&set, &[]),
            &[&format!("labels       {line}"), "classes seen 3"],
        );
        right(&set, &plain, &[], &[&line, "3 classes"]);
    }
    let truths = place.set("bool", column::<BooleanArray, _>(|class| Some(class == 1)));
    right(
        &truths,
        &truths,
        &[],
        &["labels: column `label`, bool", "2 classes"],
    );
    // One line where both sets say the same.
    let label = column::<Int64Array, _>(|class| Some(i64::from(class)));
    let named = place.put("named", shard(vec![("label", label)], Some(NAMED)));
    right(
        &named,
        &named,
        &[],
        &["labels: column `label`, 3 classes, int64\n"],
    );
    assert_says(
        &inspect(&named, &[]),
        &["labels       column `label`, 3 classes, int64\n"],
    );
}

#[test]
fn what_is_no_label_is_said_at_once_with_its_type() {
    let place = Place::new();
    let fields = Fields::from(vec![
        Field::new("id", arrow::datatypes::DataType::Int64, true),
        Field::new("name", arrow::datatypes::DataType::Utf8, true),
    ]);
    let name = |class: u32| Some(["cat", "dog", "eel"][class as usize]);
    let children: Vec<ArrayRef> = vec![
        column::<Int64Array, _>(|class| Some(i64::from(class))),
        column::<StringArray, _>(name),
    ];
    let structs = place.set("struct", Arc::new(StructArray::new(fields, children, None)));
    let told = [
        "column `label` is struct<id: int64, name: string>, which is not read as a label",
        "--label-column label.id",
    ];
    refused(&structs, &structs, &[], &told);
    assert_says(
        &inspect(&structs, &[]),
        &[
            &["labels       none", "warning: no labels are read"],
            &told[..],
        ]
        .concat(),
    );
    right(
        &structs,
        &structs,
        &["--label-column", "label.name"],
        &["labels: column `label.name`, string"],
    );
    let dates = place.set("date", column::<Date32Array, _>(|class| Some(class as i32)));
    refused(&dates, &dates, &[], &["column `label` is date32"]);
    let none = place.put("none", shard(vec![], None));
    refused(
        &none,
        &none,
        &[],
        &["has no labels to evaluate by", "no label column"],
    );
    let label = || column::<Int64Array, _>(|class| Some(i64::from(class)));
    let two = place.put(
        "two",
        shard(vec![("label", label()), ("class", label())], None),
    );
    refused(
        &two,
        &two,
        &[],
        &[
            "several could be the label: label, class",
            "--label-column label",
        ],
    );
    assert_says(
        &inspect(&two, &[]),
        &["warning: no labels are read: several could be the label"],
    );
    right(
        &two,
        &two,
        &["--label-column", "class"],
        &["labels: column `class`, int64"],
    );
}

#[test]
fn values_that_are_no_label_are_named_with_their_row() {
    let place = Place::new();
    let fraction = column::<Float64Array, _>(|class| Some(if class == 2 { 2.5 } else { 0.0 }));
    let fraction = place.set("fraction", fraction);
    let several = place.set("several", lists(|class| vec![0; class as usize + 1]));
    for (set, parts) in [
        (&fraction, ["column `label`, row 2, is 2.5", "whole number"]),
        (
            &several,
            [
                "column `label`, row 1, is a list of 2",
                "multi-label data is not supported",
            ],
        ),
    ] {
        let (success, said) = eval(set, set, &[]);
        assert!(!success, "{said}");
        assert_says(&said, &parts);
        let output = nepa().args(["inspect", set]).output().unwrap();
        assert!(!output.status.success());
        assert_says(&text(&output), &parts);
        // Pretraining reads no labels, and nobody has to.
        assert_says(
            &inspect(set, &["--label-column", ""]),
            &["24 images decoded", "labels       none"],
        );
    }
}

#[test]
fn rows_without_a_label_are_left_out_and_counted() {
    let place = Place::new();
    let good = place.set(
        "good",
        column::<Int64Array, _>(|class| Some(i64::from(class))),
    );
    let number = std::cell::Cell::new(0u32);
    let every_second = |class: u32, none: Option<i64>| {
        number.set(number.get() + 1);
        if number.get().is_multiple_of(2) {
            none
        } else {
            Some(i64::from(class))
        }
    };
    for none in [Some(-1), None] {
        number.set(0);
        let gaps = column::<Int64Array, _>(|class| every_second(class, none));
        let set = place.set(&format!("gaps-{}", none.is_some()), gaps);
        right(
            &set,
            &good,
            &[],
            &[
                "12 of 24 training images have no label",
                "12 training and 24 test images, 3 classes",
                "chance 33.3",
            ],
        );
        right(&good, &set, &[], &["12 of 24 test images have no label"]);
        assert_says(
            &inspect(&set, &[]),
            &[
                "; 12 rows without a label",
                "12 of 24 sampled rows have no label",
            ],
        );
    }
    let nothing = place.set("nothing", column::<Int64Array, _>(|_| Some(-1)));
    let (success, said) = eval(&nothing, &good, &[]);
    assert!(!success, "{said}");
    assert_says(&said, &["none of its 24 images has a label"]);
    let nulls = place.set("null", Arc::new(NullArray::new(ROWS as usize)));
    let (success, said) = eval(&nulls, &good, &[]);
    assert!(!success, "{said}");
    assert_says(&said, &["none of its 24 images has a label"]);
}

#[test]
fn folders_are_labels() {
    let place = Place::new();
    let name = |class: u32| ["chat noir", "50%", "eel"][class as usize];
    for (class, folder) in [
        (0, "hive/label=chat%20noir"),
        (1, "hive/label=50%25"),
        (2, "hive/label=__HIVE_DEFAULT_PARTITION__"),
    ] {
        let only = |array: &ArrayRef| {
            let rows = classes()
                .map(|of| Some(of == class))
                .collect::<BooleanArray>();
            arrow::compute::filter(array, &rows).unwrap()
        };
        let images = classes().zip(0..).map(|(class, row)| picture(class, row));
        let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(images));
        let field = Field::new("image", images.data_type().clone(), true);
        let schema = Arc::new(Schema::new(vec![field]));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![only(&images)]).unwrap();
        place.put(folder, write(&schema, [batch]));
    }
    let hive = place.0.path().join("hive").to_str().unwrap().to_owned();
    let label = column::<StringArray, _>(|class| (class < 2).then(|| name(class)));
    let test = place.set("test", label);
    right(
        &hive,
        &test,
        &[],
        &[
            "training labels: folders `label=...`, 2 classes, names",
            "8 of 24 training images have no label",
            "8 of 24 test images have no label",
        ],
    );
    assert_says(
        &inspect(&hive, &[]),
        &["classes      2: 50%, chat noir", "8 rows without a label"],
    );
    right(&hive, &hive, &["--label-column", "label"], &[]);
}

#[test]
fn sets_that_spell_their_classes_differently_are_refused() {
    let place = Place::new();
    let label = || column::<Int64Array, _>(|class| Some(i64::from(class)));
    let named = place.put("named", shard(vec![("label", label())], Some(NAMED)));
    let bare = place.set("bare", label());
    refused(
        &named,
        &bare,
        &[],
        &[
            "no class of the test set",
            "`cat`, `dog`, `eel`",
            "numbers (0, 1, ...)",
        ],
    );
    refused(&bare, &named, &[], &["no class of the test set", "`cat`"]);
    let upper = column::<StringArray, _>(|class| Some(["Cat", "Dog", "Eel"][class as usize]));
    let upper = place.set("upper", upper);
    let (success, said) = eval(&named, &upper, &[]);
    assert!(!success, "{said}");
    assert_says(
        &said,
        &[
            "no class of the test set",
            "`cat`, `dog`, `eel`",
            "`Cat`, `Dog`, `Eel`",
        ],
    );
}

#[test]
fn test_classes_that_training_does_not_know_are_named() {
    let place = Place::new();
    let names = |last: &'static str| {
        column::<StringArray, _>(move |class| Some(["cat", "dog", last][class as usize]))
    };
    let (train, test) = (
        place.set("train", names("eel")),
        place.set("test", names("fox")),
    );
    let (success, said) = eval(&train, &test, &[]);
    assert!(success, "{said}");
    assert_says(
        &said,
        &[
            "1 of the classes of the test set",
            "`fox` (8)",
            "chance 33.3",
            "3 classes",
        ],
    );
}

#[test]
fn class_names_that_some_shards_lost_are_those_of_the_others() {
    let place = Place::new();
    let label = || column::<Int64Array, _>(|class| Some(i64::from(class)));
    place.put("set/a", shard(vec![("label", label())], None));
    place.put("set/b", shard(vec![("label", label())], Some(NAMED)));
    let named = place.put("named", shard(vec![("label", label())], Some(NAMED)));
    let set = place.0.path().join("set").to_str().unwrap().to_owned();
    right(
        &set,
        &named,
        &[],
        &["1 of 2 shards name no classes", "48 training"],
    );
    assert_says(
        &inspect(&set, &[]),
        &[
            "column `label`, 3 classes, int64",
            "warning: 1 of 2 shards name no classes",
        ],
    );
    // What they name must agree.
    let other = r#"{"label":{"names":["cat","eel","dog"],"_type":"ClassLabel"}}"#;
    place.put("set/c", shard(vec![("label", label())], Some(other)));
    refused(
        &set,
        &named,
        &[],
        &["class 1 is `dog` in the one and `eel` in the other"],
    );
}
