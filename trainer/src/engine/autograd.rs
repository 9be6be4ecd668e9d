//! The engine of candle's operations and autograd, on any device: slower and hungrier than
//! [`super::StepEngine`], and independent of it. For verification, and for models that a device's
//! step cannot compute.
use std::sync::Arc;
use std::time::Instant;

use candle_core::{D, DType, Device, Tensor};
use nepa_model::cpu::global_norm;
use nepa_model::objective::ClassificationReport;
use nepa_model::step::SumTree;
use nepa_model::{Ablation, ModelError, Nepa, PretrainDraw, Weights, soft_cross_entropy};

use super::report::{MicroNumbers, MicroReport, gather};
use super::{
    Engine, EngineError, Exchange, StepInput, StepReport, Task, TrainingSetup, TrainingState,
};
use crate::optimizer::Optimizer;

/// The reference model, with flat f32 buffers in the host's memory for all that the optimiser
/// touches.
#[derive(Debug)]
pub struct AutogradEngine {
    device: Device,
    task: Task,
    micro_batch: usize,
    ablation: Ablation,
    model: Nepa,
    weights: Weights,
    optimizer: Optimizer,
    gradient: Vec<f32>,
    /// Sums of some micro-batches, as large.
    partial_sums: Vec<Vec<f32>>,
    exchange: Option<Arc<dyn Exchange>>,
    /// Of the gradient that waits for its update.
    grad_norm: Option<f64>,
}

impl AutogradEngine {
    /// An engine on `device` that goes on from `state`; operands of matmuls are of type `matmul`.
    pub fn new(
        setup: &TrainingSetup<'_>,
        state: TrainingState,
        device: &Device,
        matmul: DType,
    ) -> Result<Self, EngineError> {
        let TrainingState { weights, optimizer } = state;
        let mut model = Nepa::new(setup.config, &weights, DType::F32, device)?;
        model.set_matmul_type(matmul);
        let (update, groups) = (setup.update, setup.groups);
        Ok(Self {
            device: device.clone(),
            task: Task::of(setup.config),
            micro_batch: setup.micro_batch,
            ablation: setup.ablation,
            model,
            optimizer: Optimizer::from_state(update, groups, &weights.specs, optimizer)?,
            gradient: vec![0.0; weights.flat.len()],
            partial_sums: Vec::new(),
            exchange: setup.exchange.cloned(),
            grad_norm: None,
            weights,
        })
    }

    fn pretrain(
        &mut self,
        input: &StepInput<'_>,
        count: usize,
    ) -> Result<Vec<MicroNumbers>, EngineError> {
        let ablation = self.ablation;
        self.micro_batches(input, count, |model, pixels, number| {
            let draw = &input.passes[number];
            let draw = PretrainDraw {
                rope: draw.rope,
                drop_path: draw.drop_path.as_deref(),
                masked: draw.masked.as_deref(),
            };
            let found = model.ablated_loss(pixels, &draw, &ablation)?;
            Ok((found.report()?, found.loss))
        })
    }

    fn classify(
        &mut self,
        input: &StepInput<'_>,
        count: usize,
    ) -> Result<Vec<MicroNumbers>, EngineError> {
        self.micro_batches(input, count, |model, pixels, number| {
            let draw = &input.passes[number];
            let logits = model.classify(pixels, &draw.rope, draw.drop_path.as_deref())?;
            let targets = input.targets_of(number, count);
            let targets = Tensor::from_slice(targets, logits.shape(), pixels.device())?;
            let loss = soft_cross_entropy(&logits, &targets)?;
            // Both the first of equal ones.
            let [found, expected] = [&logits, &targets].map(|all| all.argmax(D::Minus1));
            let right = found?.eq(&expected?)?.to_dtype(DType::U32)?.sum_all()?;
            let report = ClassificationReport {
                loss: f64::from(loss.to_scalar::<f32>()?),
                correct: right.to_scalar::<u32>()? as usize,
                images: count,
            };
            Ok((report, loss))
        })
    }

    /// The gradient over all micro-batches of `count` images; `loss` gives what is told of one, and
    /// its loss.
    fn micro_batches<R: MicroReport>(
        &mut self,
        input: &StepInput<'_>,
        count: usize,
        loss: impl Fn(&Nepa, &Tensor, usize) -> Result<(R, Tensor), EngineError>,
    ) -> Result<Vec<MicroNumbers>, EngineError> {
        let mut found = Vec::with_capacity(input.passes.len());
        let ranks = self.exchange.as_ref().map_or(1, |ranks| ranks.size());
        let share = (1.0 / (ranks * input.passes.len()) as f64) as f32;
        let side = self.model.config().image_size;
        let tree = SumTree::new(input.passes.len());
        for number in 0..input.passes.len() {
            let first = number * count;
            let pixels = input.images.tensor(first, count, side, &self.device)?;
            let (report, loss) = loss(&self.model, &pixels, number)?;
            found.push(report.numbers());
            let mut below = tree.before(number);
            let mut gradient = self.take_cleared(below);
            let added = self.model.backward_into(&loss, share, &mut gradient);
            *self.sum(below) = gradient;
            added?;
            for _ in 0..tree.additions(number) {
                let top = std::mem::take(self.sum(below));
                for (sum, value) in self.sum(below - 1).iter_mut().zip(&top) {
                    *sum += value;
                }
                *self.sum(below) = top;
                below -= 1;
            }
        }
        Ok(found)
    }

    /// The stack of sums, the gradient itself being the first.
    fn sum(&mut self, place: usize) -> &mut Vec<f32> {
        match place.checked_sub(1) {
            None => &mut self.gradient,
            Some(place) => &mut self.partial_sums[place],
        }
    }

    /// The memory of one of them, all zeros.
    fn take_cleared(&mut self, place: usize) -> Vec<f32> {
        let len = self.weights.flat.len();
        if place > self.partial_sums.len() {
            self.partial_sums.push(Vec::new());
        }
        let mut sum = std::mem::take(self.sum(place));
        sum.clear();
        sum.resize(len, 0.0);
        sum
    }

    /// The norm of the gradient of what is trained.
    fn norm(&mut self) -> f64 {
        self.optimizer.forget_frozen(&mut self.gradient);
        global_norm(&self.gradient)
    }
}

impl Engine for AutogradEngine {
    fn load(&mut self, state: TrainingState) -> Result<(), EngineError> {
        let TrainingState { weights, optimizer } = state;
        self.optimizer.set_state(&weights.specs, optimizer)?;
        self.model.set_weights(&weights.flat)?;
        self.weights = weights;
        self.grad_norm = None;
        Ok(())
    }

    fn step(&mut self, input: &StepInput<'_>) -> Result<StepReport, EngineError> {
        let count = input.micro_batch(self.task, self.micro_batch)?;
        self.grad_norm = None;
        let started = Instant::now();
        let mut found = match self.task {
            Task::Pretraining => self.pretrain(input, count)?,
            Task::Classification => self.classify(input, count)?,
        };
        let mut computed = None;
        if let Some(ranks) = self.exchange.clone() {
            let seconds = started.elapsed().as_secs_f64();
            ranks.sum(&mut self.gradient).map_err(EngineError::Ranks)?;
            let gathered = gather(ranks.as_ref(), &found, seconds);
            let (all, spread) = gathered.map_err(EngineError::Ranks)?;
            (found, computed) = (all, Some(spread));
        }
        let norm = self.norm();
        self.grad_norm = Some(norm);
        Ok(StepReport {
            computed,
            ..StepReport::new(self.task, &found, norm)
        })
    }

    fn update(&mut self, rates: &[f64]) -> Result<(), EngineError> {
        let refused = |reason| Err(EngineError::Model(ModelError::Step { reason }));
        if rates.len() < self.optimizer.num_rates() {
            return refused("its groups of weights have more learning rates than the update");
        }
        let Some(norm) = self.grad_norm.take() else {
            return refused("it has no gradient: after an update, a gradient is computed first");
        };
        self.optimizer
            .step_with_norm(&mut self.weights.flat, &self.gradient, rates, norm);
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
