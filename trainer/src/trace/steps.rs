//! Which steps of a run are in its trace.
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::file::{TraceError, is_full};
use super::recording::{Recording, Trace};

/// Where it is not said: so many steps, after so many of this process, in which queues fill.
const USUAL: u64 = 10;
const AFTER: u64 = 10;

/// `--trace-steps`: `100-110`, or `100`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StepsArg(pub(crate) RangeInclusive<u64>);

impl std::str::FromStr for StepsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.trim().parse().ok().filter(|step: &u64| *step > 0);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self(first..=last)),
            (Some(first), Some(last)) => Err(format!("{first} comes after {last}")),
            _ => Err("it must be a step or two, from 1, as in 100-110".to_owned()),
        }
    }
}

/// What the command line says of a trace.
#[derive(Debug, Clone)]
pub(crate) struct TraceSteps {
    /// The file.
    pub(crate) path: PathBuf,
    /// Steps of the run; the usual ones where none are given.
    pub(crate) steps: Option<RangeInclusive<u64>>,
}

/// The trace of a run, while it trains.
#[derive(Debug)]
pub(crate) struct Steps {
    trace: Trace,
    /// Those that are asked for.
    asked: RangeInclusive<u64>,
    recording: Option<Recording>,
    /// The last step that was in it.
    reached: Option<u64>,
}

impl Steps {
    /// Of a process that goes on after `step`.
    pub(crate) fn new(asked: &TraceSteps, step: u64) -> Result<Self, TraceError> {
        let first = step + AFTER + 1;
        Ok(Self {
            trace: Trace::create(&asked.path)?,
            asked: asked.steps.clone().unwrap_or(first..=first + USUAL - 1),
            recording: None,
            reached: None,
        })
    }

    /// This step comes next, its waiting for data included.
    pub(crate) fn next(&mut self, step: u64) {
        let is_in = self.asked.contains(&step);
        if !is_in || is_full() {
            self.recording = None;
        } else if self.recording.is_none() {
            self.recording = Some(self.trace.begin());
        }
        if is_in {
            self.reached = Some(step);
        }
    }

    /// Ends the file, after `step`; says which steps are not in it.
    pub(crate) fn finish(self, step: u64) {
        drop(self.recording);
        let (first, last) = self.asked.into_inner();
        let reached = self.reached.map(|reached| reached.min(step));
        match reached.filter(|reached| *reached >= first) {
            Some(reached) if reached >= last => {}
            Some(reached) => tracing::warn!(
                "the trace ends with step {reached}: the run did not reach step {last}"
            ),
            None => tracing::warn!(
                "the trace is empty: the run ended after step {step} and did none of the steps \
                 {first} to {last}"
            ),
        }
        if let Err(error) = self.trace.finish() {
            // The run itself is well.
            tracing::warn!("{:#}", anyhow::Error::from(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read() {
        let read = |text: &str| text.parse::<StepsArg>().map(|StepsArg(steps)| steps);
        assert_eq!(read("100-110"), Ok(100..=110));
        assert_eq!(read("7"), Ok(7..=7));
        assert!(read("9-3").unwrap_err().contains("9 comes after 3"));
        for odd in ["0", "-5", "5-", "a-b", ""] {
            assert!(read(odd).unwrap_err().contains("100-110"), "{odd}");
        }
    }
}
