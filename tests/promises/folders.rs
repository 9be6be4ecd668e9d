//! What a folder means: which of the objects below a prefix are the data set, on disk and in a bucket alike.
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, Int32Array, MapBuilder, StringArray, StringBuilder, StructArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::record_batch::RecordBatch;
use nepa_pipeline::{Dataset, DatasetConfig, DatasetError, DatasetWarning, IoConfig};
use nepa_tests::data::{self, open_as as open};
use nepa_tests::program::{assert_says, nepa, succeed, text, tiny_recipe, write_photo_shards};
use nepa_tests::s3::{Fault, Options, Rule, S3Server};
use nepa_tests::shards::{fake_image, hugging_face_shard, write};
use tempfile::TempDir;

/// Objects on disk and, under the same keys, in a bucket.
struct Tree {
    folder: TempDir,
    server: S3Server,
}

impl Tree {
    fn new(objects: &[(&str, Vec<u8>)]) -> Self {
        let tree = Self {
            folder: tempfile::tempdir().unwrap(),
            server: S3Server::start(),
        };
        tree.server.create_bucket("bucket");
        for (key, bytes) in objects {
            tree.put(key, bytes.clone());
        }
        tree
    }

    fn put(&self, key: &str, bytes: Vec<u8>) {
        let path = self.folder.path().join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &bytes).unwrap();
        self.server.put("bucket", key, bytes);
    }

    fn remove(&self, key: &str) {
        std::fs::remove_file(self.folder.path().join(key)).unwrap();
        self.server.remove("bucket", key);
    }

    /// Both places, as the beginning of a URL without a slash at its end.
    fn roots(&self) -> [String; 2] {
        [
            self.folder.path().to_str().unwrap().to_owned(),
            "s3://bucket".to_owned(),
        ]
    }

    fn config(&self, root: &str, key: &str) -> (DatasetConfig, IoConfig) {
        (data::at(format!("{root}/{key}")), data::io(&self.server))
    }

    fn open(&self, root: &str, key: &str) -> Result<Arc<Dataset>, DatasetError> {
        let (config, io) = self.config(root, key);
        open(&config, &io)
    }

    /// The keys that are read of a prefix or glob, the same in both places.
    #[track_caller]
    fn read(&self, key: &str) -> Vec<String> {
        let [disk, bucket] = self.roots().map(|root| {
            let dataset = self
                .open(&root, key)
                .unwrap_or_else(|error| panic!("{root}/{key}: {}", said(&error)));
            keys(&dataset, &root)
        });
        assert_eq!(disk, bucket);
        disk
    }

    /// The error of both, which holds all `parts`.
    #[track_caller]
    fn fails(&self, key: &str, parts: &[&str]) {
        for root in self.roots() {
            let error = self.open(&root, key).expect_err("this is refused");
            let text = said(&error);
            println!("{text}");
            assert_says(&text, parts);
        }
    }

    /// The warnings of both, without their roots.
    #[track_caller]
    fn warns(&self, key: &str) -> Vec<String> {
        let [disk, bucket] = self.roots().map(|root| {
            let dataset = self.open(&root, key).unwrap();
            let shown = dataset.warnings().iter().map(DatasetWarning::to_string);
            shown
                .map(|warning| warning.replace(&root, ""))
                .collect::<Vec<_>>()
        });
        assert_eq!(disk, bucket);
        for warning in &disk {
            println!("{warning}");
        }
        disk
    }
}

fn said(error: &DatasetError) -> String {
    nepa_pipeline::full_text(error)
}

fn keys(dataset: &Dataset, root: &str) -> Vec<String> {
    let urls = dataset.shards().iter().map(|shard| &shard.url);
    urls.map(|url| url.strip_prefix(root).unwrap()[1..].to_owned())
        .collect()
}

/// A shard whose size and rows depend on `number`.
fn shard(number: u32) -> Vec<u8> {
    hugging_face_shard(number, 1, 2 + number)
}

/// A shard of images alone.
fn shard_without_labels() -> Vec<u8> {
    let schema = Arc::new(Schema::new(vec![Field::new(
        "image",
        DataType::Binary,
        true,
    )]));
    let images = (0..3).map(|row| Some(fake_image(9, row)));
    let column: ArrayRef = Arc::new(images.collect::<BinaryArray>());
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap();
    write(&schema, [batch])
}

/// A Parquet file without images.
fn table_of_texts() -> Vec<u8> {
    let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, true)]));
    let column: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
    write(
        &schema,
        [RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap()],
    )
}

#[test]
fn names_that_begin_with_an_underscore_or_a_dot_are_no_data() {
    let tree = Tree::new(&[
        ("s/train-0.parquet", shard(0)),
        ("s/_x=1/train-1.parquet", shard(1)),
        ("s/_temporary/0/_temporary/attempt/part-0.parquet", shard(2)),
        ("s/_index.parquet", table_of_texts()),
        ("s/.tmp/part-1.parquet", shard(3)),
        ("s/._train-0.parquet", b"AppleDouble".to_vec()),
        ("s/_SUCCESS", Vec::new()),
        ("only/_temporary/part-0.parquet", shard(0)),
    ]);
    let data = ["s/_x=1/train-1.parquet", "s/train-0.parquet"];
    assert_eq!(tree.read("s"), data);
    assert_eq!(tree.read("s/"), data);
    assert_eq!(tree.read("s/**/*.parquet"), data);
    assert_eq!(tree.read("s/*.parquet"), ["s/train-0.parquet"]);
    // Who names them means them.
    assert_eq!(tree.read("s/.tmp"), ["s/.tmp/part-1.parquet"]);
    assert_eq!(tree.read("s/.*/*.parquet"), ["s/.tmp/part-1.parquet"]);
    let deep = "s/_temporary/0/_temporary/attempt/part-0.parquet";
    assert_eq!(tree.read(deep), [deep]);
    assert_eq!(tree.read("s/_temp*/**/_temp*/**/*.parquet"), [deep]);
    tree.fails("s/_index.parquet", &["cannot read images"]);
    tree.fails(
        "only",
        &[
            "no *.parquet object",
            "begins with `_` or `.`",
            "only/_temporary",
        ],
    );
}

/// Delta commits, an entry a line.
fn commit(lines: &[&str]) -> Vec<u8> {
    lines.join("\n").into_bytes()
}

const PROTOCOL: &str = r#"{"protocol":{"minReaderVersion":1,"minWriterVersion":2}}"#;

fn add(path: &str) -> String {
    format!(r#"{{"add":{{"path":"{path}","partitionValues":{{}},"size":1,"dataChange":true}}}}"#)
}

fn remove(path: &str) -> String {
    format!(r#"{{"remove":{{"path":"{path}","dataChange":true}}}}"#)
}

fn log(version: u64) -> String {
    format!("t/_delta_log/{version:020}.json")
}

/// A checkpoint: a row of protocol and metadata, then rows of `add` and of `sidecar`.
fn checkpoint(files: &[&str], sidecars: &[&str], mode: Option<&str>) -> Vec<u8> {
    let rows = 1 + files.len() + sidecars.len();
    let column =
        |values: Fields, arrays: Vec<ArrayRef>, there: std::ops::Range<usize>| -> ArrayRef {
            let valid = (0..rows)
                .map(|row| there.contains(&row))
                .collect::<NullBuffer>();
            Arc::new(StructArray::new(values, arrays, Some(valid)))
        };
    let texts = |values: &[&str], from: usize| -> ArrayRef {
        let text = |row: usize| row.checked_sub(from).and_then(|i| values.get(i).copied());
        Arc::new((0..rows).map(text).collect::<StringArray>())
    };
    let path = Fields::from(vec![Field::new("path", DataType::Utf8, true)]);
    let version = Fields::from(vec![Field::new("minReaderVersion", DataType::Int32, true)]);
    let mut configuration = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    for row in 0..rows {
        if let (0, Some(mode)) = (row, mode) {
            configuration
                .keys()
                .append_value("delta.columnMapping.mode");
            configuration.values().append_value(mode);
        }
        configuration.append(true).unwrap();
    }
    let configuration: ArrayRef = Arc::new(configuration.finish());
    let settings = Fields::from(vec![Field::new(
        "configuration",
        configuration.data_type().clone(),
        true,
    )]);
    let versions: ArrayRef = Arc::new(Int32Array::from(vec![1; rows]));
    let end = 1 + files.len();
    let columns = [
        ("protocol", column(version, vec![versions], 0..1)),
        ("metaData", column(settings, vec![configuration], 0..1)),
        ("add", column(path.clone(), vec![texts(files, 1)], 1..end)),
        (
            "sidecar",
            column(path, vec![texts(sidecars, end)], end..rows),
        ),
    ];
    let fields = columns.iter();
    let fields = fields.map(|(name, column)| Field::new(*name, column.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let columns = columns.map(|(_, column)| column).to_vec();
    write(
        &schema,
        [RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()],
    )
}

/// A table `t` whose first file was overwritten; a copy of it lies there as well.
fn overwritten() -> Tree {
    Tree::new(&[
        ("t/a.parquet", shard(0)),
        ("t/label=x y/b.parquet", shard(1)),
        ("t/c.parquet", shard(2)),
        (&log(0), commit(&[PROTOCOL, &add("a.parquet")])),
        (
            &log(1),
            commit(&[&add("label=x%20y/b.parquet"), &remove("a.parquet")]),
        ),
    ])
}

#[test]
fn a_delta_table_is_what_its_log_says() {
    let tree = overwritten();
    let current = ["t/label=x y/b.parquet"];
    assert_eq!(tree.read("t"), current);
    // Also below the prefix, beside other shards, and a part of the table by itself.
    tree.put("other/train-0.parquet", shard(3));
    let all = ["other/train-0.parquet", current[0]];
    assert_eq!(tree.read(""), all);
    assert_eq!(tree.read("t/label=x y"), current);
    // One file can be read whatever the log says.
    assert_eq!(tree.read("t/a.parquet"), ["t/a.parquet"]);
    for glob in [
        "t/*.parquet",
        "t/**/*.parquet",
        "t/label=x y/*.parquet",
        "*/*.parquet",
    ] {
        tree.fails(glob, &["is a Delta table", "name the folder"]);
    }
}

#[test]
fn a_delta_table_costs_the_reading_of_its_log_and_no_more_listings() {
    let tree = overwritten();
    tree.server.take_log();
    tree.open("s3://bucket", "t").unwrap();
    let log = tree.server.take_log();
    let listings = log.iter().filter(|request| request.key.is_empty());
    assert_eq!(listings.count(), 1, "{log:#?}");
    let commits = log
        .iter()
        .filter(|request| request.key.rsplit('.').next() == Some("json"));
    assert_eq!(commits.count(), 2, "{log:#?}");
}

#[test]
fn checkpoints_of_all_forms_are_read() {
    let tree = overwritten();
    let of = |version: u64, name: &str| format!("t/_delta_log/{version:020}.checkpoint.{name}");
    let [b, c] = ["label=x%20y/b.parquet", "c.parquet"];
    // Without the commits before it, as after a clean-up.
    tree.put(&of(1, "parquet"), checkpoint(&[b], &[], Some("none")));
    tree.remove(&log(0));
    tree.remove(&log(1));
    assert_eq!(tree.read("t"), ["t/label=x y/b.parquet"]);
    tree.put(&log(2), commit(&[&add(c)]));
    let both = ["t/c.parquet", "t/label=x y/b.parquet"];
    assert_eq!(tree.read("t"), both);
    // In two parts, the newest of which is not there yet.
    let parts = [
        "0000000001.0000000002.parquet",
        "0000000002.0000000002.parquet",
    ];
    tree.put(&of(2, parts[0]), checkpoint(&[b], &[], None));
    assert_eq!(tree.read("t"), both);
    tree.put(&of(2, parts[1]), checkpoint(&["a.parquet"], &[], None));
    tree.remove(&log(2));
    tree.remove(&of(1, "parquet"));
    assert_eq!(tree.read("t"), ["t/a.parquet", "t/label=x y/b.parquet"]);
    // V2: in Parquet or JSON, with the files in sidecars.
    tree.put(
        "t/_delta_log/_sidecars/one.parquet",
        checkpoint(&[c], &[], None),
    );
    tree.put(
        &of(3, "0-0-0.parquet"),
        checkpoint(&[], &["one.parquet"], None),
    );
    assert_eq!(tree.read("t"), ["t/c.parquet"]);
    let v2 = r#"{"protocol":{"minReaderVersion":3,"readerFeatures":["v2Checkpoint"]}}"#;
    let sidecar = r#"{"sidecar":{"path":"one.parquet","sizeInBytes":1}}"#;
    tree.put(
        &of(4, "0-0-1.json"),
        commit(&[v2, sidecar, &add("a.parquet")]),
    );
    assert_eq!(tree.read("t"), ["t/a.parquet", "t/c.parquet"]);
    // Column mapping is also seen there.
    tree.put(&of(5, "parquet"), checkpoint(&[c], &[], Some("id")));
    tree.fails(
        "t",
        &["is a Delta table", "columnMapping.mode = id", "delta_scan"],
    );
}

#[test]
fn a_delta_table_that_cannot_be_followed_is_refused_by_name() {
    let tree = overwritten();
    let vector = r#"{"add":{"path":"c.parquet","deletionVector":{"storageType":"u","pathOrInlineDv":"ab","offset":1,"sizeInBytes":1,"cardinality":1}}}"#;
    for (lines, parts) in [
        (
            vec![vector],
            ["1 of its 2 files have deletion vectors", "delta_scan"],
        ),
        (
            vec![r#"{"metaData":{"configuration":{"delta.columnMapping.mode":"name"}}}"#],
            ["its columns are mapped", "delta_scan"],
        ),
        (
            vec![r#"{"protocol":{"minReaderVersion":3,"readerFeatures":["catalogManaged"]}}"#],
            ["reader feature catalogManaged", "delta_scan"],
        ),
        (
            vec![r#"{"add":{"path":"s3://elsewhere/x.parquet"}}"#],
            ["s3://elsewhere/x.parquet, which lies outside", "delta_scan"],
        ),
        (
            vec![r#"{"add":{"path":"gone.parquet"}}"#],
            [
                "gone.parquet, which is not there",
                "copy the whole table again",
            ],
        ),
        (
            vec!["{\"add\":{"],
            ["damaged", "copy the whole table again"],
        ),
    ] {
        tree.put(&log(2), commit(&lines));
        tree.fails(
            "t",
            &[
                "t is a Delta table, which cannot be read",
                parts[0],
                parts[1],
            ],
        );
    }
    tree.put(&log(2), commit(&[&remove("label=x%20y/b.parquet")]));
    tree.fails("t", &["holds no rows at version 2"]);
    tree.remove(&log(1));
    tree.fails("t", &["version 1 is missing"]);
}

#[test]
fn iceberg_and_hudi_tables_are_refused_with_what_to_do() {
    let tree = Tree::new(&[
        ("ice/data/label=a/0.parquet", shard(0)),
        ("ice/metadata/00001-aa.metadata.json", b"{}".to_vec()),
        ("hudi/.hoodie/hoodie.properties", Vec::new()),
        ("hudi/label=a/0.parquet", shard(1)),
        ("hudi/label=a/.hoodie_partition_metadata", Vec::new()),
        ("plain/data/0.parquet", shard(2)),
        ("plain/metadata/about.metadata.json", b"{}".to_vec()),
    ]);
    tree.fails("", &["which is not read"]);
    for url in [
        "ice",
        "ice/data",
        "ice/data/label=a",
        "ice/data/*/*.parquet",
        "ice/**/*.parquet",
    ] {
        tree.fails(url, &["ice is an Iceberg table", "iceberg_scan"]);
    }
    for url in ["hudi", "hudi/label=a", "hudi/*/*.parquet"] {
        tree.fails(
            url,
            &["is a Hudi table", "write its current rows to Parquet"],
        );
    }
    assert_eq!(tree.read("plain"), ["plain/data/0.parquet"]);
    assert_eq!(tree.read("plain/data"), ["plain/data/0.parquet"]);
}

#[test]
fn several_splits_are_told_and_one_can_be_chosen() {
    for [train, validation, test] in [
        [
            "default/train/0000.parquet",
            "default/validation/0000.parquet",
            "default/test/0000.parquet",
        ],
        [
            "split=train/0.parquet",
            "split=val/0.parquet",
            "split=test/0.parquet",
        ],
        [
            "imagenet_train-01.parquet",
            "imagenet_val-01.parquet",
            "imagenet_test-01.parquet",
        ],
        ["train2017.parquet", "dev2017.parquet", "eval2017.parquet"],
    ] {
        let of = |name: &str| format!("my_test_set/{name}");
        let tree = Tree::new(&[
            (&of(train), shard(0)),
            (&of(validation), shard(1)),
            (&of(test), shard(2)),
        ]);
        let warnings = tree.warns("my_test_set");
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert_says(
            &warnings[0],
            &[
                "test (1), train (1), validation (1)",
                "--split",
                "data.split",
            ],
        );
        for root in tree.roots() {
            for (split, name) in [("train", train), ("val", validation), ("test", test)] {
                let (mut config, io) = tree.config(&root, "my_test_set");
                (config.split, config.strict) = (Some(split.to_owned()), true);
                assert_eq!(keys(&open(&config, &io).unwrap(), &root), [of(name)]);
            }
            let (mut config, io) = tree.config(&root, "my_test_set");
            config.split = Some("extra".to_owned());
            let text = said(&open(&config, &io).unwrap_err());
            assert_says(
                &text,
                &["split `extra`", "test (1), train (1), validation (1)"],
            );
            (config.split, config.strict) = (None, true);
            let text = said(&open(&config, &io).unwrap_err());
            assert_says(&text, &["strict: shards of several splits", "--strict"]);
        }
    }
    // A word that all share is no sign.
    let tree = Tree::new(&[
        ("train_data/test/a.parquet", shard(0)),
        ("train_data/test/b.parquet", shard(1)),
    ]);
    assert!(tree.warns("train_data").is_empty());
}

#[test]
fn copies_and_missing_shards_are_told() {
    let tree = Tree::new(&[
        ("hub/snapshots/aaa/data/train-0.parquet", shard(0)),
        ("hub/snapshots/bbb/data/train-0.parquet", shard(0)),
        // Partitions: the same names, other contents.
        ("spark/label=a/part-0.parquet", shard(1)),
        ("spark/label=b/part-0.parquet", shard(2)),
        ("n/train-00000-of-00004.parquet", shard(1)),
        ("n/train-00002-of-00004.parquet", shard(2)),
        ("n/val-00000-of-00001.parquet", shard(3)),
        ("two/t-00000-of-00001.parquet", shard(1)),
        ("two/t-00000-of-00002.parquet", shard(2)),
        ("two/t-00001-of-00002.parquet", shard(3)),
    ]);
    let [copies] = &tree.warns("hub")[..] else {
        panic!("one warning");
    };
    assert_says(
        copies,
        &[
            "1 shard is of the same name",
            "snapshots/aaa/",
            "snapshots/bbb/",
        ],
    );
    assert!(tree.warns("hub/snapshots/aaa").is_empty());
    assert!(tree.warns("spark").is_empty());
    let [missing] = &tree.warns("n/train-*.parquet")[..] else {
        panic!("one warning");
    };
    assert_says(
        missing,
        &[
            "2 of 4 shards of /n/train- are missing",
            "00001-of-00004, 00003-of-00004",
        ],
    );
    // A file that is named by itself is wanted by itself.
    assert!(tree.warns("n/train-00000-of-00004.parquet").is_empty());
    let [two] = &tree.warns("two")[..] else {
        panic!("one warning");
    };
    assert_says(two, &["1 of 00001 and 2 of 00002"]);
}

#[test]
fn the_program_warns_and_can_be_strict() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    write_photo_shards(&data.join("train"), 2, 1, 24);
    write_photo_shards(&data.join("test"), 1, 1, 12);
    let (url, out) = (data.to_str().unwrap(), folder.path().join("run"));
    let warning = "warning: shards of several splits are read together: test (1), train (2)";
    let inspect = |more: &[&str]| text(&nepa().args(["inspect", url]).args(more).output().unwrap());
    assert_says(&inspect(&[]), &[warning, "shards       3"]);
    assert_says(
        &inspect(&["--split", "train", "--strict"]),
        &["shards       2"],
    );
    assert_says(
        &inspect(&["--strict"]),
        &["error: strict: shards of several splits"],
    );
    assert_says(
        &inspect(&["--split", "dev"]),
        &["no shard is of the split `dev`: there are test (1), train (2)"],
    );

    let pretrain = |steps: &str, more: &[&str]| {
        let mut command = nepa();
        command.arg("pretrain").arg(tiny_recipe());
        command.args([
            "--data",
            url,
            "--set",
            "train.batch=8",
            "--set",
            "train.micro_batch=8",
        ]);
        command
            .args(["--set", "train.steps=4", "--max-steps", steps])
            .args(more);
        command.arg("--out").arg(&out);
        command
    };
    let strict = text(&pretrain("1", &["--strict"]).output().unwrap());
    assert_says(&strict, &["error: strict: shards of several splits"]);
    let run = succeed(&mut pretrain("1", &[]));
    assert_says(&text(&run), &[warning]);
    // Another selection is other data, told as such; the option alone is not.
    let other = text(
        &pretrain("2", &["--resume", "--split", "train"])
            .output()
            .unwrap(),
    );
    assert_says(&other, &["with another data set", "train-0.parquet"]);
    std::fs::remove_dir_all(&out).unwrap();
    succeed(&mut pretrain("1", &["--split", "train", "--strict"]));
    let train = data.join("train");
    let mut command = nepa();
    command
        .arg("pretrain")
        .arg(tiny_recipe())
        .arg("--data")
        .arg(&train);
    command.args(["--set", "train.batch=8", "--set", "train.micro_batch=8"]);
    command.args(["--set", "train.steps=4", "--max-steps", "2", "--resume"]);
    succeed(command.arg("--out").arg(&out));

    let profile = nepa()
        .args(["profile", url, "--seconds", "0.1", "--image-size", "16"])
        .output();
    assert_says(&text(&profile.unwrap()), &[warning]);
    let eval = |more: &[&str]| {
        let mut command = nepa();
        command.args(["eval", "knn", "--features", "pixels", "--k", "1"]);
        command
            .args(["--train", url, "--test", url, "--checkpoint"])
            .arg(&out);
        text(&command.args(more).output().unwrap())
    };
    assert_says(&eval(&[]), &[warning, "60 training and 60 test images"]);
    assert_says(
        &eval(&["--train-split", "train", "--test-split", "test", "--strict"]),
        &["48 training and 12 test images"],
    );
    assert_says(&eval(&["--strict"]), &["error: strict"]);
}

#[test]
fn a_shard_that_does_not_go_with_the_others_is_named_with_the_glob_that_leaves_it_out() {
    let tree = Tree::new(&[
        ("s/data/train-0.parquet", shard(0)),
        ("s/data/train-1.parquet", shard(1)),
        ("s/meta/stats.parquet", table_of_texts()),
        ("f/part-0.parquet", shard(0)),
        ("f/part-1.parquet", shard(1)),
        ("f/part-2.parquet", shard_without_labels()),
        ("none/0.parquet", table_of_texts()),
        ("none/1.parquet", table_of_texts()),
    ]);
    for root in tree.roots() {
        for (key, odd, glob, num_shards) in [
            ("s", "cannot read images from", "s/data/train-*.parquet", 2),
            (
                "f",
                "the shards do not go together",
                "f/{part-0.parquet,part-1.parquet}",
                2,
            ),
        ] {
            let text = said(&tree.open(&root, key).unwrap_err());
            println!("{text}");
            let advice = format!("to leave it out, read '{root}/{glob}'");
            assert_says(&text, &[odd, &advice]);
            assert_eq!(tree.open(&root, glob).unwrap().shards().len(), num_shards);
        }
        let text = said(&tree.open(&root, "none").unwrap_err());
        assert!(
            text.contains("none/0.parquet") && !text.contains("to leave it out"),
            "{text}"
        );
        // Named by itself.
        let (mut config, io) = tree.config(&root, "s/data");
        config.urls.push(format!("{root}/s/meta/stats.parquet"));
        let text = said(&open(&config, &io).unwrap_err());
        assert_says(
            &text,
            &["meta/stats.parquet; to leave it out, do not name it"],
        );
    }
}

#[test]
fn what_stands_for_a_file_is_called_so() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let page = format!("<!DOCTYPE html><html>{}</html>", "x".repeat(1000));
    let mut gzip = vec![0x1f, 0x8b, 8, 0];
    gzip.extend(vec![7; 3000]);
    for (bytes, part) in [
        (
            pointer.to_vec(),
            "Git LFS pointer, which stands for the file: run `git lfs pull`",
        ),
        (
            b"/annex/objects/SHA256E-s1--a.parquet\n".to_vec(),
            "`git annex get`",
        ),
        (page.into_bytes(), "a web page"),
        (b"{\"error\": \"no such file\"}".to_vec(), "is JSON"),
        (gzip, "gzip-compressed"),
        (b"image,label\n".repeat(20), "the text \"image,label"),
        (Vec::new(), "empty"),
        (vec![0; 70_000], "zeros"),
    ] {
        let tree = Tree::new(&[
            ("s/train-0.parquet", shard(0)),
            ("s/train-1.parquet", bytes),
        ]);
        tree.fails("s", &["s/train-1.parquet is not a Parquet file", part]);
    }
}

#[test]
fn keys_with_brackets_are_names_before_they_are_globs() {
    let tree = Tree::new(&[
        ("a[1]/train-[0].parquet", shard(0)),
        ("a[1]/train-{x}.parquet", shard(1)),
        ("a1/train-0.parquet", shard(2)),
    ]);
    let both = ["a[1]/train-[0].parquet", "a[1]/train-{x}.parquet"];
    assert_eq!(tree.read("a[1]"), both);
    for name in both {
        assert_eq!(tree.read(name), [name]);
    }
    assert_eq!(tree.read("a[1]/train-*.parquet"), both);
    assert_eq!(tree.read("a[12]/train-*.parquet"), ["a1/train-0.parquet"]);
}

#[test]
fn local_paths_are_made_absolute_before_a_glob() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    write_photo_shards(&data, 2, 1, 2);
    std::fs::create_dir(folder.path().join("here")).unwrap();
    let inspect = |url: &str| {
        let mut command = nepa();
        command.current_dir(folder.path().join("here"));
        command.env("HOME", folder.path()).args(["inspect", url]);
        text(&command.output().unwrap())
    };
    for url in [
        "../data/train-*.parquet",
        "./../data/./train-?.parquet",
        "../*/train-*.parquet",
        "../data",
        "~/data/train-*.parquet",
        "~/data",
        "~/here/../data",
        "~",
    ] {
        assert_says(&inspect(url), &["shards       2"]);
    }
    assert_says(
        &inspect("../da*/../data"),
        &["`..` cannot stand behind a glob"],
    );
    assert_says(&inspect("../nothing/*.parquet"), &["matches no object"]);
}

#[test]
fn keys_that_cannot_be_named_are_left_out_with_a_word() {
    let tree = Tree::new(&[("s/train-0.parquet", shard(0))]);
    for key in [
        "s//x.parquet",
        "s/./x.parquet",
        "s/../x.parquet",
        "/s/x.parquet",
        "s/d//",
    ] {
        tree.server.put("bucket", key, shard(1));
    }
    // A marker of a folder that is named like a file.
    tree.server.put("bucket", "s/folder.parquet/", Vec::new());
    for (key, count) in [("s", 3), ("", 4), ("s/**/*.parquet", 3)] {
        let dataset = tree.open("s3://bucket", key).unwrap();
        assert_eq!(
            keys(&dataset, "s3://bucket"),
            ["s/train-0.parquet"],
            "{key}"
        );
        let [warning] = dataset.warnings() else {
            panic!("{:?}", dataset.warnings());
        };
        let text = warning.to_string();
        println!("{text}");
        assert_says(
            &text,
            &[
                &format!("{count} Parquet objects are left out"),
                "x.parquet",
            ],
        );
    }
    // What lies deeper than a flat glob does not matter.
    let dataset = tree.open("s3://bucket", "s/*.parquet").unwrap();
    assert!(dataset.warnings().is_empty(), "{:?}", dataset.warnings());
    let (mut config, io) = tree.config("s3://bucket", "s");
    config.strict = true;
    assert_says(
        &said(&open(&config, &io).unwrap_err()),
        &["strict", "3 Parquet objects"],
    );
    for key in ["/s/x.parquet", "s//x.parquet"] {
        let text = said(&tree.open("s3://bucket", key).unwrap_err());
        assert_says(&text, &["copy", "keys"]);
    }
    // Nothing else is there.
    tree.server.put("second", "s//x.parquet", shard(1));
    let text = said(&tree.open("s3://second", "s").unwrap_err());
    assert_says(
        &text,
        &[
            "no *.parquet object",
            "1 Parquet object is left out, such as s//x.parquet",
        ],
    );
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_what_cannot_be_is_an_error() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let blob = folder.path().join("blobs/0a1b");
    let data = folder.path().join("snapshots/main");
    std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(&blob, shard(0)).unwrap();
    symlink("../../blobs/0a1b", data.join("train-0.parquet")).unwrap();
    let try_open = |path: &Path| {
        let config = DatasetConfig {
            urls: vec![path.to_str().unwrap().to_owned()],
            ..DatasetConfig::default()
        };
        open(&config, &IoConfig::default())
    };
    assert_eq!(try_open(folder.path()).unwrap().shards().len(), 1);
    symlink("../../blobs/gone", data.join("train-1.parquet")).unwrap();
    let text = said(&try_open(folder.path()).unwrap_err());
    assert_says(
        &text,
        &["train-1.parquet is a link to ../../blobs/gone, which does not exist"],
    );
    std::fs::remove_file(data.join("train-1.parquet")).unwrap();
    symlink("../..", data.join("up")).unwrap();
    let text = said(&try_open(folder.path()).unwrap_err());
    assert_says(&text, &["main/up is a link to ../.., which holds it"]);
    std::fs::remove_file(data.join("up")).unwrap();
    symlink("itself", data.join("itself")).unwrap();
    let text = said(&try_open(folder.path()).unwrap_err());
    assert_says(&text, &["cannot list", "main/itself"]);
    // Folders that hold no data are not entered at all.
    std::fs::remove_file(data.join("itself")).unwrap();
    symlink("..", data.join(".up")).unwrap();
    assert_eq!(try_open(folder.path()).unwrap().shards().len(), 1);
}

#[test]
fn a_listing_that_waits_says_so() {
    let server = S3Server::start_with(Options::default()).unwrap();
    server.put("bucket", "s/train-0.parquet", shard(0));
    let late = Fault::Latency(std::time::Duration::from_millis(10_500));
    server.add_fault(Rule::list(0..1, late));
    let mut command = nepa();
    command
        .args(["inspect", "s3://bucket/s"])
        .envs(server.env());
    let said = text(&command.output().unwrap());
    assert_says(
        &said,
        &["listing s3://bucket/s: waiting, nothing came for 10 s"],
    );
}

#[test]
fn many_objects_are_listed_over_several_answers() {
    let tree = Tree::new(&[("s/train-0.parquet", shard(0))]);
    for number in 0..2_500 {
        tree.server
            .put("bucket", &format!("s/notes/{number:05}.txt"), Vec::new());
    }
    tree.server.put("bucket", "s/zz//x.parquet", shard(1));
    let dataset = tree.open("s3://bucket", "s").unwrap();
    assert_eq!(dataset.shards().len(), 1);
    assert_eq!(dataset.warnings().len(), 1);
}
