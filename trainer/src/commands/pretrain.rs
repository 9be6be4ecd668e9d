//! `nepa pretrain`.
use std::path::PathBuf;
use std::process::ExitCode;

use super::help::with_exit_codes;
use super::values::at_least;
use crate::run::{Finish, Options, pretrain};

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
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub(crate) struct Args {
    /// Name of a built-in recipe, or a TOML file.
    ///
    /// What holds a `/` or ends in `.toml` is a file, all else a name.
    pub recipe: PathBuf,
    /// Change one value of the recipe; may be repeated.
    ///
    /// KEY is a dotted key such as train.batch, VALUE is written as in TOML; quotes around a text
    /// may be left out. Of keys that give the same thing (train.epochs and train.steps, train.lr
    /// and train.base_lr, train.warmup_fraction and train.warmup_steps) one takes the place of the
    /// other. `KEY=none` unsets a key.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Shards to train on: a path, prefix or glob; may be repeated.
    ///
    /// In place of the recipe's data.urls and data.mixture.
    #[arg(long, value_name = "URL", help_heading = "Data")]
    pub data: Vec<String>,
    /// Read the shards of one split alone.
    ///
    /// As their names or folders say it: train, validation, test, or any word of theirs (as --set
    /// data.split=NAME).
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub split: Option<String>,
    /// End where something about the shards is doubtful.
    ///
    /// Several splits, copies, missing shards; without it they are warned of (as --set
    /// data.strict=true).
    #[arg(long, help_heading = "Data")]
    pub strict: bool,
    /// Folder or object-store prefix for the run [default: runs/RECIPE].
    #[arg(long, value_name = "URL", help_heading = "Output")]
    pub out: Option<String>,
    /// Write one JSON line for each sample trained on.
    ///
    /// Step, shard, row, crop, flip, replacement.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub trace_samples: Option<PathBuf>,
    /// Stop after this step of the run, saved.
    ///
    /// The learning rate stays that of the whole run.
    #[arg(long, value_name = "STEP", value_parser = at_least::<u64>(0), help_heading = "Output")]
    pub max_steps: Option<u64>,
    /// Go on from the newest checkpoint; at step 0 if there is none.
    #[arg(long, help_heading = "Going on")]
    pub resume: bool,
    /// With --resume: take an output in a store from another run.
    ///
    /// One that still seems to have it; without this flag it is refused.
    #[arg(long, requires = "resume", help_heading = "Going on")]
    pub take_over: bool,
    /// With --resume: go on although shards were replaced.
    ///
    /// By others of the same size since the checkpoint. The numbers are then not those that the run
    /// would have had.
    #[arg(long, requires = "resume", help_heading = "Going on")]
    pub accept_data: bool,
    /// Check all that can be checked, and train nothing.
    ///
    /// Recipe, device, data, output, memory; a batch is read and a step computed.
    #[arg(
        long,
        conflicts_with = "synthetic",
        help_heading = "Instead of training"
    )]
    pub dry_run: bool,
    /// Measure instead of training, over so many steps.
    ///
    /// So many on one batch that is there already, then as many with loading. Prints both rates,
    /// their ratio and the time that a step waits for data; writes nothing to the output.
    #[arg(
        long,
        value_name = "STEPS",
        value_parser = at_least::<std::num::NonZeroU64>(1),
        conflicts_with_all = ["out", "resume", "trace_samples", "max_steps"],
        help_heading = "Instead of training"
    )]
    pub synthetic: Option<std::num::NonZeroU64>,
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
  nepa pretrain my.toml --synthetic 50";

const OUTPUT: &str = "Output:
  recipe.toml          the recipe, every value filled in
  metrics.jsonl        a JSON line a step: loss, learning
                       rate, gradient norm, images a second
  events.out.tfevents.nepa
                       the same for TensorBoard:
                       tensorboard --logdir OUT
  bad_samples.jsonl    images that could not be decoded
  checkpoints/step-NNNNNNNN
                       what --resume, eval, report and
                       export read";

const SIGNALS: &str = "Signals:
  Ctrl-C, SIGTERM      finish the step (or stop waiting for
                       data), save and end
  a second one         end at once
  A store is given checkpoint.stop_s (30 s) for the last
  checkpoint; what it could not take is kept on this
  machine, and --resume sends it.";

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
    let out = args.out.unwrap_or_else(|| {
        let name = args
            .recipe
            .file_stem()
            .map_or("run".into(), |stem| stem.to_string_lossy());
        format!("runs/{name}")
    });
    let mut sets = args.sets;
    let split = args.split.map(toml::Value::String);
    sets.extend(split.map(|split| format!("data.split={split}")));
    sets.extend(args.strict.then(|| "data.strict=true".to_owned()));
    let options = Options {
        recipe: args.recipe,
        sets,
        data: args.data,
        out,
        resume: args.resume,
        trace_samples: args.trace_samples,
        max_steps: args.max_steps,
        take_over: args.take_over,
        accept_data: args.accept_data,
        dry_run: args.dry_run,
    };
    if let Some(steps) = args.synthetic {
        let overlap = crate::run::measure_overlap(&options, steps.get())?;
        if args.json {
            println!("{}", serde_json::to_string(&overlap)?);
        } else {
            println!("{overlap}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    Ok(match pretrain(&options)? {
        Finish::Done => ExitCode::SUCCESS,
        Finish::Signal(signal) => ExitCode::from(128 + signal as u8),
    })
}
