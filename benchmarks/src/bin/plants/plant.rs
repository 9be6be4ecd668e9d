//! The plants: what is made slow, what should be said of it, and the change that is really made.
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, ensure};
use nepa_benchmarks::median;
use nepa_tests::s3::{Options, S3Server};
use serde_json::Value;

use crate::data::{Folders, Shape};

/// Where the shards are.
#[derive(Clone, Copy)]
pub(crate) enum Store {
    Disk,
    /// A server with so many milliseconds to the first byte, and so many MB/s of its line (0: as
    /// fast as it goes).
    Server(u64, f64),
}

/// What is profiled.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) shape: Shape,
    pub(crate) store: Store,
    pub(crate) flags: &'static str,
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
    pub(crate) fn new(shape: Shape, store: Store, flags: &'static str) -> Self {
        Self {
            shape,
            store,
            flags,
            crowded: false,
            one_core: false,
            cache: None,
            is_warm: false,
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
        let nepa = std::env::current_exe()?.with_file_name("nepa");
        ensure!(nepa.exists(), "{} is not built", nepa.display());
        let mut command = if self.one_core {
            let mut pinned = Command::new("taskset");
            pinned.args(["-c", "0"]).arg(nepa);
            pinned
        } else {
            Command::new(nepa)
        };
        let server = match self.store {
            Store::Disk => {
                command.arg("profile").arg(&folder);
                None
            }
            Store::Server(ms, mb) => {
                let server = S3Server::start_with(Options {
                    latency: Duration::from_millis(ms),
                    line_bytes_per_s: (mb > 0.0).then_some(mb * 1e6),
                    ..Options::default()
                })?;
                server.load_folder("plants", "", &folder)?;
                command.args(["profile", "s3://plants"]);
                command.envs(server.env());
                Some(server)
            }
        };
        if let Some(cache) = &self.cache {
            let set = format!("io.cache_dir={}", cache.display());
            command.args(["--recipe", "nepa-b14-in1k", "--set", &set]);
        }
        command.args(self.flags.split_whitespace());
        command.args(["--seconds", &seconds.to_string(), "--json"]);
        command.arg(&json);
        let output = crowded(self.crowded, || command.output())?;
        drop(server);
        ensure!(
            output.status.success(),
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let found = std::fs::read(&json).context("it wrote no report")?;
        Ok(serde_json::from_slice(&found)?)
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

/// A plant.
struct Plant {
    name: &'static str,
    setup: Setup,
    /// The stage and the cause that should be named.
    limit: &'static str,
    cause: &'static str,
    /// Words of a note that should be there.
    note: &'static str,
    /// The beginning of the change in the table of what-ifs, and the same really made.
    change: Option<(&'static str, Setup)>,
}

impl Plant {
    fn new(name: &'static str, setup: Setup, limit: &'static str, cause: &'static str) -> Self {
        Self {
            name,
            setup,
            limit,
            cause,
            note: "",
            change: None,
        }
    }

    fn changed(self, change: &'static str, setup: Setup) -> Self {
        Self {
            change: Some((change, setup)),
            ..self
        }
    }

    fn noted(self, note: &'static str) -> Self {
        Self { note, ..self }
    }
}

/// All of them. The cache is in a folder that outlives them.
fn plants(cache: &std::path::Path) -> Vec<Plant> {
    use Shape::{Broken, Gzip, Large, OneGroup, Plain, Png, Shrunk, SmallGroups, Zstd};
    use Store::{Disk, Server};
    let on = |shape| Setup::new(shape, Disk, "");
    let with = Setup::new;
    let far = Server(200, 0.0);
    let line = Server(0, 5.0);
    let cached = |is_warm| Setup {
        cache: Some(cache.join(if is_warm { "warm" } else { "cold" })),
        is_warm,
        ..with(Plain, Server(20, 1.0), "--batch 64")
    };
    vec![
        Plant::new(
            "5-row groups, 200 ms to the first byte",
            with(SmallGroups, far, "--max-requests 8"),
            "store",
            "latency",
        )
        .changed(
            "twice as many requests",
            with(SmallGroups, far, "--max-requests 16"),
        ),
        Plant::new(
            "another program on both cores",
            Setup {
                crowded: true,
                ..on(Plain)
            },
            "processor",
            "another program",
        )
        .changed("no other program", on(Plain)),
        Plant::new(
            "line of 27 MB/s, images of 12 Mpx, 1 thread",
            with(Large, Server(0, 27.0), "--decode-threads 1"),
            "processor",
            "large images",
        )
        .changed(
            "a decode thread more",
            with(Large, Server(0, 27.0), "--decode-threads 2"),
        ),
        Plant::new(
            "line of 5 MB/s",
            with(Plain, line, ""),
            "store",
            "bandwidth",
        )
        .changed("no store", on(Plain)),
        Plant::new(
            "2 connections, 50 ms",
            with(SmallGroups, Server(50, 0.0), "--max-requests 2"),
            "store",
            "latency",
        )
        .changed(
            "twice as many requests",
            with(SmallGroups, Server(50, 0.0), "--max-requests 4"),
        ),
        Plant::new(
            "1 decode thread",
            with(Plain, Disk, "--decode-threads 1"),
            "processor",
            "decode threads",
        )
        .changed("a decode thread more", on(Plain)),
        Plant::new("images of 12 Mpx", on(Large), "processor", "large images")
            .changed("images stored as JPEG", on(Shrunk(336))),
        Plant::new("all PNG", on(Png(1)), "processor", "format")
            .changed("every image stored as JPEG", on(Plain)),
        Plant::new("a quarter PNG", on(Png(4)), "processor", "format")
            .changed("every image stored as JPEG", on(Plain)),
        Plant::new("gzip column", on(Gzip), "processor", "unpacking")
            .changed("columns without compression", on(Plain)),
        Plant::new("zstd column", on(Zstd), "processor", ""),
        Plant::new("row group of 1 GB", on(OneGroup), "processor", "")
            .noted("largest row group has"),
        Plant::new("2 % corrupt", on(Broken), "processor", "").noted("max_bad_fraction"),
        Plant::new("cache, cold", cached(false), "store", "").noted("came from the cache"),
        Plant::new("cache, warm", cached(true), "processor", "").noted("came from the cache"),
        Plant::new(
            "window of 1 MiB",
            with(Plain, Disk, "--shuffle-window-mib 1"),
            "processor",
            "",
        )
        .noted("shuffle window is small"),
    ]
}

/// What was found of one plant in all repeats.
#[derive(Default)]
struct Row {
    said: Vec<String>,
    right: usize,
    before: Vec<f64>,
    after: Vec<f64>,
    foretold: Vec<f64>,
    measured: Vec<f64>,
    close: usize,
}

/// Profiles all plants and prints the table, each row when it is known.
pub(crate) fn run_all(
    folders: &Folders,
    repeats: usize,
    seconds: f64,
    only: &str,
) -> anyhow::Result<()> {
    let cache = tempfile::tempdir()?;
    let plants = plants(cache.path());
    let wanted = plants.iter().filter(|plant| plant.name.contains(only));
    let wanted = wanted.collect::<Vec<_>>();
    if wanted.is_empty() {
        return Ok(());
    }
    println!(
        "| plant | named | right | images/s | after the change | foretold | measured | within 15 % |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for plant in wanted {
        let mut row = Row::default();
        for repeat in 1..=repeats {
            eprintln!("{}: {repeat} of {repeats}", plant.name);
            measure(plant, folders, seconds, &mut row).with_context(|| plant.name)?;
        }
        println!("| {} | {} |", plant.name, row.cells(repeats));
    }
    println!();
    Ok(())
}

impl Row {
    fn cells(&self, repeats: usize) -> String {
        let middle = |values: &[f64], digits| format!("{:.*}", digits, median(values));
        let change = if self.after.is_empty() {
            " | | | ".to_owned()
        } else {
            format!(
                "{} | x {} | x {} | {} of {repeats}",
                middle(&self.after, 0),
                middle(&self.foretold, 2),
                middle(&self.measured, 2),
                self.close
            )
        };
        let mut said = self.said.clone();
        said.sort();
        said.dedup();
        format!(
            "{} | {} of {repeats} | {} | {change}",
            said.join("; "),
            self.right,
            middle(&self.before, 0),
        )
    }
}

/// Images a second of the loader as it is.
pub(crate) fn rate(found: &Value) -> f64 {
    found["images_per_second"]["median"].as_f64().unwrap_or(0.0)
}

fn measure(plant: &Plant, folders: &Folders, seconds: f64, row: &mut Row) -> anyhow::Result<()> {
    let found = plant.setup.profile(folders, seconds)?;
    let verdict = &found["verdict"];
    let limit = verdict["limit"].as_str().unwrap_or_default();
    let causes = verdict["causes"].as_array().map_or(&[][..], Vec::as_slice);
    let names = causes.iter().filter_map(|cause| cause["name"].as_str());
    let names = names.collect::<Vec<_>>();
    let notes = verdict["notes"].to_string();
    let is_named = plant.cause.is_empty() || names.contains(&plant.cause);
    let is_noted = notes.contains(plant.note);
    row.said.push(format!("{limit}: {}", names.join(", ")));
    row.right += usize::from(limit == plant.limit && is_named && is_noted);
    row.before.push(rate(&found));
    let Some((change, setup)) = &plant.change else {
        return Ok(());
    };
    let after = rate(&setup.profile(folders, seconds)?);
    let what_ifs = verdict["what_if"].as_array().map_or(&[][..], Vec::as_slice);
    let what = what_ifs.iter().find(|what| {
        let named = what["change"].as_str();
        named.is_some_and(|named| named.starts_with(change))
    });
    row.after.push(after);
    let measured = after / rate(&found);
    row.measured.push(measured);
    let Some(what) = what else {
        // It foretold no gain.
        row.foretold.push(1.0);
        row.close += usize::from((measured - 1.0).abs() <= 0.15);
        return Ok(());
    };
    let foretold = 1.0 + what["gain"].as_f64().unwrap_or(0.0);
    row.foretold.push(foretold);
    let interval = [0, 1].map(|end| 1.0 + what["gain_interval"][end].as_f64().unwrap_or(0.0));
    let is_within = (interval[0]..=interval[1]).contains(&measured);
    row.close += usize::from(is_within || (foretold / measured - 1.0).abs() <= 0.15);
    Ok(())
}
