//! The GPU's engine: the model's kernel step in bf16, weights, moments and average on the device.
use std::sync::Arc;

use candle_core::{Device, Storage, Tensor};
use cudarc::driver::{CudaStream, DevicePtr, result};
use half::bf16;
use nepa_model::cuda::{CudaStepDevice, CudaStepError};
use nepa_model::kernel_step::{self, FlatState, Kept, KernelStep, Pixels, Update};
use nepa_model::{MemoryPlan, NepaConfig, ParamSpec, RopeDraw, Weights};

use crate::engine::{Engine, EngineError, Images, StepReport, TrainingState};
use crate::optimizer::{Optimizer, OptimizerConfig, OptimizerState};

/// The kernel step on one GPU.
#[derive(Debug)]
pub struct CudaEngine {
    step: KernelStep<CudaStepDevice>,
    stream: Arc<CudaStream>,
    specs: Vec<ParamSpec>,
    optimizer: OptimizerConfig,
    micro_batch: usize,
    updates: u64,
}

fn failed(error: CudaStepError) -> EngineError {
    match error {
        CudaStepError::Model(error) => EngineError::Model(error),
        error => EngineError::Device(Box::new(error)),
    }
}

impl CudaEngine {
    /// An engine for micro-batches of `micro_batch` images that goes on from `state`, on `device`
    /// and in the order of its stream. Refused, before anything is taken, if its memory does not
    /// fit beside `loader_bytes` that the loader will take. Where there is room, it keeps more of
    /// the forward pass, which changes no result.
    pub fn new(
        config: &NepaConfig,
        optimizer: &OptimizerConfig,
        state: TrainingState,
        micro_batch: usize,
        device: &Device,
        loader_bytes: u64,
    ) -> Result<Self, EngineError> {
        let stream = device.as_cuda_device()?.cuda_stream();
        kernel_step::check(config)?;
        let bound = stream.context().bind_to_thread();
        bound.map_err(|error| EngineError::Device(Box::new(error)))?;
        let (free, _) =
            result::mem_get_info().map_err(|error| EngineError::Device(Box::new(error)))?;
        let plan_for = |images, kept| {
            let mut plan = KernelStep::<CudaStepDevice>::plan_keeping(config, images, kept);
            plan.extend(&CudaStepDevice::plan_beside(config, images));
            plan.add("batches and images of the loader", loader_bytes);
            plan
        };
        EngineError::check_memory(
            |images| plan_for(images, Kept::Least),
            micro_batch,
            free as u64,
        )?;
        let all = plan_for(micro_batch, Kept::Activations);
        let kept = if all.total_bytes() <= free as u64 {
            Kept::Activations
        } else {
            Kept::Least
        };
        let step = CudaStepDevice::new(Arc::clone(&stream)).map_err(failed)?;
        step.check(config).map_err(failed)?;
        let step = KernelStep::keeping(config, micro_batch, step, kept).map_err(failed)?;
        let mut engine = Self {
            step,
            stream,
            specs: state.weights.specs.clone(),
            optimizer: optimizer.clone(),
            micro_batch,
            updates: 0,
        };
        let groups = engine.step.set_groups(|name| optimizer.group(name));
        groups.map_err(failed)?;
        engine.load(state)?;
        Ok(engine)
    }

    /// Where `count` images from `first` on lie in a batch on this device.
    fn pixels(&self, batch: &Tensor, first: usize, count: usize) -> candle_core::Result<Pixels> {
        let part = batch.narrow(0, first, count)?;
        let (storage, layout) = part.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else {
            candle_core::bail!("a batch that is not on the engine's device")
        };
        if !layout.is_contiguous() {
            candle_core::bail!("a batch with gaps")
        }
        // The addresses outlive their guards: the loader keeps a batch until the step is done, and
        // all work is in the order of one stream.
        let offset = layout.start_offset() as u64;
        if let Ok(values) = storage.as_cuda_slice::<bf16>() {
            return Ok(Pixels {
                address: values.device_ptr(&self.stream).0 + 2 * offset,
                bf16: true,
            });
        }
        let values = storage.as_cuda_slice::<f32>()?;
        Ok(Pixels {
            address: values.device_ptr(&self.stream).0 + 4 * offset,
            bf16: false,
        })
    }
}

impl Engine for CudaEngine {
    fn load(&mut self, state: TrainingState) -> Result<(), EngineError> {
        let TrainingState { weights, optimizer } = state;
        // Its checks are those of any engine.
        let optimizer = Optimizer::from_state(&self.optimizer, &weights.specs, optimizer)?;
        let OptimizerState { step, m, v, ema } = optimizer.state().clone();
        self.updates = step;
        let flat = FlatState {
            weights: weights.flat,
            m,
            v,
            average: ema,
        };
        self.step.load(&flat).map_err(failed)
    }

    fn step(&mut self, images: &Images<'_>, ropes: &[RopeDraw]) -> Result<StepReport, EngineError> {
        let mut report = StepReport::default();
        let share = 1.0 / ropes.len() as f64;
        self.step.clear_gradient().map_err(failed)?;
        for (number, rope) in ropes.iter().enumerate() {
            let (first, count) = (number * self.micro_batch, self.micro_batch);
            let pixels = match images {
                Images::Host(images) => self.step.stage(&images[first..first + count]),
                Images::Device(batch) => Ok(self.pixels(batch, first, count)?),
            };
            let pixels = pixels.map_err(failed)?;
            let found = self.step.add_gradient(pixels, rope, share);
            report.add(share, &found.map_err(failed)?);
        }
        let norm = self.step.finish(self.optimizer.max_grad_norm);
        report.grad_norm = norm.map_err(failed)?;
        Ok(report)
    }

    fn update(&mut self, lr: f64) -> Result<(), EngineError> {
        self.updates += 1;
        let config = &self.optimizer;
        let update = Update {
            step: self.updates,
            lr,
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            average_decay: config.ema_decay,
        };
        self.step.update(&update).map_err(failed)
    }

    fn export(&mut self) -> Result<TrainingState, EngineError> {
        let FlatState {
            weights,
            m,
            v,
            average,
        } = self.step.export().map_err(failed)?;
        Ok(TrainingState {
            weights: Weights {
                specs: self.specs.clone(),
                flat: weights,
            },
            optimizer: OptimizerState {
                step: self.updates,
                m,
                v,
                ema: average,
            },
        })
    }

    fn gradient(&mut self) -> Result<Vec<f32>, EngineError> {
        self.step.read_gradient().map_err(failed)
    }

    fn memory(&self) -> Option<&MemoryPlan> {
        Some(self.step.memory())
    }

    fn choices(&self) -> Option<serde_json::Value> {
        let chosen = self.step.device().chosen_algorithms();
        Some(serde_json::to_value(chosen).expect("plain numbers and text"))
    }

    fn take_choices(&mut self, saved: &serde_json::Value) -> bool {
        serde_json::from_value(saved.clone())
            .is_ok_and(|saved| self.step.device_mut().take_algorithms(&saved))
    }
}
