//! The pretraining run: data in, checkpoints and metrics out, stopped and continued at any step without a trace.
//!
//! [`pretrain`] sets up (recipe, data set, output, resume), [`Run::train`] is the loop. `commands::pretrain` calls it.
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nepa_model::init_weights;
use nepa_pipeline::stats::DecoderStats;
use nepa_pipeline::{Dataset, DatasetError, LoaderError, LoaderState, MixingForecast, SampleId};

use crate::batches::{Batches, TrainBatch};
use crate::checkpoint::{Checkpoint, CheckpointError, FileLengths, RunState};
use crate::device::DeviceError;
use crate::engine::{Engine, EngineError, StepReport, TrainingState};
use crate::metrics::{EventFile, LogError, LogFile, MetricsFile, Progress, StepMetrics, TraceFile};
use crate::output::{METRICS, Output, OutputError};
use crate::recipe::{RecipeError, ResolvedRecipe};
use crate::schedule::Schedule;
use crate::setup::{Setup, engine, loader_config, ropes};

const BAD_SAMPLES: &str = "bad_samples.jsonl";
/// Ids that an error message shows; the file has all.
const SHOWN_IDS: usize = 4;

/// What the command line adds to a recipe.
#[derive(Debug, Clone, Default)]
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
        "{place} already holds a run: go on with --resume, or give another --out. Nothing was changed"
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
        "cannot resume {place} with another {key}: the run was started with {saved}, the recipe and command line now say {current}. \
         Use the value of the saved run, or start a new one with another --out"
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

/// Which signal asked to stop, if any; a second one ends the program at once.
#[derive(Debug)]
struct StopSignals(Arc<AtomicUsize>);

impl StopSignals {
    fn install() -> std::io::Result<Self> {
        let received = Arc::new(AtomicUsize::new(0));
        for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
            let again = Arc::new(AtomicBool::new(false));
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, again.clone())?;
            signal_hook::flag::register(signal, again)?;
            signal_hook::flag::register_usize(signal, received.clone(), signal as usize)?;
        }
        Ok(Self(received))
    }

    fn received(&self) -> Option<i32> {
        Some(self.0.load(Ordering::Relaxed) as i32).filter(|signal| *signal != 0)
    }
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
            events_bytes: self.events.as_mut().map(EventFile::sync).transpose()?,
            trace_bytes: self.trace.as_mut().map(TraceFile::sync).transpose()?,
        })
    }
}

/// A run that is set up.
struct Run {
    recipe: ResolvedRecipe,
    output: Output,
    loader: Batches,
    engine: Box<dyn Engine>,
    schedule: Schedule,
    logs: Logs,
    signals: StopSignals,
    progress: Progress,
    step: u64,
    samples: u64,
    /// What the last line of the metrics knew.
    decoded: DecoderStats,
    saved_step: Option<u64>,
    saved_at: Instant,
}

/// Runs a recipe to its end, to `max_steps`, or to a signal.
pub fn pretrain(options: &Options) -> Result<Finish, RunError> {
    let signals = StopSignals::install().map_err(RunError::Start)?;
    let Setup {
        recipe,
        dataset,
        device,
        runtime,
    } = Setup::new(options)?;

    let output = Output::open(&options.out, &recipe.io, &runtime)?;
    let holds_run = output.holds_run()?;
    if holds_run && !options.resume {
        return Err(RunError::HoldsRun {
            place: output.place().to_owned(),
        });
    }
    println!("{}", recipe.to_toml());
    let saved = if holds_run {
        continue_from(&output, &recipe)?
    } else {
        None
    };
    let (position, training) = if let Some(Checkpoint { state, training }) = saved {
        (Some(state), training)
    } else {
        let weights = init_weights(&recipe.model, recipe.seed);
        (None, TrainingState::new(weights))
    };
    // Before anything is written: where the memory does not fit, the output stays as it was.
    let mut engine = engine(&recipe, training, &device)?;
    let choices = position.as_ref().and_then(|state| state.engine.as_ref());
    if choices.is_some_and(|choices| !engine.take_choices(choices)) {
        tracing::warn!(
            "the saved run computed its products by algorithms of another device or another version of cuBLASLt; they are chosen anew, \
             so the run goes on, but not bit for bit as it would have there"
        );
    }
    if let Some(plan) = engine.memory() {
        println!("memory of the engine: {plan}");
    }
    if !holds_run {
        output.write_recipe(&recipe.to_toml())?;
    }
    let position = position.as_ref();
    match position {
        Some(state) => println!("going on in {} after step {}", output.place(), state.step),
        None => println!("starting at step 0 in {}", output.place()),
    }

    let logs = open_logs(
        &output,
        &recipe,
        options.trace_samples.as_deref(),
        holds_run,
        position,
        &dataset,
    )?;
    let loader_config = loader_config(&recipe, Some(output.folder().join(BAD_SAMPLES)));
    if let Some(forecast) = MixingForecast::new(&dataset, &loader_config) {
        println!("{forecast}");
    }
    let loader = Batches::open(
        dataset,
        loader_config,
        position.map(|state| &state.loader),
        &device,
        recipe.train.precision,
        recipe.engines(),
    )?;
    let (step, samples) = position.map_or((0, 0), |state| (state.step, state.samples));
    let run = Run {
        schedule: recipe.train.schedule(),
        progress: Progress::new(step, recipe.train.steps, recipe.log.every_steps),
        engine,
        saved_step: (step > 0).then_some(step),
        saved_at: Instant::now(),
        recipe,
        output,
        loader,
        logs,
        signals,
        step,
        samples,
        decoded: DecoderStats::default(),
    };
    run.train(options.max_steps)
}

impl Run {
    /// The loop.
    fn train(mut self, max_steps: Option<u64>) -> Result<Finish, RunError> {
        let stop_at = self.recipe.train.steps.min(max_steps.unwrap_or(u64::MAX));
        while self.step < stop_at {
            let position = self.loader.state();
            let started = Instant::now();
            let batch = match self.loader.next_batch() {
                Ok(batch) => batch,
                Err(error) => return Err(self.stop_without_batch(position, error).into()),
            };
            let batch = batch.ok_or(RunError::LoaderEnded {
                step: self.step,
                steps: self.recipe.train.steps,
            })?;
            let waited = started.elapsed();

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
            self.progress.show(&metrics);

            if let Some(signal) = self.signals.received() {
                self.save(self.loader.state())?;
                self.progress.say(&format!(
                    "stopped by a signal and saved after step {}; go on with --resume",
                    self.step
                ));
                return Ok(Finish::Signal(signal));
            }
            if self.save_is_due() {
                self.save(self.loader.state())?;
            }
        }
        self.save(self.loader.state())?;
        self.progress.say(&format!(
            "done: {} steps, saved in {}",
            self.step,
            self.output.place()
        ));
        Ok(Finish::Done)
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

    /// Saves the current weights with the position `loader`; the log files are on the disk before the checkpoint says so.
    fn save(&mut self, loader: LoaderState) -> Result<(), RunError> {
        if self.saved_step == Some(self.step) {
            return Ok(());
        }
        let files = self.logs.sync()?;
        self.output
            .upload(&[METRICS, EventFile::NAME, BAD_SAMPLES])?;
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
        self.output.save(
            &Checkpoint {
                state,
                training: self.engine.export()?,
            },
            self.recipe.checkpoint.keep,
        )?;
        self.saved_step = Some(self.step);
        self.saved_at = Instant::now();
        Ok(())
    }

    /// Saves the step before the batch that the loader could not give, and tells where bad samples are listed; gives back why it could not.
    fn stop_without_batch(&mut self, position: LoaderState, mut error: LoaderError) -> LoaderError {
        if let LoaderError::TooManyBad { file, .. } = &mut error {
            *file = format!(" All are in {}/{BAD_SAMPLES}.", self.output.place());
        }
        let saved = self
            .save(position)
            .and_then(|()| Ok(self.output.upload(&[BAD_SAMPLES])?));
        match saved {
            Ok(()) => self.progress.say(&format!(
                "the loader has failed; saved after step {}",
                self.step
            )),
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
        let path = self.output.folder().join(&name);
        let list = serde_json::json!({
            "step": step, "loss": report.loss.to_string(), "grad_norm": report.grad_norm.to_string(), "samples": ids,
        });
        std::fs::write(&path, format!("{list:#}\n")).map_err(|source| CheckpointError::Io {
            action: "write",
            path: path.clone(),
            source,
        })?;
        self.output.upload(&[&name])?;
        let shown = ids
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
            first_ids: shown.join(", "),
        })
    }
}

/// The newest whole checkpoint of an output that holds a run, proven to be of the same run as `recipe`.
fn continue_from(output: &Output, recipe: &ResolvedRecipe) -> Result<Option<Checkpoint>, RunError> {
    output.clean_up();
    let newest = output.checkpoints()?.pop();
    let Some(newest) = newest else {
        // Stopped before its first checkpoint: the recipe alone says what it was.
        if let Some(text) = output.read_recipe()? {
            let place = output.place().to_owned();
            let saved = toml::from_str(&text).map_err(|source| RunError::SavedRecipe {
                place,
                source: Box::new(source),
            })?;
            same_run(output.place(), &saved, recipe)?;
        }
        return Ok(None);
    };
    let checkpoint = output.load(&newest)?;
    same_run(output.place(), &checkpoint.state.recipe, recipe)?;
    output.download(&[METRICS, EventFile::NAME, BAD_SAMPLES])?;
    Ok(Some(checkpoint))
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
        // These follow from others, which an error should name.
        (recipe.train.accumulation, recipe.train.steps_per_epoch) = (0, 0);
        // Where the data lies may change; `dataset` tells whether it is the same.
        recipe.data.urls = Vec::new();
        recipe.data.mixture = Vec::new();
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
    let metrics_bytes = lengths.map_or(0, |lengths| lengths.metrics_bytes);
    let metrics = MetricsFile(LogFile::open(
        &output.folder().join(METRICS),
        metrics_bytes,
    )?);
    let events_bytes = lengths
        .and_then(|lengths| lengths.events_bytes)
        .unwrap_or(0);
    let events = recipe
        .log
        .tensorboard
        .then(|| EventFile::open(&output.folder().join(EventFile::NAME), events_bytes));
    // A run that was stopped before its first checkpoint may have left lines, and they are its own.
    let trace_bytes = match lengths {
        Some(lengths) => lengths.trace_bytes,
        None => holds_run.then_some(0),
    };
    let trace = trace_path.map(|path| TraceFile::open(path, trace_bytes, dataset.shards()));
    Ok(Logs {
        metrics,
        events: events.transpose()?,
        trace: trace.transpose()?,
    })
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
