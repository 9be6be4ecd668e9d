//! The report of our loader, from Rust and from Python, and its peers on the same images by turns.
//! `make versus`.
//!
//! NEPA_TEST_DATA as in `cpu`. Our wheel is that of `make wheel`. The peers come from PyPI into a
//! virtual environment in ~/.cache (about 8 GB, most of it PyTorch); spdl needs FFmpeg's libraries.
//! The tables are made by benchmarks/versus/race.py.
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::child::{command, installed, text_of};
use crate::inputs::{Shards, environment, install};
use crate::machine::{Head, program};
use crate::sheet::{Measurement, Report};

const REQUIREMENTS: &str = "benchmarks/versus/requirements-loaders.txt";

const TEXT: &str = "
Random resized crop to 224 (scale 0.08 to 1), bilinear, flip, normalise, f32 [3, 224, 224].
Contestants take turns, there and back; each is a process of its own. Ratios are of each round,
medians of the rounds.

One thread: the first 200 images, into memory that is used again (DALI has its own); crops are drawn
before the clock runs, ours by our own stream, DALI's inside its decoder and within the time. The
last column is of 50 images with the same crops: how far the picture is from Pillow's
(`benchmarks/versus/same_output.py`). OpenCV's INTER_LINEAR does not antialias, so it does less than
the others. FFmpeg moves a crop to even pixels where chroma is subsampled, hence spdl's difference;
exact crops would be slower.

Whole loaders: batches of 32, two workers, one pass over eight copies of the shards. Rates and
processor time (user and system, of all processes of a contestant) are read from the first batch on;
what was prepared behind the first batch, at most some batches of a hundred, is not in them. Memory
is ours at its peak (VmHWM) and that of the others by samples (PSS), which may miss a peak. The
first batch is timed from the start of our program and from before the import of a peer. Ours from
Python is the wheel, which other compilers (zig's) made, with the same settings; its batches are
tensors of torch where a peer brings that, whose import is in the time of the first batch, or else
arrays of NumPy. Left out: the 5 s that Hugging Face's datasets sleeps at the end of each pass.
LitData's index of the shards is made in the first round and found there later. The S3 server is
ours, in memory, in a process of its own on the same cores, so rates by the clock are those of both.

";

/// Installs our wheel and the peers, races them and writes the report. `only` names the whole
/// loaders that run; without any, all do, and the decoders.
pub(crate) fn write(
    programs: &Path,
    path: &Path,
    rounds: u64,
    only: &[String],
) -> anyhow::Result<Report> {
    let work = tempfile::tempdir()?;
    let (python, _) = environment("nepa-versus")?;
    let runs = |name: &str| only.is_empty() || only.iter().any(|wanted| wanted == name);
    install_peers(&python, &runs)?;
    if runs("ours-python") {
        install_wheel(programs, &python)?;
    }
    let shards = Shards::photos(programs, work.path())?;
    let names = only.join(",");
    let option = match names.as_str() {
        "" => String::new(),
        names => format!(" --only {names}"),
    };
    let shown = format!("report versus {rounds}{option}");
    let head = Head {
        title: "Our loader and its peers",
        program: &program(programs),
        command: &shown,
        data: &shards.title,
        more: &format!("- Peers: {}\n", peers(&python)?),
        ..Head::default()
    };
    let mut report = Report::create(path, &head.text())?;
    report.text(TEXT)?;
    let mut race = command(&python, "-u benchmarks/versus/race.py");
    race.arg(programs)
        .arg(&shards.folder)
        .arg(rounds.to_string())
        .args((!only.is_empty()).then_some(names));
    // Each of its processes has 120 s: 25 of a round, and 8 comparisons of pixels.
    report.measure(Measurement::new(
        600 + 120 * (25 * rounds + 8),
        "race",
        race,
    ))?;
    Ok(report)
}

/// The newest wheel of `make wheel`, in place of one that was installed earlier.
fn install_wheel(programs: &Path, python: &Path) -> anyhow::Result<()> {
    let target = programs
        .parent()
        .context("programs lie in a profile's folder")?;
    let wheels = target.join("wheels");
    let wheel = newest_wheel(&wheels)
        .with_context(|| format!("there is no wheel in {}: `make wheel`", wheels.display()))?;
    let pip = "-m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps";
    text_of(command(python, pip).arg(wheel)).map(drop)
}

fn newest_wheel(folder: &Path) -> Option<PathBuf> {
    let end = format!("_{}.whl", std::env::consts::ARCH);
    let paths = fs::read_dir(folder)
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    let is_ours = |path: &PathBuf| path.to_string_lossy().ends_with(&end);
    paths
        .filter(is_ours)
        .max_by_key(|path| fs::metadata(path).and_then(|file| file.modified()).ok())
}

/// What `runs` needs. One peer that cannot be had must not stop the others; its row will say that it
/// is missing.
fn install_peers(python: &Path, runs: &impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let list = fs::read_to_string(REQUIREMENTS)?;
    let packages = needed(&list, runs);
    if install(python, &packages.join(" ")).is_err() {
        for package in packages {
            if let Err(error) = install(python, package) {
                eprintln!("{package} could not be installed: {error:#}");
            }
        }
    }
    let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if runs("spdl")
        && installed("ffmpeg").is_none()
        && installed("apt-get").is_some()
        && is_root
        && let Err(error) = text_of(&mut command("apt-get", "install -y -qq ffmpeg"))
    {
        eprintln!("FFmpeg could not be installed, so spdl will not run: {error:#}");
    }
    Ok(())
}

/// The packages of a requirements file, less those of contestants that do not run: behind `#` stands
/// who needs a package, where not all do.
fn needed<'a>(list: &'a str, runs: &impl Fn(&str) -> bool) -> Vec<&'a str> {
    let lines = list.lines().filter(|line| !line.starts_with('#'));
    let split = lines.map(|line| line.split_once('#').unwrap_or((line, "")));
    split
        .filter(|(_, names)| names.is_empty() || names.split_whitespace().any(runs))
        .map(|(package, _)| package.trim())
        .collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "# The peers.\nnumpy==1\nspdl==2  # spdl\ntorch==3  # hf torch\n";

    #[test]
    fn only_what_runs_is_installed() {
        assert_eq!(needed(LIST, &|_| true), ["numpy==1", "spdl==2", "torch==3"]);
        assert_eq!(needed(LIST, &|name| name == "hf"), ["numpy==1", "torch==3"]);
        assert_eq!(needed(LIST, &|name| name == "ours-python"), ["numpy==1"]);
    }

    #[test]
    fn the_newest_wheel_of_this_machine_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let arch = std::env::consts::ARCH;
        let [old, new, other] = [
            format!("nepa-1-cp310-abi3-manylinux_2_28_{arch}.whl"),
            format!("nepa-2-cp310-abi3-manylinux_2_28_{arch}.whl"),
            "nepa-2-cp310-abi3-manylinux_2_28_other.whl".to_owned(),
        ]
        .map(|name| folder.path().join(name));
        assert_eq!(newest_wheel(folder.path()), None);
        fs::write(&new, "").unwrap();
        let file = fs::File::create(&old).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        fs::write(&other, "").unwrap();
        assert_eq!(newest_wheel(folder.path()), Some(new));
    }
}
