//! Arguments of every command that trains.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use super::values::{address, at_least};
use crate::ranks::PlaceArgs;
use crate::run::{Finish, Kind, Options, run};
use crate::trace::{StepsArg, TraceSteps};

#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub(crate) struct RunArgs {
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
    /// Write when what began and ended in some steps, for Perfetto.
    ///
    /// Requests, unpacking, decoding, batches, steps, evaluations, checkpoints: JSON that
    /// https://ui.perfetto.dev opens; 64 MiB at most.
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "dry_run",
        help_heading = "Output",
        hide_short_help = true
    )]
    pub trace: Option<PathBuf>,
    /// With --trace: these steps of the run, as in 100-110.
    ///
    /// Without it, ten steps after the first ten of this process.
    #[arg(
        long,
        value_name = "FIRST-LAST",
        requires = "trace",
        help_heading = "Output",
        hide_short_help = true
    )]
    pub trace_steps: Option<StepsArg>,
    /// Serve the run's numbers to Prometheus at this address.
    ///
    /// At http://IP:PORT/metrics, while the run lasts: step, loss, rates, what the loader does and
    /// what it waits for. 127.0.0.1:9400 for this machine alone, 0.0.0.0:9400 for others too; port
    /// 0 is any free one, and the address is printed. Anyone who reaches it can read it. Off
    /// without this flag; docs/profile.md lists what is served.
    #[arg(
        long,
        value_name = "IP:PORT",
        value_parser = address,
        help_heading = "Output",
        hide_short_help = true
    )]
    pub metrics_addr: Option<SocketAddr>,
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
    #[arg(
        long,
        requires = "resume",
        help_heading = "Going on",
        hide_short_help = true
    )]
    pub take_over: bool,
    /// With --resume: go on although shards were replaced.
    ///
    /// By others of the same size since the checkpoint. The numbers are then not those that the run
    /// would have had.
    #[arg(long, requires = "resume", help_heading = "Going on")]
    pub accept_data: bool,
    /// Be this one of several ranks, from 0.
    ///
    /// Otherwise RANK and WORLD_SIZE say so (nepa launch, torchrun --no-python), or Open MPI, or
    /// srun; without any of these a process is alone. docs/ranks.md.
    #[arg(
        long,
        value_name = "N",
        value_parser = at_least::<usize>(0),
        requires = "ranks",
        help_heading = "Ranks",
        hide_short_help = true
    )]
    pub rank: Option<usize>,
    /// With --rank: how many there are.
    ///
    /// 1, 2, 4, 8, ..., a divisor of the micro-batches of a step.
    #[arg(
        long,
        value_name = "N",
        value_parser = at_least::<usize>(1),
        requires = "rank",
        help_heading = "Ranks",
        hide_short_help = true
    )]
    pub ranks: Option<usize>,
    /// Where rank 0 waits for the others.
    ///
    /// Otherwise at MASTER_ADDR and one port above MASTER_PORT. Without either, MPI connects ranks
    /// that mpirun started, in a program that was built with it (make mpi).
    #[arg(
        long,
        value_name = "HOST:PORT",
        help_heading = "Ranks",
        hide_short_help = true
    )]
    pub meet: Option<String>,
    /// Check all that can be checked, and train nothing.
    ///
    /// Recipe, device, data, output, memory; a batch is read and a step computed.
    #[arg(long, help_heading = "Instead of training")]
    pub dry_run: bool,
}

pub(super) const OUTPUT: &str = "Output:
  recipe.toml          the recipe, every value filled in
  metrics.jsonl        a JSON line a step: loss, learning
                       rate, gradient norm, images a second,
                       what the loader did
  events.out.tfevents.nepa
                       the same for TensorBoard:
                       tensorboard --logdir OUT
  bad_samples.jsonl    images that could not be decoded
  checkpoints/step-NNNNNNNN
                       what --resume, eval, report and
                       export read";

pub(super) const SIGNALS: &str = "Signals:
  Ctrl-C, SIGTERM, SIGUSR1
                       finish the step (or stop waiting for
                       data), save and end
  a second one         end at once
  A store is given checkpoint.stop_s (30 s) for the last
  checkpoint; what it could not take is kept on this
  machine, and --resume sends it.";

impl RunArgs {
    /// What a run is begun with.
    pub(super) fn options(self, kind: Kind) -> Options {
        let out = self.out.unwrap_or_else(|| {
            let name = self
                .recipe
                .file_stem()
                .map_or("run".into(), |stem| stem.to_string_lossy());
            format!("runs/{name}")
        });
        let mut sets = self.sets;
        let split = self.split.map(toml::Value::String);
        sets.extend(split.map(|split| format!("data.split={split}")));
        sets.extend(self.strict.then(|| "data.strict=true".to_owned()));
        Options {
            kind,
            init: None,
            recipe: self.recipe,
            sets,
            data: self.data,
            out,
            resume: self.resume,
            trace_samples: self.trace_samples,
            trace: self.trace.map(|path| TraceSteps {
                path,
                steps: self.trace_steps.map(|StepsArg(steps)| steps),
            }),
            max_steps: self.max_steps,
            metrics_addr: self.metrics_addr,
            take_over: self.take_over,
            accept_data: self.accept_data,
            dry_run: self.dry_run,
            synthetic: None,
            place: PlaceArgs {
                rank: self.rank,
                ranks: self.ranks,
                meet: self.meet,
            },
        }
    }
}

/// Runs, and says by the exit code how it ended.
pub(super) fn run_to_end(options: &Options) -> anyhow::Result<ExitCode> {
    Ok(match run(options)? {
        Finish::Done => ExitCode::SUCCESS,
        Finish::Signal(signal) => ExitCode::from(128 + signal as u8),
    })
}
