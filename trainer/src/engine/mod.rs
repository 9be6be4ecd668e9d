//! What trains: a batch in, a loss out, then an update. The run does not know which engine it
//! drives: the model's step on the processor or (`crate::cuda`) on a GPU, or candle's autograd.
mod autograd;
mod device_sum;
mod exchange;
mod input;
mod report;
mod step;

use nepa_model::{MemoryPlan, ModelError, Weights};

use crate::optimizer::{OptimizerError, OptimizerState};

pub use autograd::AutogradEngine;
pub(crate) use device_sum::DeviceSum;
pub use exchange::{Exchange, ExchangeError, Summing};
pub use input::{Images, PassDraw, StepInput, Task, TrainingSetup};
pub use report::{Found, Spread, StepReport};
pub use step::{CpuEngine, EngineDevice, StepEngine};

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

/// An engine cannot compute a step.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model cannot be built or computed.
    #[error("the model cannot be computed")]
    Model(#[from] ModelError),
    /// The optimiser does not fit the model.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// The memory does not fit.
    #[error(
        "the engine needs {plan}; {available_mib} MiB are available. {}",
        advice(*micro_batch, *fits)
    )]
    Memory {
        /// What it would take.
        plan: MemoryPlan,
        /// What there is.
        available_mib: u64,
        /// Images in one forward and backward pass.
        micro_batch: usize,
        /// Most of them that fit; 0 if not even one does.
        fits: usize,
    },
    /// The device refused something.
    #[error("the training step failed on the device")]
    Device(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another rank has ended, or cannot be reached.
    #[error("the gradient cannot be summed over the ranks")]
    Ranks(#[source] ExchangeError),
    /// This rank cannot compute as rank 0 does.
    #[error(
        "rank 0 chose algorithms for its products that this rank's cuBLASLt does not have\
         \ntip: the same kind of GPU and the same version of cuBLASLt on all machines"
    )]
    OtherAlgorithms,
    /// An engine that is for another device.
    #[error(
        "the engine `cuda` computes on an NVIDIA GPU only: take device = \"cuda\", in a program built by `make cuda`"
    )]
    NeedsCuda,
    /// An ablation that this engine does not compute.
    #[error(
        "this engine computes pretraining as published; ablations take train.engine = \"autograd\""
    )]
    Ablation,
    /// A tensor cannot be made.
    #[error("the batch cannot become a tensor")]
    Tensor(#[from] candle_core::Error),
}

impl EngineError {
    /// The plan for `micro_batch` images; refused if it takes more than what is available, with how
    /// many images would fit.
    pub(crate) fn check_memory(
        plan_for: impl Fn(usize) -> MemoryPlan,
        micro_batch: usize,
        available_bytes: u64,
    ) -> Result<MemoryPlan, Self> {
        let plan = plan_for(micro_batch);
        if plan.total_bytes() <= available_bytes {
            return Ok(plan);
        }
        // A plan grows with the images, so the largest that fits is found by halving.
        let (mut fits, mut too_many) = (0, micro_batch);
        while too_many - fits > 1 {
            let images = fits.midpoint(too_many);
            if plan_for(images).total_bytes() > available_bytes {
                too_many = images;
            } else {
                fits = images;
            }
        }
        Err(Self::Memory {
            plan,
            available_mib: available_bytes >> 20,
            micro_batch,
            fits,
        })
    }
}

fn advice(micro_batch: usize, fits: usize) -> String {
    if fits == 0 {
        "Not even one image fits: take a smaller model or a larger machine".to_owned()
    } else {
        format!(
            "Instead of {micro_batch} images at a time take --set train.micro_batch={fits} or less, a divisor of train.batch. Nothing was started"
        )
    }
}

/// Turns batches into updates of one model's weights.
pub trait Engine {
    /// Takes over weights, moments and average of one step.
    fn load(&mut self, state: TrainingState) -> Result<(), EngineError>;

    /// Forward and backward over a batch, of several ranks over this one's part of it. Keeps the
    /// gradient of the whole batch for [`Engine::update`]; changes no weight.
    fn step(&mut self, input: &StepInput<'_>) -> Result<StepReport, EngineError>;

    /// Clips the gradient of the last step and applies it to weights, moments and average, at the
    /// learning rates to which the groups of weights refer.
    fn update(&mut self, rates: &[f64]) -> Result<(), EngineError>;

    /// A copy of weights, moments and average.
    fn export(&mut self) -> Result<TrainingState, EngineError>;

    /// A copy of the gradient of the last step, before clipping, zero for what is frozen; for
    /// comparisons.
    fn gradient(&mut self) -> Result<Vec<f32>, EngineError>;

    /// What a run's bits depend on beside its state, where there is such a thing: how the engine
    /// decided to compute. Saved with each checkpoint.
    fn choices(&self) -> Option<serde_json::Value> {
        None
    }

    /// Takes over the choices of a run that goes on. Says whether they hold here; where not, the
    /// engine chooses anew.
    fn take_choices(&mut self, _saved: &serde_json::Value) -> bool {
        true
    }

    /// The memory that it took at its start, where that is known.
    fn memory(&self) -> Option<&MemoryPlan> {
        None
    }
}
