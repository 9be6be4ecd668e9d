//! `nepa verify`.
use std::process::ExitCode;

use anyhow::Context;
use nepa_pipeline::{IoConfig, IoRuntime};

use super::help::with_exit_codes;
use crate::console::messages::quoted_path;
use crate::console::words;
use crate::golden::{Comparison, Measure, compare, grouped};
use crate::recipe::EngineChoice;
use crate::weights;

/// Check the model against tensors of the published code.
///
/// Computes the reference of a folder again and compares: sequences (of a classifier, its logits),
/// loss, every gradient, and the optimiser's trajectory. A loss may be off by 1e-6, anything else by
/// 1e-5 relative to its length, and of a classifier all but gradients by 1e-6.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
pub(crate) struct Args {
    /// Folder with weights and reference.
    ///
    /// A path or URL.
    #[arg(value_name = "FOLDER")]
    pub folder: String,
    /// What computes loss, gradients and trajectory.
    #[arg(long, value_name = "ENGINE", default_value = "cpu")]
    pub engine: EngineChoice,
    /// List every weight, not only the worst of each kind.
    #[arg(long)]
    pub all: bool,
}

const EXAMPLES: &str = "Examples:
  nepa verify golden/gelu
  nepa verify golden/gelu --engine autograd --all";

fn long_help() -> String {
    let layout = "Layout of the folder:
  config.json              architecture, as published
  model.safetensors        weights, as published
  reference.safetensors    tensors of the published code:
    pixel_values           the images, [B, 3, S, S]
    sequence_input, sequence_output
                           tokens into the first block and
                           out of the last norm
    loss
    grad.NAME              gradient, for every weight NAME
    rope_scale             rotary draw that was used
  of a classifier, in place of the sequences:
    labels, soft_targets   [B] and [B, K]
    pooled, logits         what the head gets and says
    eval_logits, eval_loss in evaluation, by the labels
    drop_path.BLOCK.attention, drop_path.BLOCK.mlp
                           [B], 1 is kept, 0 dropped
  trajectory.safetensors, info.json
                           optional: weights and losses
                           over steps of the optimiser, and
                           its settings

Output: a line for each kind of tensor with its greatest error
and what is allowed, below it the worst weights by name.";
    with_exit_codes(
        &format!("{EXAMPLES}\n\n{layout}"),
        "  0          everything agrees\n  \
         1          something is off by more than is allowed, or the\n             \
         folder cannot be read",
    )
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = IoRuntime::new(1).context("cannot start the I/O thread")?;
    let (folder, _fetched) = weights::bring(
        &args.folder,
        &[
            "reference.safetensors",
            "trajectory.safetensors",
            "info.json",
        ],
        &IoConfig::default(),
        &runtime,
    )?;
    let reference = folder.join("reference.safetensors");
    anyhow::ensure!(
        reference.is_file(),
        "{} is not there\ntip: `nepa verify --help` says how the folder is laid out",
        quoted_path(&reference)
    );
    let comparisons = compare(&folder, args.engine)?;
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
