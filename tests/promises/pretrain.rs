//! Pretraining end to end: the same numbers from disk and from S3 with any number of decode threads, outputs in a bucket,
//! and a clear message for everything that cannot be run.
use std::path::Path;
use std::process::Command;

use nepa_tests::program::{
    RunFolder, assert_says, joined, jpeg, nepa, newest_checkpoint, succeed, text, timeless_metrics,
    tiny_recipe,
};
use nepa_tests::s3::S3Server;
use nepa_tests::shards::labelled_shard;

/// A run on the local data into `out` in this folder.
fn local(place: &RunFolder, out: &str) -> Command {
    place.pretrain("data", out, &[])
}

/// Runs what must fail with code 1 and gives what it says on standard error.
fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(1),
        "{command:?}:\n{}",
        text(&output)
    );
    let message = joined(&String::from_utf8(output.stderr).unwrap());
    assert!(message.contains("error: "), "{message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

/// Runs on disk once and on S3 with 1 and 4 decode threads; all traces and losses must be the same.
fn same_from_disk_and_s3(data: &Path, settings: &[&str], num_lines: usize) {
    let place = RunFolder::new();
    let server = S3Server::start();
    server.create_bucket("photos");
    server.load_folder("photos", "set/", data).unwrap();
    let data = std::path::absolute(data).unwrap();
    let mut seen = Vec::new();
    for (name, url, threads) in [
        ("disk", format!("{}/train-*.parquet", data.display()), 2),
        ("s3-1", "s3://photos/set/train-*.parquet".to_owned(), 1),
        ("s3-4", "s3://photos/set/train-*.parquet".to_owned(), 4),
    ] {
        let (out, trace) = (place.path(name), place.path(&format!("{name}.jsonl")));
        let mut command = place.pretrain(&url, name, settings);
        command
            .args(["--set", &format!("loader.decode_threads={threads}")])
            .envs(server.env());
        succeed(command.arg("--trace-samples").arg(&trace));
        seen.push((
            name,
            std::fs::read_to_string(trace).unwrap(),
            timeless_metrics(&out.join("metrics.jsonl")),
        ));
    }
    for (name, trace, metrics) in &seen[1..] {
        assert_eq!(*trace, seen[0].1, "{name}");
        assert_eq!(*metrics, seen[0].2, "{name}");
    }
    assert_eq!(seen[0].1.lines().count(), num_lines);
    let line: serde_json::Value = serde_json::from_str(seen[0].1.lines().next().unwrap()).unwrap();
    for key in [
        "step",
        "shard",
        "file",
        "row_group",
        "row",
        "x",
        "y",
        "width",
        "height",
        "flip",
        "replaces",
    ] {
        assert!(line.get(key).is_some(), "{line} lacks {key}");
    }
}

#[test]
fn trace_and_losses_are_the_same_from_disk_and_from_s3_with_any_number_of_threads() {
    let place = RunFolder::new();
    same_from_disk_and_s3(&place.path("data"), &["train.steps=10"], 80);
}

#[test]
fn photos_at_224_pixels_are_the_same_from_disk_and_from_s3() {
    let Some(data) = std::env::var_os("NEPA_TEST_DATA") else {
        eprintln!("SKIPPED: NEPA_TEST_DATA names no folder with imagenette224");
        return;
    };
    let settings = [
        "train.steps=4",
        "train.warmup_steps=1",
        "train.batch=16",
        "train.micro_batch=8",
        "model.image_size=224",
        "model.patch_size=14",
        "data.augment.size=224",
    ];
    same_from_disk_and_s3(&Path::new(&data).join("imagenette224"), &settings, 64);
}

#[test]
fn a_run_whose_output_is_a_bucket_resumes_from_it() {
    let place = RunFolder::new();
    let server = S3Server::start();
    server.create_bucket("runs");
    let data = place.path("data");
    let out = "s3://runs/a";
    succeed(
        place
            .pretrain(data.to_str().unwrap(), out, &[])
            .envs(server.env())
            .args(["--max-steps", "7"]),
    );
    let mut again = place.pretrain(data.to_str().unwrap(), out, &[]);
    assert_says(
        &fail(again.envs(server.env())),
        &["s3://runs/a", "already holds a run", "--resume"],
    );
    succeed(
        place
            .pretrain(data.to_str().unwrap(), out, &[])
            .envs(server.env())
            .arg("--resume"),
    );
    succeed(&mut local(&place, "local"));

    let keys = server.keys("runs");
    let step = "a/checkpoints/step-00000012";
    let of = |name: &str| {
        server
            .get("runs", &format!("{step}/{name}"))
            .unwrap_or_else(|| panic!("{keys:?}"))
    };
    let local = newest_checkpoint(&place.path("local"));
    for name in [
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
    ] {
        assert!(
            of(name) == std::fs::read(local.join(name)).unwrap(),
            "{name} differs"
        );
    }
    std::fs::write(
        place.path("metrics"),
        server.get("runs", "a/metrics.jsonl").unwrap(),
    )
    .unwrap();
    let expected = timeless_metrics(&place.path("local").join("metrics.jsonl"));
    assert_eq!(timeless_metrics(&place.path("metrics")), expected);
    // Three stay: of the saves after 5, 7, 10 and 12 steps the first is gone, and nothing of it is left.
    assert!(
        !keys.iter().any(|key| key.contains("step-00000005")),
        "{keys:?}"
    );
    assert_eq!(
        keys.iter()
            .filter(|key| key.ends_with("manifest.json"))
            .count(),
        3,
        "{keys:?}"
    );
    // A report reads the run from the bucket, and draws its newest checkpoint.
    let report = place.path("report");
    let mut command = nepa();
    command
        .args(["report", out, "--maps", "1", "--images"])
        .arg(&data)
        .arg("--out")
        .arg(&report);
    succeed(command.envs(server.env()));
    let page = std::fs::read_to_string(report.join("report.md")).unwrap();
    assert_says(&page, &["s3://runs/a, step 12 of 12", "maps-1.png"]);
}

#[test]
fn a_run_leaves_recipe_metrics_events_and_the_published_layout() {
    let place = RunFolder::new();
    let output = succeed(local(&place, "out").args(["--set", "train.steps=6"]));
    assert_says(
        &text(&output),
        &["train   6 steps of 8 images", "done    6 steps in "],
    );
    let out = place.path("out");
    let recipe = std::fs::read_to_string(out.join("recipe.toml")).unwrap();
    let recipe: nepa_trainer::recipe::ResolvedRecipe = toml::from_str(&recipe).unwrap();
    assert_eq!((recipe.train.steps, recipe.num_samples), (6, 60));
    assert_eq!(timeless_metrics(&out.join("metrics.jsonl")).len(), 6);
    assert!(
        out.join("events.out.tfevents.nepa")
            .metadata()
            .unwrap()
            .len()
            > 1000
    );
    let (config, weights) = nepa_model::read_published(&newest_checkpoint(&out)).unwrap();
    assert_eq!(config, recipe.model);
    assert!(weights.flat.iter().all(|value| value.is_finite()));
}

#[test]
fn recipes_that_cannot_run_say_why() {
    let place = RunFolder::new();
    let with = |setting: &str| fail(local(&place, "out").args(["--set", setting]));
    assert_says(
        &with("train.bacth=8"),
        &["--set train.bacth=8", "train.batch?", "micro_batch"],
    );
    assert_says(
        &with("train.batch=10"),
        &["train.batch = 10", "multiple of 4"],
    );
    assert_says(
        &with("data.augment.scale=[0.9, 0.1]"),
        &["data.augment.scale is [0.9, 0.1]"],
    );
    assert_says(
        &with("model.patch_size=6"),
        &["model.image_size = 28", "multiple of model.patch_size = 6"],
    );
    assert_says(
        &with("data.augment.size=56"),
        &["data.augment.size = 56", "model.image_size = 28"],
    );
    assert_says(&with("device=gpu"), &["device: \"gpu\"", "cuda:N"]);
    assert_says(&with("train.batch=400"), &["60 samples", "train.batch"]);
    assert!(
        !place.path("out").exists(),
        "a refused recipe must not touch the output"
    );
    let missing = fail(nepa().args(["pretrain", "no-such.toml", "--data", "x", "--out", "y"]));
    assert_says(&missing, &["no-such.toml", "nepa recipes"]);
    let no_data = fail(
        nepa()
            .arg("pretrain")
            .arg(tiny_recipe())
            .args(["--out", "y"]),
    );
    assert_says(&no_data, &["--data"]);
}

#[test]
fn a_loss_that_is_not_finite_stops_with_the_step_before_and_the_batch() {
    let place = RunFolder::new();
    let message = fail(local(&place, "out").args([
        "--set",
        "train.lr=1e38",
        "--set",
        "train.warmup_steps=0",
    ]));
    assert_says(
        &message,
        &["is not finite", "shard", "row", "nonfinite-step-"],
    );
    let out = place.path("out");
    let metrics = timeless_metrics(&out.join("metrics.jsonl"));
    let failed = metrics.len() + 1;
    let list =
        std::fs::read_to_string(out.join(format!("nonfinite-step-{failed:08}.json"))).unwrap();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["samples"].as_array().unwrap().len(), 8);
    let manifest = std::fs::read_to_string(newest_checkpoint(&out).join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["step"], metrics.len());
}

#[test]
fn too_many_bad_images_end_a_saved_run_that_goes_on_with_a_larger_budget() {
    let place = RunFolder::new();
    let rows = (0..100).map(|row| {
        let image = if row % 20 == 7 {
            b"no image".to_vec()
        } else {
            jpeg(row)
        };
        (Some(image), None, i64::from(row))
    });
    let data = place.path("dirty.parquet");
    std::fs::write(&data, labelled_shard([rows.collect()])).unwrap();
    let server = S3Server::start();
    server.create_bucket("runs");
    let run = |out: &str, more: &[&str]| {
        let mut command = place.pretrain(data.to_str().unwrap(), out, &[]);
        command
            .envs(server.env())
            .args(["--set", "train.steps=130"])
            .args(more);
        command
    };
    // The budget is judged after 1,000 samples, with the 126th batch of 8.
    let message = fail(&mut run("s3://runs/a", &[]));
    assert_says(
        &message,
        &[
            "samples are bad",
            "max_bad_fraction",
            "row 27",
            "All are in s3://runs/a/bad_samples.jsonl",
        ],
    );
    let keys = server.keys("runs");
    assert!(
        keys.iter()
            .any(|key| key == "a/checkpoints/step-00000124/manifest.json"),
        "{keys:?}"
    );
    let listed = server.get("runs", "a/bad_samples.jsonl").unwrap();
    assert!(
        String::from_utf8_lossy(&listed).lines().count() >= 50,
        "{listed:?}"
    );
    let larger = ["--set", "data.max_bad_fraction=0.1"];
    succeed(&mut run(
        "s3://runs/a",
        &[&larger[..], &["--resume"]].concat(),
    ));
    let whole = place.path("whole");
    succeed(&mut run(whole.to_str().unwrap(), &larger));
    let joined = place.path("metrics");
    std::fs::write(&joined, server.get("runs", "a/metrics.jsonl").unwrap()).unwrap();
    assert_eq!(
        timeless_metrics(&joined),
        timeless_metrics(&whole.join("metrics.jsonl"))
    );
}

#[test]
fn a_full_disk_while_saving_is_a_clear_error_and_harms_nothing() {
    let place = RunFolder::new();
    let mount = place.path("mount");
    std::fs::create_dir(&mount).unwrap();
    let command = local(&place, "mount/out");
    let arguments = command
        .get_args()
        .map(|a| format!("'{}'", a.to_str().unwrap()))
        .collect::<Vec<_>>()
        .join(" ");
    let script = format!(
        "mount -t tmpfs -o size=1200k tmpfs '{mount}' || exit 99
         '{program}' {arguments} --set checkpoint.every_steps=1 --set checkpoint.keep=50; code=$?
         cp -r '{mount}/out' '{copy}'; exit $code",
        mount = mount.display(),
        program = command.get_program().to_str().unwrap(),
        copy = place.path("copy").display(),
    );
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", &script])
        .output();
    let output = match output {
        Ok(output) if output.status.code() == Some(1) && !text(&output).contains("unshare:") => {
            output
        }
        other => {
            let why = other.map_or_else(|error| error.to_string(), |output| text(&output));
            assert!(
                !why.contains("done    "),
                "the small disk was not full: {why}"
            );
            eprintln!("SKIPPED: no small file system can be mounted here: {why}");
            return;
        }
    };
    assert_says(
        &text(&output),
        &[
            "cannot save the checkpoint",
            "No space left",
            "make room",
            "--resume",
        ],
    );
    let copy = place.path("copy");
    let newest = newest_checkpoint(&copy);
    nepa_trainer::checkpoint::read_folder(&newest).unwrap();
    let leftovers = std::fs::read_dir(copy.join("checkpoints"))
        .unwrap()
        .flatten();
    assert!(
        !leftovers
            .map(|entry| entry.file_name())
            .any(|name| name.to_string_lossy().starts_with('.'))
    );
}

/// The check comes before anything is read: neither the data nor the checkpoint of these commands exists.
#[test]
fn the_default_build_refuses_cuda_and_says_how_to_get_it() {
    if nepa_trainer::device::HAS_CUDA {
        println!("SKIPPED: this build has the feature cuda");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let refused = |choice: &str, command: &mut Command| {
        let said = fail(command);
        let named = format!("device = \"{choice}\"");
        assert_says(
            &said,
            &[&named, "feature `cuda`", "`make cuda`", "device = \"cpu\""],
        );
    };
    refused(
        "cuda",
        nepa()
            .arg("pretrain")
            .arg(tiny_recipe())
            .args(["--data", "/no/such/data", "--set", "device=cuda", "--out"])
            .arg(&out),
    );
    assert!(!out.exists());
    refused(
        "cuda:1",
        nepa()
            .args([
                "eval",
                "knn",
                "--device",
                "cuda:1",
                "--checkpoint",
                "/no/such/run",
            ])
            .args(["--train", "/no/such/data", "--test", "/no/such/data"]),
    );
    let version = nepa().arg("--version").output().unwrap();
    assert!(
        text(&version).contains("features: none"),
        "{}",
        text(&version)
    );
}

#[test]
fn products_in_bfloat16_train_and_resume_bit_for_bit() {
    let place = RunFolder::new();
    let settings = [
        "--set",
        "train.precision=\"bf16\"",
        "--set",
        "train.steps=6",
    ];
    succeed(local(&place, "whole").args(settings));
    succeed(
        local(&place, "parts")
            .args(settings)
            .args(["--max-steps", "3"]),
    );
    succeed(local(&place, "parts").args(settings).arg("--resume"));
    let weights = |out: &str| {
        std::fs::read(newest_checkpoint(&place.path(out)).join("model.safetensors")).unwrap()
    };
    assert!(weights("whole") == weights("parts"));
    // Another precision is another run.
    let message = fail(local(&place, "whole").args(["--set", "train.steps=6", "--resume"]));
    assert_says(&message, &["precision", "bf16", "f32"]);
}

#[test]
fn overlap_is_measured_and_nothing_is_written() {
    let place = RunFolder::new();
    let out = place.path("runs");
    let mut command = nepa();
    command
        .arg("pretrain")
        .arg(tiny_recipe())
        .arg("--data")
        .arg(place.path("data"))
        .args(["--synthetic", "4", "--json"])
        .current_dir(place.path(""));
    let output = succeed(&mut command);
    let line = text(&output);
    let line = line.lines().find(|line| line.starts_with('{')).unwrap();
    let found: serde_json::Value = serde_json::from_str(line).unwrap();
    let number = |key: &str| found[key].as_f64().unwrap();
    assert_eq!(found["steps"], 4);
    assert!(number("synthetic_images_per_second") > 0.0, "{line}");
    let ratio = number("loaded_images_per_second") / number("synthetic_images_per_second");
    assert!((ratio - number("ratio")).abs() < 1e-9, "{line}");
    assert!(number("wait_ms_max") >= number("wait_ms_mean"), "{line}");
    assert!(!out.exists());
}
