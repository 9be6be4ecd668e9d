//! `nepa launch`.
use std::process::ExitCode;

use anyhow::ensure;

use super::help::with_exit_codes;
use super::values::at_least;
use crate::launch::launch;

/// Train with several processes on this machine.
///
/// Starts a command as so many ranks, which share every batch and sum their gradients: pretrain or
/// finetune, as it is written without launch. The numbers are those of one process, bit for bit;
/// with --resume a run may go on with another number of ranks. Cores are shared among the ranks.
///
/// Rank 0 alone writes and speaks; of the others errors are shown, with their names. A rank that
/// fails ends all. Ranks on several machines are started by torchrun --no-python, mpirun or srun:
/// docs/ranks.md.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
pub(crate) struct Args {
    /// How many: 1, 2, 4, 8, ..., a divisor of the micro-batches of a step.
    #[arg(short = 'n', long, value_name = "N", value_parser = at_least::<usize>(1))]
    ranks: usize,
    /// The command that all ranks run, behind `--`.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

const EXAMPLES: &str = "Examples:
  nepa launch -n 2 -- pretrain quickstart \\
      --data 'scenes/train-*.parquet' \\
      --set train.micro_batch=16
  nepa launch -n 4 -- pretrain my.toml --out runs/a --resume";

fn long_help() -> String {
    with_exit_codes(
        EXAMPLES,
        "  0          all ranks are done\n  \
         1          the ranks cannot be started; else the code\n             \
         of the first rank that failed",
    )
}

/// `check` fails where the program does not understand a command.
pub(crate) fn run(args: Args, check: impl Fn(&[String])) -> anyhow::Result<ExitCode> {
    let trains = ["pretrain", "finetune"];
    let first = args.command.first().map_or("", String::as_str);
    ensure!(
        trains.contains(&first),
        "nepa launch starts several ranks of `pretrain` or `finetune`, not of `{first}`\n\
         tip: nepa launch -n {} -- pretrain RECIPE",
        args.ranks
    );
    ensure!(
        args.ranks.is_power_of_two(),
        "{} ranks: a run has 1, 2, 4, 8, ... ranks, so that its numbers are the same with any of \
         them",
        args.ranks
    );
    check(&args.command);
    Ok(ExitCode::from(launch(args.ranks, &args.command)?))
}
