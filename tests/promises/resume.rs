//! Stop and restore bit for bit: after SIGKILL at random moments, after SIGTERM, SIGINT and SIGUSR1; and a run is resumed as itself only.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nepa_pipeline::{random::Purpose, random::below, random::epoch_stream};
use nepa_tests::program::{
    RunFolder, count_lines, newest_checkpoint, send_signal, test_seed, text, write_photo_shards,
};

const STEPS: u64 = 240;

/// A run of [`STEPS`] steps into `out` with its trace beside.
fn pretrain(place: &RunFolder, out: &str) -> Command {
    let steps = format!("train.steps={STEPS}");
    let mut command = place.pretrain("data", out, &[&steps, "checkpoint.every_steps=3"]);
    command
        .arg("--trace-samples")
        .arg(place.path(&format!("{out}.trace")))
        .stdout(Stdio::null());
    command
}

fn run_to_the_end(place: &RunFolder, out: &str, arguments: &[&str]) {
    let output = pretrain(place, out).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// The error of a run that must fail.
fn fail(place: &RunFolder, out: &str, arguments: &[&str]) -> String {
    let output = pretrain(place, out).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    text(&output)
}

#[track_caller]
fn assert_same_run(place: &RunFolder, one: &str, other: &str) {
    let read = |path: PathBuf| {
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    assert_eq!(place.metrics(one), place.metrics(other));
    let trace = |out: &str| read(place.path(&format!("{out}.trace")));
    assert!(trace(one) == trace(other), "traces differ");
    let [one, other] = [one, other].map(|out| newest_checkpoint(&place.path(out)));
    assert_eq!(one.file_name(), other.file_name());
    for name in [
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "config.json",
    ] {
        assert!(
            read(one.join(name)) == read(other.join(name)),
            "{name} differs"
        );
    }
}

/// Waits until `metrics` has `lines` lines or the program ends.
fn wait_for_lines(child: &mut Child, metrics: &Path, lines: usize) {
    let deadline = Instant::now() + Duration::from_mins(2);
    while count_lines(metrics) < lines && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "no {lines} steps in two minutes");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn ten_kills_at_random_moments_leave_no_trace() {
    let seed = test_seed();
    let mut rng = epoch_stream(seed, 0, 0, Purpose::Order);
    let place = RunFolder::new();
    run_to_the_end(&place, "straight", &[]);
    let metrics = place.path("killed").join("metrics.jsonl");
    let mut kills = 0;
    while kills < 10 {
        let mut child = pretrain(&place, "killed")
            .arg("--resume")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Some are killed while they start; the others up to six steps behind what is there already, at any part of a step.
        let starts = below(&mut rng, 4) == 0;
        if !starts {
            let there = count_lines(&metrics);
            wait_for_lines(
                &mut child,
                &metrics,
                there + 1 + below(&mut rng, 6) as usize,
            );
        }
        std::thread::sleep(Duration::from_micros(below(&mut rng, 20_000)));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        send_signal(&child, "-KILL");
        child.wait().unwrap();
        kills += 1;
    }
    eprintln!(
        "killed {kills} times, the last with {} lines",
        count_lines(&metrics)
    );
    assert_eq!(
        kills, 10,
        "the run ended before it was killed ten times; it needs more steps"
    );
    run_to_the_end(&place, "killed", &["--resume"]);
    assert_same_run(&place, "straight", "killed");
}

#[test]
fn signals_finish_the_step_save_and_say_so_by_the_exit_code() {
    let place = RunFolder::new();
    run_to_the_end(&place, "straight", &[]);
    let metrics = place.path("stopped").join("metrics.jsonl");
    for (signal, code, lines) in [("-TERM", 143, 4), ("-INT", 130, 20), ("-USR1", 138, 60)] {
        let mut child = pretrain(&place, "stopped").arg("--resume").spawn().unwrap();
        wait_for_lines(&mut child, &metrics, lines);
        send_signal(&child, signal);
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(code), "{signal}");
        // Nothing is lost: the newest checkpoint is of the last line.
        let name = newest_checkpoint(&place.path("stopped"))
            .file_name()
            .unwrap()
            .to_string_lossy()
            .into_owned();
        assert_eq!(name, format!("step-{:08}", count_lines(&metrics)));
    }
    run_to_the_end(&place, "stopped", &["--resume"]);
    assert_same_run(&place, "straight", "stopped");
}

#[test]
fn a_run_is_continued_as_itself_only() {
    let place = RunFolder::new();
    run_to_the_end(&place, "out", &["--max-steps", "4"]);
    let error = fail(&place, "out", &[]);
    assert!(
        error.contains("already holds a run") && error.contains("--resume"),
        "{error}"
    );
    for (setting, key, saved, current) in [
        ("model.hidden_size=64", "model.hidden_size", "32", "64"),
        ("train.batch=16", "train.batch", "8", "16"),
        ("seed=7", "seed", "1337", "7"),
        (
            "optimizer.weight_decay=0.1",
            "optimizer.weight_decay",
            "0.05",
            "0.1",
        ),
    ] {
        let error = fail(&place, "out", &["--resume", "--set", setting]);
        for part in ["cannot resume", key, saved, current, "--out"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }
    write_photo_shards(&place.path("other"), 2, 2, 10);
    let steps = format!("train.steps={STEPS}");
    let mut command = place.pretrain("other", "out", &[&steps]);
    let output = command.arg("--resume").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("cannot resume"), "{}", text(&output));
    assert!(
        text(&output).contains("data set") || text(&output).contains("num_samples"),
        "{}",
        text(&output)
    );
    // What decides nothing but speed may change.
    run_to_the_end(
        &place,
        "out",
        &[
            "--resume",
            "--set",
            "loader.decode_threads=1",
            "--max-steps",
            "6",
        ],
    );
}

#[test]
fn a_damaged_checkpoint_is_refused_by_name_and_a_half_one_is_passed_over() {
    let place = RunFolder::new();
    run_to_the_end(&place, "straight", &[]);
    run_to_the_end(&place, "out", &["--max-steps", "10"]);
    let newest = newest_checkpoint(&place.path("out"));
    let path = newest.join("ema.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &flipped).unwrap();
    let error = fail(&place, "out", &["--resume"]);
    assert!(
        error.contains("SHA-256 of ema.safetensors") && error.contains("step-00000010"),
        "{error}"
    );
    // Cut short it is a half one, and the run goes on from the one before.
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    run_to_the_end(&place, "out", &["--resume"]);
    assert_same_run(&place, "straight", "out");
}
