//! The training loop: step after step, saved now and then and at its end, stopped and continued at
//! any step without a trace.
use std::time::{Duration, Instant};

use nepa_pipeline::{DecoderStats, LoaderError, LoaderState, SPANS_ON_A_THREAD, SampleId};

use super::batches::{Batches, TrainBatch};
use super::files::{BAD_SAMPLES, DATA_LIST, Logs};
use super::meter::Meter;
use super::phase::{At, Phase};
use super::steps::Steps;
use crate::checkpoint::{Checkpoint, MoreFiles, RunState};
use crate::engine::{Engine, StepReport};
use crate::error::RunError;
use crate::exporter::Live;
use crate::logs::StepMetrics;
use crate::output::{EVALS, Output};
use crate::recipe::ResolvedRecipe;
use crate::signals::received;
use crate::trace;

/// How often a run that waits for a batch looks for a signal.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Ids that an error message shows; the file has all.
const SHOWN_IDS: usize = 4;

/// A run that is set up, and where it stands.
pub(super) struct Run<'a> {
    pub(super) recipe: ResolvedRecipe,
    pub(super) output: &'a Output,
    /// Content of `dataset.json`.
    pub(super) data_list: Vec<u8>,
    pub(super) loader: Batches,
    pub(super) engine: Box<dyn Engine>,
    pub(super) phase: &'a mut dyn Phase,
    /// Memory for mixed images.
    pub(super) mixed: Vec<f32>,
    pub(super) logs: Logs,
    pub(super) says: Steps,
    pub(super) meter: Meter,
    /// For whoever scrapes the run.
    pub(super) live: Live,
    /// The epoch whose end was told.
    pub(super) told_epoch: Option<u64>,
    pub(super) step: u64,
    pub(super) samples: u64,
    /// As in the last line of the metrics.
    pub(super) decoded: DecoderStats,
    pub(super) trace: Option<trace::Steps>,
    pub(super) saved_step: Option<u64>,
    pub(super) saved_at: Instant,
}

impl Run<'_> {
    /// The loop; gives the signal that ended it, if one did. All is saved then.
    pub(super) fn train(&mut self, stop_at: u64) -> Result<Option<i32>, RunError> {
        // Of a step whose evaluation was stopped the checkpoint is there already.
        if self.phase.is_evaluation_due(&self.recipe, self.step) {
            self.evaluate()?;
            if let Some(signal) = received() {
                return Ok(Some(signal));
            }
        }
        while self.step < stop_at {
            if let Some(trace) = &mut self.trace {
                trace.next(self.step + 1);
            }
            let position = self.loader.state();
            let started = Instant::now();
            if !self.loader.wait(Duration::ZERO) {
                self.live.waits(started);
                let reading = self.meter.read();
                while !self.loader.wait(LOOK_EVERY) {
                    self.output.check()?;
                    self.says.wait(self.step, started);
                    if let Some(signal) = received() {
                        self.save(position)?;
                        return Ok(Some(signal));
                    }
                }
                self.meter.end_wait(&reading);
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
            self.took(&batch, waited);
            self.output.check()?;

            let span =
                tracing::trace_span!(target: SPANS_ON_A_THREAD, "step", step = self.step + 1);
            let draws = self.phase.draws(&self.recipe, batch.samples(), self.step);
            let draws = match draws {
                Ok(draws) => draws,
                Err(error) => {
                    self.save(position)?;
                    return Err(error);
                }
            };
            let report = draws.step(self.engine.as_mut(), &batch, &mut self.mixed)?;
            if !(report.loss.is_finite() && report.grad_norm.is_finite()) {
                return Err(self.stop_before(&batch, position, &report)?);
            }
            let rates = self.phase.rates(&self.recipe, self.step);
            self.engine.update(&rates)?;
            drop(span);
            self.step += 1;
            self.samples += batch.samples().len() as u64;

            let metrics = self.metrics(&batch, &report, rates[0], started.elapsed(), waited);
            self.logs.metrics.write(&metrics)?;
            if let Some(events) = &mut self.logs.events {
                events.write(&metrics)?;
            }
            if let Some(trace) = &mut self.logs.trace {
                trace.write(self.step, batch.samples(), &draws.mixes)?;
            }
            self.live.step(&metrics);
            self.says.show(&metrics, batch.samples().len() as u64);
            self.tell_epoch();
            drop(batch);
            self.evaluate()?;

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

    /// Counts a batch that was waited for.
    fn took(&mut self, batch: &TrainBatch, waited: Duration) {
        let samples = batch.samples();
        let replaced = samples.iter().filter(|sample| sample.replaces.is_some());
        let replaced = match replaced.count() {
            0 => None,
            some => Some((some, self.loader.state().samples_bad)),
        };
        self.live.takes(samples.len(), replaced, waited);
        self.meter.took_batch(waited);
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
            measured: report.found.into(),
            decoders,
            loader: Some(self.meter.line(|decoded| self.live.batches_ready(decoded))),
        }
    }

    /// Evaluates, where that is due, unless a signal comes: then the evaluation stays due. The best
    /// weights are kept before anything else is done.
    fn evaluate(&mut self) -> Result<(), RunError> {
        if !self.phase.is_evaluation_due(&self.recipe, self.step) {
            return Ok(());
        }
        let started = Instant::now();
        let _span = tracing::trace_span!(target: SPANS_ON_A_THREAD, "evaluation", step = self.step);
        let at = At {
            step: self.step,
            epoch: self.step.div_ceil(self.recipe.train.steps_per_epoch.max(1)),
        };
        let training = self.engine.export()?;
        let (output, says) = (self.output, &self.says);
        let go_on = |done: u64, images: u64| {
            says.evaluating(at.step, done, images);
            received().is_none() && output.check().is_ok()
        };
        let found = self.phase.evaluate(&self.recipe, at, &training, &go_on);
        self.output.check()?;
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.save(self.loader.state())?;
                return Err(error);
            }
        };
        let Some(record) = found else {
            return Ok(());
        };
        if let Some(evals) = &mut self.logs.evals {
            evals.write(&record)?;
        }
        if let Some(events) = &mut self.logs.events {
            events.write_eval(&record)?;
        }
        self.live.evaluated();
        self.says.tell_eval(&record, started.elapsed());
        if record.best {
            let state = self.state(self.loader.state())?;
            let checkpoint = Checkpoint { state, training };
            self.output.save_best(&checkpoint, self.more_files())?;
        }
        // The checkpoint of a step whose evaluation was stopped knows nothing of it.
        if self.saved_step == Some(self.step)
            && self.output.is_in_store()
            && let Some(evals) = &self.logs.evals
        {
            self.output.write(EVALS, evals.0.content()?.0)?;
        }
        Ok(())
    }

    fn save_is_due(&self) -> bool {
        let checkpoint = &self.recipe.checkpoint;
        let often = [checkpoint.every_steps, checkpoint.milestone_steps];
        let by_steps = often
            .into_iter()
            .flatten()
            .any(|every| self.step.is_multiple_of(every));
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
        let _span = tracing::trace_span!(target: SPANS_ON_A_THREAD, "checkpoint", step = self.step);
        let checkpoint = Checkpoint {
            state: self.state(loader)?,
            training: self.engine.export()?,
        };
        let more = self.more_files();
        let logs = self.logs.snapshot(self.output)?;
        self.output
            .save(&checkpoint, more, logs, (&self.recipe.checkpoint).into())?;
        self.live.saved();
        self.saved_step = Some(self.step);
        self.saved_at = Instant::now();
        Ok(())
    }

    /// Where the run stands, its log files being on the disk.
    fn state(&mut self, loader: LoaderState) -> Result<RunState, RunError> {
        Ok(RunState {
            version: RunState::VERSION,
            step: self.step,
            samples: self.samples,
            loader,
            files: self.logs.sync()?,
            recipe: self.recipe.clone(),
            engine: self.engine.choices(),
            evaluated: self.phase.eval_state(),
        })
    }

    fn more_files(&self) -> MoreFiles {
        MoreFiles::from([(DATA_LIST, self.data_list.clone())])
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
            if self.output.is_in_store()
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
            "step": step,
            "loss": report.loss.to_string(),
            "grad_norm": report.grad_norm.to_string(),
            "samples": ids,
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
