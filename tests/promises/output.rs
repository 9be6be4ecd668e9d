//! Runs whose output is a store that fails, freezes or has a second writer: nothing is lost, and the numbers are those of a
//! run that nobody disturbed.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use nepa_tests::program::{
    assert_says, nepa, newest_checkpoint, send_signal, succeed, text, timeless_metrics,
    tiny_recipe, wait_until, write_photo_shards,
};
use nepa_tests::s3::{Fault, Rule, S3Server};
use tempfile::TempDir;

const OUT: &str = "s3://runs/a";
const WEIGHTS: [&str; 3] = [
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
];

/// Local data, a store for the output, and a folder for everything else.
struct Place {
    folder: TempDir,
    server: S3Server,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_photo_shards(&folder.path().join("data"), 3, 2, 10);
        let server = S3Server::start();
        server.create_bucket("runs");
        Self { folder, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn pretrain(&self, out: &str, settings: &[&str]) -> Command {
        let mut command = nepa();
        command
            .arg("pretrain")
            .arg(tiny_recipe())
            .arg("--data")
            .arg(self.path("data"))
            .args(["--out", out])
            .envs(self.server.env());
        for setting in settings {
            command.args(["--set", setting]);
        }
        let spool = format!("checkpoint.spool_dir=\"{}\"", self.path("spool").display());
        command.args(["--set", &spool]);
        command
    }

    /// The same run into a local folder.
    fn straight(&self, settings: &[&str], arguments: &[&str]) -> PathBuf {
        let out = self.path("straight");
        succeed(
            self.pretrain(out.to_str().unwrap(), settings)
                .args(arguments),
        );
        out
    }

    fn has(&self, key: &str) -> bool {
        self.server.get("runs", key).is_some()
    }

    fn has_step(&self, step: u64) -> bool {
        self.has(&format!("a/checkpoints/step-{step:08}/manifest.json"))
    }

    /// The newest checkpoint in the store and its step.
    fn newest_step(&self) -> Option<u64> {
        let keys = self.server.keys("runs");
        let step = |key: &String| {
            let rest = key.strip_prefix("a/checkpoints/step-")?;
            rest.strip_suffix("/manifest.json")?.parse().ok()
        };
        keys.iter().filter_map(step).max()
    }

    /// Metrics and weights in the store are those of a local run.
    #[track_caller]
    fn assert_same(&self, local: &Path) {
        let joined = self.path("joined.jsonl");
        std::fs::write(&joined, self.server.get("runs", "a/metrics.jsonl").unwrap()).unwrap();
        assert_eq!(
            timeless_metrics(&joined),
            timeless_metrics(&local.join("metrics.jsonl"))
        );
        let newest = newest_checkpoint(local);
        let name = newest.file_name().unwrap().to_str().unwrap();
        for file in WEIGHTS {
            let key = format!("a/checkpoints/{name}/{file}");
            let sent = self.server.get("runs", &key);
            let sent = sent.unwrap_or_else(|| panic!("{key} is not there"));
            assert!(sent == std::fs::read(newest.join(file)).unwrap(), "{key}");
        }
    }

    /// Nothing waits any more, and nobody is left to hold the output.
    #[track_caller]
    fn assert_put_away(&self) {
        let left = std::fs::read_dir(self.path("spool")).unwrap().count();
        assert_eq!(left, 0, "the spool is not empty");
        let owner = self.server.get("runs", "a/owner.json").unwrap();
        let owner: serde_json::Value = serde_json::from_slice(&owner).unwrap();
        assert_eq!(owner["released"], true);
    }
}

fn start(command: &mut Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[track_caller]
fn end_with(child: Child, code: i32) -> Output {
    // One that never ends is killed, and so has another code.
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
    let place = Place::new();
    let settings = ["train.steps=90", "checkpoint.every_steps=10"];
    let straight = place.straight(&settings, &[]);
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
        let is_frozen = matches!(fault, Fault::Latency(_));
        // A frozen request ends after io.request_timeout_s.
        let mut command = place.pretrain(OUT, &settings);
        command.args(["--set", "io.request_timeout_s=2"]);
        let child = start(&mut command);
        wait_until("the first checkpoint", || place.has_step(10));
        place.server.add_fault(Rule::put("", 0..u64::MAX, fault));
        std::thread::sleep(Duration::from_millis(if is_frozen { 4500 } else { 2500 }));
        place.server.clear_faults();
        let said = text(&end_with(child, 0));
        let parts = [
            "cannot write to s3://runs/a",
            "waits in",
            "done    90 steps in ",
        ];
        assert_says(&said, &parts);
        place.assert_same(&straight);
        place.assert_put_away();
        eprintln!("fault {number}: as if nothing had happened");
    }
}

#[test]
fn what_a_run_could_not_send_is_sent_by_resume() {
    let place = Place::new();
    let straight = place.straight(&[], &[]);
    let manifest = "a/checkpoints/step-00000012/manifest.json";
    place
        .server
        .add_fault(Rule::put(manifest, 0..u64::MAX, Fault::Unavailable));
    let child = start(&mut place.pretrain(OUT, &["io.outage_s=1"]));
    let said = text(&end_with(child, 1));
    let spool = place.path("spool");
    let parts = [
        "the checkpoint of step 12 could not be sent to s3://runs/a",
        "SlowDown",
        spool.to_str().unwrap(),
        "--resume",
    ];
    assert_says(&said, &parts);
    assert!(!place.has_step(12));
    place.server.clear_faults();
    succeed(place.pretrain(OUT, &[]).arg("--resume"));
    place.assert_same(&straight);
    place.assert_put_away();
}

#[test]
fn a_second_run_is_refused_and_a_frozen_one_that_wakes_ends_itself() {
    let place = Place::new();
    let settings = [
        "train.steps=100000",
        "checkpoint.every_steps=20",
        "checkpoint.takeover_s=3",
    ];
    let frozen = start(&mut place.pretrain(OUT, &settings));
    wait_until("a checkpoint", || place.newest_step() >= Some(40));
    let second = start(place.pretrain(OUT, &settings).arg("--resume"));
    let parts = ["in use by another process", "process ", "--take-over"];
    assert_says(&text(&end_with(second, 1)), &parts);
    send_signal(&frozen, "-STOP");
    std::thread::sleep(Duration::from_millis(3500));
    let last = (place.newest_step().unwrap() + 40).to_string();
    let until = ["--max-steps", &last];
    succeed(place.pretrain(OUT, &settings).arg("--resume").args(until));
    let metrics = place.server.get("runs", "a/metrics.jsonl").unwrap();
    send_signal(&frozen, "-CONT");
    let said = text(&end_with(frozen, 1));
    assert_says(&said, &["was taken over by another process"]);
    assert!(metrics == place.server.get("runs", "a/metrics.jsonl").unwrap());
    let straight = place.straight(&settings, &until);
    place.assert_same(&straight);
    // And by force, from one that lives.
    let alive = start(place.pretrain(OUT, &settings).arg("--resume"));
    let now = place.newest_step().unwrap();
    wait_until("a checkpoint", || place.newest_step().unwrap() > now);
    let forced = ["--resume", "--take-over", "--max-steps", "100"];
    succeed(place.pretrain(OUT, &settings).args(forced));
    let said = text(&end_with(alive, 1));
    assert_says(&said, &["was taken over by another process"]);
}

#[test]
fn a_killed_run_is_followed_at_once_and_its_logs_cannot_be_broken() {
    let place = Place::new();
    let settings = ["train.steps=60", "checkpoint.every_steps=5"];
    let mut child = start(&mut place.pretrain(OUT, &settings));
    wait_until("a checkpoint", || place.newest_step() >= Some(10));
    send_signal(&child, "-KILL");
    child.wait().unwrap();
    // What a second writer might have left.
    place.server.put("runs", "a/metrics.jsonl", "{}\n");
    place.server.put("runs", "a/events.out.tfevents.nepa", "");
    let started = std::time::Instant::now();
    succeed(place.pretrain(OUT, &settings).arg("--resume"));
    assert!(started.elapsed() < Duration::from_secs(20));
    place.assert_same(&place.straight(&settings, &[]));
    place.assert_put_away();
}

#[test]
fn a_spool_without_room_does_not_end_a_run() {
    let place = Place::new();
    let mount = place.path("mount");
    std::fs::create_dir(&mount).unwrap();
    let mut command = place.pretrain(OUT, &["train.steps=20", "checkpoint.every_steps=10"]);
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
    place.assert_same(&place.straight(&settings, &[]));
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
    let place = Place::new();
    let out = place.path("out");
    let shard = place.path("data").join("train-1.parquet");
    let local = |arguments: &[&str]| {
        let mut command = place.pretrain(out.to_str().unwrap(), &[]);
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
    server.create_bucket("data");
    server.load_folder("data", "", &place.path("data")).unwrap();
    let remote = |arguments: &[&str]| {
        let mut command = nepa();
        command
            .arg("pretrain")
            .arg(tiny_recipe())
            .args(["--data", "s3://data/", "--out"])
            .arg(place.path("remote"))
            .envs(server.env())
            .args(arguments);
        command
    };
    succeed(&mut remote(&["--max-steps", "5"]));
    server.put("data", "train-1.parquet", content);
    let said = text(&end_with(start(&mut remote(&["--resume"])), 1));
    assert_says(&said, &["train-1.parquet (ETag", "--accept-data"]);
}
