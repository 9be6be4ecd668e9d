//! A run from its setup to its last line: the output is claimed, the run begun or gone on with,
//! trained, and what was saved is sent. Of several ranks this is rank 0; the others `follow`.
//! `commands::pretrain` and `commands::finetune` call it.
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use nepa_pipeline::{BadSampleList, Dataset, DecoderStats};

use super::agree::{Company, causes};
use super::bad_lines::BadLines;
use super::batches::Batches;
use super::begin::{Begun, begin, warn_of_mixing};
use super::company::{check, compare};
use super::data_list::DataList;
use super::dry_run::try_run;
use super::files::{BAD_SAMPLES, Logs};
use super::follow::follow;
use super::meter::Meter;
use super::options::{Finish, Options};
use super::phase::Phase;
use super::recap;
use super::set_up::set_up;
use super::setup::{Setup, is_remote, loader_config};
use super::steps::{Peak, Steps, Summary};
use super::train::Run;
use super::waiting::Verdict;
use crate::console::print::labelled;
use crate::console::words;
use crate::error::RunError;
use crate::exporter::{Exporter, Live};
use crate::output::{Output, OutputError, Retention};
use crate::ranks::{Ranks, RanksError, join};
use crate::recipe::ResolvedRecipe;
use crate::signals::{SaveFirst, end_after, received};
use crate::trace;

/// Time for putting everything away after a signal.
const END_WITHIN: Duration = Duration::from_millis(500);

/// Runs a recipe to its end, to `max_steps`, or to a signal, alone or as one of several ranks.
pub(crate) fn run(options: &Options) -> Result<Finish, RunError> {
    let ranks = join(&options.place)?;
    let ended = if ranks.rank() == 0 {
        lead(options, &ranks)
    } else {
        follow(options, &ranks)
    };
    let failed = ended.as_ref().err().map(|error| match error {
        RunError::Ranks(RanksError::Wire(ended)) => ended.blame(),
        error => (ranks.rank(), format!("has failed: {}", causes(error))),
    });
    let failed = failed.as_ref().map(|(rank, cause)| (*rank, cause.as_str()));
    ranks.leave(failed);
    ended
}

fn lead(options: &Options, ranks: &Ranks) -> Result<Finish, RunError> {
    check(options, ranks)?;
    let live = Live::default();
    // First, so that an address that cannot be had is told at once. It serves until the end.
    let exporter = options
        .metrics_addr
        .map(|address| Exporter::start(address, live.clone()))
        .transpose()?;
    if let Some(exporter) = exporter.as_ref().filter(|_| !options.dry_run) {
        labelled("metrics", &format!("at {}", exporter.url()));
    }
    let Setup {
        recipe,
        mut phase,
        dataset,
        device,
        runtime,
    } = set_up(options, ranks)?;
    compare(ranks, &recipe, options)?;

    let mut output = Output::open(&options.out, &recipe.io, &recipe.checkpoint, &runtime)?;
    let holds_run = output.holds_run()?;
    if holds_run && !options.resume {
        return Err(RunError::HoldsRun {
            place: output.place().to_owned(),
        });
    }
    if options.dry_run {
        let setup = (recipe, dataset, device);
        let tried = try_run(&output, options, setup, phase.as_mut(), holds_run);
        output.try_writing()?;
        println!("{}", tried?);
        return Ok(Finish::Done);
    }
    output.claim(options.take_over)?;
    let (outage_s, stop_s) = (recipe.io.outage_s, recipe.checkpoint.stop_s);
    let told = recipe.clone();
    let ended = Start {
        options,
        recipe,
        phase: phase.as_mut(),
        dataset,
        device,
        holds_run,
        live,
        ranks,
    }
    .run(&output);

    let deadline = |seconds: f64| Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, 1e9));
    let _sending = SaveFirst {
        says: "sending the last checkpoint",
        most: None,
    }
    .begin();
    let (mut stopped, mut end) = (None, deadline(outage_s));
    let sent = output.finish(|| {
        if stopped.is_none()
            && let Some(signal) = received()
        {
            stopped = Some(signal);
            end = end.min(deadline(stop_s));
            tracing::info!(
                "the last checkpoint is sent for at most {stop_s} s (checkpoint.stop_s), then it \
                 stays here for --resume"
            );
        }
        Instant::now() >= end
    });
    let (ended, sent) = match (ended, sent) {
        // Whoever has the output now is the reason.
        (Ok(_), Err(taken @ OutputError::TakenOver { .. })) => return Err(taken.into()),
        (Ok(ended), Err(error)) if stopped.is_some() => {
            tracing::warn!("{:#}", anyhow::Error::from(error));
            let signal = stopped;
            (Ended { signal, ..ended }, false)
        }
        (Ok(_), Err(error)) => return Err(error.into()),
        (Err(error), Err(unsent)) => {
            if !matches!(error, RunError::Output(OutputError::TakenOver { .. })) {
                tracing::warn!("{:#}", anyhow::Error::from(unsent));
            }
            return Err(error);
        }
        (Err(error), Ok(())) => return Err(error),
        (Ok(ended), Ok(())) => (ended, true),
    };
    let Ended {
        step,
        signal,
        summary,
        waited,
    } = ended;
    let go_on = || recap::resume_command(options, ranks.size());
    let Some(signal) = signal else {
        let done = (&summary, waited.as_ref());
        recap::show_end(options, &told, phase.as_ref(), done, output.place());
        if step < told.train.steps {
            let (step, steps) = (words::count(step), words::count(told.train.steps));
            println!("stopped at step {step} of {steps}; go on with: {}", go_on());
        }
        return Ok(Finish::Done);
    };
    let saved = if sent { "saved" } else { "kept here" };
    println!(
        "stopped by a signal and {saved} after step {step}; go on with: {}",
        go_on()
    );
    // What is still to be put away may wait for something that hangs.
    end_after(END_WITHIN, 128 + signal);
    Ok(Finish::Signal(signal))
}

/// What is known before the output is looked into.
struct Start<'a> {
    options: &'a Options,
    recipe: ResolvedRecipe,
    phase: &'a mut dyn Phase,
    dataset: Arc<Dataset>,
    device: Device,
    holds_run: bool,
    live: Live,
    ranks: &'a Ranks,
}

/// How training ended, all being saved.
struct Ended {
    step: u64,
    summary: Summary,
    /// What it waited for; `None` where it had no batch.
    waited: Option<Verdict>,
    /// The signal that ended it.
    signal: Option<i32>,
}

impl Start<'_> {
    /// Begins or goes on, and trains.
    fn run(self, output: &Output) -> Result<Ended, RunError> {
        let Self {
            options,
            mut recipe,
            phase,
            dataset,
            device,
            holds_run,
            live,
            ranks,
        } = self;
        let is_remote = is_remote(&dataset);
        let data_list = DataList::new(&dataset);
        let Begun {
            newest,
            position,
            engine,
            is_longer,
        } = begin(
            output,
            options,
            &mut recipe,
            phase,
            &dataset,
            &data_list,
            &device,
            holds_run,
            ranks,
        )?;
        if !holds_run || is_longer {
            output.write_recipe(&recipe.to_toml())?;
        }
        let position = position.as_ref();
        let logs = Logs::open(
            output,
            &recipe,
            options.trace_samples.as_deref(),
            holds_run,
            position,
            &dataset,
        )?;
        let list = output.folder().join(BAD_SAMPLES);
        let (bad_lines, bad_list) = if ranks.is_alone() {
            (None, None)
        } else {
            let lines = position.map_or(0, |state| state.loader.samples_bad);
            (
                Some(BadLines::new()?),
                Some(BadSampleList::open(&list, lines)?),
            )
        };
        let listed_in = bad_lines.as_ref().map(|lines| lines.path().to_owned());
        let loader_config = loader_config(&recipe, Some(listed_in.unwrap_or(list)), ranks);
        warn_of_mixing(&dataset, &loader_config);
        let loader = Batches::open(
            dataset,
            loader_config,
            position.map(|state| &state.loader),
            &device,
            recipe.train.precision,
            recipe.engines(),
        )?;
        let (step, samples) = position.map_or((0, 0), |state| (state.step, state.samples));
        let reader = loader.stats_reader();
        let images = (samples, loader.state().samples_bad);
        let train = &recipe.train;
        let own = train.batch / ranks.size();
        live.begin(step, train.steps, images, own, reader.clone());
        let began = position.map(|state| &state.loader);
        let mut run = Run {
            meter: Meter::new(reader),
            live,
            says: Steps::new(
                recipe.train.steps,
                options.stop_at(&recipe),
                recipe.log.every_steps,
                &device,
                Peak::of(&recipe, &device),
            ),
            told_epoch: None,
            engine,
            phase,
            mixed: Vec::new(),
            saved_step: (step > 0).then_some(step),
            saved_at: Instant::now(),
            data_list: data_list.to_json(),
            company: Company::new(ranks, bad_lines, began),
            bad_list,
            totals: began.map_or((0, 0), |state| (state.samples_tried, state.samples_bad)),
            replaced: 0,
            recipe,
            output,
            loader,
            logs,
            step,
            samples,
            decoded: DecoderStats::default(),
            trace: match &options.trace {
                Some(asked) => Some(trace::Steps::new(asked, step)?),
                None => None,
            },
        };
        let best = run.phase.eval_state().and_then(|state| state.best);
        output.send_best_again(best.map(|best| best.step))?;
        if let Some(newest) = newest {
            let retention = Retention::from(&run.recipe.checkpoint);
            for waiting in output.checkpoints()? {
                if waiting == newest || retention.is_milestone(waiting.step) {
                    let logs = run.logs.snapshot(output)?;
                    output.send_again(&waiting, logs, retention)?;
                }
            }
        }
        // Until here a signal ends the program at once, as there is nothing to save.
        let _saving = SaveFirst {
            says: "saving after this step",
            most: None,
        }
        .begin();
        let signal = run.train(options.stop_at(&run.recipe));
        if let Some(trace) = run.trace.take() {
            trace.finish(run.step);
        }
        let signal = signal?;
        run.says.tell_epochs();
        let summary = run.says.summary();
        let has_gpu_decoder = run.loader.decoder_stats().is_some();
        Ok(Ended {
            step: run.step,
            signal,
            waited: run.meter.verdict(summary.time, is_remote, has_gpu_decoder),
            summary,
        })
    }
}
