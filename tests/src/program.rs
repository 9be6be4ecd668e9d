//! The `nepa` program as a subprocess, folders to run it in, shards of real JPEGs made in code, and
//! readers of what a run leaves behind.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::photos::encode_jpeg;
use crate::s3::S3Server;
use crate::shards::labelled_shard;

/// The program: `NEPA_BIN`, or the one that cargo built beside this test.
pub fn nepa() -> Command {
    let path = std::env::var_os("NEPA_BIN").map_or_else(
        || {
            let test = std::env::current_exe().expect("a running test has a path");
            test.parent()
                .and_then(Path::parent)
                .expect("target/PROFILE/deps/TEST")
                .join("nepa")
        },
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "{} is not built; run `cargo build -p nepa-trainer` first",
        path.display()
    );
    let mut command = Command::new(path);
    // Nothing of the caller's clouds gets into a test, and nothing waits for a terminal.
    for name in ["AWS_PROFILE", "AWS_ENDPOINT_URL", "RUST_LOG"] {
        command.env_remove(name);
    }
    // What a killed run leaves for the next one stays apart from that of real runs.
    let state = std::env::temp_dir().join("nepa-tests-state");
    command.env("XDG_STATE_HOME", state);
    command.stdin(Stdio::null());
    command
}

/// Runs a command that must succeed.
///
/// # Panics
///
/// If it does not, with what it said.
#[track_caller]
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().expect("the command starts");
    assert!(
        output.status.success(),
        "{command:?} failed:\n{}",
        text(&output)
    );
    output
}

/// Starts a program whose words are kept.
///
/// # Panics
///
/// If it does not start.
#[track_caller]
pub fn start(command: &mut Command) -> Child {
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the command starts")
}

/// Each of `parts` must be in what was said.
///
/// # Panics
///
/// If one is not.
#[track_caller]
pub fn assert_says(said: &str, parts: &[&str]) {
    let whole = joined(said);
    for part in parts {
        assert!(whole.contains(part), "{part:?} is not in:\n{said}");
    }
}

/// Messages as they were before they were broken into lines.
pub fn joined(said: &str) -> String {
    said.replace("\n  ", " ")
}

/// The smallest recipe that comes with the program.
pub fn tiny_recipe() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../trainer/recipes/tiny.toml")
}

/// Sends a signal such as `-TERM` to a program that runs.
///
/// # Panics
///
/// If there is no such program any more.
#[track_caller]
pub fn send_signal(child: &std::process::Child, signal: &str) {
    let status = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status();
    assert!(status.expect("kill is there").success(), "{signal}");
}

/// Waits until `is_so`, for a minute at most.
///
/// # Panics
///
/// If it is not so then.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while !is_so() {
        assert!(
            std::time::Instant::now() < deadline,
            "not within a minute: {what}"
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// Standard output and error of a finished program, for messages.
pub fn text(output: &Output) -> String {
    format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        joined(&String::from_utf8_lossy(&output.stderr))
    )
}

/// A small photo-like JPEG: slow waves of colour whose size, phase and pitch depend on `number`.
pub fn jpeg(number: u32) -> Vec<u8> {
    let (width, height) = (
        40 + number as usize * 7 % 37,
        36 + number as usize * 11 % 41,
    );
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..3 {
                let phase = (number * (channel + 1)) as f32 * 0.7;
                let pitch = 0.05 + 0.02 * (number % 9) as f32;
                let wave =
                    (x as f32 * pitch + phase).sin() + (y as f32 * pitch * 1.3 - phase).cos();
                pixels.push((127.5 + 60.0 * wave) as u8);
            }
        }
    }
    encode_jpeg(&pixels, width, height, turbojpeg::Subsamp::Sub2x2)
}

/// Writes `shards` Hugging Face shards of `row_groups` x `rows` JPEGs into `folder`, as
/// `train-N.parquet`.
pub fn write_photo_shards(folder: &Path, shards: u32, row_groups: u32, rows: u32) {
    std::fs::create_dir_all(folder).expect("a writable folder");
    for shard in 0..shards {
        let bytes = labelled_shard((0..row_groups).map(|row_group| {
            let first = (shard * row_groups + row_group) * rows;
            (first..first + rows)
                .map(|n| (Some(jpeg(n)), Some(format!("{n}.jpg")), i64::from(n % 10)))
                .collect()
        }));
        std::fs::write(folder.join(format!("train-{shard}.parquet")), bytes)
            .expect("a writable folder");
    }
}

/// A folder with three small shards of photos in `data`, and room for what the program writes.
#[derive(Debug)]
pub struct RunFolder(TempDir);

impl RunFolder {
    /// A new one, gone when it is dropped.
    ///
    /// # Panics
    ///
    /// If no folder can be made.
    #[expect(clippy::new_without_default, reason = "it writes files")]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a writable folder");
        write_photo_shards(&folder.path().join("data"), 3, 2, 10);
        Self(folder)
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `nepa pretrain tiny.toml --data DATA --out OUT` with such settings; what is no URL is a path
    /// in this folder. The recipe runs 12 steps of 8 images.
    pub fn pretrain(&self, data: &str, out: &str, settings: &[&str]) -> Command {
        let place = |name: &str| {
            if name.contains("://") {
                PathBuf::from(name)
            } else {
                self.path(name)
            }
        };
        let mut command = nepa();
        command.arg("pretrain").arg(tiny_recipe());
        command.arg("--data").arg(place(data));
        command.arg("--out").arg(place(out));
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        command
    }

    /// The lines of the metrics of a run into `out` in this folder, without times.
    pub fn metrics(&self, out: &str) -> Vec<String> {
        timeless_metrics(&self.path(out).join("metrics.jsonl"))
    }
}

/// A [`RunFolder`] and a store: its bucket `data` holds the same shards, `runs` is there for
/// outputs.
#[derive(Debug)]
pub struct ServedRun {
    folder: RunFolder,
    /// The store.
    pub server: S3Server,
}

impl ServedRun {
    /// A new one.
    ///
    /// # Panics
    ///
    /// If no folder can be made, or no server started.
    #[expect(clippy::new_without_default, reason = "it starts a server")]
    pub fn new() -> Self {
        let (folder, server) = (RunFolder::new(), S3Server::start());
        let loaded = server.load_folder("data", "", &folder.path("data"));
        loaded.expect("the shards");
        server.create_bucket("runs");
        Self { folder, server }
    }

    /// [`RunFolder::pretrain`] with the keys of the store; what cannot be sent to it waits in
    /// `spool`.
    pub fn pretrain(&self, data: &str, out: &str, settings: &[&str]) -> Command {
        let mut command = self.folder.pretrain(data, out, settings);
        let spool = format!("checkpoint.spool_dir=\"{}\"", self.path("spool").display());
        command.args(["--set", &spool]).envs(self.server.env());
        command
    }
}

impl std::ops::Deref for ServedRun {
    type Target = RunFolder;

    fn deref(&self) -> &RunFolder {
        &self.folder
    }
}

/// Whole lines of a file; none where there is no file.
pub fn count_lines(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap_or_default();
    bytes.split(|&byte| byte == b'\n').count() - 1
}

/// The lines of `metrics.jsonl` without the fields that hold times.
pub fn timeless_metrics(path: &Path) -> Vec<String> {
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let timeless = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
        let fields = value.as_object_mut().expect("an object");
        for name in ["images_per_second", "data_wait_ms", "step_ms", "loader"] {
            fields
                .remove(name)
                .unwrap_or_else(|| panic!("{line} lacks {name}"));
        }
        value.to_string()
    };
    text.lines().map(timeless).collect()
}

/// The seed of a random test, `NEPA_TEST_SEED` or another each time; said, so that a failure can be
/// repeated.
pub fn test_seed() -> u64 {
    let given = std::env::var("NEPA_TEST_SEED").ok();
    let seed = given.and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| u64::from(now.subsec_nanos()))
    });
    println!("seed {seed}; run again with NEPA_TEST_SEED={seed}");
    seed
}

/// The newest checkpoint folder of a local run.
pub fn newest_checkpoint(out: &Path) -> PathBuf {
    let entries = std::fs::read_dir(out.join("checkpoints"))
        .expect("a run's output")
        .flatten();
    let names = entries
        .map(|entry| entry.path())
        .filter(|path| path.join("manifest.json").exists());
    names
        .max()
        .unwrap_or_else(|| panic!("no checkpoint in {}", out.display()))
}
