//! Ranks that Open MPI's mpirun has started train over MPI as one process does, bit for bit; one that
//! ends ends all. `make mpi` runs this, as it needs an MPI library.
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nepa_tests::program::{
    RunFolder, assert_says, count_lines, newest_checkpoint, send_signal, start, succeed, text,
};
use nepa_tests::ranks::{assert_same_run, begin, children, end, fail, kill, said, signal};

/// Four micro-batches a step, of two images each.
const SETTINGS: [&str; 3] = [
    "train.micro_batch=2",
    "train.steps=6",
    "checkpoint.every_steps=2",
];
const LONG: [&str; 2] = ["train.steps=300", "checkpoint.every_steps=50"];
const ENDLESS: [&str; 1] = ["train.steps=100000"];
const OVER_MPI: &str = "the ranks are connected over MPI";
const RANK: &str = "OMPI_COMM_WORLD_RANK";

/// An mpirun that does not know yet what to run.
fn bare_mpirun() -> Command {
    let mut command = Command::new("mpirun");
    // More ranks than cores; in a container all is root's.
    command
        .arg("--oversubscribe")
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .stdin(Stdio::null());
    command
}

/// Adds a program as so many ranks, with its environment.
fn add(mpirun: &mut Command, ranks: usize, run: &Command) {
    mpirun.args(["-n", &ranks.to_string()]);
    mpirun.arg(run.get_program()).args(run.get_args());
    for (name, value) in run.get_envs() {
        match value {
            Some(value) => mpirun.env(name, value),
            None => mpirun.env_remove(name),
        };
    }
}

fn one(place: &RunFolder, out: &str, settings: &[&str]) -> Command {
    place.pretrain("data", out, &[&SETTINGS[..], settings].concat())
}

fn mpirun(place: &RunFolder, ranks: usize, out: &str, settings: &[&str]) -> Command {
    let mut command = bare_mpirun();
    add(&mut command, ranks, &one(place, out, settings));
    command
}

#[test]
fn any_number_of_ranks_over_mpi_gives_the_bits_of_one_process() {
    let place = RunFolder::new();
    succeed(&mut one(&place, "one", &[]));
    for ranks in [1, 2, 4] {
        let out = format!("mpi-{ranks}");
        let said = text(&succeed(&mut mpirun(&place, ranks, &out, &[])));
        assert_eq!(
            said.matches(OVER_MPI).count(),
            usize::from(ranks > 1),
            "{said}"
        );
        assert_eq!(said.matches("model   ").count(), 1, "{said}");
        assert_same_run(&place.path("one"), &place.path(&out));
    }
}

/// Where nobody listens now.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Ranks of mpirun that are told where to meet take TCP.
#[test]
fn a_place_to_meet_goes_before_mpi() {
    let place = RunFolder::new();
    let address = free_address();
    succeed(&mut mpirun(&place, 2, "mpi", &[]));
    let said = text(&succeed(
        mpirun(&place, 2, "tcp", &[]).args(["--meet", &address]),
    ));
    assert!(!said.contains(OVER_MPI), "{said}");
    assert_same_run(&place.path("mpi"), &place.path("tcp"));
}

#[test]
fn a_rank_that_is_killed_ends_all_and_the_run_goes_on() {
    let place = RunFolder::new();
    let metrics = place.path("out").join("metrics.jsonl");
    succeed(&mut one(&place, "straight", &LONG));
    // A checkpoint, and some steps.
    let launched = begin(&mut mpirun(&place, 4, "out", &LONG), &place.path("out"), 60);
    kill(&children(&launched, RANK)[2]);
    let output = end(launched);
    assert_eq!(output.status.code(), Some(137), "{}", text(&output));
    assert!(count_lines(&metrics) < 300);
    succeed(mpirun(&place, 2, "out", &LONG).arg("--resume"));
    assert_same_run(&place.path("straight"), &place.path("out"));
}

#[test]
fn a_rank_that_fails_ends_the_others_with_its_reason() {
    let place = RunFolder::new();
    let mut command = bare_mpirun();
    add(&mut command, 1, &one(&place, "out", &[]));
    command.arg(":");
    let astray = place.pretrain("nowhere", "out", &SETTINGS);
    add(&mut command, 1, &astray);
    let output = end(start(&mut command));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert_says(
        &said(&output),
        &["rank 1 has failed", "nowhere", "rank 1: error: "],
    );
}

/// With time for the last step, which mpirun gives by its setting.
#[test]
fn a_signal_to_mpirun_stops_all_after_the_same_step_saved() {
    let place = RunFolder::new();
    let metrics = place.path("out").join("metrics.jsonl");
    for (signal, code) in [("-USR1", Some(138)), ("-TERM", None)] {
        let before = count_lines(&metrics);
        let mut command = bare_mpirun();
        command.args(["--mca", "odls_base_sigkill_timeout", "5"]);
        let mut run = one(&place, "out", &ENDLESS);
        run.arg("--resume");
        add(&mut command, 2, &run);
        let launched = begin(&mut command, &place.path("out"), before + 3);
        send_signal(&launched, signal);
        let output = end(launched);
        let steps = count_lines(&metrics);
        assert!(
            steps > before && !output.status.success(),
            "{}",
            text(&output)
        );
        let name = newest_checkpoint(&place.path("out"));
        assert!(
            name.ends_with(format!("step-{steps:08}")),
            "{name:?} {steps}"
        );
        if code.is_some() {
            assert_eq!(output.status.code(), code, "{}", text(&output));
            assert_says(
                &text(&output),
                &["stopped by a signal and saved after step"],
            );
        }
    }
}

/// One rank alone is asked to stop; the others hear of it.
#[test]
fn a_signal_at_one_rank_stops_all() {
    let place = RunFolder::new();
    let launched = begin(
        &mut mpirun(&place, 4, "out", &ENDLESS),
        &place.path("out"),
        3,
    );
    signal(&children(&launched, RANK)[3], "-TERM");
    let output = end(launched);
    assert_eq!(output.status.code(), Some(143), "{}", text(&output));
    assert_says(
        &text(&output),
        &["stopped by a signal and saved after step"],
    );
}

#[test]
fn a_rank_that_is_stopped_is_waited_for_and_named() {
    let place = RunFolder::new();
    let launched = begin(
        &mut mpirun(&place, 2, "out", &ENDLESS),
        &place.path("out"),
        3,
    );
    let second = children(&launched, RANK)[1].clone();
    signal(&second, "-STOP");
    // A wait is told after ten seconds.
    std::thread::sleep(Duration::from_secs(12));
    signal(&second, "-CONT");
    signal(&second, "-TERM");
    let output = end(launched);
    assert_says(
        &text(&output),
        &[
            "waiting for rank 1 for 10 s",
            "stopped by a signal and saved",
        ],
    );
}

fn losses(out: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let loss = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["loss"].as_f64().unwrap()
    };
    text.lines().map(loss).collect()
}

#[test]
fn the_library_adds_where_the_recipe_asks_for_it() {
    let place = RunFolder::new();
    let library = ["train.sum=library"];
    succeed(&mut one(&place, "one", &[]));
    // Two numbers have one sum, in whatever order.
    succeed(&mut mpirun(&place, 2, "two", &library));
    assert_same_run(&place.path("one"), &place.path("two"));
    succeed(&mut mpirun(&place, 4, "four", &library));
    let [one_alone, four] = ["one", "four"].map(|out| losses(&place.path(out)));
    assert_eq!(one_alone.len(), four.len());
    for (one, four) in one_alone.iter().zip(&four) {
        assert!(
            (one - four).abs() < 1e-4 * (1.0 + one.abs()),
            "{one} {four}"
        );
    }
    // A run may go on with another way to add; one process adds nothing.
    let more = ["train.sum=library", "train.steps=8"];
    succeed(one(&place, "four", &more).arg("--resume"));
    // TCP has no sum of its own, and ranks add alike.
    let said = fail(mpirun(&place, 2, "refused", &library).args(["--meet", &free_address()]));
    assert_says(&said, &["train.sum = \"library\"", "--set train.sum=tree"]);
    let mut command = bare_mpirun();
    add(&mut command, 1, &one(&place, "refused", &library));
    command.arg(":");
    add(&mut command, 1, &one(&place, "refused", &[]));
    assert_says(
        &fail(&mut command),
        &["rank 1 has another train.sum than rank 0"],
    );
    assert!(!place.path("refused").exists());
}
