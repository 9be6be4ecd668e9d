//! Runs of several ranks: what their ends leave behind and say, and their processes.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use crate::program::{count_lines, nepa, newest_checkpoint, start, text, wait_until};

/// Far more than the end of a rank takes to be seen, and less than a minute, in which silence would
/// be.
const SOON: Duration = Duration::from_secs(40);

/// The lines of the metrics without times, and without who did what: ranks, and on a GPU decoders.
///
/// # Panics
///
/// If there are none.
pub fn metrics(out: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let timeless = |line: &str| {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = line.as_object_mut().unwrap();
        let times = ["images_per_second", "data_wait_ms", "step_ms", "loader"];
        for name in times.into_iter().chain(["ranks", "decoders"]) {
            fields.remove(name);
        }
        line.to_string()
    };
    text.lines().map(timeless).collect()
}

/// Two runs must have the same metrics but for times, and the same newest checkpoint.
///
/// # Panics
///
/// If they do not.
#[track_caller]
pub fn assert_same_run(one: &Path, other: &Path) {
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
pub fn said(output: &Output) -> String {
    let mut said = text(output);
    for rank in 1..8 {
        said = said.replace(&format!("\nrank {rank}:   "), " ");
    }
    said
}

/// What a command that must fail has said.
///
/// # Panics
///
/// If it does not fail, or by a panic or by what a stand-in does not allow.
#[track_caller]
pub fn fail(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = said(&output);
    assert!(!output.status.success(), "{command:?}:\n{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(!said.contains("stand-in violation"), "{said}");
    said
}

/// Waits for an end that is near.
///
/// # Panics
///
/// If it is not.
#[track_caller]
pub fn end(child: Child) -> Output {
    let since = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(since.elapsed() < SOON, "{}", text(&output));
    output
}

/// The process ids of the ranks that a process has started, by their ranks, which each has in a
/// variable of its environment.
///
/// # Panics
///
/// Where there is no `/proc`.
pub fn children(of: &Child, variable: &str) -> Vec<String> {
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
            .find_map(|one| one.strip_prefix(variable)?.strip_prefix('='));
        if let Some(rank) = rank.and_then(|rank| rank.parse::<usize>().ok()) {
            found.push((rank, process.file_name().to_string_lossy().into_owned()));
        }
    }
    found.sort();
    found.into_iter().map(|(_, process)| process).collect()
}

/// Kills the process of a number.
///
/// # Panics
///
/// If there is none any more.
pub fn kill(process: &str) {
    signal(process, "-KILL");
}

/// Sends the process of a number a signal.
///
/// # Panics
///
/// If there is none any more.
pub fn signal(process: &str, signal: &str) {
    let status = Command::new("kill").args([signal, process]).status();
    assert!(status.unwrap().success(), "{signal} {process}");
}

/// A command as so many ranks of this machine; as one, it stays as it is.
pub fn launched(run: Command, count: usize) -> Command {
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

/// Starts a run and waits until its metrics in `out` have more than so many lines, or it ends.
///
/// # Panics
///
/// If neither comes within a minute.
#[track_caller]
pub fn begin(command: &mut Command, out: &Path, lines: usize) -> Child {
    let metrics = out.join("metrics.jsonl");
    let mut begun = start(command);
    wait_until("some steps", || {
        count_lines(&metrics) > lines || begun.try_wait().unwrap().is_some()
    });
    begun
}

/// A port of which the next one is free now, for `MASTER_PORT`.
///
/// # Panics
///
/// If the machine has no port left.
pub fn master_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    (listener.local_addr().unwrap().port() - 1).to_string()
}
