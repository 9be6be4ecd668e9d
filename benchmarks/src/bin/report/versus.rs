//! The report of our loader and its peers on the same images by turns. `make versus`.
//!
//! NEPA_TEST_DATA as in `cpu`. The peers come from PyPI into a virtual environment in ~/.cache
//! (about 7 GB, most of it PyTorch); spdl needs FFmpeg's libraries. The tables are made by
//! benchmarks/versus/race.py.
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::child::{command, installed, text_of};
use crate::inputs::{Shards, environment, install};
use crate::machine::{Head, program};
use crate::sheet::{Measurement, Report};

const REQUIREMENTS: &str = "benchmarks/versus/requirements-loaders.txt";

const TEXT: &str = "
Random resized crop to 224 (scale 0.08 to 1), bilinear, flip, normalise, f32 [3, 224, 224].
Contestants take turns; each is a process of its own. Ratios are of each round, medians of the
rounds.

One thread: the first 200 images, into memory that is used again (DALI has its own); crops are drawn
before the clock runs, ours by our own stream, DALI's inside its decoder and within the time. The
last column is of 50 images with the same crops: how far the picture is from Pillow's
(`benchmarks/versus/same_output.py`). OpenCV's INTER_LINEAR does not antialias, so it does less than
the others. FFmpeg moves a crop to even pixels where chroma is subsampled, hence spdl's difference;
exact crops would be slower.

Whole loaders: batches of 32, two workers, one pass over eight copies of the shards. Rates and
processor time (user and system, of all processes of a contestant) are read from the first batch on;
what was prepared behind the first batch, at most some batches of a hundred, is not in them. Memory
is ours at its peak (VmHWM) and that of the peers by samples (PSS), which may miss a peak. The first
batch is timed from the start of our program and from before the import of a peer. Left out: the 5 s
that Hugging Face's datasets sleeps at the end of each pass. LitData's index of the shards is made
in the first round and found there later. The S3 server is ours, in memory, in a process of its own
on the same cores, so rates by the clock are those of both.

";

/// Installs the peers, races them and writes the report.
pub(crate) fn write(programs: &Path, path: &Path, rounds: u64) -> anyhow::Result<Report> {
    let work = tempfile::tempdir()?;
    let (python, _) = environment("nepa-versus")?;
    install_peers(&python)?;
    let shards = Shards::photos(programs, work.path())?;
    let head = Head {
        title: "Our loader and its peers",
        program: &program(programs),
        command: &format!("report versus {rounds}"),
        data: &shards.title,
        more: &format!("- Peers: {}\n", peers(&python)?),
        ..Head::default()
    };
    let mut report = Report::create(path, &head.text())?;
    report.text(TEXT)?;
    let mut race = command(&python, "-u benchmarks/versus/race.py");
    race.arg(programs)
        .arg(&shards.folder)
        .arg(rounds.to_string());
    // Each of its processes has 120 s: 23 of a round, and 8 comparisons of pixels.
    report.measure(Measurement::new(
        600 + 120 * (23 * rounds + 8),
        "race",
        race,
    ))?;
    Ok(report)
}

/// One peer that cannot be had must not stop the others; its row will say that it is missing.
fn install_peers(python: &Path) -> anyhow::Result<()> {
    if install(python, &format!("--requirement {REQUIREMENTS}")).is_err() {
        let list = fs::read_to_string(REQUIREMENTS)?;
        for package in list.lines().filter(|line| !line.starts_with('#')) {
            if let Err(error) = install(python, package) {
                eprintln!("{package} could not be installed: {error:#}");
            }
        }
    }
    let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if installed("ffmpeg").is_none()
        && installed("apt-get").is_some()
        && is_root
        && let Err(error) = text_of(&mut command("apt-get", "install -y -qq ffmpeg"))
    {
        eprintln!("FFmpeg could not be installed, so spdl will not run: {error:#}");
    }
    Ok(())
}

/// The peers' versions.
fn peers(python: &Path) -> anyhow::Result<String> {
    let names =
        "datago datasets litdata nvidia-dali opencv pillow pyarrow s3fs simplejpeg spdl torch";
    let is_peer = |line: &&str| {
        let line = line.to_lowercase();
        names.split(' ').any(|name| line.starts_with(name))
    };
    let installed = text_of(&mut command(python, "-m pip freeze"))?;
    let lines: Vec<_> = installed.lines().filter(is_peer).collect();
    Ok(lines.join(" "))
}
