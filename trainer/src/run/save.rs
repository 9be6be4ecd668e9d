//! How a run is saved: at its steps, and before a batch that it cannot train on, for a reason that
//! it then gives.
use std::time::Instant;

use nepa_pipeline::{LoaderError, LoaderState, SPANS_ON_A_THREAD, SampleId};

use super::agree::Ready;
use super::files::{BAD_SAMPLES, DATA_LIST};
use super::train::Run;
use crate::checkpoint::{Checkpoint, MoreFiles, RunState};
use crate::engine::StepReport;
use crate::error::RunError;

/// Ids that an error message shows; the file has all.
const SHOWN_IDS: usize = 4;

impl Run<'_> {
    pub(super) fn save_is_due(&self) -> bool {
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
    pub(super) fn save(&mut self, loader: LoaderState) -> Result<(), RunError> {
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
    pub(super) fn state(&mut self, loader: LoaderState) -> Result<RunState, RunError> {
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

    pub(super) fn more_files(&self) -> MoreFiles {
        MoreFiles::from([(DATA_LIST, self.data_list.clone())])
    }

    /// Saves the step before, as this rank cannot go on; gives back why, or why it cannot be saved.
    pub(super) fn give_up(&mut self, position: LoaderState, error: RunError) -> RunError {
        match error {
            RunError::Loader(error) => self.stop_without_batch(position, error).into(),
            error => match self.save(position) {
                Ok(()) => error,
                Err(failure) => failure,
            },
        }
    }

    /// Saves the step before, as another rank has ended; gives back its error.
    pub(super) fn lost(&mut self, position: LoaderState, error: RunError) -> RunError {
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
    pub(super) fn stop_before(
        &mut self,
        ready: &Ready,
        position: LoaderState,
        report: &StepReport,
    ) -> Result<RunError, RunError> {
        let step = self.step + 1;
        let ids = ready.batch.samples().iter().map(|sample| sample.id);
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
