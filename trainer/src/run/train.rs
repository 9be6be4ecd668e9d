//! The training loop: step after step, saved now and then and at its end (`save`), stopped and
//! continued at any step without a trace.
use std::time::{Duration, Instant};

use nepa_pipeline::{BadSampleList, DecoderStats, LoaderState, SPANS_ON_A_THREAD};

use super::agree::{Agreed, Company, Ready, Turn, of_engine};
use super::batches::{Batches, TrainBatch, num_replaced};
use super::files::Logs;
use super::meter::Meter;
use super::phase::{At, Phase};
use super::steps::Steps;
use crate::checkpoint::Checkpoint;
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
    /// With the times that several ranks have waited for their parts of the batch.
    Step(Box<Ready>, Option<Spread>),
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
            let (ready, waits) = match self.agree(turn, waited, &position)? {
                Next::Step(ready, waits) => (ready, waits),
                Next::Stop(signal) => {
                    self.save(position)?;
                    return Ok(self.end(Some(signal)));
                }
            };

            let span =
                tracing::trace_span!(target: SPANS_ON_A_THREAD, "step", step = self.step + 1);
            let report = ready.step(self.engine.as_mut(), &mut self.mixed);
            let report = match report.map_err(of_engine) {
                Ok(report) => report,
                Err(error) if is_alone => return Err(error),
                Err(error) => return Err(self.lost(position, error)),
            };
            if !(report.loss.is_finite() && report.grad_norm.is_finite()) {
                return Err(self.stop_before(&ready, position, &report)?);
            }
            let rates = self.phase.rates(&self.recipe, self.step);
            self.engine.update(&rates)?;
            drop(span);
            self.step += 1;
            let batch = &ready.batch;
            let images = (self.company.ranks.size() * batch.samples().len()) as u64;
            self.samples += images;

            let times = (started.elapsed(), waited);
            let metrics = self.metrics(batch, &report, rates[0], times, waits);
            self.logs.metrics.write(&metrics)?;
            if let Some(events) = &mut self.logs.events {
                events.write(&metrics)?;
            }
            if let Some(trace) = &mut self.logs.trace {
                trace.append(ready.trace.as_bytes())?;
            }
            self.live.step(&metrics);
            self.says.show(&metrics, images);
            self.tell_epoch();
            drop(ready);
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
                Turn::Ready(ready) => Ok(Next::Step(ready, None)),
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
        if let Some(error) = agreed.too_many_bad(self.recipe.data.max_bad_fraction) {
            return Err(self.give_up(position.clone(), error.into()));
        }
        self.totals = agreed.totals;
        self.replaced += agreed.replaced;
        match turn {
            Turn::Ready(mut ready) => {
                ready.trace = agreed.trace;
                Ok(Next::Step(ready, Some(agreed.waited_ms)))
            }
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
}
