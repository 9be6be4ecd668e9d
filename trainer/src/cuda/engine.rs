//! The GPU's engine: the model's step in bf16, weights, moments and average on the device.
use std::sync::Arc;

use candle_core::{Device, Storage, Tensor};
use cudarc::driver::{DevicePtr, result};
use half::bf16;
use nepa_model::cuda::{CudaLauncher, CudaStepError, KernelDevice, Pixels, check};
use nepa_model::objective::Objective;
use nepa_model::step::{Kept, Layout, SumTree};
use nepa_model::{Pass, Step, StepOptions};

use super::sum;
use crate::engine::{EngineDevice, EngineError, StepEngine, TrainingSetup, TrainingState};

/// The step on one GPU.
pub type CudaEngine = StepEngine<KernelDevice<CudaLauncher>>;

fn driver(error: cudarc::driver::DriverError) -> EngineError {
    EngineError::Device(Box::new(error))
}

impl CudaEngine {
    /// An engine that goes on from `state`, on `device` and in the order of its stream. Refused,
    /// before anything is taken, if its memory does not fit beside `loader_bytes` that the loader
    /// will take. Where there is room, it keeps more of the forward pass, which changes no result.
    pub fn new(
        setup: &TrainingSetup<'_>,
        state: TrainingState,
        device: &Device,
        loader_bytes: u64,
    ) -> Result<Self, EngineError> {
        let stream = device.as_cuda_device()?.cuda_stream();
        let (config, micro_batch) = (setup.config, setup.micro_batch);
        check(config)?;
        stream.context().bind_to_thread().map_err(driver)?;
        let (free, _) = result::mem_get_info().map_err(driver)?;
        let others = setup.exchange.filter(|ranks| ranks.summing().between_gpus);
        let num_values = Layout::new(config).len();
        let options = |images, activations| StepOptions {
            kept: Some(Kept {
                norms: true,
                activations,
            }),
            partial_sums: SumTree::new(setup.micro_batches.max(1)).partial_sums(),
            ..StepOptions::training(config, images)
        };
        let plan_for = |images, activations| {
            let options = options(images, activations);
            let mut plan = Step::<KernelDevice<CudaLauncher>>::plan(config, &options);
            plan.add("batches and images of the loader", loader_bytes);
            if let Some(others) = others {
                sum::plan(&mut plan, others.summing(), num_values);
            }
            plan
        };
        let least = |images| plan_for(images, false);
        EngineError::check_memory(least, micro_batch, free as u64)?;
        let keeps_all = plan_for(micro_batch, true).total_bytes() <= free as u64;
        let plan = plan_for(micro_batch, keeps_all);
        let launcher = CudaLauncher::new(Arc::clone(&stream));
        let launcher = launcher.map_err(KernelDevice::<CudaLauncher>::failed)?;
        launcher
            .check(config, &options(1, false))
            .map_err(KernelDevice::<CudaLauncher>::failed)?;
        let connect = |others| sum::connect(&stream, others, num_values);
        let device_sum = others.map(connect).transpose()?;
        Self::with_device(
            setup,
            &options(micro_batch, keeps_all),
            state,
            KernelDevice::new(launcher),
            device_sum,
            plan,
        )
    }
}

/// Where the images of a tensor on this device lie.
fn pixels(launcher: &CudaLauncher, images: &Tensor) -> candle_core::Result<Pixels> {
    let (storage, layout) = images.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        candle_core::bail!("a batch that is not on the engine's device")
    };
    if !layout.is_contiguous() {
        candle_core::bail!("a batch with gaps")
    }
    // The addresses outlive their guards: the loader keeps a batch until the step is done, and all
    // work is in the order of one stream.
    let offset = layout.start_offset() as u64;
    if let Ok(values) = storage.as_cuda_slice::<bf16>() {
        return Ok(Pixels {
            address: values.device_ptr(launcher.stream()).0 + 2 * offset,
            bf16: true,
        });
    }
    let values = storage.as_cuda_slice::<f32>()?;
    Ok(Pixels {
        address: values.device_ptr(launcher.stream()).0 + 4 * offset,
        bf16: false,
    })
}

impl EngineDevice for KernelDevice<CudaLauncher> {
    fn failed(error: CudaStepError) -> EngineError {
        match error {
            CudaStepError::Model(error) => EngineError::Model(error),
            error => EngineError::Device(Box::new(error)),
        }
    }

    fn add_gradient<O: Objective<Self>>(
        step: &mut Step<Self>,
        images: &Tensor,
        pass: &Pass<'_>,
        share: f64,
        objective: &mut O,
    ) -> Result<O::Report, EngineError> {
        let pixels = pixels(step.device().launcher(), images)?;
        step.add_gradient(pixels, images.dim(0)?, pass, share, objective)
            .map_err(Self::failed)
    }

    fn wait(&self) -> Result<(), EngineError> {
        self.launcher().stream().synchronize().map_err(driver)
    }

    fn choices(&self) -> Option<serde_json::Value> {
        let chosen = self.launcher().chosen_algorithms();
        Some(serde_json::to_value(chosen).expect("plain numbers and text"))
    }

    fn take_choices(&mut self, saved: &serde_json::Value) -> bool {
        serde_json::from_value(saved.clone())
            .is_ok_and(|saved| self.launcher_mut().take_algorithms(&saved))
    }
}
