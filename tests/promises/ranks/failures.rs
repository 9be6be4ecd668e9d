//! What becomes of a run when a rank fails (the table of docs/ranks.md): all end soon, by name and
//! with the reason, and what was trained is saved. `scripts/two-hosts.sh` has what takes a minute.
use std::process::Command;
use std::time::Duration;

use nepa_tests::program::{
    RunFolder, ServedRun, assert_says, count_lines, newest_checkpoint, send_signal, start, succeed,
    text, wait_until,
};
use nepa_tests::ranks::{
    assert_same_run, begin, children, end, kill, launched, master_port, metrics, said, signal,
};
use nepa_tests::s3::{Fault, Rule, S3Server};

use super::{SETTINGS, one_of_two, ranks};

/// A rank that cannot go on tells the others why; what it says bears its name.
#[test]
fn a_rank_that_fails_ends_the_others_with_its_reason() {
    let place = RunFolder::new();
    for dry in [&["--dry-run"][..], &[]] {
        let port = master_port();
        let of = |rank: usize, data: &str| {
            let mut command = place.pretrain(data, "out", &SETTINGS);
            command.args(dry);
            start(&mut one_of_two(command, rank, &port))
        };
        let (first, second) = (of(0, "data"), of(1, "nowhere"));
        let (first, second) = (end(first), end(second));
        assert_eq!(first.status.code(), Some(1), "{}", text(&first));
        assert_says(&text(&first), &["rank 1 has failed", "nowhere"]);
        let said = String::from_utf8_lossy(&second.stderr);
        assert!(said.starts_with("rank 1: error: "), "{said}");
        assert!(second.stdout.is_empty());
    }
}

/// Whether a process of that number is there and has not ended.
fn lives(process: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest.trim_start());
    !state.is_empty() && !state.starts_with('Z')
}

#[test]
fn ranks_do_not_outlive_what_launched_them() {
    let place = RunFolder::new();
    let out = place.path("out");
    let mut launched = begin(
        &mut ranks(&place, 2, "out", &["train.steps=100000"]),
        &out,
        3,
    );
    let processes = children(&launched, "RANK");
    assert_eq!(processes.len(), 2);
    send_signal(&launched, "-KILL");
    launched.wait().unwrap();
    wait_until("the ranks end", || !processes.iter().any(|one| lives(one)));
    let steps = count_lines(&out.join("metrics.jsonl"));
    let name = newest_checkpoint(&out);
    assert!(name.ends_with(format!("step-{steps:08}")), "{name:?}");
}

#[test]
fn the_end_of_rank_0_ends_the_others_by_name() {
    let place = RunFolder::new();
    let settings = ["train.steps=100000", "checkpoint.every_steps=5"];
    let launched = begin(
        &mut ranks(&place, 4, "out", &settings),
        &place.path("out"),
        10,
    );
    kill(&children(&launched, "RANK")[0]);
    let output = end(launched);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    let parts = [
        "rank 0 was ended by signal 9",
        "rank 1: error: rank 0 has ended without a word: it was killed, or has crashed",
    ];
    assert_says(&said(&output), &parts);
    // What it has saved is whole.
    let newest = newest_checkpoint(&place.path("out"));
    nepa_trainer::checkpoint::read_folder(&newest).unwrap();
}

/// One that goes on within a minute has only held the others up.
#[test]
fn a_rank_that_is_stopped_for_a_while_changes_nothing() {
    let place = RunFolder::new();
    let settings = ["train.steps=100", "checkpoint.every_steps=1000"];
    succeed(&mut ranks(&place, 1, "straight", &settings));
    let lines = || count_lines(&place.path("out").join("metrics.jsonl"));
    let launched = begin(
        &mut ranks(&place, 2, "out", &settings),
        &place.path("out"),
        10,
    );
    let process = children(&launched, "RANK")[1].clone();
    signal(&process, "-STOP");
    std::thread::sleep(Duration::from_millis(300));
    let before = lines();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(lines(), before, "the others have not waited");
    signal(&process, "-CONT");
    let output = end(launched);
    assert!(output.status.success(), "{}", text(&output));
    assert_same_run(&place.path("straight"), &place.path("out"));
}

#[test]
fn a_full_disk_of_rank_0_is_told_by_all() {
    let place = RunFolder::new();
    let mount = place.path("mount");
    std::fs::create_dir(&mount).unwrap();
    let settings = [
        "train.micro_batch=2",
        "checkpoint.every_steps=1",
        "checkpoint.keep=50",
    ];
    let command = launched(place.pretrain("data", "mount/out", &settings), 2);
    let script = "mount -t tmpfs -o size=1200k tmpfs \"$0\" || exit 99; exec \"$@\"";
    let mut shell = Command::new("unshare");
    shell.args(["--map-root-user", "--mount", "sh", "-c", script]);
    shell.arg(&mount).arg(command.get_program());
    shell.args(command.get_args());
    let output = match shell.output() {
        Ok(output) if output.status.code() != Some(99) && !text(&output).contains("unshare:") => {
            output
        }
        _ => {
            eprintln!("SKIPPED: no small file system can be mounted here");
            return;
        }
    };
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let parts = [
        "error: cannot save the checkpoint of step",
        "rank 1: error: rank 0 has failed: cannot save the checkpoint of step",
        "No space left",
        "make room",
    ];
    assert_says(&said(&output), &parts);
}

/// Each rank has the store of its own, with the same data.
#[test]
fn a_rank_that_its_store_refuses_ends_all_saved() {
    let (run, other) = (ServedRun::new(), S3Server::start());
    other
        .load_folder("data", "", &run.path("data"))
        .expect("the shards");
    // A window is smaller than a row group, so there is something to fetch before each batch.
    let settings = [
        "train.micro_batch=2",
        "train.steps=100",
        "checkpoint.every_steps=1000",
        "data.shuffle_window_bytes=1",
        "log.tensorboard=false",
    ];
    let rank = |rank: usize, out: &str, port: &str, more: &[(&str, String)]| {
        let mut command = one_of_two(run.pretrain("s3://data/", out, &settings), rank, port);
        for (name, value) in more {
            command.env(name, value);
        }
        start(&mut command)
    };
    let port = master_port();
    let wrong = [("AWS_SECRET_ACCESS_KEY", "wrong".to_owned())];
    let first = rank(0, "never", &port, &[]);
    let second = rank(1, "never", &port, &wrong);
    let (first, second) = (end(first), end(second));
    assert_eq!(first.status.code(), Some(1), "{}", text(&first));
    assert_says(
        &text(&first),
        &["rank 1 has failed", "refuses access", "s3://data"],
    );
    assert_says(&said(&second), &["rank 1: error: ", "refuses access"]);

    let lines = || count_lines(&run.path("out").join("metrics.jsonl"));
    let port = master_port();
    let first = rank(0, "out", &port, &[]);
    let second = rank(1, "out", &port, &other.env());
    wait_until("some steps", || lines() > 20);
    other.add_fault(Rule::get("", 0..u64::MAX, Fault::Forbidden));
    let (first, second) = (end(first), end(second));
    let parts = ["rank 1 has failed", "refuses access", "saved after step"];
    assert_says(&text(&first), &parts);
    assert_says(&said(&second), &["rank 1: error: ", "refuses access"]);
    let name = newest_checkpoint(&run.path("out"));
    assert!(name.ends_with(format!("step-{:08}", lines())), "{name:?}");

    let pretrain = |out: &str| run.pretrain("s3://data/", out, &settings);
    succeed(pretrain("out").arg("--resume"));
    succeed(&mut pretrain("straight"));
    assert_same_run(&run.path("straight"), &run.path("out"));
}

/// The other ranks know nothing of the output: they train on, and rank 0 keeps what it cannot send.
#[test]
fn an_output_that_is_away_is_the_concern_of_rank_0_alone() {
    let run = ServedRun::new();
    let settings = ["train.micro_batch=2", "io.outage_s=1"];
    let ranks = |count: usize| launched(run.pretrain("data", "s3://runs/a", &settings), count);
    let manifest = "a/checkpoints/step-00000012/manifest.json";
    let fault = Rule::put(manifest, 0..u64::MAX, Fault::Unavailable);
    run.server.add_fault(fault);
    let output = end(start(&mut ranks(2)));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let parts = [
        "the checkpoint of step 12 could not be sent to s3://runs/a",
        "--resume",
        "rank 0 has ended with exit code 1",
    ];
    assert_says(&said(&output), &parts);
    assert!(!said(&output).contains("rank 1"), "{}", said(&output));
    run.server.clear_faults();
    succeed(ranks(4).arg("--resume"));
    let sent = run.server.get("runs", manifest);
    assert!(sent.is_some(), "nothing was sent by --resume");
    succeed(&mut run.pretrain("data", "straight", &settings));
    let joined = run.path("joined");
    std::fs::create_dir(&joined).unwrap();
    let log = run.server.get("runs", "a/metrics.jsonl").unwrap();
    std::fs::write(joined.join("metrics.jsonl"), log).unwrap();
    assert_eq!(metrics(&run.path("straight")), metrics(&joined));
}
