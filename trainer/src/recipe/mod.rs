//! A recipe: one TOML file that is a whole run, of pretraining or, with `[finetune]`, of fine-tuning.
//!
//! [`Recipe`] is what is read: some values may be left out or given by a rule. [`ResolvedRecipe`]
//! is what is run: every value stands in it, and it is saved with each checkpoint. Unknown keys are
//! refused. `read` reads with `overrides` over it ([`Draft`]), `check` checks, `resolved` applies the
//! rules.
use std::path::PathBuf;

use nepa_model::{Ablation, NepaConfig};
use nepa_pipeline::{AugmentConfig, EngineConfig, IoConfig, MixtureSource, Normalize};
use serde::{Deserialize, Serialize};

use self::origin::Origin;
use crate::device::DeviceChoice;
use crate::optimizer::OptimizerConfig;

mod ablation;
mod ablation_rules;
pub(crate) mod built_in;
mod check;
mod dotted;
mod error;
mod finetune;
mod finetune_rules;
mod keys;
mod model;
mod origin;
mod overrides;
mod read;
mod resolved;

pub(crate) use error::RecipeError;
pub use finetune::{EvalSection, FinetuneSection, FromWeights, ResolvedEval, ResolvedFinetune};
pub(crate) use keys::key_like_flag;
pub(crate) use read::Draft;
pub use resolved::{InitWeights, ResolvedRecipe};
pub(crate) use resolved::{Lengthened, ResolvedTrain};

/// `[data]`: what is read and how a photo becomes pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// URLs, local paths, prefixes or globs; `--data` replaces them.
    #[serde(default)]
    pub urls: Vec<String>,
    /// Instead of `urls`: several data sets, each with its share of every batch; `--data` replaces
    /// them, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<MixtureSource>,
    /// Name of the image column; left out: automatic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_column: Option<String>,
    /// Read the shards of one split alone, as their names or folders say it; left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Path or URL of an index of these URLs (`nepa inspect URL --index FILE`), so that neither a
    /// listing nor a footer is asked for; left out: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
    /// Whether what is doubtful about the shards (several splits, copies, missing ones) ends the
    /// run instead of a warning.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
    /// Whether EXIF orientation is applied, as the reference does.
    #[serde(default = "default_true")]
    pub exif_orientation: bool,
    /// Share of bad samples at which the run ends, judged after the first 1,000.
    #[serde(default = "default_max_bad_fraction")]
    pub max_bad_fraction: f64,
    /// Equal shares of the data, each shuffled and read by itself. With several, each rank of a
    /// run reads its own alone; with 1, each reads everything.
    #[serde(default = "default_lanes")]
    pub lanes: usize,
    /// Bytes (decompressed) of row groups whose samples are mixed with each other.
    #[serde(default = "default_shuffle_window_bytes")]
    pub shuffle_window_bytes: u64,
    /// Normalisation of pixels.
    #[serde(default)]
    pub normalize: Normalize,
    /// Augmentation.
    pub augment: AugmentConfig,
}

/// Who decodes the JPEGs of a run on a GPU. What is not a JPEG, and a JPEG that its decoder
/// refuses, the processor decodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum JpegChoice {
    /// The GPU's JPEG engines, nvJPEG on the decode threads and the processor, by their speed as
    /// measured while running.
    #[default]
    Auto,
    /// nvJPEG on the decode threads, without the GPU's JPEG engines.
    Hybrid,
    /// The processor alone; the GPU only normalises.
    Cpu,
    /// nvJPEG on the decode threads or the processor, as the file's bytes say, so that a run
    /// repeats bit for bit on the same GPU, driver and nvJPEG. Where nvJPEG stops working the run
    /// ends, as the processor's pixels would be others.
    Fixed,
}

impl JpegChoice {
    /// As the pipeline takes it.
    pub fn engines(self) -> EngineConfig {
        match self {
            Self::Auto => EngineConfig::AUTO,
            Self::Hybrid => EngineConfig::HYBRID,
            Self::Cpu => EngineConfig::CPU,
            Self::Fixed => EngineConfig::FIXED,
        }
    }
}

impl std::fmt::Display for JpegChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Hybrid => "hybrid",
            Self::Cpu => "cpu",
            Self::Fixed => "fixed",
        })
    }
}

/// `[loader]`: speed only, but for the last bits of pixels that `jpeg` decides on a GPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoaderSection {
    /// Decode threads; left out: one for each processor core.
    pub decode_threads: Option<usize>,
    /// Finished batches ahead of the training step; left out: 2.
    pub prefetch_batches: Option<usize>,
    /// Threads for network and disk; left out: 2.
    pub io_threads: Option<usize>,
    /// Who decodes JPEGs; on a GPU only. Left out: `auto`.
    pub jpeg: Option<JpegChoice>,
    /// Width and height of the largest JPEG that is decoded on a GPU; the processor decodes larger
    /// ones. Left out: 2560 x 1920.
    pub jpeg_largest: Option<[u32; 2]>,
}

/// Type of the operands of matrix multiplications.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit float throughout.
    #[default]
    F32,
    /// bfloat16 operands, f32 sums; weights, residual stream, norms and softmax stay f32. For GPUs;
    /// slow on the processor.
    Bf16,
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// What computes a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// The model's own step on the processor, in f32.
    Cpu,
    /// The model's own step on an NVIDIA GPU, in bf16 with an f32 residual stream.
    Cuda,
    /// Candle's operations and autograd, on any device: slower, and independent of the step.
    #[default]
    #[serde(alias = "tape")]
    #[value(alias = "tape")]
    Autograd,
}

/// Who adds the gradients of several ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SumChoice {
    /// The ranks themselves, by a tree: the same bits whatever their number.
    #[default]
    Tree,
    /// The library that carries them, NCCL or MPI, in an order of its own: other bits for other
    /// numbers of ranks.
    Library,
}

/// How the gradients of several ranks travel; the bits of the tree are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WireChoice {
    /// From GPU to GPU, by NCCL: NVLink, InfiniBand and what else it finds.
    Nccl,
    /// Through the memory of the machines, over what else connects the ranks: TCP or MPI.
    Host,
}

/// `[train]`: length, batch and learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    /// Images in one optimiser step.
    pub batch: usize,
    /// Images in one forward and backward pass; gradients are summed over `batch / micro_batch` of
    /// them.
    pub micro_batch: usize,
    /// Type of the operands of matrix multiplications.
    #[serde(default)]
    pub precision: Precision,
    /// What computes a step; left out: `cpu` in f32 on the processor, `cuda` in bf16 on a GPU if
    /// its kernels can compute the model, else `autograd`.
    pub engine: Option<EngineChoice>,
    /// Who adds the gradients of several ranks; left out: `tree`.
    #[serde(default)]
    pub sum: SumChoice,
    /// How the gradients of several ranks travel; left out: `nccl` where the engine is `cuda`, else
    /// `host`.
    pub wire: Option<WireChoice>,
    /// Length of the run in epochs; give this or `steps`.
    pub epochs: Option<u64>,
    /// Length of the run in optimiser steps; give this or `epochs`.
    pub steps: Option<u64>,
    /// Learning rate at a batch of 256; the peak is `base_lr * batch / 256`. Give this or `lr`.
    pub base_lr: Option<f64>,
    /// Peak learning rate; give this or `base_lr`.
    pub lr: Option<f64>,
    /// Share of all steps in which the rate rises from 0; give this or `warmup_steps`.
    pub warmup_fraction: Option<f64>,
    /// Steps in which the rate rises from 0; give this or `warmup_fraction`.
    pub warmup_steps: Option<u64>,
}

/// `[checkpoint]`: when the run is saved. It is also saved at its end and on SIGTERM and SIGINT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// Saved after this many steps; left out: by time only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Saved after this many minutes; left out: 30. `None`, in a recipe 0: by steps only.
    #[serde(with = "crate::optimizer::zero_is_none")]
    pub every_minutes: Option<f64>,
    /// Newest checkpoints that stay, milestones not counted.
    pub keep: usize,
    /// Saved at every multiple of so many steps, and never removed; left out: no such milestone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub milestone_steps: Option<u64>,
    /// Where checkpoints wait until an output in a store has them; left out: the user's state
    /// folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spool_dir: Option<PathBuf>,
    /// After a signal to stop, a store is given so many seconds to take the last checkpoint.
    pub stop_s: f64,
    /// Seconds after which an output in a store whose run gives no sign of life may be taken over.
    pub takeover_s: f64,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self {
            every_steps: None,
            every_minutes: Some(30.0),
            keep: 3,
            milestone_steps: None,
            spool_dir: None,
            stop_s: 30.0,
            takeover_s: 180.0,
        }
    }
}

/// `[log]`: what is shown. `metrics.jsonl` always has every step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// Steps between two lines where the output is no terminal; left out: 10, but no more than a
    /// line a second, and one after ten seconds at the latest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Whether TensorBoard event files are written.
    pub tensorboard: bool,
}

impl Default for LogSection {
    fn default() -> Self {
        Self {
            every_steps: None,
            tensorboard: true,
        }
    }
}

/// A recipe as it is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Short name of the run.
    pub name: String,
    /// Seed of weights, order, crops and rotary draws.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Where the model is trained.
    #[serde(default)]
    pub device: DeviceChoice,
    /// The architecture, in the keys of the published `config.json`.
    #[serde(with = "model")]
    pub model: NepaConfig,
    /// What is read.
    pub data: DataConfig,
    /// Speed of reading.
    #[serde(default)]
    pub loader: LoaderSection,
    /// Use of the store.
    #[serde(default)]
    pub io: IoConfig,
    /// Length, batch and learning rate.
    pub train: TrainSection,
    /// AdamW, clipping, moving average.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Classes, rates of layers, mixing and evaluation, of a run that fine-tunes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finetune: Option<FinetuneSection>,
    /// What of pretraining is taken away.
    #[serde(default, skip_serializing_if = "ablation::is_none")]
    pub ablation: Ablation,
    /// When the run is saved.
    #[serde(default)]
    pub checkpoint: CheckpointSection,
    /// What is shown.
    #[serde(default)]
    pub log: LogSection,
    /// Where each value was given, for messages.
    #[serde(skip)]
    origin: Origin,
}

fn default_true() -> bool {
    true
}
fn default_max_bad_fraction() -> f64 {
    0.01
}
fn default_lanes() -> usize {
    1
}
fn default_shuffle_window_bytes() -> u64 {
    1 << 30
}
fn default_seed() -> u64 {
    1337
}

#[cfg(test)]
mod tests;
