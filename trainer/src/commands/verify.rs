//! `nepa verify`.
use std::path::PathBuf;
use std::process::ExitCode;

use crate::golden::{Comparison, Measure, compare, grouped};
use crate::recipe::EngineChoice;
use crate::words;

/// Computes a folder's reference again and compares: sequences, loss, every gradient, and the optimiser's trajectory.
///
/// The folder holds config.json, model.safetensors and reference.safetensors (pixel_values, sequence_input, sequence_output, loss,
/// grad.NAME for every weight, rope_scale), and optionally trajectory.safetensors with info.json. A loss may be off by 1e-6, anything
/// else by 1e-5 relative to its length; the exit code is 1 if something is off by more.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  nepa verify golden/gelu")]
pub struct Args {
    /// Folder with weights and reference.
    pub folder: PathBuf,
    /// What computes loss, gradients and trajectory.
    #[arg(long, default_value = "cpu")]
    pub engine: EngineChoice,
    /// List every weight, not only the worst of each kind.
    #[arg(long)]
    pub all: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let comparisons = compare(&args.folder, args.engine)?;
    println!(
        "{:<34} {:>10} {:>10}",
        "greatest error of", "error", "allowed"
    );
    for group in grouped(&comparisons) {
        let worst = group[0];
        let verdict = if worst.holds() { "" } else { "  TOO MUCH" };
        let measure = if worst.measure == Measure::Absolute {
            "absolute"
        } else {
            "relative"
        };
        println!(
            "{:<34} {:>10.2e} {:>10.0e}  {measure}{verdict}",
            title(&group),
            worst.error,
            worst.tolerance
        );
        let named = group
            .iter()
            .filter(|comparison| !comparison.name.is_empty());
        let listed = if args.all {
            group.len()
        } else {
            3.max(group.iter().filter(|c| !c.holds()).count().min(10))
        };
        for comparison in named.take(listed) {
            println!("    {:>10.2e}  {}", comparison.error, comparison.name);
        }
    }
    let bad = comparisons
        .iter()
        .filter(|comparison| !comparison.holds())
        .count();
    if bad == 0 {
        let used = |comparison: &Comparison| comparison.error / comparison.tolerance;
        let most = comparisons.iter().map(used).fold(0.0, f64::max);
        println!(
            "\nagrees: all {} are within tolerance; the worst takes {} of it",
            words::counted(comparisons.len() as u64, "comparison"),
            words::percent(most)
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "\nDISAGREES: {bad} of {} are beyond tolerance; --all lists every one",
        words::counted(comparisons.len() as u64, "comparison")
    );
    Ok(ExitCode::FAILURE)
}

fn title(group: &[&Comparison]) -> String {
    let what = group[0].what;
    if group[0].name.is_empty() {
        what.to_owned()
    } else {
        format!("{what} ({})", group.len())
    }
}
