//! The training loop: step after step, saved now and then and at its end, stopped and continued at
//! any step without a trace.
use std::time::{Duration, Instant};

use nepa_pipeline::{
    BadSampleList, DecoderStats, LoaderError, LoaderState, SPANS_ON_A_THREAD, SampleId,
};

use super::agree::{Agreed, Company, Turn, of_engine};
use super::bad_lines::first_of;
use super::batches::{Batches, TrainBatch, num_replaced};
use super::draws::StepDraws;
use super::files::{BAD_SAMPLES, DATA_LIST, Logs};
use super::meter::Meter;
use super::phase::{At, Phase};
use super::steps::Steps;
use crate::checkpoint::{Checkpoint, MoreFiles, RunState};
use crate::engine::{Engine, Spread, StepReport};
use crate::error::RunError;
use crate::exporter::Live;
use crate::logs::{RankMetrics, StepMetrics};
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
    /// The other ranks, if there are some.
    pub(super) company: Company,
    /// The bad samples of all of them.
    pub(super) bad_list: Option<BadSampleList>,
    /// Samples tried and bad ones, of all ranks.
    pub(super) totals: (u64, u64),
    /// Samples of this epoch that stand for others, of all ranks.
    pub(super) replaced: u64,
}

/// What is to be done next.
enum Next {
    Step(Box<TrainBatch>, StepDraws, Option<Spread>),
    Stop(i32),
}

impl Run<'_> {
    /// The loop; gives the signal that ended it, if one did. All is saved then.
    pub(super) fn train(&mut self, stop_at: u64) -> Result<Option<i32>, RunError> {
        let is_alone = self.company.ranks.is_alone();
        // Of a step whose evaluation was stopped the checkpoint is there already.
        if self.phase.is_evaluation_due(&self.recipe, self.step) {
            self.evaluate()?;
            if let Some(signal) = received().filter(|_| is_alone) {
                return Ok(Some(signal));
            }
        }
        while self.step < stop_at {
            if let Some(trace) = &mut self.trace {
                trace.next(self.step + 1);
            }
            let position = self.position();
            let started = Instant::now();
            let (turn, waited) = self.turn(started)?;
            let (batch, draws, waits) = match self.agree(turn, waited, &position)? {
                Next::Step(batch, draws, waits) => (batch, draws, waits),
                Next::Stop(signal) => {
                    self.save(position)?;
                    return Ok(self.end(Some(signal)));
                }
            };

            let span =
                tracing::trace_span!(target: SPANS_ON_A_THREAD, "step", step = self.step + 1);
            let report = draws.step(self.engine.as_mut(), &batch, &mut self.mixed);
            let report = match report.map_err(of_engine) {
                Ok(report) => report,
                Err(error) if is_alone => return Err(error),
                Err(error) => return Err(self.lost(position, error)),
            };
            if !(report.loss.is_finite() && report.grad_norm.is_finite()) {
                return Err(self.stop_before(&batch, position, &report)?);
            }
            let rates = self.phase.rates(&self.recipe, self.step);
            self.engine.update(&rates)?;
            drop(span);
            self.step += 1;
            let images = (self.company.ranks.size() * batch.samples().len()) as u64;
            self.samples += images;

            let times = (started.elapsed(), waited);
            let metrics = self.metrics(&batch, &report, rates[0], times, waits);
            self.logs.metrics.write(&metrics)?;
            if let Some(events) = &mut self.logs.events {
                events.write(&metrics)?;
            }
            if let Some(trace) = &mut self.logs.trace {
                trace.write(self.step, batch.samples(), &draws.mixes)?;
            }
            self.live.step(&metrics);
            self.says.show(&metrics, images);
            self.tell_epoch();
            drop(batch);
            self.evaluate()?;

            // Several ranks agree on it before their next step.
            if let Some(signal) = received().filter(|_| is_alone) {
                self.save(self.position())?;
                return Ok(Some(signal));
            }
            if self.save_is_due() {
                self.save(self.position())?;
            }
        }
        self.save(self.position())?;
        Ok(self.end(None))
    }

    /// Waits for this rank's part of the next batch; also how long that took.
    fn turn(&mut self, started: Instant) -> Result<(Turn, Duration), RunError> {
        if !self.loader.wait(Duration::ZERO) {
            self.live.waits(started);
            let reading = self.meter.read();
            while !self.loader.wait(LOOK_EVERY) {
                self.output.check()?;
                self.says.wait(self.step, started);
                if let Some(signal) = self.company.stop() {
                    return Ok((Turn::Stopped(signal), started.elapsed()));
                }
            }
            self.meter.end_wait(&reading);
        }
        let batch = self.loader.next_batch();
        let waited = started.elapsed();
        if let Ok(Some(batch)) = &batch {
            self.took(batch, waited);
            self.output.check()?;
        }
        let turn = self
            .company
            .turn(batch, &self.recipe, self.phase, self.step);
        Ok((turn, waited))
    }

    /// What all ranks do next; an error, saved, where one of them cannot go on.
    fn agree(
        &mut self,
        turn: Turn,
        waited: Duration,
        position: &LoaderState,
    ) -> Result<Next, RunError> {
        if self.company.ranks.is_alone() {
            return match turn {
                Turn::Ready(batch, draws) => Ok(Next::Step(batch, draws, None)),
                Turn::Stopped(signal) => Ok(Next::Stop(signal)),
                Turn::Failed(error) => Err(self.give_up(position.clone(), error)),
            };
        }
        let agreed = self.company.agree(&turn, waited, &self.loader.state());
        let agreed = match agreed {
            Ok(agreed) => agreed,
            Err(error) => return Err(self.lost(position.clone(), error)),
        };
        if let Some((rank, cause)) = &agreed.failure {
            return Err(match turn {
                Turn::Failed(error) => self.give_up(position.clone(), error),
                _ => self.lost(position.clone(), Agreed::elsewhere(*rank, cause)),
            });
        }
        if let Some(signal) = agreed.stop {
            return Ok(Next::Stop(signal));
        }
        if let Some(list) = &mut self.bad_list {
            list.append(agreed.bad_lines.as_bytes())?;
        }
        let max_fraction = self.recipe.data.max_bad_fraction;
        if agreed.has_too_many_bad(max_fraction) {
            let (tried, bad) = agreed.totals;
            let error = LoaderError::TooManyBad {
                bad,
                tried,
                max_fraction,
                first: first_of(&agreed.bad_lines),
                list: None,
            };
            return Err(self.give_up(position.clone(), error.into()));
        }
        self.totals = agreed.totals;
        self.replaced += agreed.replaced;
        match turn {
            Turn::Ready(batch, draws) => Ok(Next::Step(batch, draws, Some(agreed.waited_ms))),
            Turn::Stopped(_) | Turn::Failed(_) => unreachable!("a rank has told of it"),
        }
    }

    /// Waits for the other ranks, which end as well; gives the signal that ended them.
    fn end(&mut self, signal: Option<i32>) -> Option<i32> {
        let ranks = &self.company.ranks;
        if ranks.is_alone() {
            return signal;
        }
        match ranks.gather(&signal.or_else(|| self.company.stop())) {
            Ok(signals) => signal.or(signals.into_iter().flatten().next()),
            // All is saved.
            Err(error) => {
                tracing::warn!("after the last step {error}");
                signal
            }
        }
    }

    /// The loader's position, with the counts of all ranks.
    fn position(&self) -> LoaderState {
        let state = self.loader.state();
        if self.company.ranks.is_alone() {
            return state;
        }
        LoaderState {
            samples_tried: self.totals.0,
            samples_bad: self.totals.1,
            ..state
        }
    }

    /// Saves the step before, as this rank cannot go on; gives back why, or why it cannot be saved.
    fn give_up(&mut self, position: LoaderState, error: RunError) -> RunError {
        match error {
            RunError::Loader(error) => self.stop_without_batch(position, error).into(),
            error => match self.save(position) {
                Ok(()) => error,
                Err(failure) => failure,
            },
        }
    }

    /// Saves the step before, as another rank has ended; gives back its error.
    fn lost(&mut self, position: LoaderState, error: RunError) -> RunError {
        match self.save(position) {
            Ok(()) => println!("a rank has ended; saved after step {}", self.step),
            Err(failure) => tracing::warn!(
                "step {} cannot be saved: {:#}",
                self.step,
                anyhow::Error::from(failure)
            ),
        }
        error
    }

    /// Counts a batch that was waited for.
    fn took(&mut self, batch: &TrainBatch, waited: Duration) {
        let samples = batch.samples();
        let replaced = match num_replaced(samples) {
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
            let epochs = train.steps.div_ceil(train.steps_per_epoch.max(1));
            let of_all = std::mem::take(&mut self.replaced);
            let replaced = if self.company.ranks.is_alone() {
                report.replaced + report.absent
            } else {
                of_all
            };
            self.says.end_epoch(report, replaced, epochs);
        }
    }

    fn metrics(
        &mut self,
        batch: &TrainBatch,
        report: &StepReport,
        lr: f64,
        (total, waited): (Duration, Duration),
        waits: Option<Spread>,
    ) -> StepMetrics {
        let count = self.company.ranks.size();
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
            images_per_second: (count * batch.samples().len()) as f64 / total.as_secs_f64(),
            data_wait_ms: milliseconds(waited),
            step_ms: milliseconds(total.saturating_sub(waited)),
            measured: report.found.into(),
            decoders,
            loader: Some(self.meter.line(|decoded| self.live.batches_ready(decoded))),
            ranks: waits
                .zip(report.computed)
                .map(|(data_wait_ms, seconds)| RankMetrics {
                    count,
                    data_wait_ms,
                    compute_ms: seconds.times(1e3),
                }),
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
        let (output, says, company) = (self.output, &self.says, &self.company);
        let go_on = |done: u64, images: u64| {
            says.evaluating(at.step, done, images);
            company.stop().is_none() && output.check().is_ok()
        };
        let found = self.phase.evaluate(&self.recipe, at, &training, &go_on);
        self.output.check()?;
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.save(self.position())?;
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
            let state = self.state(self.position())?;
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
        let step = self.step + 1;
        let ids = batch.samples().iter().map(|sample| sample.id);
        let ids = self.company.ranks.gather(&ids.collect::<Vec<SampleId>>());
        let ids = ids.map_or_else(|_| Vec::new(), |all| all.concat());
        self.save(position)?;
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
