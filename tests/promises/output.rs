//! Runs whose output is a store that fails, freezes or has a second writer: nothing is lost, and the numbers are those of a
//! run that nobody disturbed.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use nepa_tests::program::{
    ServedRun, assert_says, joined, newest_checkpoint, send_signal, start, succeed, text,
    timeless_metrics, wait_until,
};
use nepa_tests::s3::{Fault, Rule};

const OUT: &str = "s3://runs/a";
const WEIGHTS: [&str; 3] = [
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
];

/// A run on the local data.
fn pretrain(place: &ServedRun, out: &str, settings: &[&str]) -> Command {
    place.pretrain("data", out, settings)
}

/// The same run into a local folder.
fn straight(place: &ServedRun, settings: &[&str], arguments: &[&str]) -> PathBuf {
    succeed(pretrain(place, "straight", settings).args(arguments));
    place.path("straight")
}

fn has_step(place: &ServedRun, step: u64) -> bool {
    let key = format!("a/checkpoints/step-{step:08}/manifest.json");
    place.server.get("runs", &key).is_some()
}

/// The step of the newest checkpoint in the store.
fn newest_step(place: &ServedRun) -> Option<u64> {
    let keys = place.server.keys("runs");
    let step = |key: &String| {
        let rest = key.strip_prefix("a/checkpoints/step-")?;
        rest.strip_suffix("/manifest.json")?.parse().ok()
    };
    keys.iter().filter_map(step).max()
}

/// Metrics and weights in the store are those of a local run.
#[track_caller]
fn assert_same(place: &ServedRun, local: &Path) {
    let joined = place.path("joined.jsonl");
    let metrics = place.server.get("runs", "a/metrics.jsonl").unwrap();
    std::fs::write(&joined, metrics).unwrap();
    assert_eq!(
        timeless_metrics(&joined),
        timeless_metrics(&local.join("metrics.jsonl"))
    );
    let newest = newest_checkpoint(local);
    let name = newest.file_name().unwrap().to_str().unwrap();
    for file in WEIGHTS {
        let key = format!("a/checkpoints/{name}/{file}");
        let sent = place.server.get("runs", &key);
        let sent = sent.unwrap_or_else(|| panic!("{key} is not there"));
        assert!(sent == std::fs::read(newest.join(file)).unwrap(), "{key}");
    }
}

/// Nothing waits any more, and nobody is left to hold the output.
#[track_caller]
fn assert_put_away(place: &ServedRun) {
    let left = std::fs::read_dir(place.path("spool")).unwrap().count();
    assert_eq!(left, 0, "the spool is not empty");
    let owner = place.server.get("runs", "a/owner.json").unwrap();
    let owner: serde_json::Value = serde_json::from_slice(&owner).unwrap();
    assert_eq!(owner["released"], true);
}

#[track_caller]
fn end_with(child: Child, code: i32) -> Output {
    // One that does not end within a minute hangs: it is killed, and so has another code.
    let (ended, ends) = mpsc::channel::<()>();
    let id = child.id().to_string();
    std::thread::spawn(move || {
        if ends.recv_timeout(Duration::from_mins(1)) == Err(RecvTimeoutError::Timeout) {
            let _ = Command::new("kill").args(["-KILL", &id]).status();
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(ended);
    assert_eq!(output.status.code(), Some(code), "{}", text(&output));
    output
}

#[test]
fn training_goes_on_while_the_output_is_away_and_nothing_is_lost() {
    let place = ServedRun::new();
    let settings = ["train.steps=90", "checkpoint.every_steps=10"];
    let straight = straight(&place, &settings, &[]);
    for (number, fault) in [
        Fault::Unavailable,
        Fault::Forbidden,
        Fault::Reset,
        Fault::Latency(Duration::from_hours(1)),
    ]
    .into_iter()
    .enumerate()
    {
        for key in place.server.keys("runs") {
            place.server.remove("runs", &key);
        }
        let words = place.path("words");
        // A frozen request ends after io.request_timeout_s.
        let mut command = pretrain(&place, OUT, &settings);
        command.args(["--set", "io.request_timeout_s=2"]);
        command
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&words).unwrap());
        let child = command.spawn().unwrap();
        let said = || joined(&std::fs::read_to_string(&words).unwrap());
        wait_until("the first checkpoint", || has_step(&place, 10));
        place.server.add_fault(Rule::put("", 0..u64::MAX, fault));
        // Until it says so, however fast it trains meanwhile.
        wait_until("a word about the store", || said().contains("cannot write"));
        place.server.clear_faults();
        let output = text(&end_with(child, 0));
        let said = format!("{output}\n{}", said());
        let parts = [
            "cannot write to s3://runs/a",
            "waits in",
            "done    90 steps in ",
        ];
        assert_says(&said, &parts);
        assert_same(&place, &straight);
        assert_put_away(&place);
        eprintln!("fault {number}: as if nothing had happened");
    }
}

#[test]
fn what_a_run_could_not_send_is_sent_by_resume() {
    let place = ServedRun::new();
    let straight = straight(&place, &[], &[]);
    let manifest = "a/checkpoints/step-00000012/manifest.json";
    place
        .server
        .add_fault(Rule::put(manifest, 0..u64::MAX, Fault::Unavailable));
    let child = start(&mut pretrain(&place, OUT, &["io.outage_s=1"]));
    let said = text(&end_with(child, 1));
    let spool = place.path("spool");
    let parts = [
        "the checkpoint of step 12 could not be sent to s3://runs/a",
        "SlowDown",
        spool.to_str().unwrap(),
        "--resume",
    ];
    assert_says(&said, &parts);
    assert!(!has_step(&place, 12));
    place.server.clear_faults();
    succeed(pretrain(&place, OUT, &[]).arg("--resume"));
    assert_same(&place, &straight);
    assert_put_away(&place);
}

#[test]
fn a_second_run_is_refused_and_a_frozen_one_that_wakes_ends_itself() {
    let place = ServedRun::new();
    let settings = [
        "train.steps=100000",
        "checkpoint.every_steps=20",
        "checkpoint.takeover_s=3",
    ];
    let frozen = start(&mut pretrain(&place, OUT, &settings));
    wait_until("a checkpoint", || newest_step(&place) >= Some(40));
    let second = start(pretrain(&place, OUT, &settings).arg("--resume"));
    let parts = ["in use by another process", "process ", "--take-over"];
    assert_says(&text(&end_with(second, 1)), &parts);
    send_signal(&frozen, "-STOP");
    std::thread::sleep(Duration::from_millis(3500));
    let last = (newest_step(&place).unwrap() + 40).to_string();
    let until = ["--max-steps", &last];
    succeed(pretrain(&place, OUT, &settings).arg("--resume").args(until));
    let metrics = place.server.get("runs", "a/metrics.jsonl").unwrap();
    send_signal(&frozen, "-CONT");
    let said = text(&end_with(frozen, 1));
    assert_says(&said, &["was taken over by another process"]);
    assert!(metrics == place.server.get("runs", "a/metrics.jsonl").unwrap());
    let straight = straight(&place, &settings, &until);
    assert_same(&place, &straight);
    // And by force, from one that lives.
    let alive = start(pretrain(&place, OUT, &settings).arg("--resume"));
    let now = newest_step(&place).unwrap();
    wait_until("a checkpoint", || newest_step(&place).unwrap() > now);
    let forced = ["--resume", "--take-over", "--max-steps", "100"];
    succeed(pretrain(&place, OUT, &settings).args(forced));
    let said = text(&end_with(alive, 1));
    assert_says(&said, &["was taken over by another process"]);
}

#[test]
fn a_killed_run_is_followed_at_once_and_its_logs_cannot_be_broken() {
    let place = ServedRun::new();
    // Whoever waited until the killed run counts as gone would wait for an hour.
    let settings = [
        "train.steps=60",
        "checkpoint.every_steps=5",
        "checkpoint.takeover_s=3600",
    ];
    let mut child = start(&mut pretrain(&place, OUT, &settings));
    wait_until("a checkpoint", || newest_step(&place) >= Some(10));
    send_signal(&child, "-KILL");
    child.wait().unwrap();
    // What a second writer might have left.
    place.server.put("runs", "a/metrics.jsonl", "{}\n");
    place.server.put("runs", "a/events.out.tfevents.nepa", "");
    end_with(start(pretrain(&place, OUT, &settings).arg("--resume")), 0);
    assert_same(&place, &straight(&place, &settings, &[]));
    assert_put_away(&place);
}

#[test]
fn a_spool_without_room_does_not_end_a_run() {
    let place = ServedRun::new();
    let mount = place.path("mount");
    std::fs::create_dir(&mount).unwrap();
    let mut command = pretrain(
        &place,
        OUT,
        &["train.steps=20", "checkpoint.every_steps=10"],
    );
    let spool = format!("checkpoint.spool_dir={mount:?}");
    command.args(["--set", &spool]);
    let arguments = command
        .get_args()
        .map(|argument| format!("'{}'", argument.to_str().unwrap()))
        .collect::<Vec<_>>()
        .join(" ");
    let script = format!(
        "mount -t tmpfs -o size=16k tmpfs '{}' || exit 99; exec '{}' {arguments}",
        mount.display(),
        command.get_program().to_str().unwrap(),
    );
    let mut shell = Command::new("unshare");
    shell
        .args(["--map-root-user", "--mount", "sh", "-c", &script])
        .envs(place.server.env());
    let output = shell.output();
    let output = match output {
        Ok(output) if !text(&output).contains("unshare:") && output.status.code() != Some(99) => {
            output
        }
        _ => {
            eprintln!("SKIPPED: no small file system can be mounted here");
            return;
        }
    };
    assert!(output.status.success(), "{}", text(&output));
    assert_says(&text(&output), &["kept in memory", "checkpoint.spool_dir"]);
    let settings = ["train.steps=20", "checkpoint.every_steps=10"];
    assert_same(&place, &straight(&place, &settings, &[]));
}

/// Changes the bytes of an image in a shard, not its size.
fn replace_content(shard: &[u8]) -> Vec<u8> {
    let mut bytes = shard.to_vec();
    let start = bytes
        .windows(3)
        .position(|window| window == [0xff, 0xd8, 0xff])
        .unwrap();
    // In the scan of the first JPEG, far behind its tables.
    bytes[start + 800] ^= 1;
    bytes
}

#[test]
fn other_data_is_told_in_shards_and_replaced_shards_are_noticed() {
    let place = ServedRun::new();
    let shard = place.path("data").join("train-1.parquet");
    let local = |arguments: &[&str]| {
        let mut command = pretrain(&place, "out", &[]);
        command.args(arguments);
        command
    };
    succeed(&mut local(&["--max-steps", "5"]));
    let content = std::fs::read(&shard).unwrap();
    // Later, but within the same second on file systems that count in seconds, nothing could be told.
    std::thread::sleep(Duration::from_millis(1100));
    std::fs::write(&shard, replace_content(&content)).unwrap();
    let said = text(&end_with(start(&mut local(&["--resume"])), 1));
    assert_says(
        &said,
        &["train-1.parquet (modified", "step 5", "--accept-data"],
    );
    let extra = place.path("data").join("train-3.parquet");
    std::fs::write(&extra, &content).unwrap();
    let said = text(&end_with(start(&mut local(&["--resume"])), 1));
    assert_says(&said, &["another data set: train-3.parquet was added"]);
    std::fs::remove_file(&extra).unwrap();
    let accepted = ["--resume", "--accept-data", "--max-steps", "7"];
    let said = text(&succeed(&mut local(&accepted)));
    assert_says(&said, &["other content than before: train-1.parquet"]);
    // From now on the new content is that of the run.
    succeed(&mut local(&["--resume"]));
    // In a store, by its ETag.
    let server = &place.server;
    server.load_folder("data", "", &place.path("data")).unwrap();
    let remote = |arguments: &[&str]| {
        let mut command = place.pretrain("s3://data/", "remote", &[]);
        command.args(arguments);
        command
    };
    succeed(&mut remote(&["--max-steps", "5"]));
    server.put("data", "train-1.parquet", content);
    let said = text(&end_with(start(&mut remote(&["--resume"])), 1));
    assert_says(&said, &["train-1.parquet (ETag", "--accept-data"]);
}
