//! SIGTERM and Ctrl-C are heeded wherever a command is or waits, with the signal's exit code, and nothing is left behind.
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nepa_tests::program::{
    ServedRun, count_lines, nepa, newest_checkpoint, send_signal, succeed, timeless_metrics,
    tiny_recipe, wait_until,
};
use nepa_tests::s3::{Fault, Rule};

/// Time from a signal to the end: far more than it takes on a busy machine, and less than the 30 s
/// (`io.request_timeout_s`) after which the store's silence alone would wake the command.
const HEEDED_WITHIN: Duration = Duration::from_secs(20);
/// The store never answers.
const FROZEN: Fault = Fault::Latency(Duration::from_hours(1));

fn place() -> ServedRun {
    let place = ServedRun::new();
    std::fs::create_dir(place.path("tmp")).unwrap();
    place
}

/// A command that says nothing and leaves what it may leave in `tmp`.
fn quiet(place: &ServedRun, mut command: Command) -> Command {
    command
        .env("TMPDIR", place.path("tmp"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn command(place: &ServedRun, arguments: &[&str]) -> Command {
    let mut command = nepa();
    command.args(arguments).envs(place.server.env());
    quiet(place, command)
}

fn pretrain(place: &ServedRun, data: &str, out: &str, settings: &[&str]) -> Command {
    quiet(place, place.pretrain(data, out, settings))
}

/// Starts a command, sends it a signal once `is_time`, and expects its end soon with the right code.
#[track_caller]
fn ends_soon(command: &mut Command, signal: &str, is_time: impl FnMut() -> bool) {
    let mut child = command.spawn().unwrap();
    wait_until("the moment for a signal", is_time);
    send_signal(&child, signal);
    let sent = Instant::now();
    let code = if signal == "-INT" { 130 } else { 143 };
    while child.try_wait().unwrap().is_none() {
        if sent.elapsed() > HEEDED_WITHIN {
            let _ = child.kill();
            panic!("{command:?} still runs {HEEDED_WITHIN:?} after {signal}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(child.wait().unwrap().code(), Some(code), "{command:?}");
}

#[test]
fn every_command_ends_at_once_while_it_waits_for_a_store() {
    let place = place();
    let data = place.path("data");
    let run = place.path("run");
    succeed(&mut pretrain(
        &place,
        data.to_str().unwrap(),
        run.to_str().unwrap(),
        &[],
    ));
    place.server.load_folder("runs", "a/", &run).unwrap();
    for rule in [
        Rule::list(0..u64::MAX, FROZEN),
        Rule::get("", 0..u64::MAX, FROZEN),
        Rule::put("", 0..u64::MAX, FROZEN),
    ] {
        place.server.add_fault(rule);
    }
    let photos = place.path("photos");
    std::fs::create_dir_all(&photos).unwrap();
    std::fs::write(photos.join("a.jpg"), nepa_tests::photos::photo(1)).unwrap();
    let photos = photos.to_str().unwrap();
    let (report, export) = (place.path("report"), place.path("export"));
    let (data, run) = (data.to_str().unwrap(), run.to_str().unwrap());
    let recipe = tiny_recipe();
    let recipe = recipe.to_str().unwrap();
    for (number, arguments) in [
        &["inspect", "s3://data/"][..],
        &["profile", "s3://data/"],
        &["pretrain", recipe, "--data", "s3://data/", "--out", "x"],
        &["pretrain", recipe, "--data", data, "--out", "s3://runs/new"],
        &[
            "eval",
            "knn",
            "--train",
            "s3://data/",
            "--test",
            data,
            "--checkpoint",
            run,
        ],
        &[
            "eval",
            "knn",
            "--train",
            data,
            "--test",
            data,
            "--checkpoint",
            "s3://runs/a",
        ],
        &["pack", photos, "s3://runs/packed"],
        &["report", "s3://runs/a", "--out", report.to_str().unwrap()],
        &["export", "s3://runs/a", export.to_str().unwrap()],
    ]
    .into_iter()
    .enumerate()
    {
        let signal = if number % 2 == 0 { "-TERM" } else { "-INT" };
        let before = place.server.num_begun();
        let mut command = command(&place, arguments);
        command.current_dir(place.path("tmp"));
        ends_soon(&mut command, signal, || place.server.num_begun() > before);
        let left = std::fs::read_dir(place.path("tmp")).unwrap().flatten();
        let left = left.map(|entry| entry.file_name()).collect::<Vec<_>>();
        let is_ours = |name: &&std::ffi::OsString| name.to_string_lossy().starts_with("nepa-run-");
        assert_eq!(left.iter().find(is_ours), None, "{arguments:?}");
    }
}

#[test]
fn a_run_that_waits_for_its_data_is_stopped_and_goes_on_exactly() {
    let place = place();
    // Every batch needs new data: a window is smaller than a row group.
    let settings = ["train.steps=200", "data.shuffle_window_bytes=1"];
    let out = place.path("out");
    let out = out.to_str().unwrap();
    let metrics = place.path("out").join("metrics.jsonl");
    let lines = || count_lines(&metrics);
    let mut frozen = false;
    let mut seen = (0, Instant::now());
    let mut command = pretrain(&place, "s3://data/", out, &settings);
    ends_soon(&mut command, "-TERM", || {
        if !frozen && lines() > 20 {
            frozen = true;
            place.server.add_fault(Rule::get("", 0..u64::MAX, FROZEN));
        }
        if seen.0 != lines() {
            seen = (lines(), Instant::now());
        }
        // It stands still.
        frozen && seen.1.elapsed() > Duration::from_secs(1)
    });
    let stopped_at = lines();
    assert!(stopped_at < 200);
    let newest = newest_checkpoint(&place.path("out"));
    assert!(newest.ends_with(format!("step-{stopped_at:08}")));
    place.server.clear_faults();
    succeed(pretrain(&place, "s3://data/", out, &settings).arg("--resume"));
    let straight = place.path("straight");
    let data = place.path("data");
    succeed(&mut pretrain(
        &place,
        data.to_str().unwrap(),
        straight.to_str().unwrap(),
        &settings,
    ));
    assert_eq!(
        timeless_metrics(&metrics),
        timeless_metrics(&straight.join("metrics.jsonl"))
    );
}

#[test]
fn a_run_that_cannot_send_ends_in_its_time_and_resume_finds_what_it_kept() {
    let place = place();
    let data = place.path("data");
    let data = data.to_str().unwrap();
    let settings = [
        "train.steps=300",
        "checkpoint.every_steps=10",
        "checkpoint.stop_s=1",
    ];
    let first = "a/checkpoints/step-00000010/manifest.json";
    let mut frozen = None;
    let mut command = pretrain(&place, data, "s3://runs/a", &settings);
    ends_soon(&mut command, "-INT", || {
        if frozen.is_none() && place.server.get("runs", first).is_some() {
            frozen = Some(Instant::now());
            place.server.add_fault(Rule::put("", 0..u64::MAX, FROZEN));
        }
        frozen.is_some_and(|since| since.elapsed() > Duration::from_millis(200))
    });
    assert!(std::fs::read_dir(place.path("spool")).unwrap().count() > 0);
    place.server.clear_faults();
    succeed(pretrain(&place, data, "s3://runs/a", &settings).arg("--resume"));
    let joined = place.path("joined.jsonl");
    let metrics = place.server.get("runs", "a/metrics.jsonl").unwrap();
    std::fs::write(&joined, metrics).unwrap();
    let straight = place.path("straight");
    succeed(&mut pretrain(
        &place,
        data,
        straight.to_str().unwrap(),
        &settings,
    ));
    assert_eq!(
        timeless_metrics(&joined),
        timeless_metrics(&straight.join("metrics.jsonl"))
    );
    let left = std::fs::read_dir(place.path("spool")).unwrap().flatten();
    let left = left.map(|entry| entry.path()).collect::<Vec<_>>();
    assert!(left.is_empty(), "{left:?}");
}
