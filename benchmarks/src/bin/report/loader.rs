//! The report of what the loader does beside its rate: a slow store, start-up by the number of
//! shards, memory over millions of samples. `make versus` writes it, too.
//!
//! NEPA_TEST_DATA names a folder with imagenet-shaped/*.parquet and cifar10/*.parquet; without it,
//! scenes of `nepa sample-data` are read.
use std::path::Path;

use crate::child::command;
use crate::cpu::LOADER_COLUMNS;
use crate::inputs::{Server, Shards, parquet_files, ten_times, test_data};
use crate::machine::{Head, program};
use crate::sheet::{Measurement, Printed, Report};

const SLOW: &str = "\
The whole loader from S3 (our server, in memory, a process of its own), ten copies of the photos
twice, windows of 64 MiB, 2 decode threads, by turns: answers at once, and answers with 100 ms to
the first byte and 85 MB/s a connection. Times, allocations (of Rust code) and page faults are
counted from the first batch on.";

const START_UP: &str = "\
Time to the first batch of 64 crops to 224, by the number of shards (copies of one). The server is
in the same process and shares its cores. Medians of 3.";

const MEMORY: &str = "\
Batches of 64 small images, crops to 8, 2 decode threads; a line is fitted to the resident memory
after the first quarter. glibc gives each thread an arena of its own; with one arena (second row)
memory does not wander between them.
";

/// Measures everything and writes the report.
pub(crate) fn write(programs: &Path, path: &Path) -> anyhow::Result<Report> {
    let work = tempfile::tempdir()?;
    let photos = Shards::photos(programs, work.path())?;
    let small = test_data().map_or_else(|| photos.folder.clone(), |data| data.join("cifar10"));
    let shards = parquet_files(&photos.folder)?;
    // More than a window holds, so that windows follow each other as in a real data set.
    let copies = work.path().join("copies");
    ten_times(&shards, &copies)?;
    let head = Head {
        title: "The loader beside its rate",
        program: &program(programs),
        command: "report loader",
        data: &photos.title,
        ..Head::default()
    };
    let mut report = Report::create(path, &head.text())?;

    report.section("A slow store", SLOW, &format!("store | {LOADER_COLUMNS}"))?;
    let stores = [
        ("answers at once", ""),
        ("100 ms, 85 MB/s", "--latency-ms 100 --mbps 85"),
    ]
    .map(|(name, options)| (name, Server::start(programs, &copies, options)));
    for _ in 0..3 {
        for (name, server) in &stores {
            let mut loader = command(programs.join("loader"), "s3://bench --epochs 2 --name");
            loader.arg(name);
            match server {
                Ok(server) => report.measure(Measurement::new(300, *name, server.leads(loader)))?,
                Err(error) => report.fail(name, &format!("{error:#}"))?,
            }
        }
    }
    drop(stores);

    report.section("Start-up", START_UP, "")?;
    let mut startup = command(programs.join("startup"), "");
    startup.arg(&shards[0]);
    report.measure(Measurement::new(900, "startup", startup))?;

    report.section("Memory over many samples", MEMORY, "")?;
    let soak = |label| {
        let mut soak = command(programs.join("soak"), "--samples 3000000");
        soak.arg(&small);
        Measurement::new(900, label, soak)
    };
    report.measure(soak("soak"))?;
    let mut one_arena = soak("soak, one arena");
    one_arena.command.env("MALLOC_ARENA_MAX", "1");
    one_arena.printed = Printed::LastLine;
    report.measure(one_arena)?;
    Ok(report)
}
