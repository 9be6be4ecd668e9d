//! Several ranks train as one process does, bit for bit, from and to any number of them; one that ends
//! ends all, by name; ranks that were not started alike do not begin.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use nepa_tests::program::{RunFolder, nepa, newest_checkpoint, text};

mod alike;
mod failures;
mod modes;
mod numbers;
mod requests;
mod resume;

/// Four micro-batches a step, of two images each.
const SETTINGS: [&str; 3] = [
    "train.micro_batch=2",
    "train.steps=6",
    "checkpoint.every_steps=2",
];
/// Far more than the end of a rank takes to be seen, and less than a minute, in which silence would
/// be.
const SOON: Duration = Duration::from_secs(40);

/// The same run as so many ranks; of one, without `launch`.
fn ranks(place: &RunFolder, count: usize, out: &str, settings: &[&str]) -> Command {
    ranks_on(place, "data", count, out, settings)
}

fn ranks_on(place: &RunFolder, data: &str, count: usize, out: &str, settings: &[&str]) -> Command {
    let run = place.pretrain(data, out, &[&SETTINGS[..], settings].concat());
    launched(run, count)
}

/// A command as so many ranks; as one, it stays as it is.
fn launched(run: Command, count: usize) -> Command {
    if count == 1 {
        return run;
    }
    let mut command = nepa();
    command.args(["launch", "-n", &count.to_string(), "--"]);
    command.args(run.get_args());
    let set = run
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    command.envs(set);
    command
}

/// The lines of the metrics without times, and without those of the ranks.
fn metrics(out: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let timeless = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        let times = ["images_per_second", "data_wait_ms", "step_ms", "loader"];
        for name in times.into_iter().chain(["ranks"]) {
            fields.remove(name);
        }
        line.to_string()
    };
    text.lines().map(timeless).collect()
}

#[track_caller]
fn assert_same_run(one: &Path, other: &Path) {
    assert_eq!(metrics(one), metrics(other), "{}", other.display());
    let [one, other] = [one, other].map(newest_checkpoint);
    assert_eq!(one.file_name(), other.file_name());
    let read = |folder: &PathBuf, name: &str| std::fs::read(folder.join(name)).unwrap();
    for name in [
        "model.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
    ] {
        assert!(
            read(&one, name) == read(&other, name),
            "{name} of {} differs",
            other.display()
        );
    }
    let loader = |folder: &PathBuf| {
        let state: serde_json::Value = serde_json::from_slice(&read(folder, "state.json")).unwrap();
        state["loader"].clone()
    };
    assert_eq!(loader(&one), loader(&other));
}

/// What was said, with the lines of each message joined.
fn said(output: &Output) -> String {
    let mut said = text(output);
    for rank in 1..8 {
        said = said.replace(&format!("\nrank {rank}:   "), " ");
    }
    said
}

/// What a command that must fail has said.
#[track_caller]
fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = said(&output);
    assert!(!output.status.success(), "{command:?}:\n{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// Waits for an end that is near.
#[track_caller]
fn end(child: Child) -> Output {
    let since = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(since.elapsed() < SOON, "{}", text(&output));
    output
}

/// The process ids of the ranks that a process has started, by their ranks.
fn children(of: &Child) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut found = Vec::new();
    for process in processes {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if parent != Some(&of.id().to_string()) {
            continue;
        }
        let variables = std::fs::read(process.path().join("environ")).unwrap_or_default();
        let variables = String::from_utf8_lossy(&variables).into_owned();
        let rank = variables
            .split('\0')
            .find_map(|one| one.strip_prefix("RANK="));
        if let Some(rank) = rank.and_then(|rank| rank.parse::<usize>().ok()) {
            found.push((rank, process.file_name().to_string_lossy().into_owned()));
        }
    }
    found.sort();
    found.into_iter().map(|(_, process)| process).collect()
}

fn kill(process: &str) {
    let status = Command::new("kill").args(["-KILL", process]).status();
    assert!(status.unwrap().success(), "{process}");
}

/// One of two ranks, as torchrun would start it.
fn one_of_two(mut command: Command, rank: usize, master_port: &str) -> Command {
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2");
    command.env("MASTER_ADDR", "127.0.0.1");
    command.env("MASTER_PORT", master_port);
    command
}

/// A port of which the next one is free now.
fn master_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (port - 1).to_string()
}
