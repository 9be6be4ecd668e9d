//! The processor's engine on candle's tape: slower than [`crate::cpu_engine`], and independent of
//! it.
use candle_core::{DType, Device};
use nepa_model::{Nepa, NepaConfig, RopeDraw, Weights};

use crate::engine::{Engine, EngineError, Images, StepReport, TrainingState};
use crate::optimizer::{Optimizer, OptimizerConfig, global_norm};

/// The model's own operations and candle's tape, with flat f32 buffers for all that the optimiser
/// touches.
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
            report.add(share, &found.report()?);
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

    fn export(&mut self) -> Result<TrainingState, EngineError> {
        Ok(TrainingState {
            weights: self.weights.clone(),
            optimizer: self.optimizer.state().clone(),
        })
    }

    fn gradient(&mut self) -> Result<Vec<f32>, EngineError> {
        Ok(self.gradient.clone())
    }
}
