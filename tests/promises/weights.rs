//! Weights are opened by every command from wherever they lie: a disk, a store, a web server; a run, a checkpoint, a published folder in one file or several. What holds none is said in words.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use nepa_model::{Classes, Nepa, read_published};
use nepa_tests::classifiers::{Labels, labelled_images, write_classifier, write_pretrained};
use nepa_tests::photos::photo;
use nepa_tests::program::{
    RunFolder, ServedRun, assert_says, nepa, newest_checkpoint, succeed, text,
};
use nepa_tests::web::{Answer, WebServer};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

#[track_caller]
fn refuse(command: &mut Command, parts: &[&str]) {
    let output = command.output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_says(&said, parts);
}

/// Files as a web server without listings gives them: what is not there is `absent`.
fn serve(folder: &Path, absent: u16) -> WebServer {
    let mut files = BTreeMap::new();
    read_all(folder, "", &mut files);
    WebServer::start(move |request| -> Answer {
        let path = request.target.split('?').next().unwrap_or_default();
        match (request.method.as_str(), files.get(path)) {
            ("GET" | "HEAD", Some(bytes)) => (200, bytes.clone()),
            ("GET" | "HEAD", None) => (absent, b"refused".to_vec()),
            _ => (405, Vec::new()),
        }
    })
}

fn read_all(folder: &Path, below: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{below}/{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            read_all(&path, &name, files);
        } else {
            files.insert(name, std::fs::read(path).unwrap());
        }
    }
}

/// Name, shape and bytes of a tensor.
type Named = (String, Vec<usize>, Vec<u8>);

/// The weights of a folder in two files of half the precision, with an index.
fn shard(folder: &Path) {
    let path = folder.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut parts: [Vec<Named>; 2] = Default::default();
    let mut weight_map = BTreeMap::new();
    for (index, (name, view)) in file.tensors().into_iter().enumerate() {
        let values = view.data().as_chunks::<4>().0.iter();
        let halves =
            values.flat_map(|bytes| half::bf16::from_f32(f32::from_le_bytes(*bytes)).to_le_bytes());
        let part = format!("model-0000{}-of-00002.safetensors", index % 2 + 1);
        weight_map.insert(name.clone(), part);
        parts[index % 2].push((name, view.shape().to_vec(), halves.collect()));
    }
    for (number, part) in (1..).zip(&parts) {
        let views = part.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap();
            (name.as_str(), view)
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        let name = format!("model-0000{number}-of-00002.safetensors");
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    std::fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    std::fs::remove_file(path).unwrap();
}

/// A run with its output in a store and a copy of it on this machine, and what is published beside:
/// a classifier, the same in shards, a model of pretraining.
struct Place {
    served: ServedRun,
    run: PathBuf,
    published: TempDir,
}

impl Place {
    fn new() -> Self {
        let (served, published) = (ServedRun::new(), tempfile::tempdir().unwrap());
        succeed(&mut served.pretrain("data", "run", &["checkpoint.every_steps=5"]));
        let run = served.path("run");
        let names = ["ant", "bee", "cat"].map(str::to_owned);
        for folder in ["classifier", "shards"] {
            write_classifier(&published.path().join(folder), Classes::Named(&names), 5);
        }
        shard(&published.path().join("shards"));
        write_pretrained(&published.path().join("pretrained"), 3);
        let labels = Labels::Numbers((0..20).map(|row| Some(row % 3)).collect(), None);
        let images: Vec<_> = (0..20).map(photo).collect();
        let test = labelled_images(&images, &labels);
        std::fs::write(served.path("test.parquet"), test).unwrap();
        served.server.load_folder("runs", "run/", &run).unwrap();
        served
            .server
            .load_folder("runs", "", published.path())
            .unwrap();
        Self {
            served,
            run,
            published,
        }
    }

    fn nepa(&self) -> Command {
        let mut command = nepa();
        command.envs(self.served.server.env());
        command
    }

    /// What a command that writes JSON measures of weights somewhere.
    fn measure(&self, how: &str, place: &str) -> Value {
        let json = self.served.path("measured.json");
        let test = self.served.path("test.parquet");
        let mut command = self.nepa();
        command.args(["eval", how, "--checkpoint", place, "--test"]);
        command.arg(&test).arg("--json").arg(&json);
        if how == "knn" {
            command.args(["--features", "raw", "--train"]).arg(&test);
        }
        succeed(&mut command);
        let value: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        value["results"].clone()
    }

    fn published(&self, name: &str) -> String {
        self.published
            .path()
            .join(name)
            .to_str()
            .unwrap()
            .to_owned()
    }
}

#[test]
fn every_place_gives_the_same_weights() {
    let place = Place::new();
    let web = serve(place.published.path(), 404);
    // Who may not list a bucket is refused what is not there.
    let guarded = serve(place.published.path(), 403);
    for (name, how) in [
        ("classifier", "top1"),
        ("shards", "top1"),
        ("pretrained", "knn"),
    ] {
        let local = place.published(name);
        let expected = place.measure(how, &local);
        for url in [
            format!("file://{local}"),
            format!("s3://runs/{name}"),
            format!("s3://runs/{name}/"),
            format!("{}/{name}", web.url()),
            format!("{}/{name}?token=secret", web.url()),
            format!("{}/{name}", guarded.url()),
        ] {
            assert_eq!(place.measure(how, &url), expected, "{url}");
        }
        // The root of a server.
        let root = serve(Path::new(&local), 404);
        assert_eq!(place.measure(how, &root.url()), expected);
    }

    // A run is its newest checkpoint; a web server has no listing to find it by.
    let run = place.run.to_str().unwrap();
    let newest = newest_checkpoint(&place.run);
    let expected = place.measure("knn", newest.to_str().unwrap());
    let web = serve(&place.run, 404);
    let name = newest.file_name().unwrap().to_str().unwrap();
    for url in [
        run.to_owned(),
        format!("file://{run}"),
        "s3://runs/run".to_owned(),
        format!("s3://runs/run/checkpoints/{name}"),
        web.url(),
        format!("{}/checkpoints/{name}", web.url()),
    ] {
        assert_eq!(place.measure("knn", &url), expected, "{url}");
    }
    // One that was stopped between its checkpoints has metrics beyond them.
    let stopped = tempfile::tempdir().unwrap();
    let mut files = BTreeMap::new();
    read_all(&place.run, "", &mut files);
    for (name, bytes) in files {
        if !name.contains("step-00000012") {
            let path = stopped.path().join(&name[1..]);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }
    let before = stopped.path().join("checkpoints/step-00000010");
    assert_eq!(
        place.measure("knn", &serve(stopped.path(), 404).url()),
        place.measure("knn", before.to_str().unwrap())
    );
    std::fs::remove_dir_all(stopped.path().join("checkpoints")).unwrap();
    refuse(
        place
            .nepa()
            .arg("export")
            .arg(serve(stopped.path(), 404).url())
            .arg("out"),
        &["holds a run", "cannot be listed", "checkpoints/step-"],
    );
}

#[test]
fn what_holds_no_weights_is_said_with_what_is_there() {
    let place = Place::new();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let export = |from: &str| {
        let mut command = place.nepa();
        command.args(["export", from]).arg(path("out"));
        command
    };
    let of = |name: &str| export(path(name).to_str().unwrap());
    let put = |name: &str, bytes: &[u8]| {
        std::fs::create_dir_all(path(name).parent().unwrap()).unwrap();
        std::fs::write(path(name), bytes).unwrap();
    };
    let config = std::fs::read(Path::new(&place.published("pretrained")).join("config.json"));
    let config = config.unwrap();
    let weights = Path::new(&place.published("pretrained")).join("model.safetensors");
    refuse(
        &mut of("absent"),
        &["holds no weights", "there is no such folder"],
    );
    std::fs::create_dir(path("empty")).unwrap();
    refuse(
        &mut of("empty"),
        &["manifest.json", "config.json", "it is empty"],
    );
    put("other/notes.txt", b"");
    refuse(&mut of("other"), &["it has notes.txt", "nepa pretrain"]);
    refuse(
        &mut of("other/notes.txt"),
        &["it is a file: give the folder"],
    );
    put("bare/config.json", &config);
    refuse(
        &mut of("bare"),
        &["no weights beside it", "model.safetensors"],
    );
    std::fs::create_dir(path("headless")).unwrap();
    std::fs::copy(&weights, path("headless/model.safetensors")).unwrap();
    refuse(&mut of("headless"), &["no config.json"]);
    put("begun/recipe.toml", b"");
    put("begun/metrics.jsonl", b"");
    refuse(&mut of("begun"), &["no checkpoint yet", "--resume"]);
    for pickle in ["pytorch_model.bin", "pytorch_model_ema.bin"] {
        let name = format!("pickled-{pickle}");
        put(&format!("{name}/config.json"), &config);
        put(&format!("{name}/{pickle}"), b"\x80\x02");
        refuse(
            &mut of(&name),
            &["pickle", "python3 -c", "save_file", pickle],
        );
        let served = serve(&path(&name), 404);
        refuse(
            &mut export(&served.url()),
            &["pickle", "python3 -c", pickle],
        );
    }
    // The published fine-tuning leaves its average so, beside its raw weights.
    put("averaged/config.json", &config);
    put("averaged/pytorch_model_ema.bin", b"\x80\x02");
    std::fs::copy(&weights, path("averaged/model.safetensors")).unwrap();
    refuse(
        of("averaged").arg("--ema"),
        &[
            "moving average",
            "pytorch_model_ema.bin",
            "python3 -c",
            "ema/model.safetensors",
        ],
    );
    refuse(
        export(&place.published("pretrained")).arg("--ema"),
        &["no moving average", "one kind of weights"],
    );
    // In a store.
    let nothing = serve(&path("other"), 404);
    refuse(
        &mut export(&format!("{}/x", nothing.url())),
        &["holds no weights", "config.json"],
    );
    refuse(
        &mut export("s3://runs/nothing"),
        &["holds no weights", "manifest.json"],
    );
    let guarded = serve(&path("other"), 403);
    refuse(
        &mut export(&format!("{}/x", guarded.url())),
        &["cannot read", "403"],
    );
    let shards = tempfile::tempdir().unwrap();
    let mut files = BTreeMap::new();
    read_all(Path::new(&place.published("shards")), "", &mut files);
    for (name, bytes) in files {
        if !name.contains("00002-of") {
            std::fs::write(shards.path().join(&name[1..]), bytes).unwrap();
        }
    }
    let lacks = "model-00002-of-00002.safetensors";
    refuse(&mut export(shards.path().to_str().unwrap()), &[lacks]);
    refuse(
        &mut export(&serve(shards.path(), 404).url()),
        &["lacks", lacks, "index.json"],
    );
    // An index leads nowhere but into its folder.
    let index = json!({"weight_map": {"a": "../../etc/passwd"}});
    let index_path = shards.path().join("model.safetensors.index.json");
    std::fs::write(index_path, index.to_string()).unwrap();
    refuse(
        &mut export(&serve(shards.path(), 404).url()),
        &["passwd", "no file of this folder"],
    );
    // A checkpoint that was damaged on its way.
    let damaged = place
        .served
        .path("run/checkpoints/step-00000005/model.safetensors");
    let mut bytes = std::fs::read(&damaged).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let checkpoint = damaged.parent().unwrap();
    refuse(
        &mut export(checkpoint.to_str().unwrap()),
        &["damaged", "SHA-256"],
    );
    refuse(
        &mut export(&serve(checkpoint, 404).url()),
        &["damaged", "SHA-256"],
    );
    assert!(
        !path("out").exists(),
        "nothing is written of weights that cannot be read"
    );
}

/// What is exported loads again, computes the same, and says all that the published code asks for.
#[test]
fn exports_hold_all_that_the_published_code_reads() {
    let place = Place::new();
    let out = |name: &str| place.served.path(name);
    let export = |from: &str, to: &str, arguments: &[&str]| {
        let mut command = place.nepa();
        command.args(["export", from]).arg(out(to)).args(arguments);
        command
    };
    let json =
        |path: PathBuf| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    // Of a run: as the published configuration of pretraining, and its image processor.
    let run = place.run.to_str().unwrap();
    let said = text(&succeed(&mut export(run, "of-run", &["--ema"])));
    assert_says(
        &said,
        &["preprocessor_config.json", "moving average at step 12"],
    );
    assert_eq!(
        json(out("of-run/config.json"))["add_pooling_layer"],
        json!(true)
    );
    let preprocessor = json(out("of-run/preprocessor_config.json"));
    assert_eq!(
        preprocessor["image_processor_type"],
        json!("ViTImageProcessor")
    );
    assert_eq!(preprocessor["size"], json!({"height": 28, "width": 28}));
    assert_eq!(preprocessor["resample"], json!(2));
    assert_eq!(preprocessor["image_mean"], json!([0.5, 0.5, 0.5]));
    refuse(&mut export(run, "of-run", &[]), &["nothing is overwritten"]);

    // Of shards in half precision: one file of the same values, the names of the classes.
    let shards = place.published("shards");
    let dtype = |config: &Value| config.get("dtype").cloned();
    let mut config = json(Path::new(&shards).join("config.json"));
    config["dtype"] = json!("bfloat16");
    std::fs::write(Path::new(&shards).join("config.json"), config.to_string()).unwrap();
    let own = json!({"size": 32, "resample": 3, "do_center_crop": true, "crop_size": 28});
    let own_path = Path::new(&shards).join("preprocessor_config.json");
    std::fs::write(own_path, own.to_string()).unwrap();
    succeed(&mut export(&shards, "of-shards", &[]));
    let written = json(out("of-shards/config.json"));
    assert_eq!(
        written["id2label"],
        json!({"0": "ant", "1": "bee", "2": "cat"})
    );
    assert_eq!(written["label2id"]["cat"], json!(2));
    assert_eq!(
        dtype(&written),
        Some(json!("float32")),
        "as the weights are written"
    );
    assert_eq!(json(out("of-shards/preprocessor_config.json")), own);
    let read = |folder: &Path| read_published(folder).unwrap();
    assert_eq!(read(&out("of-shards")).1, read(Path::new(&shards)).1);

    // Folded: the same function without LayerScale.
    let classifier = place.published("classifier");
    succeed(&mut export(&classifier, "folded", &["--fold-layerscale"]));
    assert_eq!(
        json(out("folded/config.json"))["layerscale_value"],
        Value::Null
    );
    let logits = |folder: &Path| {
        let (config, weights) = read(folder);
        let model = Nepa::new(&config, &weights, DType::F32, &Device::Cpu).unwrap();
        let values: Vec<f32> = (0..2 * 3 * 28 * 28)
            .map(|i| (i as f32 * 0.37).sin())
            .collect();
        let pixels = Tensor::from_vec(values, (2, 3, 28, 28), &Device::Cpu).unwrap();
        let logits = model.logits(&pixels).unwrap().flatten_all().unwrap();
        logits.to_vec1::<f32>().unwrap()
    };
    let pairs = logits(&out("folded"))
        .into_iter()
        .zip(logits(Path::new(&classifier)));
    for (folded, whole) in pairs {
        assert!(
            (folded - whole).abs() < 1e-4 * (1.0 + whole.abs()),
            "{folded} for {whole}"
        );
    }
    let names = SafeTensors::deserialize(&std::fs::read(out("folded/model.safetensors")).unwrap())
        .unwrap()
        .names()
        .iter()
        .any(|name| name.contains("lambda1"));
    assert!(!names, "no LayerScale is left");
    let folded = out("folded");
    refuse(
        &mut export(folded.to_str().unwrap(), "twice", &["--fold-layerscale"]),
        &["no LayerScale", "layerscale_value"],
    );

    // Into a store, from a store.
    let mut command = place.nepa();
    command.args(["export", "s3://runs/classifier", "s3://runs/copy"]);
    succeed(&mut command);
    for file in [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ] {
        let key = format!("copy/{file}");
        assert!(place.served.server.get("runs", &key).is_some(), "{key}");
    }
    let sent = place
        .served
        .server
        .get("runs", "copy/model.safetensors")
        .unwrap();
    assert!(sent == std::fs::read(Path::new(&classifier).join("model.safetensors")).unwrap());
}

/// A download that takes long is told, by a server that sends slowly.
#[test]
fn a_long_download_is_told() {
    let folder = tempfile::tempdir().unwrap();
    write_pretrained(folder.path(), 3);
    let mut files = BTreeMap::new();
    read_all(folder.path(), "", &mut files);
    let files = Arc::new(files);
    let web = WebServer::start(move |request| match files.get(&request.target) {
        Some(bytes) => {
            if request.target.ends_with(".safetensors") {
                std::thread::sleep(std::time::Duration::from_secs(12));
            }
            (200, bytes.clone())
        }
        None => (404, Vec::new()),
    });
    let out = folder.path().join("out");
    let mut command = nepa();
    command.arg("export").arg(web.url()).arg(&out);
    let said = text(&succeed(&mut command));
    assert_says(&said, &["fetching weights"]);
}

/// The step counts from 0, the weights do not; what a run began with is a part of it.
#[test]
fn pretraining_begins_with_given_weights() {
    let place = RunFolder::new();
    let settings = ["train.warmup_steps=2", "checkpoint.every_steps=3"];
    let pretrain = |out: &str, arguments: &[&str]| {
        let mut command = place.pretrain("data", out, &settings);
        command.args(arguments);
        command
    };
    let path = |name: &str| place.path(name).to_str().unwrap().to_owned();
    succeed(&mut pretrain("first", &[]));
    let exported = |arguments: &[&str], to: &str| {
        let mut command = nepa();
        command.args(["export", &path("first"), &path(to)]);
        succeed(command.args(arguments));
        read_published(&place.path(to)).unwrap().1
    };
    let (raw, average) = (exported(&[], "raw"), exported(&["--ema"], "average"));
    assert!(raw != average);
    // The rate of the first step is 0: what it began with is what it has then.
    let begun = |out: &str, arguments: &[&str]| {
        let said = text(&succeed(
            pretrain(out, arguments).args(["--max-steps", "1"]),
        ));
        let weights = read_published(&newest_checkpoint(&place.path(out)))
            .unwrap()
            .1;
        (weights, said)
    };
    let (weights, said) = begun("second", &["--init", &path("first")]);
    assert!(weights == raw);
    assert_says(&said, &["raw weights of step 12", "a new run"]);
    let (weights, said) = begun(
        "third",
        &["--init", &path("first"), "--init-weights", "ema"],
    );
    assert!(weights == average);
    assert_says(&said, &["moving average of step 12"]);
    let (weights, _) = begun("fourth", &["--init", &path("average")]);
    assert!(weights == average, "a published folder");
    let (weights, _) = begun("new", &[]);
    assert!(weights != raw && weights != average);

    // It is recorded, needs no telling again, and stays what it is.
    let recipe = std::fs::read_to_string(place.path("second/recipe.toml")).unwrap();
    let recipe: toml::Table = recipe.parse().unwrap();
    assert_eq!(
        recipe["init"]["from"].as_str(),
        Some(path("first").as_str())
    );
    assert_eq!(recipe["init"]["weights"].as_str(), Some("raw"));
    refuse(
        &mut pretrain("second", &["--resume", "--init", &path("raw")]),
        &["cannot resume", "another init.from"],
    );
    refuse(
        &mut pretrain("new", &["--resume", "--init", &path("raw")]),
        &["cannot resume", "another init"],
    );
    refuse(
        &mut pretrain(
            "second",
            &[
                "--resume",
                "--init",
                &path("first"),
                "--init-weights",
                "ema",
            ],
        ),
        &["another init.weights"],
    );
    succeed(&mut pretrain("second", &["--resume"]));
    succeed(&mut pretrain("straight", &["--init", &path("first")]));
    assert_eq!(place.metrics("second"), place.metrics("straight"));
    // What it began with may be gone then.
    succeed(&mut pretrain("fourth", &["--resume", "--max-steps", "4"]));
    std::fs::remove_dir_all(place.path("average")).unwrap();
    succeed(&mut pretrain("fourth", &["--resume"]));

    // Other architectures, and classifiers.
    write_pretrained(&place.path("other"), 3);
    refuse(
        &mut pretrain("fifth", &["--init", &path("other")]),
        &["another architecture", "model.", "--set model."],
    );
    write_classifier(&place.path("classifier"), Classes::Count(3), 5);
    refuse(
        &mut pretrain("fifth", &["--init", &path("classifier")]),
        &["holds a classifier", "fine-tuned from"],
    );
    assert!(
        !place.path("fifth/recipe.toml").exists(),
        "nothing was begun"
    );
}
