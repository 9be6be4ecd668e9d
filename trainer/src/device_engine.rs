//! The engine that keeps everything on one device: weights, moments and average as flat f32 tensors
//! beside the model.
//!
//! Candle's tape and operations throughout, so it runs on every device that candle has; a first
//! working engine for GPUs, with explicit kernels to come. The rules are those of
//! [`crate::optimizer`], which a test on the CPU holds it to.
use candle_core::{DType, Device, Tensor};
use nepa_model::{Arithmetic, Nepa, NepaConfig, ParamSpec, RopeDraw, Weights};

use crate::engine::{Engine, EngineError, Images, StepReport, TrainingState};
use crate::optimizer::{Optimizer, OptimizerConfig, OptimizerState, clip_factor};

/// All that training changes, on the device.
#[derive(Debug)]
struct Buffers {
    weights: Tensor,
    m: Tensor,
    v: Tensor,
    ema: Option<Tensor>,
    step: u64,
}

/// Candle's tape on one device, optimiser included.
#[derive(Debug)]
pub struct DeviceEngine {
    device: Device,
    model: Nepa,
    specs: Vec<ParamSpec>,
    optimizer: OptimizerConfig,
    /// For each weight the factor of the learning rate, and its product with the weight decay.
    lr_factor: Tensor,
    decay: Tensor,
    buffers: Buffers,
    gradient: Option<Tensor>,
    grad_norm: f64,
}

impl Buffers {
    fn new(
        config: &OptimizerConfig,
        state: TrainingState,
        device: &Device,
    ) -> Result<Self, EngineError> {
        let TrainingState { weights, optimizer } = state;
        // Its checks are those of any engine.
        let optimizer = Optimizer::from_state(config, &weights.specs, optimizer)?;
        let OptimizerState { step, m, v, ema } = optimizer.state();
        let flat = |values: &[f32]| Tensor::from_slice(values, values.len(), device);
        Ok(Self {
            weights: flat(&weights.flat)?,
            m: flat(m)?,
            v: flat(v)?,
            ema: (!ema.is_empty()).then(|| flat(ema)).transpose()?,
            step: *step,
        })
    }
}

impl DeviceEngine {
    /// An engine on `device` that goes on from `state`; operands of matrix products are of type
    /// `matmul`.
    pub fn new(
        config: &NepaConfig,
        optimizer: &OptimizerConfig,
        state: TrainingState,
        device: &Device,
        matmul: DType,
    ) -> Result<Self, EngineError> {
        let mut model = Nepa::new(config, &state.weights, DType::F32, device)?;
        model.set_arithmetic(Arithmetic::Composed(matmul));
        let specs = state.weights.specs.clone();
        let each = |value: &dyn Fn(&ParamSpec) -> f64| {
            let values = specs
                .iter()
                .flat_map(|spec| std::iter::repeat_n(value(spec) as f32, spec.len()))
                .collect::<Vec<_>>();
            let len = values.len();
            Tensor::from_vec(values, len, device)
        };
        let lr_factor = |spec: &ParamSpec| optimizer.group(&spec.name).1;
        let decay = |spec: &ParamSpec| {
            let (decay, lr_factor) = optimizer.group(&spec.name);
            lr_factor * decay
        };
        Ok(Self {
            lr_factor: each(&lr_factor)?,
            decay: each(&decay)?,
            buffers: Buffers::new(optimizer, state, device)?,
            device: device.clone(),
            optimizer: optimizer.clone(),
            model,
            specs,
            gradient: None,
            grad_norm: 0.0,
        })
    }
}

impl Engine for DeviceEngine {
    fn load(&mut self, state: TrainingState) -> Result<(), EngineError> {
        self.buffers = Buffers::new(&self.optimizer, state, &self.device)?;
        Ok(self.model.set_weights_from(&self.buffers.weights)?)
    }

    fn step(&mut self, images: &Images<'_>, ropes: &[RopeDraw]) -> Result<StepReport, EngineError> {
        let mut report = StepReport::default();
        let share = 1.0 / ropes.len() as f64;
        let side = self.model.config().image_size;
        let micro_batch = images.len() / ropes.len();
        let mut sum: Option<Tensor> = None;
        for (i, rope) in ropes.iter().enumerate() {
            let pixels = images.tensor(i * micro_batch, micro_batch, side, &self.device)?;
            let found = self.model.pretrain_loss(&pixels, rope)?;
            report.add(share, &found.report()?);
            let gradients = self
                .model
                .gradients(&found.loss)?
                .iter()
                .map(Tensor::flatten_all)
                .collect::<Result<Vec<_>, _>>()?;
            let flat = (Tensor::cat(&gradients, 0)? * share)?;
            sum = Some(match sum {
                Some(sum) => (sum + flat)?,
                None => flat,
            });
        }
        if let Some(sum) = &sum {
            let square = sum.sqr()?.sum_all()?.to_scalar::<f32>()?;
            self.grad_norm = f64::from(square).sqrt();
        }
        report.grad_norm = self.grad_norm;
        self.gradient = sum;
        Ok(report)
    }

    fn update(&mut self, lr: f64) -> Result<(), EngineError> {
        let Some(gradient) = self.gradient.take() else {
            return Ok(());
        };
        let (config, buffers) = (&self.optimizer, &mut self.buffers);
        buffers.step += 1;
        let step = buffers.step as f64;
        let correction1 = 1.0 - config.beta1.powf(step);
        let correction2 = (1.0 - config.beta2.powf(step)).sqrt();
        let gradient = (gradient * clip_factor(self.grad_norm, config.max_grad_norm))?;
        buffers.m = ((&buffers.m * config.beta1)? + (&gradient * (1.0 - config.beta1))?)?;
        buffers.v = ((&buffers.v * config.beta2)? + (gradient.sqr()? * (1.0 - config.beta2))?)?;
        let denominator = ((buffers.v.sqrt()? / correction2)? + config.eps)?;
        let change = ((&buffers.m / denominator)? * (lr / correction1))?;
        let kept = (&buffers.weights * self.decay.affine(-lr, 1.0)?)?;
        buffers.weights = (kept - (change * &self.lr_factor)?)?;
        if let Some(decay) = config.ema_decay {
            buffers.ema = Some(match buffers.ema.take() {
                Some(ema) => ((ema * decay)? + (&buffers.weights * (1.0 - decay))?)?,
                // It starts as a copy after the first step.
                None => buffers.weights.clone(),
            });
        }
        Ok(self.model.set_weights_from(&buffers.weights)?)
    }

    fn export(&mut self) -> Result<TrainingState, EngineError> {
        let Buffers {
            weights,
            m,
            v,
            ema,
            step,
        } = &self.buffers;
        Ok(TrainingState {
            weights: Weights {
                specs: self.specs.clone(),
                flat: weights.to_vec1()?,
            },
            optimizer: OptimizerState {
                step: *step,
                m: m.to_vec1()?,
                v: v.to_vec1()?,
                ema: ema
                    .as_ref()
                    .map(Tensor::to_vec1)
                    .transpose()?
                    .unwrap_or_default(),
            },
        })
    }

    fn gradient(&mut self) -> Result<Vec<f32>, EngineError> {
        match &self.gradient {
            Some(gradient) => Ok(gradient.to_vec1()?),
            None => Ok(vec![0.0; self.buffers.weights.elem_count()]),
        }
    }
}

#[cfg(test)]
mod tests {
    use nepa_model::{HiddenAct, init_weights};

    use super::*;
    use crate::tape_engine::TapeEngine;

    /// Both engines over some steps of two micro-batches; the greatest difference of losses and of
    /// each buffer.
    fn train(matmul: DType) -> Vec<(&'static str, f64)> {
        let config = NepaConfig {
            // Candle's GELU is an approximation.
            hidden_act: HiddenAct::Silu,
            ..NepaConfig::tiny()
        };
        let optimizer = OptimizerConfig {
            ema_decay: Some(0.9),
            embedding_lr_factor: 0.5,
            max_grad_norm: Some(0.05),
            ..OptimizerConfig::default()
        };
        let state = || TrainingState::new(init_weights(&config, 3));
        let mut own = TapeEngine::new(&config, &optimizer, state(), &Device::Cpu).unwrap();
        let mut other =
            DeviceEngine::new(&config, &optimizer, state(), &Device::Cpu, matmul).unwrap();
        let mut worst_loss = 0.0f64;
        for step in 0..6u64 {
            let pixel = |i: u64| ((i * 37 + step * 11) % 101) as f32 / 50.0 - 1.0;
            let len = 3 * config.image_size.pow(2);
            let batch: Vec<Vec<f32>> = (0..4u64)
                .map(|n| {
                    (0..len as u64)
                        .map(|i| pixel(i * (n + 1) + i * i % 7))
                        .collect()
                })
                .collect();
            let slices = batch.iter().map(Vec::as_slice).collect::<Vec<_>>();
            let whole = Tensor::from_vec(
                batch.concat(),
                (4, 3, config.image_size, config.image_size),
                &Device::Cpu,
            )
            .unwrap();
            let ropes = [0, 1].map(|i| RopeDraw::draw(&config, 1, step, i));
            let one = own.step(&Images::Host(&slices), &ropes).unwrap();
            let two = other.step(&Images::Device(&whole), &ropes).unwrap();
            worst_loss = worst_loss.max((one.loss - two.loss).abs());
            own.update(1e-3).unwrap();
            other.update(1e-3).unwrap();
            if step == 2 {
                // A checkpoint moves between them.
                let state = own.export().unwrap();
                other.load(state).unwrap();
            }
        }
        let (own, other) = (own.export().unwrap(), other.export().unwrap());
        assert_eq!(own.optimizer.step, other.optimizer.step);
        let off = |a: &[f32], b: &[f32]| {
            let norm = |values: &mut dyn Iterator<Item = f64>| {
                values.map(|value| value * value).sum::<f64>().sqrt()
            };
            let differences = &mut a.iter().zip(b).map(|(a, b)| f64::from(a - b));
            norm(differences) / norm(&mut a.iter().map(|a| f64::from(*a)))
        };
        vec![
            ("loss", worst_loss),
            ("weights", off(&own.weights.flat, &other.weights.flat)),
            ("m", off(&own.optimizer.m, &other.optimizer.m)),
            ("v", off(&own.optimizer.v, &other.optimizer.v)),
            ("average", off(&own.optimizer.ema, &other.optimizer.ema)),
        ]
    }

    #[test]
    fn it_trains_as_the_engine_of_the_processor_does() {
        for (what, off) in train(DType::F32) {
            println!("{what}: {off:.1e}");
            assert!(off < 2e-5, "{what}: {off}");
        }
    }

    #[test]
    fn with_products_in_bfloat16_it_stays_near() {
        for (what, off) in train(DType::BF16) {
            println!("{what}: {off:.1e}");
            let limit = if what == "v" { 0.3 } else { 0.15 };
            assert!(off < limit, "{what}: {off}");
        }
    }
}
