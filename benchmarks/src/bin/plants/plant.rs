//! The plants: what is made slow, what should be said of it, and the change that is really made.
use anyhow::Context;
use nepa_benchmarks::median;
use serde_json::Value;

use crate::data::{Folders, Shape};
use crate::setup::{Setup, Store};

const TURNS: u32 = 2;

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
    fn new(name: &'static str, setup: Setup) -> Self {
        Self {
            name,
            setup,
            limit: "",
            cause: "",
            note: "",
            change: None,
        }
    }

    fn limited(self, limit: &'static str, cause: &'static str) -> Self {
        Self {
            limit,
            cause,
            ..self
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
    use Shape::{
        Anew, Broken, Copies, Few, Gzip, Large, OneGroup, Plain, Png, Progressive, Shrunk,
        SmallGroups, Zstd,
    };
    use Store::{Disk, Server};
    let with = Setup::new;
    let on = |shape| with(shape, Disk);
    let far = || with(SmallGroups, Server(200, 0.0));
    let near = || with(SmallGroups, Server(50, 0.0));
    let large = || with(Large, Server(0, 27.0));
    let cached = |is_warm| Setup {
        cache: Some(cache.join(if is_warm { "warm" } else { "cold" })),
        is_warm,
        batch: Some(64),
        ..with(Few, Server(20, 5.0))
    };
    let crowd = Setup {
        crowded: true,
        ..on(Plain)
    };
    let small_window = Setup {
        window_mib: Some(1),
        ..on(Copies(8))
    };
    let plant = Plant::new;
    vec![
        plant("5-row groups, 200 ms, 8 requests", far().requests(8))
            .limited("store", "latency")
            .changed("twice as many requests", far().requests(16)),
        plant("another program on both cores", crowd)
            .limited("processor", "another program")
            .changed("no other program", on(Plain)),
        plant("27 MB/s, 12 Mpx, 1 thread", large().threads(1))
            .limited("store", "bandwidth")
            .changed("a decode thread more", large().threads(2)),
        plant("line of 5 MB/s", with(Few, Server(0, 5.0)))
            .limited("store", "bandwidth")
            .changed("no store", on(Few)),
        plant("2 connections, 50 ms", near().requests(2))
            .limited("store", "latency")
            .changed("twice as many requests", near().requests(4)),
        plant("1 decode thread", on(Plain).threads(1))
            .limited("processor", "decode threads")
            .changed("a decode thread more", on(Plain).threads(2)),
        plant("images of 12 Mpx", on(Large))
            .limited("processor", "large images")
            .changed("images stored as JPEG", on(Shrunk(336))),
        plant("all PNG", on(Png(1)))
            .limited("processor", "format")
            .changed("every image stored as baseline", on(Anew(1))),
        plant("a quarter PNG", on(Png(4)))
            .limited("processor", "format")
            .changed("every image stored as baseline", on(Anew(4))),
        plant("half progressive JPEG", on(Progressive(2)))
            .limited("processor", "format")
            .changed("every image stored as baseline", on(Anew(2))),
        plant("gzip column", on(Gzip))
            .limited("processor", "unpacking")
            .changed("columns without compression", on(Plain)),
        plant("zstd column", on(Zstd)).limited("processor", ""),
        plant("row group of 1 GB", on(OneGroup))
            .limited("processor", "")
            .noted("largest row group has"),
        plant("2 % corrupt", on(Broken))
            .limited("processor", "")
            .noted("max_bad_fraction"),
        // So few images are all in it before the first trial ends.
        plant("cache, cold", cached(false))
            .limited("processor", "")
            .noted("came from the cache"),
        plant("cache, warm", cached(true))
            .limited("processor", "")
            .noted("came from the cache"),
        plant("window of 1 MiB", small_window)
            .limited("processor", "")
            .noted("shuffle window is small"),
    ]
}

/// What was found of one plant in all repeats.
#[derive(Default)]
struct Row {
    said: Vec<String>,
    right: usize,
    profiled: Vec<f64>,
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
        "| plant | named | right | profiled, images/s | really | changed | foretold | measured | \
         within 15 % |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
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
            " | | | | ".to_owned()
        } else {
            format!(
                "{} | {} | x {} | x {} | {} of {repeats}",
                middle(&self.before, 0),
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
            middle(&self.profiled, 0),
        )
    }
}

/// Images a second of the loader as it is, by the profile.
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
    row.profiled.push(rate(&found));
    let Some((change, changed)) = &plant.change else {
        return Ok(());
    };
    // Both turn by turn, as the machine is not the same from second to second.
    let [mut before, mut after] = [0.0; 2];
    for _ in 0..TURNS {
        before += plant.setup.really(folders)? / f64::from(TURNS);
        after += changed.really(folders)? / f64::from(TURNS);
    }
    let what_ifs = verdict["what_if"].as_array().map_or(&[][..], Vec::as_slice);
    let what = what_ifs.iter().find(|what| {
        let named = what["change"].as_str();
        named.is_some_and(|named| named.starts_with(change))
    });
    row.before.push(before);
    row.after.push(after);
    let measured = after / before;
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
