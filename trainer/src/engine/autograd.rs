//! The engine of candle's operations and autograd, on any device: slower and hungrier than
//! [`super::StepEngine`], and independent of it. For verification, and for models that a device's
//! step cannot compute.
use candle_core::{DType, Device};
use nepa_model::cpu::global_norm;
use nepa_model::{ModelError, Nepa, NepaConfig, RopeDraw, Weights};

use super::{Engine, EngineError, Images, StepReport, TrainingState};
use crate::optimizer::{Optimizer, OptimizerConfig};

/// The reference model, with flat f32 buffers in the host's memory for all that the optimiser
/// touches.
#[derive(Debug)]
pub struct AutogradEngine {
    device: Device,
    model: Nepa,
    weights: Weights,
    optimizer: Optimizer,
    gradient: Vec<f32>,
    /// Of the gradient that waits for its update.
    grad_norm: Option<f64>,
}

impl AutogradEngine {
    /// An engine on `device` that goes on from `state`; operands of matmuls are of type `matmul`.
    pub fn new(
        config: &NepaConfig,
        optimizer: &OptimizerConfig,
        state: TrainingState,
        device: &Device,
        matmul: DType,
    ) -> Result<Self, EngineError> {
        let TrainingState {
            weights,
            optimizer: optimizer_state,
        } = state;
        let mut model = Nepa::new(config, &weights, DType::F32, device)?;
        model.set_matmul_type(matmul);
        Ok(Self {
            device: device.clone(),
            model,
            optimizer: Optimizer::from_state(optimizer, &weights.specs, optimizer_state)?,
            gradient: vec![0.0; weights.flat.len()],
            grad_norm: None,
            weights,
        })
    }
}

impl Engine for AutogradEngine {
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
        report.grad_norm = global_norm(&self.gradient);
        self.grad_norm = Some(report.grad_norm);
        Ok(report)
    }

    fn update(&mut self, lr: f64) -> Result<(), EngineError> {
        let norm = self.grad_norm.take().ok_or(ModelError::Step {
            reason: "it has no gradient: after an update, a gradient is computed first",
        })?;
        self.optimizer
            .step_with_norm(&mut self.weights.flat, &self.gradient, lr, norm);
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
