//! Fine-tuning end to end: a run learns, keeps its best epoch, goes on bit for bit from any moment, and says what labels and
//! classes do not fit.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nepa_model::{Weights, init_weights, read_published, write_published};
use nepa_pipeline::random::{Purpose, below, epoch_stream};
use nepa_tests::photos::encode_jpeg;
use nepa_tests::program::{
    assert_says, count_lines, joined, nepa, newest_checkpoint, send_signal, succeed, test_seed,
    text, timeless_metrics, wait_until,
};
use nepa_tests::s3::S3Server;
use nepa_tests::shards::{LabelledRow, labelled_shard};
use nepa_trainer::finetune::rates;
use nepa_trainer::recipe::{Recipe, ResolvedRecipe};
use serde_json::Value;
use tempfile::TempDir;

/// Classes of the images of these tests.
const CLASSES: u32 = 3;
/// Images of the training set; 8 to a step make 9 steps of an epoch.
const IMAGES: u32 = 72;
const SETTINGS: [&str; 1] = ["finetune.num_classes=3"];
/// What makes learning hard.
const PLAIN: [&str; 7] = [
    "data.augment.rand_augment=none",
    "data.augment.erase=none",
    "data.augment.scale=[0.5, 1.0]",
    "finetune.mix.mixup_alpha=0",
    "finetune.mix.cutmix_alpha=0",
    "model.drop_path_prob=0",
    "train.lr=3e-3",
];

/// A JPEG whose colour is that of a class, with waves of its own.
fn coloured(number: u32, class: u32) -> Vec<u8> {
    let side = 32 + number as usize % 9;
    let mut pixels = Vec::with_capacity(side * side * 3);
    for y in 0..side {
        for x in 0..side {
            let wave = (x as f32 * 0.3 + number as f32).sin() + (y as f32 * 0.2).cos();
            for channel in 0..3 {
                let base = if channel == class % 3 { 170.0 } else { 80.0 };
                pixels.push((base + 30.0 * wave) as u8);
            }
        }
    }
    encode_jpeg(&pixels, side, side, turbojpeg::Subsamp::Sub2x2)
}

fn rows(first: u32, count: u32) -> Vec<LabelledRow> {
    let row = |n: u32| {
        let class = n % CLASSES;
        (Some(coloured(n, class)), None, i64::from(class))
    };
    (first..first + count).map(row).collect()
}

/// A folder with labelled shards in `data`, others in `val`, and weights of pretraining in
/// `weights`.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self::with_val(36)
    }

    fn with_val(images: u32) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for folder in ["data", "val", "weights"] {
            std::fs::create_dir(place.path(folder)).unwrap();
        }
        for (shard, first) in [0, IMAGES / 2].into_iter().enumerate() {
            let groups = [
                rows(first, IMAGES / 4),
                rows(first + IMAGES / 4, IMAGES / 4),
            ];
            let path = place.path(&format!("data/train-{shard}.parquet"));
            std::fs::write(path, labelled_shard(groups)).unwrap();
        }
        let val = labelled_shard([rows(1000, images)]);
        std::fs::write(place.path("val/val-0.parquet"), val).unwrap();
        let config = Recipe::read(Path::new("tiny"), &[]).unwrap().model;
        write_published(&place.path("weights"), &config, &init_weights(&config, 5)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `nepa finetune tiny-finetune` on the data of this folder, into `out` in it or a URL.
    fn finetune(&self, out: &str, settings: &[&str]) -> Command {
        let mut command = nepa();
        command.args(["finetune", "tiny-finetune", "--from"]);
        command.arg(self.path("weights"));
        command.arg("--data").arg(self.path("data"));
        command.arg("--test").arg(self.path("val"));
        let out = if out.contains("://") {
            PathBuf::from(out)
        } else {
            self.path(out)
        };
        command.arg("--out").arg(out);
        let settings = SETTINGS.iter().chain(settings);
        command.args(settings.flat_map(|setting| ["--set", setting]));
        command
    }

    /// The lines of a run's `evals.jsonl` without times.
    fn evals(&self, out: &str) -> Vec<Value> {
        timeless_evals(&self.path(out).join("evals.jsonl"))
    }

    fn weights(&self, folder: &str) -> Weights {
        read_published(&self.path(folder)).unwrap().1
    }
}

fn timeless_evals(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        value.as_object_mut().unwrap().remove("seconds").unwrap();
        value
    };
    text.lines().map(line).collect()
}

/// Runs what must fail with code 1 and gives what it says.
fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = joined(&String::from_utf8(output.stderr).unwrap());
    assert!(
        said.contains("error: ") && !said.contains("panicked"),
        "{said}"
    );
    said
}

/// Files of a checkpoint's folder, but for what may differ between two runs: the paths in the
/// recipe, and where the logs ended, as they hold times.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = [
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "config.json",
    ];
    let read = |name: &str| {
        let path = folder.join(name);
        let content = std::fs::read(&path);
        content.unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let mut contents = names
        .map(|name| (name.to_owned(), read(name)))
        .into_iter()
        .collect::<BTreeMap<_, _>>();
    let state: Value = serde_json::from_slice(&read("state.json")).unwrap();
    for key in ["step", "samples", "loader"] {
        contents.insert(key.to_owned(), state[key].to_string().into_bytes());
    }
    contents
}

#[track_caller]
fn assert_same_run(place: &Place, one: &str, other: &str) {
    let metrics = |out: &str| timeless_metrics(&place.path(out).join("metrics.jsonl"));
    assert_eq!(metrics(one), metrics(other));
    assert_eq!(place.evals(one), place.evals(other));
    let trace = |out: &str| std::fs::read(place.path(&format!("{out}.trace"))).unwrap_or_default();
    assert!(trace(one) == trace(other), "traces differ");
    let newest = [one, other].map(|out| newest_checkpoint(&place.path(out)));
    assert_eq!(newest[0].file_name(), newest[1].file_name());
    let best = [one, other].map(|out| place.path(out).join("best"));
    // What was evaluated after a checkpoint was saved is not in it; it is in the best one.
    let evaluated = |folder: &Path| {
        let state = std::fs::read(folder.join("state.json")).unwrap();
        serde_json::from_slice::<Value>(&state).unwrap()["evaluated"].clone()
    };
    assert_eq!(evaluated(&best[0]), evaluated(&best[1]));
    for [one, other] in [newest, best] {
        let (one, other) = (contents(&one), contents(&other));
        for (name, content) in &one {
            assert!(*content == other[name], "{name} differs");
        }
    }
}

#[test]
fn a_run_learns_and_keeps_its_best_epoch() {
    let place = Place::new();
    let said = text(&succeed(
        &mut place.finetune("out", &[&PLAIN[..], &["train.epochs=8"]].concat()),
    ));
    assert_says(
        &said,
        &[
            "the head is new",
            "3 classes, by number",
            "frozen: the patch embedding",
            "36 images every 9 steps",
            "evaluated after step 72",
            "nepa eval top1 --checkpoint",
            "nepa predict",
            "nepa export",
        ],
    );
    let evals = place.evals("out");
    assert_eq!(evals.len(), 8);
    let top1 = |line: &Value| line["ema"]["top1"].as_f64().unwrap();
    assert!(top1(&evals[7]) > 0.9, "chance is a third: {evals:?}");
    // The best is the first of the greatest, by the average.
    let most = evals.iter().map(top1).fold(0.0, f64::max);
    let best = evals
        .iter()
        .find(|line| top1(line).total_cmp(&most).is_eq())
        .unwrap();
    let mut so_far = -1.0;
    for line in &evals {
        assert_eq!(line["best"], top1(line) > so_far, "{line}");
        so_far = top1(line).max(so_far);
    }
    let state = std::fs::read(place.path("out/best/state.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    assert_eq!(state["step"], best["step"]);
    // Whoever reads weights takes it, and finds what the run has found.
    let (best_folder, json) = (place.path("out/best"), place.path("top1.json"));
    succeed(
        nepa()
            .args(["eval", "top1", "--checkpoint"])
            .arg(&best_folder)
            .arg("--test")
            .arg(place.path("val"))
            .arg("--json")
            .arg(&json),
    );
    let found = std::fs::read_to_string(&json).unwrap();
    let right = (most * 36.0).round() as u64;
    assert!(
        found.contains(&format!("\"right\": {right}")),
        "{right}: {found}"
    );
    let image = place.path("image.jpg");
    std::fs::write(&image, coloured(77, 1)).unwrap();
    succeed(nepa().arg("predict").arg(&best_folder).arg(&image));
    succeed(
        nepa()
            .arg("export")
            .arg(&best_folder)
            .arg(place.path("published")),
    );
    // A classifier of the same classes keeps its head.
    let mut again = nepa();
    again
        .args(["finetune", "tiny-finetune", "--from"])
        .arg(&best_folder);
    again.arg("--data").arg(place.path("data"));
    again.args([
        "--set",
        "train.steps=1",
        "--set",
        "train.warmup_steps=0",
        "--out",
    ]);
    let said = text(&succeed(again.arg(place.path("again"))));
    assert_says(&said, &["the head is the source's", "3 classes"]);
}

#[test]
fn what_is_frozen_stays_and_all_else_moves() {
    let place = Place::new();
    for (number, (freeze, frozen)) in [
        (
            "patch_embedding",
            &["vit_nepa.embeddings.patch_embeddings."][..],
        ),
        ("backbone", &["vit_nepa."]),
        ("1", &["vit_nepa.embeddings.", "vit_nepa.encoder.layer.0."]),
        ("nothing", &[]),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("out-{number}");
        let freeze = format!("finetune.freeze={freeze}");
        succeed(&mut place.finetune(
            &out,
            &[&freeze, "train.epochs=1", "model.qk_norm_affine=false"],
        ));
        let before = place.weights("weights");
        let newest = newest_checkpoint(&place.path(&out));
        let after = read_published(&newest).unwrap().1;
        for spec in &before.specs {
            let is_frozen = frozen.iter().any(|part| spec.name.starts_with(part));
            let (_, was) = before.get(&spec.name).unwrap();
            let (_, is) = after.get(&spec.name).unwrap();
            assert_eq!(was == is, is_frozen, "{freeze}: {}", spec.name);
        }
        let (_, head) = after.get("classifier.weight").unwrap();
        assert!(head.iter().any(|value| *value != 0.0), "{freeze}");
    }
}

#[test]
fn random_weights_take_the_architecture_alone() {
    let place = Place::new();
    let mut command = place.finetune("scratch", &["train.steps=1", "train.warmup_steps=0"]);
    let said = text(&succeed(command.arg("--random-weights")));
    assert_says(&said, &["fresh weights in the architecture of"]);
    let scratch = read_published(&newest_checkpoint(&place.path("scratch"))).unwrap();
    let own = place.weights("weights");
    let name = "vit_nepa.embeddings.patch_embeddings.projection.weight";
    let ((_, fresh), (_, trained)) = (scratch.1.get(name).unwrap(), own.get(name).unwrap());
    assert!(fresh != trained && fresh.len() == trained.len());
    assert!(scratch.0.is_classifier() && !scratch.0.is_causal);
    let mut both = place.finetune("both", &[]);
    let output = both
        .args(["--random-weights", "--weights", "ema"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}

/// Waits until `path` has `lines` lines or the program ends.
fn wait_for_lines(child: &mut Child, path: &Path, lines: usize) {
    let deadline = Instant::now() + Duration::from_mins(2);
    while count_lines(path) < lines && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "no {lines} lines in two minutes");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn ten_kills_with_augmentations_on_leave_no_trace() {
    let seed = test_seed();
    let mut rng = epoch_stream(seed, 0, 0, Purpose::Order);
    let place = Place::new();
    let run = |out: &str| {
        let settings = [
            "train.epochs=24",
            "checkpoint.every_steps=3",
            "finetune.eval.every_steps=4",
        ];
        let mut command = place.finetune(out, &settings);
        let trace = place.path(&format!("{out}.trace"));
        command
            .arg("--trace-samples")
            .arg(trace)
            .stdout(Stdio::null());
        command
    };
    succeed(&mut run("straight"));
    let metrics = place.path("killed").join("metrics.jsonl");
    let mut kills = 0;
    while kills < 10 {
        let mut child = run("killed")
            .arg("--resume")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Some are killed while they start; the others up to six steps behind what is there already, at any part of a step
        // or of an evaluation.
        if below(&mut rng, 4) > 0 {
            let there = count_lines(&metrics);
            let more = 1 + below(&mut rng, 6) as usize;
            wait_for_lines(&mut child, &metrics, there + more);
        }
        std::thread::sleep(Duration::from_micros(below(&mut rng, 30_000)));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        send_signal(&child, "-KILL");
        child.wait().unwrap();
        kills += 1;
    }
    assert_eq!(kills, 10, "the run ended before it was killed ten times");
    succeed(run("killed").arg("--resume"));
    assert_same_run(&place, "straight", "killed");
    let trace = std::fs::read_to_string(place.path("straight.trace")).unwrap();
    for part in [
        "\"mixup\"",
        "\"cut_mix\"",
        "\"partner\"",
        "\"operations\"",
        "\"erase\"",
    ] {
        assert!(trace.contains(part), "{part} is not in the trace");
    }
}

/// A signal in the middle of an evaluation is answered at once, and the evaluation is repeated, be it that of the last step.
#[test]
fn an_evaluation_that_is_stopped_is_repeated() {
    let place = Place::with_val(1500);
    let run = |out: &str| {
        let settings = ["train.epochs=2", "finetune.eval.batch=2"];
        let mut command = place.finetune(out, &settings);
        command.stdout(Stdio::null());
        command
    };
    succeed(&mut run("straight"));
    assert_eq!(place.evals("straight").len(), 2);
    for (signal, code) in [("-TERM", Some(143)), ("-KILL", None)] {
        let out = format!("stopped{signal}");
        let (metrics, evals) = (
            place.path(&out).join("metrics.jsonl"),
            place.path(&out).join("evals.jsonl"),
        );
        for (steps, done) in [(9, 0), (18, 1)] {
            let mut child = run(&out).arg("--resume").spawn().unwrap();
            wait_for_lines(&mut child, &metrics, steps);
            std::thread::sleep(Duration::from_millis(100));
            assert_eq!(
                count_lines(&evals),
                done,
                "the evaluation is too short for this test"
            );
            let sent = Instant::now();
            send_signal(&child, signal);
            assert_eq!(child.wait().unwrap().code(), code, "{signal}");
            assert!(
                sent.elapsed() < Duration::from_secs(3),
                "{:?}",
                sent.elapsed()
            );
        }
        succeed(run(&out).arg("--resume"));
        assert_same_run(&place, "straight", &out);
    }
}

#[test]
fn a_run_is_continued_as_itself_only() {
    let place = Place::new();
    succeed(place.finetune("out", &[]).args(["--max-steps", "4"]));
    for (setting, key) in [
        ("finetune.schedule=rising_linear", "finetune.schedule"),
        ("finetune.layer_decay=0.9", "finetune.layer_decay"),
        ("finetune.num_classes=4", "classifier"),
        ("finetune.freeze=backbone", "finetune.freeze"),
        ("finetune.mix.mixup_alpha=0.5", "finetune.mix.mixup_alpha"),
        ("finetune.eval.every_steps=5", "finetune.eval.every_steps"),
        ("model.drop_path_prob=0.1", "model.drop_path_prob"),
        ("train.epochs=4", "train.steps"),
    ] {
        let said = fail(place.finetune("out", &[setting]).arg("--resume"));
        let key = if key == "classifier" { "id2label" } else { key };
        assert_says(&said, &["cannot resume", key, "--out"]);
    }
    // The weights that it began with may be gone.
    std::fs::rename(place.path("weights"), place.path("elsewhere")).unwrap();
    succeed(place.finetune("out", &[]).arg("--resume"));
    assert_eq!(place.evals("out").len(), 3);
    let mut pretrain = nepa();
    pretrain
        .args(["pretrain", "tiny", "--resume", "--data"])
        .arg(place.path("data"));
    let said = fail(pretrain.arg("--out").arg(place.path("out")));
    assert_says(&said, &["cannot resume", "nepa finetune"]);
}

#[test]
fn labels_that_are_no_classes_are_told() {
    let place = Place::new();
    let command = |out: &str, settings: &[&str]| {
        let mut command = nepa();
        command
            .args(["finetune", "tiny-finetune", "--from"])
            .arg(place.path("weights"));
        command.arg("--data").arg(place.path("data"));
        command.arg("--out").arg(place.path(out));
        command.args(settings.iter().flat_map(|setting| ["--set", *setting]));
        command
    };
    assert_says(
        &fail(&mut command("out", &[])),
        &["numbers", "finetune.num_classes"],
    );
    let missing = fail(&mut command(
        "out",
        &["finetune.label_column=kind", "finetune.num_classes=3"],
    ));
    assert_says(&missing, &["kind"]);
    assert!(!place.path("out").exists(), "nothing is begun");
    // Too few classes: the run ends before the step, saved.
    let said = fail(&mut command("out", &["finetune.num_classes=2"]));
    assert_says(
        &said,
        &["its label is 2", "2 classes are 0 to 1", "row", "is saved"],
    );
    newest_checkpoint(&place.path("out"));
    // Names of the recipe.
    let names = "finetune.classes=[\"red\", \"green\", \"blue\"]";
    let named = ["train.steps=2", "train.warmup_steps=0", names];
    let said = text(&succeed(&mut command("named", &named)));
    assert_says(&said, &["3 classes: red, green, blue"]);
}

#[test]
fn a_dry_run_leaves_nothing() {
    let place = Place::new();
    let said = text(&succeed(place.finetune("out", &[]).arg("--dry-run")));
    assert_says(&said, &["all is well", "the head is new"]);
    assert!(!place.path("out").exists());
}

#[test]
fn a_run_into_a_bucket_keeps_its_best_there_and_goes_on() {
    let place = Place::new();
    let server = S3Server::start();
    server.create_bucket("runs");
    let run = |out: &str| {
        let mut command = place.finetune(out, &[&PLAIN[..], &["train.epochs=4"]].concat());
        let spool = format!("checkpoint.spool_dir=\"{}\"", place.path("spool").display());
        command.args(["--set", &spool]).envs(server.env());
        command
    };
    succeed(&mut run("local"));
    let mut child = run("s3://runs/a").stdout(Stdio::null()).spawn().unwrap();
    wait_until("the first best arrives", || {
        server
            .keys("runs")
            .iter()
            .any(|key| key == "a/best/manifest.json")
            || child.try_wait().unwrap().is_some()
    });
    let _ = child.kill();
    child.wait().unwrap();
    let mut again = run("s3://runs/a");
    succeed(again.args(["--resume", "--take-over"]));
    let get = |name: &str| {
        let found = server.get("runs", &format!("a/{name}"));
        found.unwrap_or_else(|| panic!("{name}: {:?}", server.keys("runs")))
    };
    for name in [
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
    ] {
        for folder in ["best", "checkpoints/step-00000036"] {
            let local = std::fs::read(place.path("local").join(folder).join(name)).unwrap();
            assert!(
                get(&format!("{folder}/{name}")) == local,
                "{folder}/{name} differs"
            );
        }
    }
    std::fs::write(place.path("evals"), get("evals.jsonl")).unwrap();
    assert_eq!(timeless_evals(&place.path("evals")), place.evals("local"));
    succeed(
        nepa()
            .args(["eval", "top1", "--checkpoint", "s3://runs/a/best", "--test"])
            .arg(place.path("val"))
            .envs(server.env()),
    );
}

#[test]
fn rates_are_those_of_the_schedule_and_each_kind_of_weights_is_its_own() {
    let place = Place::new();
    succeed(&mut place.finetune("out", &["train.epochs=2"]));
    let recipe = std::fs::read_to_string(place.path("out/recipe.toml")).unwrap();
    let recipe: ResolvedRecipe = toml::from_str(&recipe).unwrap();
    let tune = recipe.finetune.as_ref().unwrap();
    let (factors, blocks) = (tune.rates(&recipe.train), recipe.model.num_hidden_layers);
    let metrics = std::fs::read_to_string(place.path("out/metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().count(), 18);
    for (step, line) in metrics.lines().enumerate() {
        let line: Value = serde_json::from_str(line).unwrap();
        let peaks = (recipe.train.lr, tune.head_lr);
        let rate = rates(&factors, blocks, peaks, step as u64)[0];
        assert_eq!(line["lr"].as_f64(), Some(rate), "{line}");
    }

    // What the run found of both at its end is what is found of its newest checkpoint.
    let json = place.path("top1.json");
    let mut command = nepa();
    command.args(["eval", "top1", "--weights", "raw,ema", "--checkpoint"]);
    command
        .arg(place.path("out"))
        .arg("--test")
        .arg(place.path("val"));
    succeed(command.arg("--json").arg(&json));
    let found: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let evals = place.evals("out");
    let last = evals.last().unwrap();
    assert_ne!(last["raw"]["loss"], last["ema"]["loss"]);
    for (kind, result) in ["raw", "ema"]
        .iter()
        .zip(found["results"].as_array().unwrap())
    {
        assert_eq!(result["weights"], **kind);
        let loss = |value: &Value| value["loss"].as_f64().unwrap();
        let apart = (loss(result) - loss(&last[kind])).abs();
        assert!(apart < 1e-6, "{kind}: {result}, {last}");
    }
}

#[test]
fn a_report_shows_what_evaluations_found() {
    let place = Place::new();
    let long = ["train.epochs=2"];
    succeed(&mut place.finetune("tuned", &long));
    succeed(place.finetune("scratch", &long).arg("--random-weights"));
    let report = |runs: &[&str]| {
        let mut command = nepa();
        let runs = runs.iter().map(|run| place.path(run));
        command.arg("report").args(runs).arg("--out");
        succeed(command.arg(place.path("report")));
        std::fs::read_to_string(place.path("report/report.md")).unwrap()
    };
    let best = |run: &str| {
        let evals = place.evals(run);
        let top1 = evals.iter().map(|eval| eval["ema"]["top1"].as_f64());
        let top1 = top1.map(Option::unwrap).fold(0.0, f64::max);
        format!("{:.1} % (", 100.0 * top1)
    };

    let markdown = report(&["tuned"]);
    let found = format!(
        "Of 36 test images the moving average names the right class at {}",
        best("tuned")
    );
    assert_says(&markdown, &[&found, "(top1.svg)", "(eval-loss.svg)"]);
    for wrong in ["perfect", "next embedding", "Copying", "repeat", "--train"] {
        assert!(!markdown.contains(wrong), "{wrong:?} is in {markdown}");
    }
    let top1 = std::fs::read_to_string(place.path("report/top1.svg")).unwrap();
    // Two evaluations of two kinds of weights.
    assert_eq!(top1.matches("<circle").count(), 4);

    let markdown = report(&["tuned", "scratch"]);
    for run in ["tuned", "scratch"] {
        assert_says(&markdown, &[&format!("{run} {}", best(run))]);
    }
    assert_says(
        &markdown,
        &["Best top-1 on the test images", "finetune.weights"],
    );

    // Of one that pretrained, its own pictures.
    let mut pretrain = nepa();
    pretrain.args(["pretrain", "tiny", "--data"]);
    pretrain.arg(place.path("data")).arg("--out");
    succeed(pretrain.arg(place.path("pretrained")));
    let markdown = report(&["tuned", "pretrained"]);
    let parts = ["not of one kind", "(loss.svg)", "(classifier-loss.svg)"];
    assert_says(&markdown, &parts);

    // Features and maps are those of models that predict patches.
    let mut command = nepa();
    command.arg("report").arg(place.path("tuned"));
    for flag in ["--train", "--test"] {
        command.arg(flag).arg(place.path("val"));
    }
    let said = fail(command.arg("--out").arg(place.path("features")));
    assert_says(&said, &["tuned", "is a classifier", "nepa eval top1"]);
}
