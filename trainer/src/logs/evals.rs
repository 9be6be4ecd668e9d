//! `evals.jsonl`: one line an evaluation.
use serde::{Deserialize, Serialize};

use super::error::LogError;
use super::file::{LogFile, push_json_line};

/// What one kind of weights is worth on the images of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Accuracy {
    /// Share of images whose class has the greatest logit.
    pub top1: f64,
    /// Share of images whose class is among the five greatest; none of fewer classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top5: Option<f64>,
    /// Mean cross-entropy.
    pub loss: f64,
}

/// One line of `evals.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct EvalRecord {
    /// Optimiser steps done.
    pub step: u64,
    /// Epochs done, the present one included.
    pub epoch: u64,
    /// Images that were evaluated.
    pub images: u64,
    /// Of the weights as trained.
    pub raw: Accuracy,
    /// Of their moving average, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<Accuracy>,
    /// Whether it is the best so far, by the average's top-1 where there is one.
    pub best: bool,
    /// Time of the evaluation.
    pub seconds: f64,
}

impl EvalRecord {
    /// What the best is chosen by.
    pub(crate) fn top1(&self) -> f64 {
        self.ema.unwrap_or(self.raw).top1
    }

    /// The values that TensorBoard draws.
    pub(super) fn scalars(&self) -> Vec<(&'static str, f64)> {
        const NAMES: [[&str; 3]; 2] = [
            ["eval/top1", "eval/top5", "eval/loss"],
            ["eval_ema/top1", "eval_ema/top5", "eval_ema/loss"],
        ];
        let both = NAMES.into_iter().zip([Some(self.raw), self.ema]);
        both.filter_map(|(names, of)| Some((names, of?)))
            .flat_map(|([first, five, cost], Accuracy { top1, top5, loss })| {
                let top5 = top5.map(|share| (five, share));
                [Some((first, top1)), top5, Some((cost, loss))]
            })
            .flatten()
            .collect()
    }
}

/// `evals.jsonl`.
#[derive(Debug)]
pub(crate) struct EvalsFile(pub LogFile);

impl EvalsFile {
    pub(crate) fn write(&mut self, record: &EvalRecord) -> Result<(), LogError> {
        let mut line = Vec::new();
        push_json_line(&mut line, record);
        self.0.append(&line)
    }
}
