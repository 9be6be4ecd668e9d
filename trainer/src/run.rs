//! The pretraining run: data in, checkpoints and metrics out, stopped and continued at any step
//! without a trace.
//!
//! [`pretrain`] sets up (recipe, data set, output, resume), [`Run::train`] is the loop.
//! `commands::pretrain` calls it.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use nepa_model::{MemoryPlan, init_weights};
use nepa_pipeline::{
    Dataset, DatasetError, DecoderStats, LoaderConfig, LoaderError, LoaderState, MixingForecast,
    SampleId,
};

use crate::batches::{Batches, TrainBatch};
use crate::checkpoint::{Checkpoint, CheckpointError, FileLengths, MoreFiles, RunState};
use crate::data_list::{DataList, shown};
use crate::device::DeviceError;
use crate::engine::{Engine, EngineError, StepReport, TrainingState};
use crate::lengthen::lengthen;
use crate::messages::quoted;
use crate::metrics::{
    EventFile, LogError, LogFile, MetricsFile, StepMetrics, TraceFile, lines_up_to,
};
use crate::output::{CheckpointName, Loaded, Log, METRICS, Output, OutputError};
use crate::recipe::{RecipeError, ResolvedRecipe};
use crate::schedule::Schedule;
use crate::setup::{Setup, engine, loader_config, ropes};
use crate::signals::{SaveFirst, end_after, received};
use crate::steps::{Peak, Steps, Summary};
use crate::{recap, words};

const BAD_SAMPLES: &str = "bad_samples.jsonl";
/// A checkpoint's list of the shards.
const DATA_LIST: &str = "dataset.json";
/// The logs, by their names in the output and in a checkpoint in a store.
const LOGS: [(&str, &str); 3] = [
    (METRICS, "metrics.jsonl.zst"),
    (EventFile::NAME, "events.zst"),
    (BAD_SAMPLES, "bad_samples.jsonl.zst"),
];
/// Time for putting everything away after a signal.
const END_WITHIN: Duration = Duration::from_millis(500);
/// How often a run that waits for a batch looks for a signal.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How much less even than random batches those of sorted rows are, for a warning.
const BADLY_MIXED: f64 = 2.0;
/// Time of steps that `--dry-run` computes, one at least.
const TRIED_FOR: Duration = Duration::from_secs(5);
/// Ids that an error message shows; the file has all.
const SHOWN_IDS: usize = 4;

/// What the command line adds to a recipe.
#[derive(Debug, Clone, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct Options {
    /// The recipe file.
    pub recipe: PathBuf,
    /// `key=value` overrides.
    pub sets: Vec<String>,
    /// Data in place of the recipe's.
    pub data: Vec<String>,
    /// Path or URL of the output.
    pub out: String,
    /// Whether to go on from the newest checkpoint.
    pub resume: bool,
    /// Where every sample is listed.
    pub trace_samples: Option<PathBuf>,
    /// Step at which to stop early; the schedule stays that of the whole run.
    pub max_steps: Option<u64>,
    /// Whether to take an output in a store from a run that still has it.
    pub take_over: bool,
    /// Whether to go on with shards that were replaced.
    pub accept_data: bool,
    /// Whether to check all that can be checked, and to train nothing.
    pub dry_run: bool,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// All steps are done (or those up to `max_steps`).
    Done,
    /// A signal asked to stop; everything is saved.
    Signal(i32),
}

/// A run cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The recipe is wrong.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The data set cannot be opened.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The loader cannot go on.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// The output cannot be opened.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A log file cannot be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The model cannot be computed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A thread or signal handler cannot be set up.
    #[error("cannot start the threads or signal handlers of the run")]
    Start(#[source] std::io::Error),
    /// The output is taken.
    #[error(
        "{} already holds a run; nothing was changed\ntip: go on with --resume, or give another --out",
        quoted(place)
    )]
    HoldsRun {
        /// The output.
        place: String,
    },
    /// The saved recipe cannot be read.
    #[error(
        "the recipe.toml in {place} is not readable; it is needed to check that --resume continues the same run"
    )]
    SavedRecipe {
        /// The output.
        place: String,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// Resuming with something else.
    #[error(
        "cannot resume {} with another {key}: the run was started with {saved}, \
         the recipe and command line now say {current}\
         \ntip: use the value of the saved run, or start a new one with another --out",
        quoted(place)
    )]
    OtherRun {
        /// The output.
        place: String,
        /// Dotted key.
        key: String,
        /// Value in the checkpoint.
        saved: String,
        /// Value now.
        current: String,
    },
    /// Resuming with fewer steps.
    #[error(transparent)]
    Shorter(#[from] crate::lengthen::Shorter),
    /// Resuming with another data set.
    #[error(
        "cannot resume {} with another data set: {changes}\
         \ntip: give the data of the saved run, or start a new one with another --out",
        quoted(place)
    )]
    OtherData {
        /// The output.
        place: String,
        /// What has changed, in shards.
        changes: String,
    },
    /// Resuming with shards of the same names and sizes, but other content.
    #[error(
        "cannot resume {place}: since its step {step} these shards have other content: {shards}. Give the old ones back, or go on with the \
         new ones with --accept-data; the numbers are then not those that the run would have had"
    )]
    ReplacedData {
        /// The output.
        place: String,
        /// The checkpoint's step.
        step: u64,
        /// The shards.
        shards: String,
    },
    /// The loss or the gradient is not finite.
    #[error(
        "the {what} of step {step} is not finite (loss {loss}, gradient norm {grad_norm}). The step before is saved as a checkpoint; \
         the batch is listed in {file}: {first_ids}, ... Lower train.lr, lengthen the warm-up, or look at these images"
    )]
    NonFinite {
        /// `loss` or `gradient`.
        what: &'static str,
        /// The step that failed.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Its gradient norm.
        grad_norm: f64,
        /// Where all ids of the batch are.
        file: String,
        /// Some of them.
        first_ids: String,
    },
    /// The loader had no batch, though it runs without end.
    #[error("the loader ended at step {step} of {steps}; this is a bug")]
    LoaderEnded {
        /// The step.
        step: u64,
        /// Steps of the run.
        steps: u64,
    },
}

/// The files that grow with every step.
#[derive(Debug)]
struct Logs {
    metrics: MetricsFile,
    events: Option<EventFile>,
    trace: Option<TraceFile>,
}

impl Logs {
    fn sync(&mut self) -> Result<FileLengths, LogError> {
        Ok(FileLengths {
            metrics_bytes: self.metrics.0.sync()?,
            events_bytes: self
                .events
                .as_mut()
                .map(|events| events.0.sync())
                .transpose()?,
            trace_bytes: self.trace.as_mut().map(TraceFile::sync).transpose()?,
        })
    }
}

/// A run that is set up.
struct Run<'a> {
    recipe: ResolvedRecipe,
    output: &'a Output,
    /// `dataset.json`.
    data_list: Vec<u8>,
    loader: Batches,
    engine: Box<dyn Engine>,
    schedule: Schedule,
    logs: Logs,
    says: Steps,
    /// The epoch whose end was told.
    told_epoch: Option<u64>,
    step: u64,
    samples: u64,
    /// What the last line of the metrics knew.
    decoded: DecoderStats,
    saved_step: Option<u64>,
    saved_at: Instant,
}

/// Runs a recipe to its end, to `max_steps`, or to a signal.
pub fn pretrain(options: &Options) -> Result<Finish, RunError> {
    let Setup {
        recipe,
        dataset,
        device,
        runtime,
    } = Setup::new(options)?;

    let mut output = Output::open(&options.out, &recipe.io, &recipe.checkpoint, &runtime)?;
    let holds_run = output.holds_run()?;
    if holds_run && !options.resume {
        return Err(RunError::HoldsRun {
            place: output.place().to_owned(),
        });
    }
    if options.dry_run {
        let setup = (recipe, dataset, device);
        let tried = try_run(&output, options, setup, holds_run);
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
        dataset,
        device,
        holds_run,
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
                "the last checkpoint is sent for at most {stop_s} s (checkpoint.stop_s), then it stays here for --resume"
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
    } = ended;
    let go_on = || {
        let Options {
            recipe, data, sets, ..
        } = options;
        recap::resume_command(recipe, data, sets, &options.out)
    };
    let Some(signal) = signal else {
        recap::show_end(&told, &summary, output.place());
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
    dataset: Arc<Dataset>,
    device: Device,
    holds_run: bool,
}

/// How training ended, all being saved.
struct Ended {
    step: u64,
    summary: Summary,
    /// The signal that ended it.
    signal: Option<i32>,
}

impl Start<'_> {
    /// Begins or goes on, and trains.
    fn run(self, output: &Output) -> Result<Ended, RunError> {
        let Self {
            options,
            mut recipe,
            dataset,
            device,
            holds_run,
        } = self;
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
            &dataset,
            &data_list,
            &device,
            holds_run,
        )?;
        if !holds_run || is_longer {
            output.write_recipe(&recipe.to_toml())?;
        }
        let position = position.as_ref();
        let logs = open_logs(
            output,
            &recipe,
            options.trace_samples.as_deref(),
            holds_run,
            position,
            &dataset,
        )?;
        let loader_config = loader_config(&recipe, Some(output.folder().join(BAD_SAMPLES)));
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
        let mut run = Run {
            schedule: recipe.train.schedule(),
            says: Steps::new(
                recipe.train.steps,
                stop_at(&recipe, options),
                recipe.log.every_steps,
                &device,
                peak(&recipe, &device),
            ),
            told_epoch: None,
            engine,
            saved_step: (step > 0).then_some(step),
            saved_at: Instant::now(),
            data_list: data_list.to_json(),
            recipe,
            output,
            loader,
            logs,
            step,
            samples,
            decoded: DecoderStats::default(),
        };
        if let Some(newest) = newest {
            let logs = run.snapshot()?;
            output.send_again(&newest, logs, run.recipe.checkpoint.keep)?;
        }
        // Until here a signal ends the program at once, as there is nothing to save.
        let _saving = SaveFirst {
            says: "saving after this step",
            most: None,
        }
        .begin();
        let signal = run.train(stop_at(&run.recipe, options))?;
        run.says.tell_epochs();
        Ok(Ended {
            step: run.step,
            signal,
            summary: run.says.summary(),
        })
    }
}

/// The last step of this process.
fn stop_at(recipe: &ResolvedRecipe, options: &Options) -> u64 {
    recipe
        .train
        .steps
        .min(options.max_steps.unwrap_or(u64::MAX))
}

/// What MFU is a share of, where it is known.
fn peak(recipe: &ResolvedRecipe, device: &Device) -> Option<Peak> {
    let peak_tflops = crate::device::peak_of(device, recipe.train.precision)?;
    Some(Peak {
        flops_per_image: recipe.model.training_flops_per_image(),
        flops_per_second: peak_tflops * 1e12,
    })
}

fn show_recap(
    recipe: &ResolvedRecipe,
    dataset: &Dataset,
    (parameters, memory): (usize, Option<&MemoryPlan>),
    output: &Output,
    position: Option<&RunState>,
    holds_run: bool,
) {
    let checkpoint = &recipe.checkpoint;
    let run = match position {
        Some(state) => format!("goes on after step {}", words::count(state.step)),
        None if holds_run => "begun, but not saved yet: starts at step 0".to_owned(),
        None => "a new run".to_owned(),
    };
    let often = [
        checkpoint
            .every_steps
            .map(|steps| format!("{} steps", words::count(steps))),
        checkpoint
            .every_minutes
            .map(|minutes| format!("{minutes} min")),
    ];
    let often = often.into_iter().flatten().collect::<Vec<_>>();
    let saved = match &often[..] {
        [] => "saved at the end".to_owned(),
        _ => format!("saved every {}", often.join(" and ")),
    };
    recap::show(
        recipe,
        dataset,
        parameters,
        memory.map(MemoryPlan::total_bytes),
        output.place(),
        &format!("{run}; {saved}, the newest {} kept", checkpoint.keep),
    );
}

/// Warns where the rows would mix badly if they were sorted by shard, and says what helps.
fn warn_of_mixing(dataset: &Dataset, config: &LoaderConfig) {
    let Some(forecast) = MixingForecast::new(dataset, config) else {
        return;
    };
    tracing::debug!("{forecast}");
    if forecast.ratio() < BADLY_MIXED {
        return;
    }
    let window = words::bytes(forecast.windows[0].0);
    let enough = forecast.windows.iter().skip(1);
    let better = enough.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(bytes, _)| {
        format!(
            "--set data.shuffle_window_bytes={bytes} ({}) mixes them better, and ",
            words::bytes(*bytes)
        )
    });
    tracing::warn!(
        "if the rows of these shards are sorted, by class for example, a shuffle window of {window} mixes them \
         little. {}`nepa pack` writes shuffled rows",
        better.unwrap_or_default()
    );
}

/// Where a run begins or goes on, before anything is written.
struct Begun {
    /// The checkpoint that it goes on from.
    newest: Option<CheckpointName>,
    position: Option<RunState>,
    engine: Box<dyn Engine>,
    /// Whether the recipe lengthens the run.
    is_longer: bool,
}

/// Finds where the run is, makes its engine and says what it is. Where the memory does not fit, the
/// output stays as it was.
fn begin(
    output: &Output,
    options: &Options,
    recipe: &mut ResolvedRecipe,
    dataset: &Dataset,
    data_list: &DataList,
    device: &Device,
    holds_run: bool,
) -> Result<Begun, RunError> {
    let (saved, longer) = if holds_run {
        continue_from(output, recipe, data_list, options)?
    } else {
        (None, None)
    };
    let (position, training, newest) = if let Some((newest, Checkpoint { state, training })) = saved
    {
        (Some(state), training, Some(newest))
    } else {
        let weights = init_weights(&recipe.model, recipe.seed);
        (None, TrainingState::new(weights), None)
    };
    let parameters = training.weights.flat.len();
    let mut engine = engine(recipe, training, device)?;
    let choices = position.as_ref().and_then(|state| state.engine.as_ref());
    if choices.is_some_and(|choices| !engine.take_choices(choices)) {
        tracing::warn!(
            "the saved run computed its products by algorithms of another device or another version of cuBLASLt; they are chosen anew, \
             so the run goes on, but not bit for bit as it would have there"
        );
    }
    show_recap(
        recipe,
        dataset,
        (parameters, engine.memory()),
        output,
        position.as_ref(),
        holds_run,
    );
    if let Some(longer) = &longer {
        println!("{longer}");
    }
    Ok(Begun {
        newest,
        position,
        engine,
        is_longer: longer.is_some(),
    })
}

/// Checks all that can be checked without training: a batch is read, a step is computed and no
/// weight changed, and nothing is left in the output.
fn try_run(
    output: &Output,
    options: &Options,
    (mut recipe, dataset, device): (ResolvedRecipe, Arc<Dataset>, Device),
    holds_run: bool,
) -> Result<String, RunError> {
    let data_list = DataList::new(&dataset);
    let Begun {
        position,
        mut engine,
        ..
    } = begin(
        output,
        options,
        &mut recipe,
        &dataset,
        &data_list,
        &device,
        holds_run,
    )?;
    let position = position.as_ref();
    if let Some(path) = &options.trace_samples
        && position.is_none()
    {
        TraceFile::check_free(path)?;
    }
    let config = loader_config(&recipe, None);
    warn_of_mixing(&dataset, &config);
    let mut loader = Batches::open(
        dataset,
        config,
        position.map(|state| &state.loader),
        &device,
        recipe.train.precision,
        recipe.engines(),
    )?;
    let step = position.map_or(0, |state| state.step);
    let steps = recipe.train.steps;
    let mut times = Vec::new();
    // The first one is slower: memory is touched for the first time, kernels are chosen.
    while times.len() < 3 && times.iter().sum::<Duration>() < TRIED_FOR {
        let Some(batch) = loader.next_batch()? else {
            return Err(RunError::LoaderEnded { step, steps });
        };
        let started = Instant::now();
        batch.with_images(|images| engine.step(images, &ropes(&recipe, step)))?;
        times.push(started.elapsed());
    }
    let least = times.iter().min().copied().unwrap_or_default();
    let rest = stop_at(&recipe, options).saturating_sub(step);
    Ok(format!(
        "all is well; nothing was trained or written. A step takes {:.0} ms, so {} take about {} if loading keeps up",
        least.as_secs_f64() * 1e3,
        words::counted(rest, "step"),
        words::duration(least.mul_f64(rest as f64)),
    ))
}

impl Run<'_> {
    /// The loop; gives the signal that ended it, if one did. All is saved then.
    fn train(&mut self, stop_at: u64) -> Result<Option<i32>, RunError> {
        while self.step < stop_at {
            let position = self.loader.state();
            let started = Instant::now();
            while !self.loader.wait(LOOK_EVERY) {
                self.output.check()?;
                self.says.wait(self.step, started);
                if let Some(signal) = received() {
                    self.save(position)?;
                    return Ok(Some(signal));
                }
            }
            let batch = match self.loader.next_batch() {
                Ok(batch) => batch,
                Err(error) => return Err(self.stop_without_batch(position, error).into()),
            };
            let batch = batch.ok_or(RunError::LoaderEnded {
                step: self.step,
                steps: self.recipe.train.steps,
            })?;
            let waited = started.elapsed();
            self.output.check()?;

            let ropes = ropes(&self.recipe, self.step);
            let report = batch.with_images(|images| self.engine.step(images, &ropes))?;
            if !(report.loss.is_finite() && report.grad_norm.is_finite()) {
                return Err(self.stop_before(&batch, position, &report)?);
            }
            let lr = self.schedule.at(self.step);
            self.engine.update(lr)?;
            self.step += 1;
            self.samples += batch.samples().len() as u64;

            let metrics = self.metrics(&batch, &report, lr, started.elapsed(), waited);
            self.logs.metrics.write(&metrics)?;
            if let Some(events) = &mut self.logs.events {
                events.write(&metrics)?;
            }
            if let Some(trace) = &mut self.logs.trace {
                trace.write(self.step, batch.samples())?;
            }
            self.says.show(&metrics, batch.samples().len() as u64);
            self.tell_epoch();

            if let Some(signal) = received() {
                self.save(self.loader.state())?;
                return Ok(Some(signal));
            }
            if self.save_is_due() {
                self.save(self.loader.state())?;
            }
        }
        self.save(self.loader.state())?;
        Ok(None)
    }

    /// Says that an epoch has ended, once all of its batches are trained on.
    fn tell_epoch(&mut self) {
        let Some(report) = self.loader.last_epoch() else {
            return;
        };
        if self.told_epoch.replace(report.epoch) != Some(report.epoch) {
            let train = &self.recipe.train;
            self.says
                .end_epoch(report, train.steps.div_ceil(train.steps_per_epoch.max(1)));
        }
    }

    fn metrics(
        &mut self,
        batch: &TrainBatch,
        report: &StepReport,
        lr: f64,
        total: Duration,
        waited: Duration,
    ) -> StepMetrics {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        let decoders = self.loader.decoder_stats().map(|now| {
            let since = now.since(&self.decoded);
            self.decoded = now;
            since.into()
        });
        StepMetrics {
            step: self.step,
            epoch: batch.epoch(),
            samples: self.samples,
            loss: report.loss,
            lr,
            grad_norm: report.grad_norm,
            images_per_second: batch.samples().len() as f64 / total.as_secs_f64(),
            data_wait_ms: milliseconds(waited),
            step_ms: milliseconds(total.saturating_sub(waited)),
            cos_target: report.cos_target,
            cos_previous: report.cos_previous,
            copy_win: report.copy_win,
            decoders,
        }
    }

    fn save_is_due(&self) -> bool {
        let checkpoint = &self.recipe.checkpoint;
        let by_steps = checkpoint
            .every_steps
            .is_some_and(|every| self.step.is_multiple_of(every));
        let by_time = checkpoint
            .every_minutes
            .is_some_and(|minutes| self.saved_at.elapsed().as_secs_f64() >= 60.0 * minutes);
        by_steps || by_time
    }

    /// Saves the current weights with the position `loader`; the log files are on the disk before
    /// the checkpoint says so.
    fn save(&mut self, loader: LoaderState) -> Result<(), RunError> {
        if self.saved_step == Some(self.step) {
            return Ok(());
        }
        let files = self.logs.sync()?;
        let (recipe, version) = (self.recipe.clone(), RunState::VERSION);
        let state = RunState {
            version,
            step: self.step,
            samples: self.samples,
            loader,
            files,
            recipe,
            engine: self.engine.choices(),
        };
        let checkpoint = Checkpoint {
            state,
            training: self.engine.export()?,
        };
        let more = MoreFiles::from([(DATA_LIST, self.data_list.clone())]);
        let logs = self.snapshot()?;
        self.output
            .save(&checkpoint, more, logs, self.recipe.checkpoint.keep)?;
        self.saved_step = Some(self.step);
        self.saved_at = Instant::now();
        Ok(())
    }

    /// The logs as they are now, where they have to be sent.
    fn snapshot(&self) -> Result<Vec<Log>, RunError> {
        if !self.output.is_remote() {
            return Ok(Vec::new());
        }
        let path = self.output.folder().join(BAD_SAMPLES);
        let mut logs = Vec::with_capacity(LOGS.len());
        for (name, kept_as) in LOGS {
            let (content, path) = match name {
                METRICS => self.logs.metrics.0.content()?,
                EventFile::NAME => match &self.logs.events {
                    Some(events) => events.0.content()?,
                    None => continue,
                },
                _ => match std::fs::read(&path) {
                    Ok(content) => (content, Some(path.clone())),
                    Err(_) => continue,
                },
            };
            logs.push(Log {
                name,
                kept_as,
                content,
                path,
            });
        }
        Ok(logs)
    }

    /// Saves the step before the batch that the loader could not give, and tells where bad samples
    /// are listed; gives back why it could not.
    fn stop_without_batch(&mut self, position: LoaderState, mut error: LoaderError) -> LoaderError {
        if let LoaderError::TooManyBad { list, .. } = &mut error {
            *list = Some(format!("{}/{BAD_SAMPLES}", self.output.place()));
        }
        let bad_samples = std::fs::read(self.output.folder().join(BAD_SAMPLES));
        let saved = self.save(position).and_then(|()| {
            // With those of the batch that was not handed out.
            if self.output.is_remote()
                && let Ok(bad_samples) = bad_samples
            {
                self.output.write(BAD_SAMPLES, bad_samples)?;
            }
            Ok(())
        });
        match saved {
            Ok(()) => println!("the loader has failed; saved after step {}", self.step),
            Err(failure) => tracing::warn!(
                "step {} cannot be saved: {:#}",
                self.step,
                anyhow::Error::from(failure)
            ),
        }
        error
    }

    /// Saves the step before, lists the batch, and says so in an error.
    fn stop_before(
        &mut self,
        batch: &TrainBatch,
        position: LoaderState,
        report: &StepReport,
    ) -> Result<RunError, RunError> {
        self.save(position)?;
        let step = self.step + 1;
        let ids = batch
            .samples()
            .iter()
            .map(|sample| sample.id)
            .collect::<Vec<SampleId>>();
        let name = format!("nonfinite-step-{step:08}.json");
        let list = serde_json::json!({
            "step": step, "loss": report.loss.to_string(), "grad_norm": report.grad_norm.to_string(), "samples": ids,
        });
        self.output
            .write(&name, format!("{list:#}\n").into_bytes())?;
        let first_ids = ids
            .iter()
            .take(SHOWN_IDS)
            .map(|id| format!("({id})"))
            .collect::<Vec<_>>();
        Ok(RunError::NonFinite {
            what: if report.loss.is_finite() {
                "gradient"
            } else {
                "loss"
            },
            step,
            loss: report.loss,
            grad_norm: report.grad_norm,
            file: format!("{}/{name}", self.output.place()),
            first_ids: first_ids.join(", "),
        })
    }
}

/// The newest checkpoint, and what is to be said of a run that is lengthened.
type GoesOn = (Option<(CheckpointName, Checkpoint)>, Option<String>);

/// The newest whole checkpoint of an output that holds a run, proven to be of the same run as
/// `recipe`; the logs are then as they were. Where the run is lengthened by the recipe, also lines
/// that say so.
fn continue_from(
    output: &Output,
    recipe: &mut ResolvedRecipe,
    data_list: &DataList,
    options: &Options,
) -> Result<GoesOn, RunError> {
    if !options.dry_run {
        output.clean_up();
    }
    let newest = output.checkpoints()?.pop();
    let Some(newest) = newest else {
        // Stopped before its first checkpoint: the recipe alone says what it was.
        if let Some(text) = output.read_recipe()? {
            let place = output.place().to_owned();
            let saved: ResolvedRecipe =
                toml::from_str(&text).map_err(|source| RunError::SavedRecipe {
                    place,
                    source: Box::new(source),
                })?;
            let longer = lengthen(output.place(), &saved.train, &mut recipe.train, 0)?;
            same_run(output.place(), &saved, recipe)?;
            return Ok((None, longer));
        }
        return Ok((None, None));
    };
    let Loaded { checkpoint, more } = output.load(&newest)?;
    // What an earlier program has saved has no list, and a damaged one says nothing.
    let saved_list = more.get(DATA_LIST).map(|text| serde_json::from_slice(text));
    if let Some(Ok(saved)) = saved_list {
        same_data(
            output.place(),
            &checkpoint.state,
            &saved,
            recipe,
            data_list,
            options.accept_data,
        )?;
    }
    let saved = &checkpoint.state.recipe;
    let step = checkpoint.state.step;
    let longer = lengthen(output.place(), &saved.train, &mut recipe.train, step)?;
    same_run(output.place(), saved, recipe)?;
    if !options.dry_run {
        output.restore_logs(&more, &LOGS)?;
    }
    Ok((Some((newest, checkpoint)), longer))
}

/// Compares the shards of a checkpoint with those that are there.
fn same_data(
    place: &str,
    state: &RunState,
    saved: &DataList,
    recipe: &ResolvedRecipe,
    current: &DataList,
    accept: bool,
) -> Result<(), RunError> {
    let (place, changes) = (place.to_owned(), saved.changes(current));
    // The fingerprint decides whether it is another data set; the list only says in what.
    if state.recipe.dataset != recipe.dataset && !changes.layout.is_empty() {
        return Err(RunError::OtherData {
            place,
            changes: shown(&changes.layout),
        });
    }
    if changes.content.is_empty() {
        return Ok(());
    }
    let shards = shown(&changes.content);
    if !accept {
        return Err(RunError::ReplacedData {
            place,
            step: state.step,
            shards,
        });
    }
    tracing::warn!("going on with shards that have other content than before: {shards}");
    Ok(())
}

/// Compares all that decides a run's numbers; what only decides its speed or its logs may differ.
fn same_run(place: &str, saved: &ResolvedRecipe, current: &ResolvedRecipe) -> Result<(), RunError> {
    let numbers_only = |recipe: &ResolvedRecipe| {
        let mut recipe = recipe.clone();
        recipe.name = String::new();
        // A run may move between the processor and a GPU, and between engines.
        recipe.device = crate::device::DeviceChoice::default();
        recipe.train.engine = crate::recipe::EngineChoice::default();
        recipe.decode_threads = 0;
        recipe.prefetch_batches = 0;
        (recipe.jpeg, recipe.jpeg_largest) = (None, None);
        recipe.checkpoint = crate::recipe::CheckpointSection::default();
        recipe.log = crate::recipe::LogSection::default();
        recipe.io = nepa_pipeline::IoConfig::default();
        // A run may be lengthened.
        (recipe.train.steps, recipe.train.lengthened) = (0, Vec::new());
        // These follow from others, which an error should name.
        (recipe.train.accumulation, recipe.train.steps_per_epoch) = (0, 0);
        // Where the data lies may change; `dataset` tells whether it is the same.
        recipe.data.urls = Vec::new();
        recipe.data.mixture = Vec::new();
        (recipe.data.split, recipe.data.strict) = (None, false);
        // It only decides whether the run ends.
        recipe.data.max_bad_fraction = 0.0;
        serde_json::to_value(recipe).expect("a resolved recipe is plain data with string keys")
    };
    match first_difference("", &numbers_only(saved), &numbers_only(current)) {
        None => Ok(()),
        Some((key, saved, current)) => Err(RunError::OtherRun {
            place: place.to_owned(),
            key,
            saved,
            current,
        }),
    }
}

/// The dotted key, saved and current value of the first difference.
fn first_difference(
    key: &str,
    saved: &serde_json::Value,
    current: &serde_json::Value,
) -> Option<(String, String, String)> {
    use serde_json::Value;
    match (saved, current) {
        (Value::Object(saved), Value::Object(current)) => {
            let keys = saved
                .keys()
                .chain(current.keys().filter(|key| !saved.contains_key(*key)));
            keys.into_iter().find_map(|name| {
                let dotted = if key.is_empty() {
                    name.clone()
                } else {
                    format!("{key}.{name}")
                };
                let of = |map: &serde_json::Map<String, Value>| {
                    map.get(name).cloned().unwrap_or(Value::Null)
                };
                first_difference(&dotted, &of(saved), &of(current))
            })
        }
        _ if saved == current => None,
        _ => {
            let key = if key == "dataset" {
                "data set (fingerprint)"
            } else {
                key
            };
            Some((key.to_owned(), saved.to_string(), current.to_string()))
        }
    }
}

fn open_logs(
    output: &Output,
    recipe: &ResolvedRecipe,
    trace_path: Option<&Path>,
    holds_run: bool,
    position: Option<&RunState>,
    dataset: &Dataset,
) -> Result<Logs, RunError> {
    let lengths = position.map(|state| state.files);
    let metrics_path = output.folder().join(METRICS);
    let events_path = output.folder().join(EventFile::NAME);
    let mut metrics_bytes = lengths.map_or(0, |lengths| lengths.metrics_bytes);
    let mut events_bytes = lengths
        .and_then(|lengths| lengths.events_bytes)
        .unwrap_or(0);
    if output.is_remote()
        && let Some(state) = position
        && length(&metrics_path) < metrics_bytes
    {
        // A second run has written them anew, and the checkpoint, of an earlier program, has none
        // of its own.
        tracing::warn!(
            "{}/{METRICS} lacks lines that it had when the checkpoint of step {} was made; the run goes on with those that are there",
            output.place(),
            state.step
        );
        let text = std::fs::read_to_string(&metrics_path).unwrap_or_default();
        metrics_bytes = lines_up_to(&text, state.step) as u64;
        // Without all of its records it is begun anew.
        if length(&events_path) < events_bytes {
            events_bytes = 0;
        }
    }
    let mut metrics = MetricsFile(LogFile::open(&metrics_path, metrics_bytes)?);
    let events = recipe
        .log
        .tensorboard
        .then(|| EventFile::open(&events_path, events_bytes));
    let mut events = events.transpose()?;
    if output.is_remote() {
        metrics.0.keep_what_does_not_fit();
        if let Some(events) = &mut events {
            events.0.keep_what_does_not_fit();
        }
    }
    // A run that was stopped before its first checkpoint may have left lines, and they are its own.
    let trace_bytes = match lengths {
        Some(lengths) => lengths.trace_bytes,
        None => holds_run.then_some(0),
    };
    let trace = trace_path.map(|path| TraceFile::open(path, trace_bytes, dataset.shards()));
    Ok(Logs {
        metrics,
        events,
        trace: trace.transpose()?,
    })
}

/// Length of a file; 0 if it is not there.
fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceChoice;
    use crate::recipe::Recipe;

    #[test]
    fn a_run_may_go_on_on_another_device_and_with_other_threads_only() {
        let recipe = include_str!("../recipes/tiny.toml");
        let recipe = Recipe::parse(recipe, Path::new("tiny.toml"), &[]).unwrap();
        let saved = recipe.resolve(1000, "digest".to_owned()).unwrap();
        let mut current = saved.clone();
        current.device = DeviceChoice::Cuda(1);
        current.decode_threads += 1;
        current.jpeg = Some(crate::recipe::JpegChoice::Fixed);
        same_run("a", &saved, &current).unwrap();
        current.seed += 1;
        let error = same_run("a", &saved, &current).unwrap_err().to_string();
        assert!(error.contains("another seed"), "{error}");
    }
}
