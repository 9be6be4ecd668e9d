//! What is profiled by the program, and run without it.
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nepa_pipeline::{Dataset, DatasetConfig, IoConfig, IoRuntime, Loader, LoaderConfig};
use nepa_tests::s3::{Options, S3Server};
use serde_json::Value;

use crate::data::{Folders, Shape};

/// Batches of a real run; small, so that they tell a rate soon.
const BATCH: usize = 16;
/// Time of a real run, and of one over a slow line, in seconds.
const REALLY_S: f64 = 3.0;
const SLOWLY_S: f64 = 12.0;
/// For so long of its time a real run is not measured.
const SETTLE: f64 = 0.25;

/// The program beside this one.
pub(crate) fn program() -> anyhow::Result<PathBuf> {
    let nepa = std::env::current_exe()?.with_file_name("nepa");
    ensure!(nepa.exists(), "{} is not built", nepa.display());
    Ok(nepa)
}

/// Runs a program that must succeed.
pub(crate) fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Where the shards are.
#[derive(Clone, Copy)]
pub(crate) enum Store {
    Disk,
    /// A server with so many milliseconds to the first byte, and so many MB/s of its line (0: as
    /// fast as it goes).
    Server(u64, f64),
}

impl Store {
    fn server(self, folder: &Path) -> anyhow::Result<Option<S3Server>> {
        let Self::Server(ms, mb) = self else {
            return Ok(None);
        };
        let server = S3Server::start_with(Options {
            latency: Duration::from_millis(ms),
            line_bytes_per_s: (mb > 0.0).then_some(mb * 1e6),
            ..Options::default()
        })?;
        server.load_folder("plants", "", folder)?;
        Ok(Some(server))
    }
}

/// What is profiled. Settings that are none are the defaults.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) shape: Shape,
    pub(crate) store: Store,
    pub(crate) requests: Option<usize>,
    pub(crate) threads: Option<usize>,
    pub(crate) batch: Option<usize>,
    pub(crate) window_mib: Option<u64>,
    /// Images a second that are taken at most.
    pub(crate) consumer: Option<f64>,
    /// Two threads a core that do nothing but turn.
    pub(crate) crowded: bool,
    /// Only one core for the program.
    pub(crate) one_core: bool,
    /// A cache in this folder, through a recipe.
    pub(crate) cache: Option<PathBuf>,
    /// Whether it is filled before.
    pub(crate) is_warm: bool,
}

impl Setup {
    pub(crate) fn new(shape: Shape, store: Store) -> Self {
        Self {
            shape,
            store,
            requests: None,
            threads: None,
            batch: None,
            window_mib: None,
            consumer: None,
            crowded: false,
            one_core: false,
            cache: None,
            is_warm: false,
        }
    }

    pub(crate) fn requests(self, requests: usize) -> Self {
        Self {
            requests: Some(requests),
            ..self
        }
    }

    pub(crate) fn threads(self, threads: usize) -> Self {
        Self {
            threads: Some(threads),
            ..self
        }
    }

    /// What `nepa profile` finds.
    pub(crate) fn profile(&self, folders: &Folders, seconds: f64) -> anyhow::Result<Value> {
        if let Some(cache) = self.cache.as_ref().filter(|cache| cache.exists()) {
            std::fs::remove_dir_all(cache)?;
        }
        if self.is_warm {
            let fast = Self {
                store: Store::Server(0, 0.0),
                ..self.clone()
            };
            fast.run(folders, seconds / 2.0)?;
        }
        self.run(folders, seconds)
    }

    fn run(&self, folders: &Folders, seconds: f64) -> anyhow::Result<Value> {
        let folder = folders.of(self.shape)?;
        let work = tempfile::tempdir()?;
        let json = work.path().join("profile.json");
        let nepa = program()?;
        let mut command = if self.one_core {
            let mut pinned = Command::new("taskset");
            pinned.args(["-c", "0"]).arg(nepa);
            pinned
        } else {
            Command::new(nepa)
        };
        command.arg("profile");
        let server = self.store.server(&folder)?;
        match &server {
            Some(server) => command.arg("s3://plants").envs(server.env()),
            None => command.arg(&folder),
        };
        if let Some(cache) = &self.cache {
            let set = format!("io.cache_dir={}", cache.display());
            command.args(["--recipe", "nepa-b14-in1k", "--set", &set]);
        }
        let flags = [
            ("--max-requests", self.requests.map(|n| n.to_string())),
            ("--decode-threads", self.threads.map(|n| n.to_string())),
            ("--batch", self.batch.map(|n| n.to_string())),
            (
                "--shuffle-window-mib",
                self.window_mib.map(|n| n.to_string()),
            ),
            ("--consumer", self.consumer.map(|n| n.to_string())),
        ];
        for (flag, value) in flags {
            command.args(
                value
                    .map(|value| [flag.to_owned(), value])
                    .into_iter()
                    .flatten(),
            );
        }
        command.args(["--seconds", &seconds.to_string(), "--json"]);
        command.arg(&json);
        crowded(self.crowded, || succeed(&mut command))?;
        drop(server);
        let found = std::fs::read(&json).context("it wrote no report")?;
        Ok(serde_json::from_slice(&found)?)
    }

    /// Images a second that the loader gives with these settings, without the profiler: for
    /// [`REALLY_S`] from its first batch on, the first quarter left out.
    pub(crate) fn really(&self, folders: &Folders) -> anyhow::Result<f64> {
        // What was fetched before the first batch comes faster than a slow line.
        let seconds = match self.store {
            Store::Server(_, mb) if mb > 0.0 => SLOWLY_S,
            _ => REALLY_S,
        };
        let folder = folders.of(self.shape)?;
        let server = self.store.server(&folder)?;
        let mut io = IoConfig::default();
        io.max_requests = self.requests.unwrap_or(io.max_requests);
        let url = match &server {
            Some(server) => {
                io.store_options = server.store_options();
                "s3://plants".to_owned()
            }
            None => folder.to_string_lossy().into_owned(),
        };
        let data = DatasetConfig {
            urls: vec![url],
            ..DatasetConfig::default()
        };
        crowded(self.crowded, || {
            // Threads that are begun later stay on this core, too.
            let _cores = self.one_core.then(|| Cores::only("0")).transpose()?;
            let default = LoaderConfig::default();
            let config = LoaderConfig {
                global_batch: BATCH,
                max_bad_fraction: 1.0,
                shuffle_window_bytes: self.window_mib.map_or(1 << 30, |mib| mib << 20),
                decode_threads: self.threads.unwrap_or(default.decode_threads),
                ..default
            };
            let runtime = IoRuntime::new(2)?;
            let dataset = Dataset::open(&data, &io, &runtime)?;
            rate_of(
                &mut Loader::new(dataset, config, None)?,
                seconds,
                self.consumer,
            )
        })
    }
}

fn rate_of(loader: &mut Loader, seconds: f64, most: Option<f64>) -> anyhow::Result<f64> {
    loader.next_batch()?.context("no batch")?;
    let (mut since, mut is_settled) = (Instant::now(), false);
    let mut images = 0;
    loop {
        images += loader.next_batch()?.context("the data ended")?.len();
        if let Some(most) = most {
            let due = Duration::from_secs_f64(images as f64 / most);
            std::thread::sleep(due.saturating_sub(since.elapsed()));
        }
        let passed = since.elapsed().as_secs_f64();
        if is_settled && passed >= seconds * (1.0 - SETTLE) {
            return Ok(images as f64 / passed);
        }
        if !is_settled && passed >= seconds * SETTLE {
            (since, is_settled, images) = (Instant::now(), true, 0);
        }
    }
}

/// Keeps the calling thread, and threads that it begins, on some cores until it is dropped.
struct Cores {
    thread: String,
    before: String,
}

impl Cores {
    fn only(cores: &str) -> anyhow::Result<Self> {
        let link = std::fs::read_link("/proc/thread-self")?;
        let thread = link.file_name().context("no name")?;
        let thread = thread.to_string_lossy().into_owned();
        let status = std::fs::read_to_string("/proc/thread-self/status")?;
        let list = |line: &str| Some(line.strip_prefix("Cpus_allowed_list:")?.trim().to_owned());
        let before = status.lines().find_map(list).context("no list of cores")?;
        let found = Self { thread, before };
        found.set(cores)?;
        Ok(found)
    }

    fn set(&self, cores: &str) -> anyhow::Result<()> {
        let set = Command::new("taskset")
            .args(["-cp", cores, &self.thread])
            .output()?;
        ensure!(set.status.success(), "taskset cannot set {cores}");
        Ok(())
    }
}

impl Drop for Cores {
    fn drop(&mut self) {
        self.set(&self.before).expect("cores that it had");
    }
}

/// Calls `body`, with other threads on every core if it is to be `crowded`.
fn crowded<T>(crowded: bool, body: impl FnOnce() -> T) -> T {
    let threads = match std::thread::available_parallelism() {
        Ok(cores) if crowded => 2 * cores.get(),
        _ => 0,
    };
    let turning = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while turning.load(Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let found = body();
        turning.store(false, Relaxed);
        found
    })
}
