//! A recipe as it is run: every rule applied, nothing left out. It is saved with the run and with
//! each checkpoint. Made by [`Recipe::resolve`].
use nepa_model::{Ablation, NepaConfig};
use nepa_pipeline::{EngineConfig, IoConfig, storable_url};
use serde::{Deserialize, Serialize};

use super::{
    CheckpointSection, DataConfig, EngineChoice, FromWeights, JpegChoice, LogSection, Precision,
    Recipe, RecipeError, ResolvedFinetune, SumChoice, WireChoice,
};
use crate::device::DeviceChoice;
use crate::optimizer::OptimizerConfig;
use crate::schedule::Schedule;

/// Batches of the loader beside the finished ones: one being filled, one being trained on.
const BATCHES_UNDER_WAY: usize = 2;

/// Once that a run was lengthened; saved with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lengthened {
    /// Steps that were done then.
    pub at_step: u64,
    /// Length of the run before, in steps.
    pub from_steps: u64,
}

/// The numbers of `[train]` and `[loader]` with every rule applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolvedTrain {
    /// Images in one optimiser step.
    pub batch: usize,
    /// Images in one forward and backward pass.
    pub micro_batch: usize,
    /// Type of the operands of matrix multiplications.
    #[serde(default)]
    pub precision: Precision,
    /// What computes a step.
    #[serde(default)]
    pub engine: EngineChoice,
    /// Who adds the gradients of several ranks.
    #[serde(default)]
    pub sum: SumChoice,
    /// How the gradients of several ranks travel, where the recipe says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wire: Option<WireChoice>,
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
    /// How the run came to be longer than it was begun; empty as a rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lengthened: Vec<Lengthened>,
}

/// Weights that a run of pretraining began with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitWeights {
    /// Path or URL, without secrets.
    pub from: String,
    /// Which weights of it.
    pub weights: FromWeights,
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
    /// What fine-tuning has beside that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finetune: Option<ResolvedFinetune>,
    /// What pretraining began with, if not with new weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<InitWeights>,
    /// What of pretraining is taken away.
    #[serde(default, skip_serializing_if = "super::ablation::is_none")]
    pub ablation: Ablation,
    /// When the run is saved.
    pub checkpoint: CheckpointSection,
    /// What is shown.
    pub log: LogSection,
    /// The architecture.
    #[serde(with = "super::model")]
    pub model: NepaConfig,
    /// What is read.
    pub data: DataConfig,
    /// Use of the store.
    pub io: IoConfig,
}

impl Recipe {
    pub(super) fn default_engine(&self) -> EngineChoice {
        let kernels_can = || nepa_model::cuda::check(&self.model).is_ok();
        match (self.device, self.train.precision) {
            _ if self.ablation.changes_the_loss() => EngineChoice::Autograd,
            (DeviceChoice::Cpu, Precision::F32) => EngineChoice::Cpu,
            (DeviceChoice::Cuda(_), Precision::Bf16) if kernels_can() => EngineChoice::Cuda,
            _ => EngineChoice::Autograd,
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
            let rule = format!("it must be less than the steps of the run, {steps}");
            return Err(self.wrong("train.warmup_steps", warmup_steps.to_string(), rule));
        }
        let engine = train.engine.unwrap_or_else(|| self.default_engine());
        // It is printed and stored.
        let mut data = self.data;
        let mixture = data.mixture.iter_mut();
        let of_mixture = mixture.flat_map(|source| source.urls.iter_mut().chain(&mut source.index));
        for url in of_mixture.chain(&mut data.urls).chain(&mut data.index) {
            *url = storable_url(url);
        }
        let cores = crate::device::cores();
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
                sum: train.sum,
                wire: train.wire,
                accumulation: train.batch / train.micro_batch,
                steps_per_epoch,
                steps,
                warmup_steps,
                lr,
                lengthened: Vec::new(),
            },
            optimizer: self.optimizer,
            finetune: None,
            init: None,
            ablation: self.ablation,
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

    /// Whether several ranks sum their gradients from GPU to GPU.
    pub fn sums_by_nccl(&self) -> bool {
        self.train.engine == EngineChoice::Cuda && self.train.wire != Some(WireChoice::Host)
    }

    /// Device memory that the loader will take on a GPU, about: finished batches and those that are
    /// being filled or trained on, images that are being decoded, and nvJPEG's own memory for
    /// these.
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
