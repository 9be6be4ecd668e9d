//! What an engine gets: which model it trains and how, and the batches of its steps.
use std::sync::Arc;

use candle_core::{Device, Tensor};
use nepa_model::step::adamw::WeightGroup;
use nepa_model::{Ablation, ModelError, NepaConfig, Pass, RopeDraw};

use super::Exchange;
use crate::optimizer::UpdateSettings;

/// What a model is trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// To predict the embedding of the next patch.
    Pretraining,
    /// To tell the class of an image.
    Classification,
}

impl Task {
    /// That of a model's architecture.
    pub fn of(config: &NepaConfig) -> Self {
        if config.is_classifier() {
            Self::Classification
        } else {
            Self::Pretraining
        }
    }
}

/// What an engine trains, and how: its [`Task`] is that of the model.
#[derive(Clone, Copy)]
pub struct TrainingSetup<'a> {
    /// The model.
    pub config: &'a NepaConfig,
    /// What holds for all updates.
    pub update: UpdateSettings,
    /// What an update does with the weight of a name.
    pub groups: &'a dyn Fn(&str) -> WeightGroup,
    /// Images in one forward and backward pass.
    pub micro_batch: usize,
    /// Most of these passes in one step, of several ranks in one rank's part of it.
    pub micro_batches: usize,
    /// The ranks among which a step is divided; none computes all of it.
    pub exchange: Option<&'a Arc<dyn Exchange>>,
    /// What pretraining leaves out, which the engine of autograd alone can do.
    pub ablation: Ablation,
}

impl std::fmt::Debug for TrainingSetup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrainingSetup")
            .field("config", &self.config)
            .field("update", &self.update)
            .field("micro_batch", &self.micro_batch)
            .field("micro_batches", &self.micro_batches)
            .field("exchange", &self.exchange)
            .finish_non_exhaustive()
    }
}

/// The images of one batch, normalised, `[3, S, S]` each.
#[derive(Debug, Clone, Copy)]
pub enum Images<'a> {
    /// One slice an image.
    Host(&'a [&'a [f32]]),
    /// `[B, 3, S, S]`, perhaps on a device, of any float type.
    Device(&'a Tensor),
}

impl Images<'_> {
    /// Number of images.
    pub fn len(&self) -> usize {
        match self {
            Self::Host(images) => images.len(),
            Self::Device(images) => images.dims()[0],
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `count` images from `first` on, `[count, 3, side, side]` on `device`.
    pub fn tensor(
        &self,
        first: usize,
        count: usize,
        side: usize,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        match self {
            Self::Host(images) => {
                let values = images[first..first + count].concat();
                Tensor::from_vec(values, (count, 3, side, side), device)
            }
            Self::Device(images) => images.narrow(0, first, count)?.to_device(device),
        }
    }
}

/// What is drawn at random for one forward and backward pass.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PassDraw {
    /// Factors of the rotary coordinates.
    pub rope: RopeDraw,
    /// Factors of the branches, `[blocks, 2, micro-batch]`, of a model that drops some
    /// ([`Pass::drop_path`]).
    pub drop_path: Option<Vec<f32>>,
    /// Whether each patch of the micro-batch is masked, `[micro-batch, P]`, in an ablation.
    pub masked: Option<Vec<bool>>,
}

impl PassDraw {
    /// As the model's step takes it.
    pub fn pass(&self) -> Pass<'_> {
        Pass {
            drop_path: self.drop_path.as_deref(),
            ..Pass::of(&self.rope)
        }
    }
}

impl From<RopeDraw> for PassDraw {
    fn from(rope: RopeDraw) -> Self {
        Self {
            rope,
            ..Self::default()
        }
    }
}

/// One batch, or a rank's part of it, in as many equal micro-batches as there are passes.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// B images.
    pub images: Images<'a>,
    /// What a classifier should say of each image, `[B, K]`, each row of sum 1; none in
    /// pretraining.
    pub targets: Option<&'a [f32]>,
    /// One draw a micro-batch.
    pub passes: &'a [PassDraw],
}

impl<'a> StepInput<'a> {
    /// A batch of pretraining.
    pub fn unlabelled(images: Images<'a>, passes: &'a [PassDraw]) -> Self {
        Self {
            images,
            targets: None,
            passes,
        }
    }

    /// Images of each of its micro-batches, if it fits a task and their size.
    pub(crate) fn micro_batch(&self, task: Task, most: usize) -> Result<usize, ModelError> {
        let (images, passes) = (self.images.len(), self.passes.len());
        let refused = |reason| Err(ModelError::Step { reason });
        if passes == 0 || images == 0 || !images.is_multiple_of(passes) || images / passes > most {
            return refused(
                "a batch must be as many equal micro-batches as it has draws, none larger than what it was made for",
            );
        }
        match (task, self.targets) {
            (Task::Pretraining, Some(_)) => refused("pretraining has no targets"),
            (Task::Classification, None) => refused("a classifier needs a target of each image"),
            (Task::Classification, Some(targets)) if !targets.len().is_multiple_of(images) => {
                refused("a classifier needs a target of each class for each image")
            }
            _ => Ok(images / passes),
        }
    }

    /// The targets of a micro-batch of so many images, `[images, K]`.
    pub(crate) fn targets_of(&self, number: usize, images: usize) -> &'a [f32] {
        let targets = self.targets.unwrap_or_default();
        let len = targets.len() / self.images.len() * images;
        &targets[number * len..][..len]
    }
}
