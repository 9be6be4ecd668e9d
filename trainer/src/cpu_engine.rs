//! The processor's engine: the model's explicit step and flat buffers, all memory taken before the
//! first step.
use candle_core::DType;
use nepa_model::{ExplicitNepa, MemoryPlan, NepaConfig, RopeDraw, Weights};

use crate::engine::{Engine, EngineError, Images, StepReport, TrainingState};
use crate::optimizer::{Optimizer, OptimizerConfig, global_norm};

/// The explicit step in f32.
#[derive(Debug)]
pub struct CpuEngine {
    model: ExplicitNepa<f32>,
    micro_batch: usize,
    weights: Weights,
    optimizer: Optimizer,
    gradient: Vec<f32>,
    grad_norm: f64,
    plan: MemoryPlan,
}

/// All memory of an engine for micro-batches of so many images.
fn plan(
    config: &NepaConfig,
    optimizer: &OptimizerConfig,
    num_weights: usize,
    micro_batch: usize,
) -> MemoryPlan {
    let flat_bytes = 4 * num_weights as u64;
    let averages = u64::from(optimizer.ema_decay.is_some());
    let mut plan = MemoryPlan::default();
    plan.add("weights, moments, average", (3 + averages) * flat_bytes);
    plan.add("gradient", flat_bytes);
    plan.add("copy while saving", (3 + averages) * flat_bytes);
    plan.extend(&ExplicitNepa::<f32>::plan(config, micro_batch));
    plan
}

/// Bytes that this process may still take, as far as the system says: of the machine, or of the
/// container that it runs in.
fn available_bytes() -> Option<u64> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    let machine = Some(system.available_memory()).filter(|bytes| *bytes > 0);
    let container = system.cgroup_limits().map(|limits| limits.free_memory);
    machine.into_iter().chain(container).min()
}

impl CpuEngine {
    /// An engine for micro-batches of `micro_batch` images that goes on from `state`. Refused,
    /// before anything is taken, if its memory does not fit.
    pub fn new(
        config: &NepaConfig,
        optimizer: &OptimizerConfig,
        state: TrainingState,
        micro_batch: usize,
    ) -> Result<Self, EngineError> {
        let TrainingState {
            weights,
            optimizer: optimizer_state,
        } = state;
        let plan_for = |images| plan(config, optimizer, weights.flat.len(), images);
        // Where the system does not say, nothing is refused.
        let available = available_bytes().unwrap_or(u64::MAX);
        let plan = EngineError::check_memory(plan_for, micro_batch, available)?;
        Ok(Self {
            model: ExplicitNepa::new(config, micro_batch)?,
            micro_batch,
            optimizer: Optimizer::from_state(optimizer, &weights.specs, optimizer_state)?,
            gradient: vec![0.0; weights.flat.len()],
            grad_norm: 0.0,
            weights,
            plan,
        })
    }
}

impl Engine for CpuEngine {
    fn load(&mut self, state: TrainingState) -> Result<(), EngineError> {
        let TrainingState { weights, optimizer } = state;
        self.optimizer = Optimizer::from_state(self.optimizer.config(), &weights.specs, optimizer)?;
        self.weights = weights;
        Ok(())
    }

    fn step(&mut self, images: &Images<'_>, ropes: &[RopeDraw]) -> Result<StepReport, EngineError> {
        let copied;
        let slices;
        let images = match images {
            Images::Host(images) => *images,
            Images::Device(tensor) => {
                let values = tensor.to_dtype(DType::F32)?.flatten_from(1)?;
                copied = values.to_vec2::<f32>()?;
                slices = copied.iter().map(Vec::as_slice).collect::<Vec<_>>();
                slices.as_slice()
            }
        };
        self.gradient.fill(0.0);
        let mut report = StepReport::default();
        let share = 1.0 / ropes.len() as f64;
        for (images, rope) in images.chunks(self.micro_batch).zip(ropes) {
            let found = self.model.add_gradient(
                &self.weights.flat,
                images,
                rope,
                share,
                &mut self.gradient,
            )?;
            report.add(share, &found);
        }
        self.model.finish(&self.weights.flat, &mut self.gradient);
        self.grad_norm = global_norm(&self.gradient);
        report.grad_norm = self.grad_norm;
        Ok(report)
    }

    fn update(&mut self, lr: f64) -> Result<(), EngineError> {
        self.optimizer
            .step_with_norm(&mut self.weights.flat, &self.gradient, lr, self.grad_norm);
        Ok(())
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

    fn memory(&self) -> Option<&MemoryPlan> {
        Some(&self.plan)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use nepa_model::init_weights;

    use super::*;
    use crate::tape_engine::TapeEngine;

    fn state(config: &NepaConfig) -> TrainingState {
        TrainingState::new(init_weights(config, 5))
    }

    fn pixels(config: &NepaConfig, batch: usize) -> Vec<Vec<f32>> {
        let len = 3 * config.image_size * config.image_size;
        let value = |image: usize, i: usize| ((i * 31 + image * 7919) % 255) as f32 / 127.5 - 1.0;
        let image = |image| (0..len).map(|i| value(image, i)).collect();
        (0..batch).map(image).collect()
    }

    #[test]
    fn it_trains_as_the_tape_does() {
        let config = NepaConfig {
            layerscale_value: 0.3,
            ..NepaConfig::tiny()
        };
        let optimizer = OptimizerConfig::default();
        let pixels = pixels(&config, 4);
        let images = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let tensor = Tensor::from_vec(
            pixels.concat(),
            (4, 3, config.image_size, config.image_size),
            &Device::Cpu,
        )
        .expect("a tensor");
        let mut explicit =
            CpuEngine::new(&config, &optimizer, state(&config), 2).expect("an engine");
        let mut tape =
            TapeEngine::new(&config, &optimizer, state(&config), &Device::Cpu).expect("an engine");
        for step in 0..5 {
            let ropes = [0, 1].map(|micro| RopeDraw::draw(&config, 1, step, micro));
            // Both forms of a batch.
            let forms = [Images::Host(&images), Images::Device(&tensor)];
            let found = explicit
                .step(&forms[step as usize % 2], &ropes)
                .expect("a step");
            let expected = tape.step(&forms[0], &ropes).expect("a step");
            for (found, expected) in [
                (found.loss, expected.loss),
                (found.grad_norm, expected.grad_norm),
                (found.cos_target, expected.cos_target),
                (found.cos_previous, expected.cos_previous),
            ] {
                assert!(
                    (found - expected).abs() < 2e-5 * (1.0 + expected.abs()),
                    "{step}: {found} {expected}"
                );
            }
            explicit.update(1e-3).expect("an update");
            tape.update(1e-3).expect("an update");
        }
        let (found, expected) = (
            explicit.export().expect("a state"),
            tape.export().expect("a state"),
        );
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values
                .map(|v| f64::from(v) * f64::from(v))
                .sum::<f64>()
                .sqrt()
        };
        for (name, found, expected) in [
            ("weights", &found.weights.flat, &expected.weights.flat),
            ("m", &found.optimizer.m, &expected.optimizer.m),
            ("v", &found.optimizer.v, &expected.optimizer.v),
            ("ema", &found.optimizer.ema, &expected.optimizer.ema),
        ] {
            let off = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            let off = off / norm(&mut expected.iter().copied());
            assert!(off < 1e-4, "{name}: {off}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_does() {
        let (config, optimizer) = (NepaConfig::tiny(), OptimizerConfig::default());
        let error = CpuEngine::new(&config, &optimizer, state(&config), 1 << 40)
            .expect_err("no machine has that");
        let message = error.to_string();
        let EngineError::Memory {
            fits, micro_batch, ..
        } = error
        else {
            panic!("{message}");
        };
        assert!(fits > 0 && fits < micro_batch, "{message}");
        for part in [
            "MLP activations",
            &format!("train.micro_batch={fits}"),
            "moments",
        ] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }
}
