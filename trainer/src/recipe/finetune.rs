//! `[finetune]` of a recipe: what fine-tuning a classifier needs beside what pretraining has. A
//! recipe with it is one of `nepa finetune`; its `[model]` says only what differs from the weights.
//! What is checked and made of it: `finetune_rules.rs`.
use nepa_pipeline::MixConfig;
use serde::{Deserialize, Serialize};

use crate::finetune::{Freeze, LayerSchedule};
use crate::transform::{NamedTransform, Transform};

/// `[finetune]` as it is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinetuneSection {
    /// How the rates of all layers go over the run.
    #[serde(default)]
    pub schedule: LayerSchedule,
    /// Factor between the rates of a block and of the one below it.
    pub layer_decay: f64,
    /// What it rises to; left out: 1. Only where the schedule lets it rise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_decay_end: Option<f64>,
    /// Peak rate of the classifier and of the final norm, not scaled by the batch.
    #[serde(default = "default_head_lr")]
    pub head_lr: f64,
    /// What stays as it was pretrained.
    #[serde(default)]
    pub freeze: Freeze,
    /// Mixup, CutMix and smoothing of labels; left out: images are not mixed, and labels smoothed
    /// by 0.1.
    #[serde(default = "no_mixing")]
    pub mix: MixConfig,
    /// Name of the label column; left out: automatic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// Names of the classes, in the order of their numbers; left out: those of the shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
    /// Number of classes, where labels are numbers without names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_classes: Option<usize>,
    /// Images that the classifier is evaluated on.
    #[serde(default)]
    pub eval: EvalSection,
}

/// `[finetune.eval]`: on what, and how often.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalSection {
    /// URLs, local paths, prefixes or globs; `--test` replaces them. None: no evaluation.
    pub urls: Vec<String>,
    /// Read the shards of one split alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Steps between two evaluations; left out: an epoch. One comes at the end in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Images in one forward pass; left out: those of `train.micro_batch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// How a photo becomes pixels; left out: as the released evaluation of B has it, and the whole
    /// shorter side below 64 pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transform: Option<NamedTransform>,
}

/// `[finetune]` as it is run: every rule applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedFinetune {
    /// Path or URL of the weights that the run begins with, or whose architecture it takes.
    pub from: String,
    /// Which weights of it.
    pub weights: FromWeights,
    /// How the rates of all layers go over the run.
    pub schedule: LayerSchedule,
    /// Factor between the rates of a block and of the one below it, at the first step.
    pub layer_decay: f64,
    /// The factor at the last step.
    pub layer_decay_end: f64,
    /// Peak rate of the classifier and of the final norm.
    pub head_lr: f64,
    /// What stays as it was pretrained.
    pub freeze: Freeze,
    /// Mixup, CutMix and smoothing of labels.
    pub mix: MixConfig,
    /// Name of the label column, where the recipe gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_column: Option<String>,
    /// On what the classifier is evaluated, if on anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<ResolvedEval>,
}

/// `[finetune.eval]` as it is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedEval {
    /// Where the images are.
    pub urls: Vec<String>,
    /// The split that is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Fingerprint of the data set.
    pub dataset: String,
    /// Images in it.
    pub num_samples: u64,
    /// Steps between two evaluations.
    pub every_steps: u64,
    /// Images in one forward pass.
    pub batch: usize,
    /// How a photo becomes pixels.
    pub transform: Transform,
}

/// Which weights a fine-tuning run begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromWeights {
    /// The weights themselves.
    Raw,
    /// Their moving average.
    Ema,
    /// Fresh ones in the same architecture: training from scratch.
    Random,
}

fn default_head_lr() -> f64 {
    1e-3
}
fn no_mixing() -> MixConfig {
    MixConfig {
        mixup_alpha: 0.0,
        cutmix_alpha: 0.0,
        ..MixConfig::default()
    }
}

impl FinetuneSection {
    /// Where the layer-wise factor ends.
    pub fn layer_decay_end(&self) -> f64 {
        if self.schedule.is_rising() {
            self.layer_decay_end.unwrap_or(1.0)
        } else {
            self.layer_decay
        }
    }
}
