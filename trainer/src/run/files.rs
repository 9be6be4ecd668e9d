//! The files that grow with every step: opened at the lengths that a checkpoint knows, forced to
//! the disk before the next one, and sent with it where the output is a store.
use std::path::Path;

use crate::checkpoint::{FileLengths, RunState};
use crate::error::RunError;
use crate::logs::{EvalsFile, EventFile, LogError, LogFile, MetricsFile, TraceFile, lines_up_to};
use crate::output::{EVALS, Log, METRICS, Output};
use crate::recipe::ResolvedRecipe;

pub(super) const BAD_SAMPLES: &str = "bad_samples.jsonl";
/// A checkpoint's list of the shards.
pub(super) const DATA_LIST: &str = "dataset.json";
/// The logs, by their names in the output and in a checkpoint in a store.
pub(super) const LOGS: [(&str, &str); 4] = [
    (METRICS, "metrics.jsonl.zst"),
    (EVALS, "evals.jsonl.zst"),
    (EventFile::NAME, "events.zst"),
    (BAD_SAMPLES, "bad_samples.jsonl.zst"),
];

/// The files that grow with every step.
#[derive(Debug)]
pub(super) struct Logs {
    pub(super) metrics: MetricsFile,
    /// Of a run that evaluates.
    pub(super) evals: Option<EvalsFile>,
    pub(super) events: Option<EventFile>,
    pub(super) trace: Option<TraceFile>,
}

impl Logs {
    /// Opens them where the run stands; what stands behind that is cut off.
    pub(super) fn open(
        output: &Output,
        recipe: &ResolvedRecipe,
        trace_path: Option<&Path>,
        holds_run: bool,
        position: Option<&RunState>,
    ) -> Result<Self, RunError> {
        let lengths = position.map(|state| state.files);
        let metrics_path = output.folder().join(METRICS);
        let events_path = output.folder().join(EventFile::NAME);
        let mut metrics_bytes = lengths.map_or(0, |lengths| lengths.metrics_bytes);
        let mut events_bytes = lengths
            .and_then(|lengths| lengths.events_bytes)
            .unwrap_or(0);
        if output.is_in_store()
            && let Some(state) = position
            && length(&metrics_path) < metrics_bytes
        {
            // A second run has written them anew, and the checkpoint, of an earlier program, has
            // none of its own.
            tracing::warn!(
                "{}/{METRICS} lacks lines that it had when the checkpoint of step {} was made; the \
                 run goes on with those that are there",
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
        let evaluates = recipe
            .finetune
            .as_ref()
            .is_some_and(|tune| tune.eval.is_some());
        let evals_bytes = lengths.and_then(|lengths| lengths.evals_bytes).unwrap_or(0);
        let evals = evaluates
            .then(|| LogFile::open(&output.folder().join(EVALS), evals_bytes))
            .transpose()?;
        let mut evals = evals.map(EvalsFile);
        if output.is_in_store() {
            metrics.0.keep_what_does_not_fit();
            if let Some(evals) = &mut evals {
                evals.0.keep_what_does_not_fit();
            }
            if let Some(events) = &mut events {
                events.0.keep_what_does_not_fit();
            }
        }
        // A run that was stopped before its first checkpoint may have left lines, and they are its
        // own.
        let trace_bytes = match lengths {
            Some(lengths) => lengths.trace_bytes,
            None => holds_run.then_some(0),
        };
        let trace = trace_path.map(|path| TraceFile::open(path, trace_bytes));
        Ok(Self {
            metrics,
            evals,
            events,
            trace: trace.transpose()?,
        })
    }

    /// Forces all of them to the disk.
    pub(super) fn sync(&mut self) -> Result<FileLengths, LogError> {
        Ok(FileLengths {
            metrics_bytes: self.metrics.0.sync()?,
            events_bytes: self
                .events
                .as_mut()
                .map(|events| events.0.sync())
                .transpose()?,
            trace_bytes: self.trace.as_mut().map(TraceFile::sync).transpose()?,
            evals_bytes: self
                .evals
                .as_mut()
                .map(|evals| evals.0.sync())
                .transpose()?,
        })
    }

    /// The logs as they are now, where they have to be sent.
    pub(super) fn snapshot(&self, output: &Output) -> Result<Vec<Log>, RunError> {
        if !output.is_in_store() {
            return Ok(Vec::new());
        }
        let path = output.folder().join(BAD_SAMPLES);
        let mut logs = Vec::with_capacity(LOGS.len());
        for (name, kept_as) in LOGS {
            let (content, path) = match name {
                METRICS => self.metrics.0.content()?,
                EVALS => match &self.evals {
                    Some(evals) => evals.0.content()?,
                    None => continue,
                },
                EventFile::NAME => match &self.events {
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
}

/// Length of a file; 0 if it is not there.
fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}
