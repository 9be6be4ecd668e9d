//! Does `nepa profile` name what was made slow, and is the gain that it foretells there when the
//! change is really made? Plants troubles, runs the program beside this one, and prints Markdown.
//!
//! Each plant is profiled; then the loader runs without the profiler, as it is and with the change
//! made. What is compared is the rate after the change over the rate before it: foretold, and
//! measured.
mod data;
mod plant;
mod setup;
mod simulation;
mod steps;

use std::path::PathBuf;

use clap::Parser;

/// Plant bottlenecks and see what `nepa profile` says of them.
#[derive(Debug, Parser)]
struct Args {
    /// Folder with Parquet shards of photos, a few hundred at least.
    photos: PathBuf,
    /// How often each plant is profiled.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Time of a profile, in seconds.
    #[arg(long, default_value_t = 12.0)]
    seconds: f64,
    /// Only plants whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let folders = data::Folders::new(&args.photos)?;
    if "simulation".contains(&args.only) {
        simulation::run(&folders, args.seconds)?;
    }
    if "steps".contains(&args.only) {
        steps::run(&folders, args.repeats, args.seconds)?;
    }
    plant::run_all(&folders, args.repeats, args.seconds, &args.only)
}
