//! The report of the processor: decoding, the loader, the training step. `make bench`.
//!
//! NEPA_TEST_DATA names a folder with imagenet-shaped/*.parquet; without it, scenes of `nepa
//! sample-data` are read. NEPA_TORCH_PYTHON names a Python that has torch and safetensors, and
//! NEPA_GOLDEN the golden folders, to race PyTorch as well.
use std::env::var_os;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::child::{command, text_of};
use crate::inputs::{Server, Shards, environment, install};
use crate::machine::{Head, program};
use crate::sheet::{Measurement, Report};

const DECODE: &str = "\
Random resized crop to 224, bilinear, flip, normalise to f32. Ours and Pillow take turns in blocks
of 25 images with the same crops. Read: processor time of the working thread (ours) or process
(Pillow); the first round is not counted.
";

const LOADER: &str = "\
Same crops, batches of 32, shuffled, 2 decode threads, 3 epochs, batches thrown away. Read:
processor time of the whole process (user and system); peak memory is VmHWM. \"S3\" is
`nepa-test-s3`, our test server, in memory, a process of its own on the same machine: it says what
S3's protocol costs the client, not what a real network does.

Times, allocations (of Rust code) and page faults are counted from the first batch on.";

/// Columns of the rows that `loader` prints, behind the first.
pub(crate) const LOADER_COLUMNS: &str = "images | images/s of one core | CPU-ms an image | \
     images/s by the clock | peak memory, MiB | first batch after, s | allocations an image | \
     page faults an image";

const STEP: &str = "\
Forward, backward, clipping, AdamW and average in f32 on the same weights, pixels and rotary
factors, no loader. Each contestant is a process of its own; they take turns, a step each; median of
7 steps after a first one. \"ours\" is the default engine, \"autograd\" `train.engine = \"autograd\"`,
\"PyTorch\" a plain one (`benchmarks/versus/nepa_torch.py`: scaled_dot_product_attention, fused
AdamW) on as many tokens. Ratios are of each round, over our engine's time. Peak memory is
the process's VmHWM. The last column is the greatest difference of a loss from our
engine's.";

const STEP_HEAD: &str = "
| model | batch / micro-batch | threads | engine | ms by the clock | CPU-ms | ratio by the clock \
| ratio of CPU time | peak memory, MiB | loss off by |
|---|---|---|---|---|---|---|---|---|---|";

/// Measures everything and writes the report.
pub(crate) fn write(programs: &Path, path: &Path) -> anyhow::Result<Report> {
    let work = tempfile::tempdir()?;
    let shards = Shards::photos(programs, work.path())?;
    let head = Head {
        title: "CPU",
        program: &program(programs),
        command: "make bench",
        data: &shards.title,
        ..Head::default()
    };
    let mut report = Report::create(path, &head.text())?;

    report.section("Decode and crop alone, one core", DECODE, "")?;
    let mut decode = command(programs.join("decode"), "");
    decode.arg(&shards.folder);
    match pillow() {
        Ok(python) => drop(decode.arg("--python").arg(python)),
        Err(error) => eprintln!(
            "SKIPPED: the comparison with Pillow needs python3 with venv and PyPI: {error:#}"
        ),
    }
    report.measure(Measurement::new(600, "decode", decode))?;

    let columns = format!("from | {LOADER_COLUMNS}");
    report.section("The whole loader", LOADER, &columns)?;
    let mut disk = command(programs.join("loader"), "--name disk");
    disk.arg(&shards.folder);
    report.measure(Measurement::new(600, "disk", disk))?;
    match Server::start(programs, &shards.folder, "") {
        Ok(server) => {
            let s3 = command(programs.join("loader"), "--name S3 s3://bench");
            report.measure(Measurement::new(600, "S3", server.leads(s3)))?;
        }
        Err(error) => report.fail("S3", &format!("{error:#}"))?,
    }

    report.section("A training step", STEP, "")?;
    let torch = var_os("NEPA_TORCH_PYTHON").filter(|python| !python.is_empty());
    match &torch {
        Some(python) => pytorch(&mut report, python)?,
        None => report.say("\nPyTorch was not measured: NEPA_TORCH_PYTHON is not set.\n")?,
    }
    report.text(STEP_HEAD)?;
    for arguments in [
        "benchmarks/versus/vit-ti.toml",
        "benchmarks/versus/vit-b-two-blocks.toml",
        "trainer/recipes/quickstart.toml",
        "benchmarks/versus/vit-ti.toml --threads 1",
    ] {
        let mut step = command(programs.join("step"), arguments);
        if let Some(python) = &torch {
            step.arg("--python").arg(python);
        }
        report.measure(Measurement::new(900, arguments, step))?;
    }
    Ok(report)
}

/// A Python with Pillow; its environment is that of scripts/check-pillow.py.
fn pillow() -> anyhow::Result<PathBuf> {
    let (python, was_there) = environment("nepa-check-pillow")?;
    if !was_there {
        install(&python, "pillow==13.0.0 numpy pyarrow zstandard")?;
    }
    Ok(python)
}

/// PyTorch's version, and whether its step agrees with the golden tensors.
fn pytorch(report: &mut Report, python: &OsStr) -> anyhow::Result<()> {
    let script = "import torch; print(torch.__version__)";
    match text_of(command(python, "-c").arg(script)) {
        Ok(version) => report.say(&format!("\nPyTorch {version}. "))?,
        Err(error) => {
            report.say("\n")?;
            return report.fail("PyTorch", &format!("{error:#}"));
        }
    }
    let Some(golden) = var_os("NEPA_GOLDEN").filter(|folder| !folder.is_empty()) else {
        report.say("Not compared with the golden tensors: NEPA_GOLDEN is not set.\n")?;
        return Ok(());
    };
    report.say("Beside the golden tensors:\n\n```text\n")?;
    for folder in ["gelu", "gated", "large_style"] {
        // There, so that it prints the folder's name and not its place.
        let mut check = Command::new(std::path::absolute(python)?);
        check
            .arg(std::path::absolute("benchmarks/versus/nepa_torch.py")?)
            .args(["check", folder])
            .current_dir(&golden);
        report.measure(Measurement::new(600, folder, check))?;
    }
    Ok(report.say("```\n")?)
}
