//! `nepa pretrain`.
use std::num::NonZeroU64;
use std::process::ExitCode;

use super::help::with_exit_codes;
use super::run_args::{OUTPUT, RunArgs, SIGNALS, run_to_end};
use super::values::at_least;
use crate::run::{Init, Kind, measure_overlap};
use crate::weights::Which;

/// Train the model of a recipe, resumably.
///
/// The recipe is the name of a built-in one (`nepa recipes`) or a file. Its values can be changed
/// one by one with --set; docs/recipe.md explains every key.
///
/// After any end, even SIGKILL or a power cut, the same command with --resume goes on from the
/// newest whole checkpoint as if nothing had happened. What would change the numbers (model, data,
/// batch, learning rate, ...) is refused by name then; only the length may grow: with a larger
/// train.steps or train.epochs the run goes on, and from that step on the learning rate is that of
/// the longer schedule. After a finished run it jumps up, then falls to 0 again.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
pub(crate) struct Args {
    #[command(flatten)]
    pub run: RunArgs,
    /// Begin with these weights instead of new ones.
    ///
    /// A run's output (its newest checkpoint), a checkpoint, or a published folder; a path or URL.
    /// Weights of pretraining, and of the recipe's very architecture. The optimiser is new, and so
    /// is the schedule. The run's recipe.toml says what it began with; --resume goes on without
    /// being told again, and not with other weights.
    #[arg(long, value_name = "CHECKPOINT", conflicts_with = "synthetic")]
    pub init: Option<String>,
    /// With --init: raw weights or their moving average [default: raw].
    #[arg(
        long,
        value_name = "WHICH",
        value_enum,
        requires = "init",
        hide_short_help = true
    )]
    pub init_weights: Option<Which>,
    /// Measure instead of training, over so many steps.
    ///
    /// So many on one batch that is there already, then as many with loading. Prints both rates,
    /// their ratio and the time that a step waits for data; writes nothing to the output.
    #[arg(
        long,
        value_name = "STEPS",
        value_parser = at_least::<NonZeroU64>(1),
        conflicts_with_all = [
            "out", "resume", "trace_samples", "trace", "max_steps", "metrics_addr", "dry_run"
        ],
        help_heading = "Instead of training"
    )]
    pub synthetic: Option<NonZeroU64>,
    /// With --synthetic: print one JSON object.
    #[arg(long, requires = "synthetic", help_heading = "Instead of training")]
    pub json: bool,
}

const EXAMPLES: &str = "Examples:
  nepa pretrain quickstart --data 'scenes/train-*.parquet'
  nepa pretrain nepa-b14-in1k --out s3://bucket/runs/b14 \\
      --data 's3://bucket/in1k/train-*.parquet'
  nepa pretrain my.toml --out runs/a \\
      --set train.batch=512 --set train.epochs=100
  nepa pretrain my.toml --out runs/a --resume
  nepa pretrain my.toml --out runs/b --init runs/a
  nepa pretrain my.toml --synthetic 50";

fn long_help() -> String {
    let examples = format!("{EXAMPLES}\n\n{OUTPUT}\n\n{SIGNALS}");
    with_exit_codes(
        &examples,
        "  0          all steps are done, or those up to --max-steps\n  \
         1          the run cannot start or go on; what was\n             \
         trained is saved",
    )
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut options = args.run.options(Kind::Pretrain);
    options.init = args.init.map(|url| Init {
        url,
        which: args.init_weights.unwrap_or(Which::Raw),
    });
    options.synthetic = args.synthetic.map(NonZeroU64::get);
    if let Some(steps) = options.synthetic {
        let overlap = measure_overlap(&options, steps)?;
        if args.json {
            println!("{}", serde_json::to_string(&overlap)?);
        } else {
            println!("{overlap}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    run_to_end(&options)
}
