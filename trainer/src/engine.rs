//! What trains: a batch in, a loss out, then an update. The run does not know which engine it drives.
//!
//! [`TapeEngine`], on candle's tape and flat host buffers, is the first; engines with explicit kernels come beside it.
use candle_core::{DType, Device, Tensor};
use nepa_model::{ModelError, Nepa, NepaConfig, RopeDraw, Weights};

use crate::recipe::OptimizerConfig;

/// All that training changes, of one step; flat buffers in the order of `weights.specs`.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingState {
    /// Optimiser steps done.
    pub step: u64,
    /// Weights.
    pub weights: Weights,
    /// AdamW's first moment.
    pub first_moment: Vec<f32>,
    /// AdamW's second moment.
    pub second_moment: Vec<f32>,
    /// Moving average of the weights; before the first step the weights themselves.
    pub ema: Vec<f32>,
}

impl TrainingState {
    /// The state before the first step.
    pub fn new(weights: Weights) -> Self {
        let zeros = vec![0.0; weights.flat.len()];
        let ema = weights.flat.clone();
        Self {
            step: 0,
            first_moment: zeros.clone(),
            second_moment: zeros,
            ema,
            weights,
        }
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

/// Learning rates of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRates {
    /// Of all weights but the embeddings.
    pub main: f64,
    /// Of the embeddings.
    pub embedding: f64,
}

/// An engine cannot compute a step.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model cannot be built or computed.
    #[error("the model cannot be computed: {0}")]
    Model(#[from] ModelError),
    /// A tensor cannot be made.
    #[error("the batch cannot become a tensor: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Turns batches into updates of one model's weights.
pub trait Engine {
    /// Takes over weights, moments and average of one step.
    fn load(&mut self, state: TrainingState) -> Result<(), EngineError>;

    /// Forward and backward over a batch of normalised `[3, S, S]` images, in as many equal micro-batches as there are
    /// `ropes`. Keeps the gradient for [`Engine::update`]; changes no weight.
    fn step(&mut self, images: &[&[f32]], ropes: &[RopeDraw]) -> Result<StepReport, EngineError>;

    /// Clips the gradient of the last step and applies it to weights, moments and average.
    fn update(&mut self, rates: LearningRates) -> Result<(), EngineError>;

    /// A copy of weights, moments and average.
    fn export(&self) -> Result<TrainingState, EngineError>;
}

/// Candle's tape on the processor, with flat f32 buffers for all that the optimiser touches.
#[derive(Debug)]
pub struct TapeEngine {
    model: Nepa,
    state: TrainingState,
    gradient: Vec<f32>,
}

impl TapeEngine {
    /// An engine for one architecture; [`Engine::load`] gives it its weights.
    pub fn new(
        config: &NepaConfig,
        _optimizer: &OptimizerConfig,
        state: &TrainingState,
    ) -> Result<Self, EngineError> {
        let model = Nepa::new(config, &state.weights, DType::F32, &Device::Cpu)?;
        Ok(Self {
            model,
            gradient: vec![0.0; state.weights.flat.len()],
            state: state.clone(),
        })
    }
}

impl Engine for TapeEngine {
    fn load(&mut self, state: TrainingState) -> Result<(), EngineError> {
        self.model.set_weights(&state.weights.flat)?;
        self.state = state;
        Ok(())
    }

    fn step(&mut self, images: &[&[f32]], ropes: &[RopeDraw]) -> Result<StepReport, EngineError> {
        self.gradient.fill(0.0);
        let mut report = StepReport::default();
        let share = 1.0 / ropes.len() as f64;
        let side = self.model.config().image_size;
        for (images, rope) in images.chunks(images.len() / ropes.len()).zip(ropes) {
            let pixels =
                Tensor::from_vec(images.concat(), (images.len(), 3, side, side), &Device::Cpu)?;
            let found = self.model.pretrain_loss(&pixels, rope)?;
            report.loss += share * f64::from(found.loss.to_scalar::<f32>()?);
            report.cos_target += share * found.cos_target;
            report.cos_previous += share * found.cos_previous;
            report.copy_win += share * found.copy_win;
            self.model
                .backward_into(&found.loss, share as f32, &mut self.gradient)?;
        }
        let squares = self
            .gradient
            .iter()
            .map(|value| f64::from(*value) * f64::from(*value));
        report.grad_norm = squares.sum::<f64>().sqrt();
        Ok(report)
    }

    fn update(&mut self, _rates: LearningRates) -> Result<(), EngineError> {
        unimplemented!()
    }

    fn export(&self) -> Result<TrainingState, EngineError> {
        Ok(self.state.clone())
    }
}
