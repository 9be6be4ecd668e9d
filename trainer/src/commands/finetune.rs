//! `nepa finetune`.
use std::process::ExitCode;

use super::help::with_exit_codes;
use super::run_args::{OUTPUT, RunArgs, SIGNALS, run_to_end};
use crate::recipe::FromWeights;
use crate::run::{Kind, StartingPoint};
use crate::weights::Which;

/// Make a classifier of pretrained weights, resumably.
///
/// The recipe is a built-in one with [finetune] (`nepa recipes`) or a file; docs/recipe.md explains
/// every key. The architecture is that of the weights. Classes are those that the shards name, or
/// finetune.classes; a new head is zero.
///
/// With --test, the weights and their average are evaluated after each epoch, and the best epoch by
/// the average's top-1 is kept in OUT/best. Going on with --resume is exact, as in `nepa pretrain`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
pub(crate) struct Args {
    #[command(flatten)]
    run: RunArgs,
    /// Weights to begin with: a run, a checkpoint, or a published folder.
    ///
    /// A path or URL; of a run its newest checkpoint. Of pretraining or of a classifier, whose head
    /// is kept where its classes are the same. With --resume what the run has itself is taken.
    #[arg(long, value_name = "CHECKPOINT", help_heading = "Weights")]
    from: String,
    /// Raw weights or their moving average [default: raw].
    ///
    /// A published folder has no average.
    #[arg(
        long,
        value_name = "WHICH",
        value_enum,
        conflicts_with = "random_weights",
        help_heading = "Weights"
    )]
    weights: Option<Which>,
    /// Take only the architecture: fresh weights, to compare with.
    ///
    /// Training from scratch; with --set finetune.freeze=backbone, a head on random features.
    #[arg(long, help_heading = "Weights")]
    random_weights: bool,
    /// Labelled shards to evaluate on after each epoch; may be repeated.
    ///
    /// In place of the recipe's finetune.eval.urls.
    #[arg(long, value_name = "URL", help_heading = "Data")]
    test: Vec<String>,
}

const EXAMPLES: &str = "Examples:
  nepa finetune quickstart-finetune --from runs/quickstart \\
      --data 'scenes/train-*.parquet' \\
      --test 'scenes/val-*.parquet'
  nepa finetune nepa-b14-in1k-finetune \\
      --from s3://bucket/b14 \\
      --data 's3://bucket/in1k/train-*.parquet' \\
      --test 's3://bucket/in1k/val-*.parquet'
  nepa finetune my.toml --from runs/a --random-weights";

const ALSO: &str = "  evals.jsonl          a JSON line an evaluation: top-1,
                       top-5 and loss, raw and average
  best                 the checkpoint of the best one";

fn long_help() -> String {
    let examples = format!("{EXAMPLES}\n\n{OUTPUT}\n{ALSO}\n\n{SIGNALS}");
    with_exit_codes(
        &examples,
        "  0          all steps are done, or those up to --max-steps\n  \
         1          the run cannot start or go on; what was\n             \
         trained is saved",
    )
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let weights = match args.weights {
        _ if args.random_weights => FromWeights::Random,
        Some(Which::Ema) => FromWeights::Ema,
        Some(Which::Raw) | None => FromWeights::Raw,
    };
    run_to_end(&args.run.options(Kind::Finetune(StartingPoint {
        url: args.from,
        weights,
        eval_data: args.test,
    })))
}
