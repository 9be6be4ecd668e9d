//! A run that goes on for more steps than it was begun with: the longer schedule from there on, and
//! exact as ever when it is killed and goes on again.
use std::process::Command;

use nepa_tests::program::{
    RunFolder, assert_says, count_lines, newest_checkpoint, succeed, text, wait_until,
};
use nepa_trainer::recipe::ResolvedRecipe;
use nepa_trainer::schedule::Schedule;

/// A run of 12 steps, the warm-up a quarter of it; with more arguments.
fn pretrain(place: &RunFolder, out: &str, more: &[&str]) -> Command {
    let mut command = place.pretrain("data", out, &["train.warmup_fraction=0.25"]);
    command.args(more);
    command
}

fn rates(place: &RunFolder, out: &str) -> Vec<f64> {
    let rate = |line: &String| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["lr"].as_f64().unwrap()
    };
    place.metrics(out).iter().map(rate).collect()
}

fn saved_recipe(place: &RunFolder, out: &str) -> ResolvedRecipe {
    let text = std::fs::read_to_string(place.path(out).join("recipe.toml")).unwrap();
    toml::from_str(&text).unwrap()
}

fn refused(place: &RunFolder, out: &str, more: &[&str]) -> String {
    let output = pretrain(place, out, more).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    text(&output)
}

const LONGER: [&str; 3] = ["--resume", "--set", "train.steps=30"];

#[test]
fn a_finished_run_goes_on_by_the_longer_schedule() {
    let place = RunFolder::new();
    succeed(&mut pretrain(&place, "run", &[]));
    let said = text(&succeed(&mut pretrain(&place, "run", &LONGER)));
    let schedule = |total_steps| Schedule {
        lr: 1e-3,
        warmup_steps: 3,
        total_steps,
        final_lr: 0.0,
    };
    let (short, long) = (schedule(12), schedule(30));
    let expected = (0..12)
        .map(|step| short.at(step))
        .chain((12..30).map(|step| long.at(step)));
    assert_eq!(rates(&place, "run"), expected.collect::<Vec<_>>());
    assert_says(&said, &["lengthened at step 12: 30 steps instead of 12"]);
    let rate = format!("learning rate there: {:.2e} instead of 0", long.at(12));
    assert_says(&said, &[&rate]);
    let recipe = saved_recipe(&place, "run");
    assert_eq!((recipe.train.steps, recipe.train.warmup_steps), (30, 3));
    assert_eq!(recipe.train.lengthened.len(), 1);
    let newest = newest_checkpoint(&place.path("run"));
    assert!(newest.ends_with("step-00000030"), "{}", newest.display());
    let state = std::fs::read_to_string(newest.join("state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let lengthened = &state["recipe"]["train"]["lengthened"];
    assert_eq!(
        *lengthened,
        serde_json::json!([{"at_step": 12, "from_steps": 12}])
    );

    // It has the new length from now on.
    assert_says(
        &refused(&place, "run", &["--resume"]),
        &[
            "fewer steps",
            "begun with 12",
            "--set train.steps=30",
            "--max-steps",
        ],
    );
    let once_more = text(&succeed(&mut pretrain(&place, "run", &LONGER)));
    assert!(!once_more.contains("lengthened"), "{once_more}");
    // Another warm-up that was asked for is another run.
    let other = ["--resume", "--set", "train.steps=40"];
    let other = [&other[..], &["--set", "train.warmup_fraction=none"]].concat();
    let other = [&other[..], &["--set", "train.warmup_steps=2"]].concat();
    assert_says(
        &refused(&place, "run", &other),
        &["another train.warmup_steps", "3", "2"],
    );
}

#[test]
fn a_lengthened_run_that_is_killed_goes_on_as_if_it_had_not_been() {
    let place = RunFolder::new();
    for out in ["whole", "killed"] {
        succeed(&mut pretrain(&place, out, &["--max-steps", "7"]));
    }
    let longer = [
        "--resume",
        "--set",
        "train.epochs=30",
        "--set",
        "checkpoint.every_steps=40",
    ];
    succeed(&mut pretrain(&place, "whole", &longer));
    // Before its first checkpoint of the new length, and after it.
    let metrics = place.path("killed").join("metrics.jsonl");
    for lines in [12, 60] {
        let mut child = pretrain(&place, "killed", &longer)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait_until("steps after the lengthening", || {
            count_lines(&metrics) > lines
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }
    succeed(&mut pretrain(&place, "killed", &longer));
    assert_eq!(place.metrics("whole").len(), 210);
    assert_eq!(place.metrics("whole"), place.metrics("killed"));
    let weights = |out: &str| {
        std::fs::read(newest_checkpoint(&place.path(out)).join("model.safetensors")).unwrap()
    };
    assert!(weights("whole") == weights("killed"));
    let recipe = |out: &str| saved_recipe(&place, out).train;
    assert_eq!(recipe("whole"), recipe("killed"));
    assert_eq!(recipe("whole").lengthened[0].at_step, 7);
}

#[test]
fn a_run_is_never_shortened() {
    let place = RunFolder::new();
    succeed(&mut pretrain(&place, "run", &["--max-steps", "7"]));
    let before = std::fs::read(place.path("run").join("recipe.toml")).unwrap();
    assert_says(
        &refused(&place, "run", &["--resume", "--set", "train.steps=10"]),
        &[
            "fewer steps",
            "train.steps = 12",
            "now say 10",
            "--max-steps",
        ],
    );
    assert_eq!(
        std::fs::read(place.path("run").join("recipe.toml")).unwrap(),
        before
    );
}
