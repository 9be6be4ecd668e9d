//! A recipe: one TOML file that is a whole pretraining run.
//!
//! [`Recipe`] is what is read: some values may be left out or given by a rule. [`ResolvedRecipe`] is what is run: every
//! value stands in it, so it is printed at the start and saved with each checkpoint. Unknown keys are refused.
use std::path::{Path, PathBuf};

use nepa_model::{ModelError, NepaConfig};
use nepa_pipeline::augment::AugmentError;
use nepa_pipeline::device::EngineConfig;
use nepa_pipeline::render::Normalize;
use nepa_pipeline::store::storable_url;
use nepa_pipeline::{AugmentConfig, IoConfig, MixtureSource};
use serde::{Deserialize, Serialize};

use crate::device::DeviceChoice;
use crate::optimizer::{OptimizerConfig, OptimizerError};
use crate::schedule::Schedule;

/// `[data]`: what is read and how a photo becomes pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// URLs, local paths, prefixes or globs; `--data` replaces them.
    #[serde(default)]
    pub urls: Vec<String>,
    /// Instead of `urls`: several data sets, each with its share of every batch; `--data` replaces them, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<MixtureSource>,
    /// Name of the image column; left out: automatic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_column: Option<String>,
    /// Read the shards of one split alone, as their names or folders say it; left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Whether what is doubtful about the shards (several splits, copies, missing ones) ends the run instead of a warning.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
    /// Whether EXIF orientation is applied, as the reference does.
    #[serde(default = "default_true")]
    pub exif_orientation: bool,
    /// Share of bad samples at which the run ends, judged after the first 1,000.
    #[serde(default = "default_max_bad_fraction")]
    pub max_bad_fraction: f64,
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

/// Batches of the loader beside the finished ones: one being filled, one being trained on.
const BATCHES_UNDER_WAY: usize = 2;
/// Least width and height of [`LoaderSection::jpeg_largest`].
const LEAST_LARGEST: u32 = 64;
/// JPEG has no larger image.
const MOST_LARGEST: u32 = 65_535;

/// Type of the operands of matrix products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit float throughout.
    #[default]
    F32,
    /// bfloat16 operands, f32 sums; weights, residual stream, norms and softmax stay f32. For GPUs; slow on the processor.
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
    /// Explicit forward and backward on the processor, in f32.
    Cpu,
    /// Our kernels on an NVIDIA GPU, in bf16 with an f32 residual stream.
    Cuda,
    /// Candle's tape, on any device: slower.
    #[default]
    Tape,
}

/// `[train]`: length, batch and learning rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    /// Images in one optimiser step.
    pub batch: usize,
    /// Images in one forward and backward pass; gradients are summed over `batch / micro_batch` of them.
    pub micro_batch: usize,
    /// Type of the operands of matrix products.
    #[serde(default)]
    pub precision: Precision,
    /// What computes a step; left out: `cpu` in f32 on the processor, `cuda` in bf16 on a GPU if its kernels can compute the model, else `tape`.
    pub engine: Option<EngineChoice>,
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
    /// Newest checkpoints that stay.
    pub keep: usize,
    /// Where checkpoints wait until an output in a store has them; left out: the user's state folder.
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
    /// When the run is saved.
    #[serde(default)]
    pub checkpoint: CheckpointSection,
    /// What is shown.
    #[serde(default)]
    pub log: LogSection,
}

/// The numbers of `[train]` and `[loader]` with every rule applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedTrain {
    /// Images in one optimiser step.
    pub batch: usize,
    /// Images in one forward and backward pass.
    pub micro_batch: usize,
    /// Type of the operands of matrix products.
    #[serde(default)]
    pub precision: Precision,
    /// What computes a step.
    #[serde(default)]
    pub engine: EngineChoice,
    /// Forward and backward passes in one optimiser step.
    pub accumulation: usize,
    /// Optimiser steps in one epoch; the last incomplete batch is dropped.
    pub steps_per_epoch: u64,
    /// Optimiser steps in the run.
    pub steps: u64,
    /// Steps in which the rate rises from 0.
    pub warmup_steps: u64,
    /// Peak learning rate.
    pub lr: f64,
}

/// A recipe as it is run: nothing left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedRecipe {
    /// Short name of the run.
    pub name: String,
    /// Seed of weights, order, crops and rotary draws.
    pub seed: u64,
    /// Where the model is trained.
    pub device: DeviceChoice,
    /// Samples in the data set.
    pub num_samples: u64,
    /// The data set's fingerprint: names, rows and columns.
    pub dataset: String,
    /// Decode threads.
    pub decode_threads: usize,
    /// Finished batches ahead of the training step.
    pub prefetch_batches: usize,
    /// Who decodes JPEGs on a GPU; absent on the processor, which does it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jpeg: Option<JpegChoice>,
    /// Width and height of the largest JPEG that is decoded there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jpeg_largest: Option<[u32; 2]>,
    /// Length, batch and learning rate.
    pub train: ResolvedTrain,
    /// AdamW, clipping, moving average.
    pub optimizer: OptimizerConfig,
    /// When the run is saved.
    pub checkpoint: CheckpointSection,
    /// What is shown.
    pub log: LogSection,
    /// The architecture.
    pub model: NepaConfig,
    /// What is read.
    pub data: DataConfig,
    /// Use of the store.
    pub io: IoConfig,
}

/// A recipe cannot be read or makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe {}; those that come with the program lie in trainer/recipes/", path.display())]
    Read {
        /// The recipe.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a missing key or a value of the wrong type.
    #[error("the recipe {} is wrong", path.display())]
    Toml {
        /// The recipe.
        path: PathBuf,
        /// Why, with line or key.
        source: Box<toml::de::Error>,
    },
    /// A key of `[model]` that no architecture has.
    #[error("the recipe {} is wrong: unknown key `model.{key}`; known ones in [model] are: {known}", path.display())]
    UnknownModelKey {
        /// The recipe.
        path: PathBuf,
        /// The key.
        key: String,
        /// All keys, separated by commas.
        known: String,
    },
    /// `--set` without `=`, or through a value that is no table.
    #[error("--set {argument}: {problem}; write it as --set train.batch=64")]
    Set {
        /// The argument.
        argument: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A value outside its range.
    #[error("{key} = {value} is impossible: it must be {rule}")]
    Range {
        /// Dotted key.
        key: &'static str,
        /// The value.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// Neither or both of two keys that give one value.
    #[error("give exactly one of {first} and {second}; the recipe gives {}", if *both { "both" } else { "neither" })]
    OneOf {
        /// Dotted key.
        first: &'static str,
        /// Dotted key.
        second: &'static str,
        /// Whether both are given.
        both: bool,
    },
    /// The batch is no multiple of what is computed at once.
    #[error(
        "train.batch = {batch} does not divide into micro-batches of train.micro_batch = {micro_batch} on {world_size} device(s); \
         use a multiple of {} such as --set train.batch={}", micro_batch * world_size, suggestion(*batch, micro_batch * world_size)
    )]
    BatchDoesNotDivide {
        /// Images in one step.
        batch: usize,
        /// Images in one pass.
        micro_batch: usize,
        /// Devices.
        world_size: usize,
    },
    /// The image is no whole number of patches.
    #[error(
        "model.image_size = {image_size} is not a multiple of model.patch_size = {patch_size}; \
         use {} or another multiple for both model.image_size and data.augment.size", suggestion(*image_size, *patch_size)
    )]
    PatchDoesNotDivide {
        /// Side of the image in pixels.
        image_size: usize,
        /// Side of a patch in pixels.
        patch_size: usize,
    },
    /// The model and the crops disagree.
    #[error(
        "data.augment.size = {augment_size} differs from model.image_size = {image_size}; the model sees what the crop yields, so set both alike"
    )]
    ImageSizesDiffer {
        /// Side of the crops in pixels.
        augment_size: u32,
        /// Side of the model's images in pixels.
        image_size: usize,
    },
    /// An engine that cannot do what the recipe asks for.
    #[error(
        "train.engine = \"{engine}\" computes {rule}, not with device = \"{device}\" and train.precision = \"{precision}\"; \
         leave train.engine out to get the engine that can"
    )]
    Engine {
        /// Its name.
        engine: &'static str,
        /// What it computes.
        rule: &'static str,
        /// Where the model is to be trained.
        device: DeviceChoice,
        /// Type of the operands of matrix products.
        precision: Precision,
    },
    /// A decoder of a GPU's loader, without the GPU.
    #[error(
        "{key} = {value} is about JPEGs that a GPU decodes and has no effect with device = \"cpu\", \
         where the processor decodes them; leave it out, or set device = \"cuda\""
    )]
    JpegWithoutGpu {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// An impossible architecture.
    #[error("[model] is impossible")]
    Model {
        /// Key and rule.
        #[from]
        source: ModelError,
    },
    /// An impossible setting of the optimiser.
    #[error("[optimizer] is impossible")]
    Optimizer {
        /// Key and rule.
        #[from]
        source: OptimizerError,
    },
    /// An impossible crop.
    #[error("data.augment is impossible")]
    Augment {
        /// Field and rule.
        #[from]
        source: AugmentError,
    },
    /// Several views of an image.
    #[error(
        "data.augment.kind = \"multi_crop\" gives several views of an image, but NEPA is trained on one; use \"random_resized_crop\""
    )]
    SeveralViews,
    /// No data given.
    #[error(
        "no data: give --data URL (a folder, an s3:// prefix or a glob of Parquet files), or data.urls in the recipe"
    )]
    NoData,
    /// Less than one batch in the data set.
    #[error(
        "the data set has {num_samples} samples, fewer than one batch of train.batch = {batch}; an incomplete batch is dropped, so there is nothing to train on. Lower train.batch"
    )]
    TooFewSamples {
        /// Samples.
        num_samples: u64,
        /// Images in one step.
        batch: usize,
    },
}

/// The multiple of `unit` next to `value`, at least one.
fn suggestion(value: usize, unit: usize) -> usize {
    (value + unit / 2)
        .checked_div(unit)
        .map_or(value, |units| units.max(1) * unit)
}

impl Recipe {
    /// Reads a recipe file and applies `--set key=value` arguments with dotted keys.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self, RecipeError> {
        let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path, sets)
    }

    /// As [`Recipe::read`], of `text`; `path` is for messages.
    pub fn parse(text: &str, path: &Path, sets: &[String]) -> Result<Self, RecipeError> {
        let wrong = |source| RecipeError::Toml {
            path: path.to_owned(),
            source: Box::new(source),
        };
        let mut table: toml::Table = text.parse().map_err(wrong)?;
        for argument in sets {
            apply_set(&mut table, argument)?;
        }
        // Without overrides the text itself is read, so that errors show the line.
        let recipe: Self = if sets.is_empty() {
            toml::from_str(text).map_err(wrong)?
        } else {
            table.clone().try_into().map_err(wrong)?
        };
        if let Some(key) = recipe.model.other.keys().next() {
            let (path, key) = (path.to_owned(), key.clone());
            return Err(RecipeError::UnknownModelKey {
                path,
                key,
                known: known_model_keys(&recipe.model),
            });
        }
        Ok(recipe)
    }

    /// Checks all that can be checked without looking at the data or the device.
    pub fn check(&self, world_size: usize) -> Result<(), RecipeError> {
        let range = |ok: bool, key, value: &dyn std::fmt::Display, rule| {
            if ok {
                Ok(())
            } else {
                Err(RecipeError::Range {
                    key,
                    value: value.to_string(),
                    rule,
                })
            }
        };
        let model = &self.model;
        range(
            model.patch_size > 0,
            "model.patch_size",
            &model.patch_size,
            "at least 1",
        )?;
        range(
            model.image_size > 0,
            "model.image_size",
            &model.image_size,
            "at least 1",
        )?;
        if !model.image_size.is_multiple_of(model.patch_size) {
            let (image_size, patch_size) = (model.image_size, model.patch_size);
            return Err(RecipeError::PatchDoesNotDivide {
                image_size,
                patch_size,
            });
        }
        model.validate()?;
        let augment = self.data.augment.build()?;
        if !augment.more_views().is_empty() {
            return Err(RecipeError::SeveralViews);
        }
        let augment_size = augment.output_size();
        if augment_size as usize != model.image_size {
            return Err(RecipeError::ImageSizesDiffer {
                augment_size,
                image_size: model.image_size,
            });
        }
        let bad = self.data.max_bad_fraction;
        range(
            (0.0..=1.0).contains(&bad),
            "data.max_bad_fraction",
            &bad,
            "between 0 and 1",
        )?;
        range(
            self.data.shuffle_window_bytes > 0,
            "data.shuffle_window_bytes",
            &0,
            "at least 1",
        )?;

        let train = &self.train;
        range(train.batch > 0, "train.batch", &train.batch, "at least 1")?;
        range(
            train.micro_batch > 0,
            "train.micro_batch",
            &train.micro_batch,
            "at least 1",
        )?;
        if !train.batch.is_multiple_of(train.micro_batch * world_size) {
            let (batch, micro_batch) = (train.batch, train.micro_batch);
            return Err(RecipeError::BatchDoesNotDivide {
                batch,
                micro_batch,
                world_size,
            });
        }
        one_of(
            "train.epochs",
            train.epochs.is_some(),
            "train.steps",
            train.steps.is_some(),
        )?;
        one_of(
            "train.base_lr",
            train.base_lr.is_some(),
            "train.lr",
            train.lr.is_some(),
        )?;
        one_of(
            "train.warmup_fraction",
            train.warmup_fraction.is_some(),
            "train.warmup_steps",
            train.warmup_steps.is_some(),
        )?;
        for (key, length) in [("train.epochs", train.epochs), ("train.steps", train.steps)] {
            range(length != Some(0), key, &0, "at least 1")?;
        }
        let rates = [("train.base_lr", train.base_lr), ("train.lr", train.lr)];
        for (key, rate) in rates
            .into_iter()
            .filter_map(|(key, rate)| Some((key, rate?)))
        {
            range(
                rate.is_finite() && rate >= 0.0,
                key,
                &rate,
                "a finite number, 0 or more",
            )?;
        }
        if let Some(fraction) = train.warmup_fraction {
            range(
                (0.0..1.0).contains(&fraction),
                "train.warmup_fraction",
                &fraction,
                "from 0 to less than 1",
            )?;
        }

        self.check_engine()?;
        self.optimizer.validate()?;
        let checkpoint = &self.checkpoint;
        range(
            checkpoint.every_steps != Some(0),
            "checkpoint.every_steps",
            &0,
            "at least 1",
        )?;
        if let Some(minutes) = checkpoint.every_minutes {
            range(
                minutes > 0.0,
                "checkpoint.every_minutes",
                &minutes,
                "greater than 0",
            )?;
        }
        range(checkpoint.keep > 0, "checkpoint.keep", &0, "at least 1")?;
        range(
            checkpoint.stop_s >= 0.0 && checkpoint.stop_s.is_finite(),
            "checkpoint.stop_s",
            &checkpoint.stop_s,
            "0 or more seconds",
        )?;
        range(
            (3.0..=86_400.0).contains(&checkpoint.takeover_s),
            "checkpoint.takeover_s",
            &checkpoint.takeover_s,
            "from 3 to 86400 seconds",
        )?;
        range(
            self.log.every_steps != Some(0),
            "log.every_steps",
            &0,
            "at least 1",
        )?;
        for (key, threads) in [
            ("loader.decode_threads", self.loader.decode_threads),
            ("loader.prefetch_batches", self.loader.prefetch_batches),
            ("loader.io_threads", self.loader.io_threads),
        ] {
            range(threads != Some(0), key, &0, "at least 1")?;
        }
        let jpeg = self.loader.jpeg.map(|jpeg| format!("\"{jpeg}\""));
        let largest = self.loader.jpeg_largest;
        for (key, value) in [
            ("loader.jpeg", jpeg),
            (
                "loader.jpeg_largest",
                largest.map(|size| format!("{size:?}")),
            ),
        ] {
            if let (DeviceChoice::Cpu, Some(value)) = (self.device, value) {
                return Err(RecipeError::JpegWithoutGpu { key, value });
            }
        }
        for side in largest.into_iter().flatten() {
            range(
                (LEAST_LARGEST..=MOST_LARGEST).contains(&side),
                "loader.jpeg_largest",
                &side,
                "a width and a height from 64 to 65535",
            )?;
        }
        if self.data.urls.is_empty() && self.data.mixture.is_empty() {
            Err(RecipeError::NoData)
        } else {
            Ok(())
        }
    }

    fn check_engine(&self) -> Result<(), RecipeError> {
        let (device, precision) = (self.device, self.train.precision);
        let on_gpu = device != DeviceChoice::Cpu;
        let (fits, engine, rule) = match self.train.engine {
            Some(EngineChoice::Cpu) => (
                !on_gpu && precision == Precision::F32,
                "cpu",
                "in f32 on the processor only",
            ),
            Some(EngineChoice::Cuda) => {
                nepa_model::kernel_step::check(&self.model)?;
                (
                    on_gpu && precision == Precision::Bf16,
                    "cuda",
                    "in bf16 on a GPU only",
                )
            }
            Some(EngineChoice::Tape) | None => return Ok(()),
        };
        if fits {
            return Ok(());
        }
        Err(RecipeError::Engine {
            engine,
            rule,
            device,
            precision,
        })
    }

    fn default_engine(&self) -> EngineChoice {
        let kernels_can = || nepa_model::kernel_step::check(&self.model).is_ok();
        match (self.device, self.train.precision) {
            (DeviceChoice::Cpu, Precision::F32) => EngineChoice::Cpu,
            (DeviceChoice::Cuda(_), Precision::Bf16) if kernels_can() => EngineChoice::Cuda,
            _ => EngineChoice::Tape,
        }
    }

    /// Applies every rule, now that the data set is known; call [`Recipe::check`] first.
    pub fn resolve(self, num_samples: u64, dataset: String) -> Result<ResolvedRecipe, RecipeError> {
        let train = &self.train;
        let steps_per_epoch = num_samples / train.batch as u64;
        if steps_per_epoch == 0 {
            return Err(RecipeError::TooFewSamples {
                num_samples,
                batch: train.batch,
            });
        }
        let steps = train
            .steps
            .unwrap_or_else(|| train.epochs.unwrap_or(0) * steps_per_epoch);
        let lr = train
            .lr
            .unwrap_or_else(|| train.base_lr.unwrap_or(0.0) * train.batch as f64 / 256.0);
        let warmup_steps = train
            .warmup_steps
            .unwrap_or_else(|| (train.warmup_fraction.unwrap_or(0.0) * steps as f64).ceil() as u64);
        if warmup_steps >= steps {
            let rule = "less than the steps of the run";
            return Err(RecipeError::Range {
                key: "train.warmup_steps",
                value: warmup_steps.to_string(),
                rule,
            });
        }
        let engine = train.engine.unwrap_or_else(|| self.default_engine());
        // It is printed and stored.
        let mut data = self.data;
        let of_mixture = data.mixture.iter_mut().map(|source| &mut source.urls);
        for url in of_mixture.chain([&mut data.urls]).flatten() {
            *url = storable_url(url);
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(ResolvedRecipe {
            name: self.name,
            seed: self.seed,
            device: self.device,
            num_samples,
            dataset,
            decode_threads: self.loader.decode_threads.unwrap_or(cores),
            prefetch_batches: self.loader.prefetch_batches.unwrap_or(2),
            jpeg: (self.device != DeviceChoice::Cpu).then(|| self.loader.jpeg.unwrap_or_default()),
            jpeg_largest: self.loader.jpeg_largest,
            train: ResolvedTrain {
                batch: train.batch,
                micro_batch: train.micro_batch,
                precision: train.precision,
                engine,
                accumulation: train.batch / train.micro_batch,
                steps_per_epoch,
                steps,
                warmup_steps,
                lr,
            },
            optimizer: self.optimizer,
            checkpoint: self.checkpoint,
            log: self.log,
            model: self.model,
            data,
            io: self.io,
        })
    }
}

impl ResolvedTrain {
    /// The learning rate over the run, down to 0 as published.
    pub fn schedule(&self) -> Schedule {
        Schedule {
            lr: self.lr,
            warmup_steps: self.warmup_steps,
            total_steps: self.steps,
            final_lr: 0.0,
        }
    }
}

impl ResolvedRecipe {
    /// Who decodes JPEGs on a GPU, and how.
    pub fn engines(&self) -> EngineConfig {
        let engines = self.jpeg.unwrap_or_default().engines();
        EngineConfig {
            largest: self.jpeg_largest.unwrap_or(engines.largest),
            ..engines
        }
    }

    /// Device memory that the loader will take on a GPU, about: finished batches and those that are being filled or trained on, images
    /// that are being decoded, and nvJPEG's own memory for these.
    pub fn loader_device_bytes(&self) -> u64 {
        if self.device == DeviceChoice::Cpu {
            return 0;
        }
        let value_bytes = match self.train.precision {
            Precision::F32 => 4,
            Precision::Bf16 => 2,
        };
        let batch_bytes = 3 * self.model.image_size.pow(2) * value_bytes * self.train.batch;
        let batches = (self.prefetch_batches + BATCHES_UNDER_WAY) * batch_bytes;
        batches as u64 + 2 * self.engines().device_bytes(self.decode_threads)
    }

    /// As TOML, for the console and for `recipe.toml` in the output.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a resolved recipe is plain data with string keys")
    }
}

/// All keys of `[model]`; an architecture's own keys are known to the model alone.
fn known_model_keys(model: &NepaConfig) -> String {
    let mut model = model.clone();
    model.other.clear();
    model.pos_embed_shift = Some(0.0);
    model.pos_embed_jitter = Some(1.0);
    match toml::Value::try_from(&model) {
        Ok(toml::Value::Table(known)) => known.keys().cloned().collect::<Vec<_>>().join(", "),
        _ => String::new(),
    }
}

fn one_of(
    first: &'static str,
    has_first: bool,
    second: &'static str,
    has_second: bool,
) -> Result<(), RecipeError> {
    if has_first == has_second {
        Err(RecipeError::OneOf {
            first,
            second,
            both: has_first,
        })
    } else {
        Ok(())
    }
}

/// Sets a dotted key. The value is read as TOML, and as a string where it is no TOML (`--set device=cpu`).
fn apply_set(table: &mut toml::Table, argument: &str) -> Result<(), RecipeError> {
    let wrong = |problem| RecipeError::Set {
        argument: argument.to_owned(),
        problem,
    };
    let (key, value) = argument
        .split_once('=')
        .ok_or_else(|| wrong("there is no `=`"))?;
    let value = format!("value = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.trim().to_owned()));
    let mut parts = key.split('.').map(str::trim).collect::<Vec<_>>();
    let last = parts
        .pop()
        .filter(|last| !last.is_empty())
        .ok_or_else(|| wrong("the key is empty"))?;
    let mut table = table;
    for part in parts {
        table = table
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| wrong("the key leads through a value that is no section"))?;
    }
    table.insert(last.to_owned(), value);
    Ok(())
}

fn default_true() -> bool {
    true
}
fn default_max_bad_fraction() -> f64 {
    0.01
}
fn default_shuffle_window_bytes() -> u64 {
    1 << 30
}
fn default_seed() -> u64 {
    1337
}

#[cfg(test)]
#[path = "recipe_tests.rs"]
mod tests;
