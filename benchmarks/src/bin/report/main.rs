//! Which report of the benchmarks is wanted? Runs the programs beside this one, each in a process
//! of its own with a time limit, and puts what they print into a report as it comes.
//!
//! It measures nothing itself, and needs neither cargo nor CUDA: `scripts/gpu-check` carries it to
//! machines that have a GPU and no Rust. Ends with code 1 if a row says FAILED.
mod child;
mod cpu;
mod gpu;
mod inputs;
mod loader;
mod machine;
mod plants;
mod ranks;
mod sheet;
mod table;
mod utilisation;
mod versus;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};

/// Writes a report of the benchmarks; run it in the root of the repository.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    wanted: Wanted,
}

#[derive(Debug, Subcommand)]
enum Wanted {
    /// Decoding, loading and the training step on the processor
    Cpu(To),
    /// Our loader, its wheel and its peers by turns; the peers come from PyPI (8 GB in ~/.cache)
    Versus {
        /// Turns of each.
        #[arg(default_value_t = 3)]
        rounds: u64,
        /// Race these whole loaders alone, beside ours, and install no others: ours-python, dali,
        /// datago, spdl, torch-tensors, torch, hf, litdata
        #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
        only: Vec<String>,
        #[command(flatten)]
        to: To,
    },
    /// A slow store, start-up by the number of shards, memory over many samples
    Loader(To),
    /// What `nepa profile` says of what was made slow, and of changes that are really made
    Plants(To),
    /// Sums over ranks, over TCP and MPI; needs mpirun and a build with the feature mpi
    Ranks(To),
    /// Tests and measurements on a GPU; scripts/gpu-check says what each part is
    Gpu {
        part: gpu::Part,
        /// The report; left out: report.md in $OUT or in target/gpu-check.
        report: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct To {
    /// The report; left out: DATE-NAME.md in benchmarks/results.
    #[arg(long)]
    report: Option<PathBuf>,
}

impl To {
    fn path(self, name: &str) -> PathBuf {
        let file = format!("benchmarks/results/{}-{name}.md", machine::date());
        self.report.unwrap_or_else(|| file.into())
    }
}

fn main() -> ExitCode {
    match write(Args::parse().wanted) {
        Ok(passed) => ExitCode::from(u8::from(!passed)),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the report and says whether no row of it failed.
fn write(wanted: Wanted) -> anyhow::Result<bool> {
    child::heed_signals()?;
    ensure!(
        Path::new("benchmarks/versus").is_dir(),
        "there is no benchmarks/versus here; run this in the root of the repository"
    );
    let program = std::env::current_exe().context("where does this program lie?")?;
    let programs = program.parent().context("a program lies in a folder")?;
    let report = match wanted {
        Wanted::Cpu(to) => cpu::write(programs, &to.path("cpu"))?,
        Wanted::Versus { rounds, only, to } => {
            versus::write(programs, &to.path("versus"), rounds, &only)?
        }
        Wanted::Loader(to) => loader::write(programs, &to.path("loader"))?,
        Wanted::Plants(to) => plants::write(programs, &to.path("profile"))?,
        Wanted::Ranks(to) => ranks::write(programs, &to.path("ranks"))?,
        Wanted::Gpu { part, report } => match gpu::run(part, programs, report)? {
            gpu::Done::Written(report) => report,
            gpu::Done::Passed(passed) => return Ok(passed),
        },
    };
    report.announce();
    Ok(!report.failed())
}
