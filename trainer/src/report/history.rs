//! What a run has written down of its steps: `metrics.jsonl`, read as far as it goes.
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::output::METRICS;

/// One step. A value that is not there, or was not finite, is NaN.
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::struct_field_names,
    reason = "as the keys of metrics.jsonl are called"
)]
pub(super) struct Step {
    /// Optimiser steps done, this one included.
    pub(super) step: u64,
    /// Images trained on so far.
    pub(super) samples: u64,
    /// Epoch of the batch, from 0.
    pub(super) epoch: u64,
    pub(super) loss: f64,
    pub(super) lr: f64,
    pub(super) grad_norm: f64,
    pub(super) images_per_second: f64,
    pub(super) data_wait_ms: f64,
    pub(super) step_ms: f64,
    pub(super) cos_target: f64,
    pub(super) cos_previous: f64,
    pub(super) copy_win: f64,
}

/// A line as it is in the file: what is not finite is `null` there.
#[derive(Deserialize)]
struct Line {
    step: u64,
    samples: u64,
    epoch: u64,
    loss: Option<f64>,
    lr: Option<f64>,
    grad_norm: Option<f64>,
    images_per_second: Option<f64>,
    data_wait_ms: Option<f64>,
    step_ms: Option<f64>,
    cos_target: Option<f64>,
    cos_previous: Option<f64>,
    copy_win: Option<f64>,
}

impl From<Line> for Step {
    fn from(line: Line) -> Self {
        let value = |value: Option<f64>| value.unwrap_or(f64::NAN);
        Self {
            step: line.step,
            samples: line.samples,
            epoch: line.epoch,
            loss: value(line.loss),
            lr: value(line.lr),
            grad_norm: value(line.grad_norm),
            images_per_second: value(line.images_per_second),
            data_wait_ms: value(line.data_wait_ms),
            step_ms: value(line.step_ms),
            cos_target: value(line.cos_target),
            cos_previous: value(line.cos_previous),
            copy_win: value(line.copy_win),
        }
    }
}

/// The lines of a run's log, each one value; a last line without its end is left out.
pub(super) fn whole_lines<T: DeserializeOwned>(
    text: &str,
    file: &str,
    place: &str,
) -> anyhow::Result<Vec<T>> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let read = |(number, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| {
            format!(
                "line {} of {file} in {place} cannot be read; without that line the report can be \
                 drawn",
                number + 1
            )
        })
    };
    whole.lines().enumerate().map(read).collect()
}

/// All steps so far.
#[derive(Debug, Clone, Default)]
pub(super) struct History(pub(super) Vec<Step>);

impl History {
    /// Reads the lines of a `metrics.jsonl`. A last line without its end, as in a run that is
    /// writing it, is left out.
    pub(super) fn parse(text: &str, place: &str) -> anyhow::Result<Self> {
        let lines = whole_lines::<Line>(text, METRICS, place)?;
        Ok(Self(lines.into_iter().map(Step::from).collect()))
    }

    pub(super) fn last(&self) -> Option<&Step> {
        self.0.last()
    }

    /// Steps over which a mean at the start and at the end is taken: a tenth, at most 100.
    pub(super) fn window(&self) -> usize {
        (self.0.len() / 10).clamp(1, 100)
    }

    /// Means at the start and at the end, and the noise of their difference (two standard errors).
    pub(super) fn ends(&self, value: fn(&Step) -> f64) -> Option<Ends> {
        let finite = self.0.iter().map(value).filter(|value| value.is_finite());
        let finite = finite.collect::<Vec<_>>();
        let window = self.window().min(finite.len());
        if window == 0 {
            return None;
        }
        let (first, last) = (&finite[..window], &finite[finite.len() - window..]);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let variance = |values: &[f64]| {
            let mean = mean(values);
            let squares = values.iter().map(|value| (value - mean).powi(2));
            squares.sum::<f64>() / (values.len().max(2) - 1) as f64
        };
        Some(Ends {
            first: mean(first),
            last: mean(last),
            noise: 2.0 * ((variance(first) + variance(last)) / window as f64).sqrt(),
            window,
        })
    }

    /// Time of all steps, and the share of it that they waited for data.
    pub(super) fn time(&self) -> (Duration, f64) {
        let sum = |value: fn(&Step) -> f64| {
            let finite = self.0.iter().map(value).filter(|value| value.is_finite());
            finite.sum::<f64>()
        };
        let (stepping, waiting) = (sum(|step| step.step_ms), sum(|step| step.data_wait_ms));
        let all = stepping + waiting;
        let time = Duration::try_from_secs_f64(all / 1e3).unwrap_or_default();
        (time, if all > 0.0 { waiting / all } else { 0.0 })
    }

    /// Images a second, the middle of all steps.
    pub(super) fn median_rate(&self) -> Option<f64> {
        let rates = self.0.iter().map(|step| step.images_per_second);
        let mut rates = rates.filter(|rate| rate.is_finite()).collect::<Vec<_>>();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied()
    }

    /// Steps whose loss or gradient is not finite.
    pub(super) fn not_finite(&self) -> usize {
        let odd = |step: &&Step| !(step.loss.is_finite() && step.grad_norm.is_finite());
        self.0.iter().filter(odd).count()
    }
}

/// A value at the start and at the end of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) first: f64,
    pub(super) last: f64,
    /// A smaller difference may be chance.
    pub(super) noise: f64,
    /// Steps of each mean.
    pub(super) window: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64, loss: &str) -> String {
        format!(
            "{{\"step\":{step},\"epoch\":0,\"samples\":{},\"loss\":{loss},\"lr\":1e-3,\
             \"grad_norm\":1.0,\"images_per_second\":{step},\"data_wait_ms\":1.0,\"step_ms\":3.0,\
             \"cos_target\":0.1,\"cos_previous\":0.1,\"copy_win\":0.1}}\n",
            8 * step
        )
    }

    #[test]
    fn what_is_there_is_read() {
        assert!(History::parse("", "run").unwrap().last().is_none());
        assert!(
            History::parse("", "run")
                .unwrap()
                .ends(|s| s.loss)
                .is_none()
        );
        assert!(History::parse("", "run").unwrap().median_rate().is_none());
        let text = line(1, "-0.1") + &line(2, "null") + &line(3, "-0.3") + &line(4, "-0.4")[..30];
        let history = History::parse(&text, "run").unwrap();
        assert_eq!(history.last().unwrap().step, 3);
        assert_eq!(history.not_finite(), 1);
        assert_eq!(history.median_rate(), Some(2.0));
        let ends = history.ends(|step| step.loss).unwrap();
        assert_eq!((ends.first, ends.last, ends.window), (-0.1, -0.3, 1));
        let (time, waiting) = history.time();
        assert_eq!((time.as_millis(), waiting), (12, 0.25));
        let error = History::parse("{}\n", "s3://b/run")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("line 1") && error.contains("s3://b/run"),
            "{error}"
        );
    }
}
