//! The model's training step ([`nepa_model::Step`]) as an engine, on any of its devices.
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Tensor};
use nepa_model::cpu::CpuDevice;
use nepa_model::objective::{Classification, NextEmbedding, Objective};
use nepa_model::step::device::Device;
use nepa_model::step::{Layout, SumTree};
use nepa_model::{Ablation, FlatState, MemoryPlan, ParamSpec, Pass, Step, StepOptions, Weights};

use super::TrainingState;
use super::report::{MicroNumbers, MicroReport, gather};
use super::{
    DeviceSum, Engine, EngineError, Exchange, Images, StepInput, StepReport, Task, TrainingSetup,
};
use crate::optimizer::{OptimizerState, UpdateSettings, check_state};

/// What an engine wants of a device beside the operations of a step.
pub trait EngineDevice: Device<Wide = f32> + Send + Sized {
    /// Its errors as an engine's.
    fn failed(error: Self::Error) -> EngineError;

    /// Adds the gradient of the images of a tensor `[B, 3, S, S]`.
    fn add_gradient<O: Objective<Self>>(
        step: &mut Step<Self>,
        images: &Tensor,
        pass: &Pass<'_>,
        share: f64,
        objective: &mut O,
    ) -> Result<O::Report, EngineError>;

    /// Waits until all that was asked of it is done.
    fn wait(&self) -> Result<(), EngineError> {
        Ok(())
    }

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

/// The model's training step on one device.
#[derive(Debug)]
pub struct StepEngine<D> {
    /// What sums over several ranks on their devices. Dropped before the memory that it works on.
    device_sum: Option<Box<dyn DeviceSum<D>>>,
    step: Step<D>,
    specs: Vec<ParamSpec>,
    task: Task,
    update: UpdateSettings,
    plan: MemoryPlan,
    /// The ranks among which a step is divided.
    exchange: Option<Arc<dyn Exchange>>,
    /// Whether all of them compute by the same choices.
    choices_are_shared: bool,
    /// Memory for what they sum, unless their devices do.
    sum: Vec<f32>,
}

/// The processor's engine.
pub type CpuEngine = StepEngine<CpuDevice<f32>>;

impl<D: EngineDevice> StepEngine<D> {
    /// An engine that goes on from `state`, with all memory of `plan`, which is known to fit.
    /// Several ranks sum by `device_sum`, or through the memory of their machines.
    pub(crate) fn with_device(
        setup: &TrainingSetup<'_>,
        options: &StepOptions,
        state: TrainingState,
        device: D,
        device_sum: Option<Box<dyn DeviceSum<D>>>,
        plan: MemoryPlan,
    ) -> Result<Self, EngineError> {
        let Ablation {
            shift,
            stop_gradient,
            mask_ratio,
            rope: _,
        } = setup.ablation;
        if !shift || !stop_gradient || mask_ratio > 0.0 {
            return Err(EngineError::Ablation);
        }
        let mut step = Step::new(setup.config, options, device).map_err(D::failed)?;
        step.set_groups(setup.groups);
        let mut engine = Self {
            device_sum,
            step,
            specs: state.weights.specs.clone(),
            task: Task::of(setup.config),
            update: setup.update,
            plan,
            exchange: setup.exchange.cloned(),
            choices_are_shared: false,
            sum: Vec::new(),
        };
        engine.load(state)?;
        Ok(engine)
    }

    /// The sum of the gradients of all micro-batches of this rank, and what they found.
    fn run_step(&mut self, input: &StepInput<'_>) -> Result<Vec<MicroNumbers>, EngineError> {
        let count = input.micro_batch(self.task, self.step.options().images)?;
        match self.task {
            Task::Pretraining => self.micro_batches(input, count, |_| NextEmbedding),
            Task::Classification => self.micro_batches(input, count, |number| {
                Classification::new(input.targets_of(number, count))
            }),
        }
    }

    /// The gradient over all micro-batches of `count` images, each of an objective of its own.
    fn micro_batches<O: Objective<D, Report: MicroReport>>(
        &mut self,
        input: &StepInput<'_>,
        count: usize,
        objective: impl Fn(usize) -> O,
    ) -> Result<Vec<MicroNumbers>, EngineError> {
        let begun = self.step.begin_gradient(input.passes.len());
        begun.map_err(D::failed)?;
        let mut found = Vec::with_capacity(input.passes.len());
        let ranks = self.exchange.as_ref().map_or(1, |ranks| ranks.size());
        let share = 1.0 / (ranks * input.passes.len()) as f64;
        for (number, draw) in input.passes.iter().enumerate() {
            let first = number * count;
            let (pass, mut objective) = (draw.pass(), objective(number));
            let report = match input.images {
                Images::Host(images) => {
                    let staged = self.step.stage(&images[first..first + count]);
                    let staged = staged.map_err(D::failed)?;
                    self.step
                        .add_gradient(staged, count, &pass, share, &mut objective)
                        .map_err(D::failed)?
                }
                Images::Device(batch) => {
                    let part = batch.narrow(0, first, count)?;
                    D::add_gradient(&mut self.step, &part, &pass, share, &mut objective)?
                }
            };
            found.push(report.numbers());
        }
        Ok(found)
    }

    /// This rank's part of a step, done on the device; also the seconds that it took.
    fn own_part(&mut self, input: &StepInput<'_>) -> Result<(Vec<MicroNumbers>, f64), EngineError> {
        let started = Instant::now();
        let found = D::run(|| self.run_step(input))?;
        self.step.device().wait()?;
        Ok((found, started.elapsed().as_secs_f64()))
    }

    /// The same for the first step of several ranks: how a device computes decides bits, so all
    /// take the choices that rank 0's made in its part.
    fn first_part(
        &mut self,
        ranks: &dyn Exchange,
        input: &StepInput<'_>,
    ) -> Result<(Vec<MicroNumbers>, f64), EngineError> {
        self.choices_are_shared = true;
        if self.step.device().choices().is_none() {
            return self.own_part(input);
        }
        if ranks.rank() == 0 {
            let part = self.own_part(input)?;
            let choices = self.step.device().choices();
            let choices = serde_json::to_vec(&choices).expect("plain numbers and text");
            ranks.share(&choices).map_err(EngineError::Ranks)?;
            return Ok(part);
        }
        let all = ranks.share(&[]).map_err(EngineError::Ranks)?;
        let choices = serde_json::from_slice::<serde_json::Value>(&all[0]);
        if !choices.is_ok_and(|choices| self.step.device_mut().take_choices(&choices)) {
            return Err(EngineError::OtherAlgorithms);
        }
        self.own_part(input)
    }

    /// Adds the gradients of all ranks.
    fn sum_over(&mut self, ranks: &dyn Exchange) -> Result<(), EngineError> {
        if let Some(device_sum) = &mut self.device_sum {
            return device_sum.sum(&mut self.step);
        }
        self.step.read_sum(&mut self.sum).map_err(D::failed)?;
        ranks.sum(&mut self.sum).map_err(EngineError::Ranks)?;
        self.step.write_sum(&self.sum).map_err(D::failed)
    }
}

impl<D: EngineDevice> Engine for StepEngine<D> {
    fn load(&mut self, state: TrainingState) -> Result<(), EngineError> {
        let TrainingState { weights, optimizer } = state;
        check_state(&self.update, &weights.specs, &optimizer)?;
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

    fn step(&mut self, input: &StepInput<'_>) -> Result<StepReport, EngineError> {
        let (found, computed) = match self.exchange.clone() {
            None => (D::run(|| self.run_step(input))?, None),
            Some(ranks) => {
                let ranks = ranks.as_ref();
                let (found, seconds) = if self.choices_are_shared {
                    self.own_part(input)?
                } else {
                    self.first_part(ranks, input)?
                };
                self.sum_over(ranks)?;
                let gathered = gather(ranks, &found, seconds);
                let (all, spread) = gathered.map_err(EngineError::Ranks)?;
                (all, Some(spread))
            }
        };
        let max_norm = self.update.max_grad_norm;
        let norm = D::run(|| self.step.finish(max_norm).map_err(D::failed))?;
        Ok(StepReport {
            computed,
            ..StepReport::new(self.task, &found, norm)
        })
    }

    fn update(&mut self, rates: &[f64]) -> Result<(), EngineError> {
        let settings = self.update.adamw;
        D::run(|| self.step.update(&settings, rates).map_err(D::failed))
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

    fn add_gradient<O: Objective<Self>>(
        step: &mut Step<Self>,
        images: &Tensor,
        pass: &Pass<'_>,
        share: f64,
        objective: &mut O,
    ) -> Result<O::Report, EngineError> {
        let values = images.to_dtype(DType::F32)?.flatten_from(1)?;
        let values = values.to_vec2::<f32>()?;
        let slices: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
        let staged = step.stage(&slices)?;
        Ok(step.add_gradient(staged, slices.len(), pass, share, objective)?)
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
    /// An engine that goes on from `state`. Refused, before anything is taken, if its memory does
    /// not fit.
    pub fn new(setup: &TrainingSetup<'_>, state: TrainingState) -> Result<Self, EngineError> {
        let config = setup.config;
        let averages = u64::from(setup.update.adamw.average_decay.is_some());
        let copy_bytes = (3 + averages) * 4 * state.weights.flat.len() as u64;
        let options = |images| StepOptions {
            partial_sums: SumTree::new(setup.micro_batches.max(1)).partial_sums(),
            ..StepOptions::training(config, images)
        };
        let plan_for = |images| {
            let options = options(images);
            let mut plan = Step::<CpuDevice<f32>>::plan(config, &options);
            let head = Step::<CpuDevice<f32>>::host_bytes(config, &options);
            if head > 0 {
                plan.add("classifier's head", head);
            }
            plan.add("copy while saving", copy_bytes);
            if setup.exchange.is_some() {
                // What is sent, and half as much that comes.
                let values = Layout::new(config).len() as u64;
                plan.add("sums over ranks", 4 * (values + values.div_ceil(2)));
            }
            plan
        };
        // Where the system does not say, nothing is refused.
        let available = available_bytes().unwrap_or(u64::MAX);
        let plan = EngineError::check_memory(plan_for, setup.micro_batch, available)?;
        let options = options(setup.micro_batch);
        let device = CpuDevice::default();
        Self::with_device(setup, &options, state, device, None, plan)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use nepa_model::step::adamw::WeightGroup;
    use nepa_model::{Classes, DropPath, NepaConfig, RopeDraw, init_weights};

    use super::*;
    use crate::engine::{AutogradEngine, Found, PassDraw};
    use crate::optimizer::OptimizerConfig;

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
        let optimizer = OptimizerConfig {
            embedding_lr_factor: 0.3,
            ..OptimizerConfig::default()
        };
        let groups = |name: &str| optimizer.group(name);
        let setup = TrainingSetup {
            config: &config,
            update: optimizer.settings(),
            groups: &groups,
            micro_batch: 2,
            micro_batches: 2,
            exchange: None,
            ablation: Ablation::default(),
        };
        let pixels = pixels(&config, 4);
        let images = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let tensor = Tensor::from_vec(
            pixels.concat(),
            (4, 3, config.image_size, config.image_size),
            &Device::Cpu,
        )
        .expect("a tensor");
        let mut own = CpuEngine::new(&setup, state(&config)).expect("an engine");
        let mut autograd = AutogradEngine::new(&setup, state(&config), &Device::Cpu, DType::F32)
            .expect("an engine");
        for step in 0..5 {
            let passes = [0, 1].map(|micro| RopeDraw::draw(&config, 1, step, micro).into());
            // Both forms of a batch.
            let input = |images| StepInput {
                images,
                targets: None,
                passes: &passes,
            };
            let forms = [Images::Host(&images), Images::Device(&tensor)];
            let found = own.step(&input(forms[step as usize % 2])).expect("a step");
            let expected = autograd.step(&input(forms[0])).expect("a step");
            let numbers = |report: StepReport| {
                let Found::Pretraining {
                    cos_target,
                    cos_previous,
                    ..
                } = report.found
                else {
                    panic!("{report:?} of pretraining");
                };
                [report.loss, report.grad_norm, cos_target, cos_previous]
            };
            for (found, expected) in numbers(found).into_iter().zip(numbers(expected)) {
                assert!(
                    (found - expected).abs() < 2e-5 * (1.0 + expected.abs()),
                    "{step}: {found} {expected}"
                );
            }
            own.update(&optimizer.rates(1e-3)).expect("an update");
            autograd.update(&optimizer.rates(1e-3)).expect("an update");
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

    /// A small classifier of three classes, some of its blocks' branches dropped.
    fn classifier() -> NepaConfig {
        let config = NepaConfig {
            layerscale_value: Some(0.3),
            add_pooling_layer: true,
            is_causal: false,
            drop_path_prob: 0.4,
            ..NepaConfig::tiny()
        };
        config.to_classifier(Classes::Count(3))
    }

    fn group(name: &str) -> WeightGroup {
        WeightGroup {
            weight_decay: 0.05,
            rate: name.starts_with("classifier").into(),
            frozen: name.contains("patch_embeddings"),
        }
    }

    #[test]
    fn a_classifier_trains_as_autograd_does() {
        let config = classifier();
        let setup = TrainingSetup {
            config: &config,
            update: OptimizerConfig::default().settings(),
            groups: &group,
            micro_batch: 2,
            micro_batches: 2,
            exchange: None,
            ablation: Ablation::default(),
        };
        let pixels = pixels(&config, 4);
        let images = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let targets = [
            [0.9, 0.05, 0.05],
            [0.2, 0.5, 0.3],
            [0.05, 0.05, 0.9],
            [0.6, 0.1, 0.3],
        ];
        let mut own = CpuEngine::new(&setup, state(&config)).expect("an engine");
        let plan = own.memory().expect("a plan").to_string();
        assert!(plan.contains("classifier's head"), "{plan}");
        let mut autograd = AutogradEngine::new(&setup, state(&config), &Device::Cpu, DType::F32)
            .expect("an engine");
        let mut losses = Vec::new();
        for step in 0..5 {
            let passes = [0, 1].map(|micro| PassDraw {
                rope: RopeDraw::draw(&config, 1, step, micro),
                drop_path: DropPath::draw(&config, 1, step, micro, 2),
                masked: None,
            });
            let input = StepInput {
                images: Images::Host(&images),
                targets: Some(targets.as_flattened()),
                passes: &passes,
            };
            let found = own.step(&input).expect("a step");
            let expected = autograd.step(&input).expect("a step");
            for (found, expected) in [
                (found.loss, expected.loss),
                (found.grad_norm, expected.grad_norm),
            ] {
                assert!(
                    (found - expected).abs() < 2e-5 * (1.0 + expected.abs()),
                    "{step}: {found} {expected}"
                );
            }
            assert_eq!(found.found, expected.found);
            losses.push(found.loss);
            for engine in [&mut own as &mut dyn Engine, &mut autograd] {
                engine.update(&[1e-3, 1e-2]).expect("an update");
            }
        }
        // Of a head that is zero.
        assert!((losses[0] - 3f64.ln()).abs() < 1e-6, "{losses:?}");
        assert!(losses[4] < losses[0] - 0.05, "{losses:?}");
        let (found, expected) = (
            own.export().expect("a state").weights,
            autograd.export().expect("a state").weights,
        );
        let start = state(&config).weights;
        for spec in &found.specs {
            let [found, expected, start] =
                [&found, &expected, &start].map(|weights| &weights.flat[spec.range()]);
            let norm = |values: &mut dyn Iterator<Item = f32>| {
                values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
            };
            let off = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            // Biases that stay are zero.
            let size = norm(&mut expected.iter().copied());
            assert!(off <= 1e-3 * size, "{}: {off} of {size}", spec.name);
            let stays = found == start && expected == start;
            assert_eq!(stays, group(&spec.name).frozen, "{}", spec.name);
        }
    }

    #[test]
    fn a_batch_that_does_not_fit_its_task_is_refused() {
        let (pretrains, classifies) = (NepaConfig::tiny(), classifier());
        let pixels = pixels(&classifies, 4);
        let images = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let targets = [0.25f32; 12];
        let draws = |count: u64, drops: bool| -> Vec<PassDraw> {
            let draw = |micro| PassDraw {
                drop_path: drops
                    .then(|| DropPath::draw(&classifies, 1, 1, micro, 2))
                    .flatten(),
                ..PassDraw::default()
            };
            (0..count).map(draw).collect()
        };
        let cases = [
            (
                &pretrains,
                Some(&targets[..]),
                draws(2, false),
                "no targets",
            ),
            (&pretrains, None, draws(1, false), "equal micro-batches"),
            (&pretrains, None, draws(3, false), "equal micro-batches"),
            (&pretrains, None, draws(0, false), "equal micro-batches"),
            (&classifies, None, draws(2, true), "a target of each image"),
            (
                &classifies,
                Some(&targets[..11]),
                draws(2, true),
                "a target of each class",
            ),
            (&classifies, Some(&targets[..8]), draws(2, true), "target"),
            (
                &classifies,
                Some(&targets[..]),
                draws(2, false),
                "a factor for each branch",
            ),
        ];
        for (config, targets, passes, part) in cases {
            let setup = TrainingSetup {
                config,
                update: OptimizerConfig::default().settings(),
                groups: &group,
                micro_batch: 2,
                micro_batches: 2,
                exchange: None,
                ablation: Ablation::default(),
            };
            let mut own = CpuEngine::new(&setup, state(config)).expect("an engine");
            let input = StepInput {
                images: Images::Host(&images),
                targets,
                passes: &passes,
            };
            let error = own.step(&input).expect_err(part);
            let said = format!("{:#}", anyhow::Error::from(error));
            assert!(said.contains(part), "{part} in {said}");
            let error = own.update(&[1e-3, 1e-3]).expect_err("no gradient");
            let said = format!("{:#}", anyhow::Error::from(error));
            assert!(said.contains("no gradient"), "{said}");
        }
        let setup = TrainingSetup {
            config: &pretrains,
            update: OptimizerConfig::default().settings(),
            groups: &group,
            micro_batch: 2,
            micro_batches: 1,
            exchange: None,
            ablation: Ablation {
                shift: false,
                ..Ablation::default()
            },
        };
        let error = CpuEngine::new(&setup, state(&pretrains)).expect_err("an ablation");
        assert!(error.to_string().contains("autograd"), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_does() {
        let (config, optimizer) = (NepaConfig::tiny(), OptimizerConfig::default());
        let groups = |name: &str| optimizer.group(name);
        let setup = TrainingSetup {
            config: &config,
            update: optimizer.settings(),
            groups: &groups,
            micro_batch: 1 << 40,
            micro_batches: 1,
            exchange: None,
            ablation: Ablation::default(),
        };
        let error = CpuEngine::new(&setup, state(&config)).expect_err("no machine has that");
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
