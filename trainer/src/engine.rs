//! What trains: a batch in, a loss out, then an update. The run does not know which engine it drives.
//!
//! [`TapeEngine`] is the processor's; [`crate::device_engine`] keeps everything on one device.
use candle_core::{DType, Device, Tensor};
use nepa_model::{ModelError, Nepa, NepaConfig, PretrainLoss, RopeDraw, Weights};

use crate::optimizer::{Optimizer, OptimizerConfig, OptimizerError, OptimizerState, global_norm};

/// All that training changes, of one step; flat buffers in the order of `weights.specs`.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingState {
    /// Weights.
    pub weights: Weights,
    /// Moments and moving average.
    pub optimizer: OptimizerState,
}

impl TrainingState {
    /// The state before the first step.
    pub fn new(weights: Weights) -> Self {
        let zeros = vec![0.0; weights.flat.len()];
        let optimizer = OptimizerState {
            step: 0,
            m: zeros.clone(),
            v: zeros,
            ema: Vec::new(),
        };
        Self { weights, optimizer }
    }
}

/// What one forward and backward pass over a whole batch found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepReport {
    /// Mean loss.
    pub loss: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Mean cosine of the prediction with the next embedding.
    pub cos_target: f64,
    /// Mean cosine of the prediction with the current embedding.
    pub cos_previous: f64,
    /// Share of positions where the second is greater.
    pub copy_win: f64,
}

impl StepReport {
    /// Adds what one micro-batch found, weighted by its share of the batch.
    pub(crate) fn add(&mut self, share: f64, found: &PretrainLoss) -> candle_core::Result<()> {
        self.loss += share * f64::from(found.loss.to_scalar::<f32>()?);
        self.cos_target += share * found.cos_target;
        self.cos_previous += share * found.cos_previous;
        self.copy_win += share * found.copy_win;
        Ok(())
    }
}

/// An engine cannot compute a step.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model cannot be built or computed.
    #[error("the model cannot be computed")]
    Model(#[from] ModelError),
    /// The optimiser does not fit the model.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// A tensor cannot be made.
    #[error("the batch cannot become a tensor")]
    Tensor(#[from] candle_core::Error),
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

/// Turns batches into updates of one model's weights.
pub trait Engine {
    /// Takes over weights, moments and average of one step.
    fn load(&mut self, state: TrainingState) -> Result<(), EngineError>;

    /// Forward and backward over a batch, in as many equal micro-batches as there are `ropes`. Keeps the gradient for [`Engine::update`]; changes no weight.
    fn step(&mut self, images: &Images<'_>, ropes: &[RopeDraw]) -> Result<StepReport, EngineError>;

    /// Clips the gradient of the last step and applies it to weights, moments and average.
    fn update(&mut self, lr: f64) -> Result<(), EngineError>;

    /// A copy of weights, moments and average.
    fn export(&self) -> Result<TrainingState, EngineError>;
}

/// The model's own operations on the processor, with flat f32 buffers for all that the optimiser touches.
#[derive(Debug)]
pub struct TapeEngine {
    device: Device,
    model: Nepa,
    weights: Weights,
    optimizer: Optimizer,
    gradient: Vec<f32>,
    grad_norm: f64,
}

impl TapeEngine {
    /// An engine on `device` that goes on from `state`.
    pub fn new(
        config: &NepaConfig,
        optimizer: &OptimizerConfig,
        state: TrainingState,
        device: &Device,
    ) -> Result<Self, EngineError> {
        let TrainingState {
            weights,
            optimizer: optimizer_state,
        } = state;
        Ok(Self {
            device: device.clone(),
            model: Nepa::new(config, &weights, DType::F32, device)?,
            optimizer: Optimizer::from_state(optimizer, &weights.specs, optimizer_state)?,
            gradient: vec![0.0; weights.flat.len()],
            grad_norm: 0.0,
            weights,
        })
    }
}

impl Engine for TapeEngine {
    fn load(&mut self, state: TrainingState) -> Result<(), EngineError> {
        let TrainingState { weights, optimizer } = state;
        self.optimizer = Optimizer::from_state(self.optimizer.config(), &weights.specs, optimizer)?;
        self.model.set_weights(&weights.flat)?;
        self.weights = weights;
        Ok(())
    }

    fn step(&mut self, images: &Images<'_>, ropes: &[RopeDraw]) -> Result<StepReport, EngineError> {
        self.gradient.fill(0.0);
        let mut report = StepReport::default();
        let share = 1.0 / ropes.len() as f64;
        let side = self.model.config().image_size;
        let micro_batch = images.len() / ropes.len();
        for (i, rope) in ropes.iter().enumerate() {
            let pixels = images.tensor(i * micro_batch, micro_batch, side, &self.device)?;
            let found = self.model.pretrain_loss(&pixels, rope)?;
            report.add(share, &found)?;
            self.model
                .backward_into(&found.loss, share as f32, &mut self.gradient)?;
        }
        self.grad_norm = global_norm(&self.gradient);
        report.grad_norm = self.grad_norm;
        Ok(report)
    }

    fn update(&mut self, lr: f64) -> Result<(), EngineError> {
        self.optimizer
            .step_with_norm(&mut self.weights.flat, &self.gradient, lr, self.grad_norm);
        Ok(self.model.set_weights(&self.weights.flat)?)
    }

    fn export(&self) -> Result<TrainingState, EngineError> {
        Ok(TrainingState {
            weights: self.weights.clone(),
            optimizer: self.optimizer.state().clone(),
        })
    }
}
