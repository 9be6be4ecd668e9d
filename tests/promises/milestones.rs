//! Checkpoints that stay for good (`checkpoint.milestone_steps`), on a disk and in a store that is
//! away meanwhile.
use std::collections::BTreeSet;
use std::process::Stdio;

use nepa_tests::program::{RunFolder, ServedRun, assert_says, joined, succeed, text, wait_until};
use nepa_tests::s3::{Fault, Rule};

#[test]
fn milestones_stay_beside_the_newest() {
    let place = RunFolder::new();
    let settings = [
        "checkpoint.milestone_steps=5",
        "checkpoint.every_steps=3",
        "checkpoint.keep=1",
    ];
    let said = text(&succeed(&mut place.pretrain("data", "run", &settings)));
    assert_says(
        &said,
        &["saved every 3 steps", "one every 5 steps for good"],
    );
    let checkpoints = std::fs::read_dir(place.path("run/checkpoints")).unwrap();
    let names = checkpoints.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names = names.collect::<Vec<_>>();
    names.sort();
    assert_eq!(names, ["step-00000005", "step-00000010", "step-00000012"]);
    let output = place.pretrain("data", "other", &["checkpoint.milestone_steps=0"]);
    let output = { output }.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_says(
        &text(&output),
        &["checkpoint.milestone_steps = 0", "at least 1"],
    );
}

/// Older checkpoints that wait make room for newer ones; a milestone does not.
#[test]
fn a_milestone_waits_until_the_store_is_back() {
    let place = ServedRun::new();
    let settings = [
        "train.steps=24",
        "checkpoint.milestone_steps=8",
        "checkpoint.every_steps=4",
        "checkpoint.keep=1",
    ];
    // Checkpoints are sent one after the other, so all wait for the first milestone.
    let first = "a/checkpoints/step-00000008/model.safetensors";
    let away = Rule::put(first, 0..u64::MAX, Fault::Unavailable);
    place.server.add_fault(away);
    let words = place.path("words");
    let mut command = place.pretrain("data", "s3://runs/a", &settings);
    command
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(&words).unwrap());
    let mut child = command.spawn().unwrap();
    let said = || joined(&std::fs::read_to_string(&words).unwrap());
    let left_out = "the checkpoint of step 20 is not sent to s3://runs/a";
    wait_until(left_out, || said().contains(left_out));
    place.server.clear_faults();
    assert!(child.wait().unwrap().success());
    let keys = place.server.keys("runs");
    let step = |key: &String| {
        let rest = key.strip_prefix("a/checkpoints/step-")?;
        rest.strip_suffix("/manifest.json")?.parse().ok()
    };
    let steps = keys.iter().filter_map(step).collect::<BTreeSet<u64>>();
    // That of step 4 may have been sent before, or left out.
    assert!(steps.is_superset(&BTreeSet::from([8, 16, 24])), "{steps:?}");
    assert!(!steps.contains(&20), "{steps:?}");
}
