//! `nepa export`.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use nepa_model::write_published;
use nepa_pipeline::{IoConfig, IoRuntime};

use crate::checkpoint::{read_weights, verify_folder};
use crate::output::fetch_checkpoint;

/// Writes a checkpoint's weights in the published layout: config.json and model.safetensors.
///
/// The result loads in the published PyTorch code, in `nepa eval` and, beside reference tensors, in `nepa verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nepa export runs/quickstart exported --ema
  nepa export s3://bucket/runs/b14/checkpoints/step-00100000 exported")]
pub struct Args {
    /// A checkpoint, or a run's output (its newest checkpoint); a path or URL.
    pub checkpoint: String,
    /// New folder for the two files.
    pub folder: PathBuf,
    /// The moving average instead of the raw weights.
    #[arg(long)]
    pub ema: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    for name in ["config.json", "model.safetensors"] {
        let path = args.folder.join(name);
        ensure!(
            !path.exists(),
            "{} exists already; give a new folder",
            path.display()
        );
    }
    let runtime = IoRuntime::new(1).context("cannot start the I/O thread")?;
    let (checkpoint, _downloaded) =
        fetch_checkpoint(&args.checkpoint, &IoConfig::default(), &runtime)?;
    verify_folder(&checkpoint)?;
    let (config, weights) = read_weights(&checkpoint, args.ema)?;
    write_published(&args.folder, &config, &weights)?;
    let which = if args.ema {
        "moving average"
    } else {
        "raw weights"
    };
    println!(
        "{}: {which} of {}, {} values in {} tensors",
        args.folder.display(),
        args.checkpoint,
        weights.flat.len(),
        weights.specs.len()
    );
    Ok(ExitCode::SUCCESS)
}
