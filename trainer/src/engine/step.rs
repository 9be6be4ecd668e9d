//! The model's training step ([`nepa_model::Step`]) as an engine, on any of its devices.
use candle_core::{DType, Tensor};
use nepa_model::cpu::CpuDevice;
use nepa_model::objective::NextEmbedding;
use nepa_model::step::adamw::AdamWSettings;
use nepa_model::step::device::Device;
use nepa_model::{
    FlatState, MemoryPlan, NepaConfig, ParamSpec, Pass, PretrainReport, RopeDraw, Step,
    StepOptions, Weights,
};

use super::{Engine, EngineError, Images, StepReport, TrainingState};
use crate::optimizer::{OptimizerConfig, OptimizerState, check_state};

/// What an engine wants of a device beside the operations of a step.
pub trait EngineDevice: Device<Wide = f32> + Send + Sized {
    /// Its errors as an engine's.
    fn failed(error: Self::Error) -> EngineError;

    /// Adds the gradient of the images of a tensor `[B, 3, S, S]`.
    fn add_gradient(
        step: &mut Step<Self>,
        images: &Tensor,
        pass: &Pass<'_>,
        share: f64,
    ) -> Result<PretrainReport, EngineError>;

    /// Runs a step or an update where its operations are split.
    fn run<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    /// See [`Engine::choices`].
    fn choices(&self) -> Option<serde_json::Value> {
        None
    }

    /// See [`Engine::take_choices`].
    fn take_choices(&mut self, _saved: &serde_json::Value) -> bool {
        true
    }
}

/// NEPA's pretraining step on one device.
#[derive(Debug)]
pub struct StepEngine<D> {
    step: Step<D>,
    specs: Vec<ParamSpec>,
    optimizer: OptimizerConfig,
    micro_batch: usize,
    plan: MemoryPlan,
}

/// The processor's engine.
pub type CpuEngine = StepEngine<CpuDevice<f32>>;

impl<D: EngineDevice> StepEngine<D> {
    /// An engine that goes on from `state`, with all memory of `plan`, which is known to fit.
    pub(crate) fn with_device(
        config: &NepaConfig,
        options: &StepOptions,
        optimizer: &OptimizerConfig,
        state: TrainingState,
        device: D,
        plan: MemoryPlan,
    ) -> Result<Self, EngineError> {
        let mut step = Step::new(config, options, device).map_err(D::failed)?;
        step.set_groups(|name| optimizer.group(name))
            .map_err(D::failed)?;
        let mut engine = Self {
            step,
            specs: state.weights.specs.clone(),
            optimizer: optimizer.clone(),
            micro_batch: options.images,
            plan,
        };
        engine.load(state)?;
        Ok(engine)
    }

    fn run_step(
        &mut self,
        images: &Images<'_>,
        ropes: &[RopeDraw],
    ) -> Result<StepReport, EngineError> {
        self.step.clear_gradient().map_err(D::failed)?;
        let mut report = StepReport::default();
        let share = 1.0 / ropes.len() as f64;
        for (number, rope) in ropes.iter().enumerate() {
            let (first, count) = (number * self.micro_batch, self.micro_batch);
            let pass = Pass::of(rope);
            let found = match images {
                Images::Host(images) => {
                    let staged = self.step.stage(&images[first..first + count]);
                    let staged = staged.map_err(D::failed)?;
                    self.step
                        .add_gradient(staged, count, &pass, share, &mut NextEmbedding)
                        .map_err(D::failed)?
                }
                Images::Device(batch) => {
                    let part = batch.narrow(0, first, count)?;
                    D::add_gradient(&mut self.step, &part, &pass, share)?
                }
            };
            report.add(share, &found);
        }
        let norm = self.step.finish(self.optimizer.max_grad_norm);
        report.grad_norm = norm.map_err(D::failed)?;
        Ok(report)
    }
}

impl<D: EngineDevice> Engine for StepEngine<D> {
    fn load(&mut self, state: TrainingState) -> Result<(), EngineError> {
        let TrainingState { weights, optimizer } = state;
        check_state(&self.optimizer, &weights.specs, &optimizer)?;
        let OptimizerState { step, m, v, ema } = optimizer;
        let state = FlatState {
            weights: weights.flat,
            m,
            v,
            average: ema,
            updates: step,
        };
        self.step.load(&state).map_err(D::failed)
    }

    fn step(&mut self, images: &Images<'_>, ropes: &[RopeDraw]) -> Result<StepReport, EngineError> {
        D::run(|| self.run_step(images, ropes))
    }

    fn update(&mut self, lr: f64) -> Result<(), EngineError> {
        let settings = AdamWSettings::from(&self.optimizer);
        D::run(|| self.step.update(&settings, lr).map_err(D::failed))
    }

    fn export(&mut self) -> Result<TrainingState, EngineError> {
        let FlatState {
            weights,
            m,
            v,
            average,
            updates,
        } = self.step.export().map_err(D::failed)?;
        Ok(TrainingState {
            weights: Weights {
                specs: self.specs.clone(),
                flat: weights,
            },
            optimizer: OptimizerState {
                step: updates,
                m,
                v,
                ema: average,
            },
        })
    }

    fn gradient(&mut self) -> Result<Vec<f32>, EngineError> {
        self.step.read_gradient().map_err(D::failed)
    }

    fn memory(&self) -> Option<&MemoryPlan> {
        Some(&self.plan)
    }

    fn choices(&self) -> Option<serde_json::Value> {
        self.step.device().choices()
    }

    fn take_choices(&mut self, saved: &serde_json::Value) -> bool {
        self.step.device_mut().take_choices(saved)
    }
}

impl EngineDevice for CpuDevice<f32> {
    // Inside of the thread pool: to enter it anew for each operation takes a small model a fifth of
    // its time.
    fn run<R: Send>(work: impl FnOnce() -> R + Send) -> R {
        rayon::scope(|_| work())
    }

    fn failed(error: Self::Error) -> EngineError {
        EngineError::Model(error)
    }

    fn add_gradient(
        step: &mut Step<Self>,
        images: &Tensor,
        pass: &Pass<'_>,
        share: f64,
    ) -> Result<PretrainReport, EngineError> {
        let values = images.to_dtype(DType::F32)?.flatten_from(1)?;
        let values = values.to_vec2::<f32>()?;
        let slices: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let staged = step.stage(&slices)?;
        Ok(step.add_gradient(staged, slices.len(), pass, share, &mut NextEmbedding)?)
    }
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
        let averages = u64::from(optimizer.ema_decay.is_some());
        let copy_bytes = (3 + averages) * 4 * state.weights.flat.len() as u64;
        let plan_for = |images| {
            let options = StepOptions::pretraining(config, images);
            let mut plan = Step::<CpuDevice<f32>>::plan(config, &options);
            plan.add("copy while saving", copy_bytes);
            plan
        };
        // Where the system does not say, nothing is refused.
        let available = available_bytes().unwrap_or(u64::MAX);
        let plan = EngineError::check_memory(plan_for, micro_batch, available)?;
        let options = StepOptions::pretraining(config, micro_batch);
        let device = CpuDevice::default();
        Self::with_device(config, &options, optimizer, state, device, plan)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use nepa_model::init_weights;

    use super::*;
    use crate::engine::AutogradEngine;

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
    fn it_trains_as_autograd_does() {
        let config = NepaConfig {
            layerscale_value: Some(0.3),
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
        let mut own = CpuEngine::new(&config, &optimizer, state(&config), 2).expect("an engine");
        let mut autograd = AutogradEngine::new(
            &config,
            &optimizer,
            state(&config),
            &Device::Cpu,
            DType::F32,
        )
        .expect("an engine");
        for step in 0..5 {
            let ropes = [0, 1].map(|micro| RopeDraw::draw(&config, 1, step, micro));
            // Both forms of a batch.
            let forms = [Images::Host(&images), Images::Device(&tensor)];
            let found = own.step(&forms[step as usize % 2], &ropes).expect("a step");
            let expected = autograd.step(&forms[0], &ropes).expect("a step");
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
            own.update(1e-3).expect("an update");
            autograd.update(1e-3).expect("an update");
        }
        let (found, expected) = (
            own.export().expect("a state"),
            autograd.export().expect("a state"),
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
