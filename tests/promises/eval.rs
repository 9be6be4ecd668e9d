//! `nepa eval`: right on images whose classes are known to be easy, and clear about what it cannot do. `nepa report` is in `report.rs`.
use std::path::{Path, PathBuf};
use std::process::Command;

use image::{ImageFormat, Rgb, RgbImage};
use nepa_tests::program::{assert_says, nepa, newest_checkpoint, succeed, text, tiny_recipe};
use nepa_tests::shards::labelled_shard;
use serde_json::Value;
use tempfile::TempDir;

/// A picture of one hue a class, with a pattern that differs from picture to picture.
fn picture(class: u32, number: u32) -> Vec<u8> {
    let image = RgbImage::from_fn(40, 36, |x, y| {
        let pattern = ((x * (3 + number % 5) + y * (1 + number % 7) + number * 31) % 64) as u8;
        let mut pixel = [60 + pattern; 3];
        pixel[class as usize] += 120;
        Rgb(pixel)
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A run of `tiny.toml` on three hues, with its data.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for (name, first, rows) in [("train-0", 0, 60), ("train-1", 60, 60), ("test", 120, 45)] {
            let rows = (first..first + rows).map(|number| {
                (
                    Some(picture(number % 3, number)),
                    None,
                    i64::from(number % 3),
                )
            });
            let shard = labelled_shard([rows.collect::<Vec<_>>()]);
            std::fs::write(place.path(&format!("{name}.parquet")), shard).unwrap();
        }
        succeed(
            nepa()
                .arg("pretrain")
                .arg(tiny_recipe())
                .args(["--data", &place.shards("train-*"), "--out"])
                .arg(place.run())
                .args(["--set", "checkpoint.every_steps=5"]),
        );
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.path("run")
    }

    pub(crate) fn shards(&self, name: &str) -> String {
        format!("{}.parquet", self.path(name).display())
    }

    fn eval(&self, how: &str) -> Command {
        self.eval_of(how, &self.run())
    }

    fn eval_of(&self, how: &str, checkpoint: &Path) -> Command {
        let mut command = nepa();
        command
            .args(["eval", how, "--checkpoint"])
            .arg(checkpoint)
            .args(self.sets());
        command
    }

    pub(crate) fn sets(&self) -> [String; 4] {
        [
            "--train".to_owned(),
            self.shards("train-*"),
            "--test".to_owned(),
            self.shards("test"),
        ]
    }

    pub(crate) fn report(&self) -> Command {
        let mut command = nepa();
        command
            .arg("report")
            .arg(self.run())
            .arg("--out")
            .arg(self.path("report"));
        command
    }
}

#[track_caller]
fn refuse(command: &mut Command, parts: &[&str]) {
    let output = command.output().unwrap();
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert_says(&said, parts);
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn share(value: &Value) -> f64 {
    value["right"].as_f64().unwrap() / value["total"].as_f64().unwrap()
}

#[test]
fn one_table_compares_pixels_random_weights_and_the_checkpoint() {
    let place = Place::new();
    let file = place.path("all.json");
    let mut command = place.eval("all");
    command
        .args(["--layers", "all", "--attention", "causal", "--json"])
        .arg(&file);
    let said = text(&succeed(&mut command));
    // Two blocks: the embedding, each block, the final norm; of two models; and the pixels.
    let rows = said.lines().filter(|line| line.starts_with("| ")).count();
    assert_eq!(rows, 1 + 1 + 2 * 4, "{said}");
    for part in [
        "pixels, 28 x 28",
        "random weights",
        "| moving average ",
        "trained for 12 steps",
        "2352",
        "causal",
        "3 classes",
        "120 training and 45 test",
    ] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    let found = read_json(&file);
    let results = found["results"].as_array().unwrap();
    assert_eq!(results.len(), 9);
    for result in results {
        // A hue is the mean of the pixels of one channel: every linear probe must find it, in any layer.
        let (ridge, logistic) = (&result["ridge"], &result["logistic"]);
        assert!(share(&ridge["accuracy"]) > 0.97, "{result}");
        assert!(share(&logistic["accuracy"]) > 0.97, "{result}");
        assert_eq!(logistic["converged"], true, "{result}");
        assert_eq!(ridge["held_out"]["total"], 12);
        assert!(share(&result["knn"]) > 0.6, "{result}");
    }

    // The random weights are those that the run began with: another seed gives others, the same seed the same.
    let random = |seed: &[&str]| {
        let file = place.path("random.json");
        let mut command = place.eval("knn");
        command
            .args(["--features", "random", "--k", "1", "--json"])
            .arg(&file)
            .args(seed);
        succeed(&mut command);
        read_json(&file)["results"][0].clone()
    };
    assert_eq!(random(&[]), random(&["--seed", "1337"]));

    // A checkpoint in the published layout has one kind of weights.
    let model = place.path("model");
    succeed(
        nepa()
            .arg("export")
            .arg(newest_checkpoint(&place.run()))
            .arg(&model)
            .arg("--ema"),
    );
    let linear = |checkpoint: &Path, features: &str| {
        let mut command = place.eval_of("linear", checkpoint);
        command.args(["--ridge-only", "--features", features]);
        command
    };
    let cells = |command: &mut Command| {
        let said = text(&succeed(command));
        let line = said.lines().find(|line| line.contains("last")).unwrap();
        line.split('|').nth(4).unwrap().trim().to_owned()
    };
    assert_eq!(
        cells(&mut linear(&place.run(), "ema")),
        cells(&mut linear(&model, "raw")),
        "the exported moving average is the run's"
    );
    refuse(&mut linear(&model, "ema"), &["one kind of weights", "raw"]);
}

/// A model sees pixels as in its training: where the recipe's mean is so large that rounding makes all images alike, no class is found.
#[test]
fn pixels_are_normalised_as_the_recipe_says() {
    let place = Place::new();
    let other = place.path("other");
    succeed(
        nepa()
            .arg("pretrain")
            .arg(tiny_recipe())
            .args(["--data", &place.shards("train-*"), "--out"])
            .arg(&other)
            .args([
                "--set",
                "data.normalize={mean=[1e9, 1e9, 1e9], std=[1.0, 1.0, 1.0]}",
                "--max-steps",
                "1",
            ]),
    );
    let held_out = |run: &Path| {
        let file = place.path("random.json");
        let mut command = place.eval_of("all", run);
        succeed(command.args(["--features", "random", "--json"]).arg(&file));
        read_json(&file)["results"].to_string()
    };
    assert_ne!(held_out(&place.run()), held_out(&other));
}

#[test]
fn what_cannot_be_evaluated_is_refused_with_what_to_do() {
    let place = Place::new();
    refuse(
        place.eval("knn").args(["--layers", "3"]),
        &["--layers 3", "2 blocks"],
    );
    refuse(
        place.eval("knn").args(["--layers", "first"]),
        &["first", "last", "all"],
    );
    refuse(
        place.eval("knn").args(["--resize", "20"]),
        &["--resize 20", "28"],
    );
    refuse(place.eval("knn").args(["--k", "0"]), &["--k", "1 or more"]);
    refuse(
        place.eval("linear").args(["--limit", "5"]),
        &["5 training images", "10"],
    );
    refuse(
        place.eval("linear").args(["--label-column", "nothing"]),
        &["nothing"],
    );
    refuse(
        nepa().args(["report", "/no/such/run"]),
        &["/no/such/run", "no run", "nepa pretrain"],
    );
    refuse(
        place.report().args(["--train", &place.shards("train-*")]),
        &["--test"],
    );
    refuse(
        place.report().args(["--weights", "pixels"]),
        &["--weights", "possible values: raw, ema"],
    );
}
