//! `nepa pretrain`.
use std::path::PathBuf;
use std::process::ExitCode;

use crate::run::{Finish, Options, pretrain};

/// Trains the model of a recipe on Parquet shards and writes checkpoints and metrics to the output.
///
/// The output gets recipe.toml (the resolved recipe), metrics.jsonl (one JSON line a step), a TensorBoard event file,
/// bad_samples.jsonl and checkpoints/step-NNNNNNNN. Look at it with `tensorboard --logdir OUT`.
///
/// SIGTERM and Ctrl-C finish the step (or stop waiting for data), save and exit with 143 and 130; a second one ends at once.
/// After any end, even SIGKILL, the same command with --resume goes on from the newest whole checkpoint as if nothing had
/// happened. Where the output is a store, a checkpoint is kept on the disk until the store has it; training goes on meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  nepa pretrain trainer/recipes/quickstart.toml --data '/tmp/scenes/train-*.parquet' --out runs/quickstart
  nepa pretrain trainer/recipes/nepa-b14-in1k.toml --data 's3://bucket/in1k/train-*.parquet' --out s3://bucket/runs/b14
  nepa pretrain my.toml --data s3://bucket/in1k --split train --out s3://bucket/runs/b14
  nepa pretrain my.toml --out runs/a --set train.batch=512 --set train.epochs=100
  nepa pretrain my.toml --out runs/a --resume
  nepa pretrain my.toml --synthetic 50")]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct Args {
    /// The recipe, a TOML file; see trainer/recipes/.
    pub recipe: PathBuf,
    /// Shards in place of the recipe's data.urls: a path, a prefix or a glob; may be repeated.
    #[arg(long, value_name = "URL")]
    pub data: Vec<String>,
    /// Read the shards of one split alone, as their names or folders say it (as --set data.split=NAME).
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// End where something about the shards is doubtful, such as several splits (as --set data.strict=true).
    #[arg(long)]
    pub strict: bool,
    /// Output: a local folder or an object-store prefix. Without it: runs/ and the recipe file's name.
    #[arg(long, value_name = "URL")]
    pub out: Option<String>,
    /// Go on from the newest checkpoint in the output; starts at step 0 if there is none.
    #[arg(long)]
    pub resume: bool,
    /// With --resume: take an output in a store from a run that still seems to have it.
    #[arg(long, requires = "resume")]
    pub take_over: bool,
    /// With --resume: go on although shards were replaced by others of the same size since the checkpoint.
    #[arg(long, requires = "resume")]
    pub accept_data: bool,
    /// Override one value of the recipe by its dotted key; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub sets: Vec<String>,
    /// Write one JSON line for each sample trained on: step, shard, row, crop, flip, replacement.
    #[arg(long, value_name = "FILE")]
    pub trace_samples: Option<PathBuf>,
    /// Stop after this step of the run, saved; the learning rate stays that of the whole run.
    #[arg(long, value_name = "STEP")]
    pub max_steps: Option<u64>,
    /// Check all that can be checked and train nothing: recipe, device, data, output, memory; a batch is read and a step computed.
    #[arg(long, conflicts_with = "synthetic")]
    pub dry_run: bool,
    /// Measure instead of training: so many steps on one batch that is there already, then as many with loading. Prints both rates,
    /// their ratio and the time that a step waits for data; writes nothing to the output.
    #[arg(long, value_name = "STEPS", conflicts_with_all = ["out", "resume", "trace_samples", "max_steps"])]
    pub synthetic: Option<std::num::NonZeroU64>,
    /// With --synthetic, print one JSON object.
    #[arg(long, requires = "synthetic")]
    pub json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
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
        let overlap = crate::overlap::measure(&options, steps.get())?;
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
