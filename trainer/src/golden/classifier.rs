//! A classifier against the published one: what its head gets, logits and losses while training and
//! in evaluation, every gradient, and some steps with a rate for each layer and frozen weights.
use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use nepa_model::cpu::CpuDevice;
use nepa_model::step::adamw::WeightGroup;
use nepa_model::{
    Ablation, DropPath, Nepa, NepaConfig, ParamSpec, Pass, RopeDraw, Step, StepOptions, Weights,
};
use serde::Deserialize;

use super::comparison::{
    Comparison, GoldenError, LOSS_TOLERANCE, Measure, Tensors, absolute, doubles, engine_for,
    gradients, greatest_difference, number, read_info, relative, weight_of,
};
use crate::engine::{Images, PassDraw, StepInput, TrainingSetup, TrainingState};
use crate::finetune::{Freeze, LayerGroups, LayerRates, LayerSchedule, rates};
use crate::optimizer::OptimizerConfig;
use crate::recipe::EngineChoice;

/// What `info.json` says of a classifier.
#[derive(Debug, Deserialize)]
struct Info {
    #[serde(default)]
    rope_scale: Option<f64>,
    #[serde(default)]
    drop_path_rates: Vec<f64>,
    /// Names of weights that the trajectory leaves as they are.
    #[serde(default)]
    frozen: BTreeSet<String>,
    trajectory: Trajectory,
}

#[derive(Debug, Deserialize)]
struct Trajectory {
    lr: f64,
    head_lr: f64,
    weight_decay: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    llrd: f64,
    warmup_steps: u64,
    total_steps: u64,
    steps: u64,
    max_grad_norm: f64,
    ema_decay: f64,
    groups: Vec<Group>,
}

/// A group of weights of the published optimiser.
#[derive(Debug, Deserialize)]
struct Group {
    weight_decay: f64,
    names: Vec<String>,
}

/// What a model says of images: what its head gets, `[B, D]`, and its logits, `[B, K]`.
struct Said {
    pooled: Tensor,
    logits: Tensor,
}

pub(super) fn compare(
    folder: &Path,
    config: &NepaConfig,
    weights: &Weights,
    choice: EngineChoice,
) -> Result<Vec<Comparison>, GoldenError> {
    let mut comparisons = compare_reference(folder, config, weights, choice)?;
    let path = folder.join("trajectory.safetensors");
    if path.exists() {
        let trajectory = Tensors::read(&path)?;
        comparisons.extend(compare_trajectory(
            folder,
            &trajectory,
            config,
            weights,
            choice,
        )?);
    }
    Ok(comparisons)
}

/// Names of the tensors that say which branches are kept, `ending` at that.
fn drop_path_names(config: &NepaConfig, ending: &str) -> Vec<String> {
    let rates = DropPath::rates(config).into_iter().enumerate();
    let dropping = rates.filter(|(_, rate)| *rate > 0.0);
    dropping
        .flat_map(|(block, _)| {
            ["attention", "mlp"].map(|part| format!("drop_path.{block}.{part}{ending}"))
        })
        .collect()
}

/// The factors of those tensors, `[blocks, 2, B]`, of a model that drops branches.
fn drop_path(
    config: &NepaConfig,
    tensors: &Tensors,
    ending: &str,
    images: usize,
) -> Result<Option<Vec<f32>>, GoldenError> {
    if config.drop_path_prob == 0.0 {
        return Ok(None);
    }
    let mut factors = Vec::new();
    for (block, rate) in DropPath::rates(config).into_iter().enumerate() {
        for part in ["attention", "mlp"] {
            if rate > 0.0 {
                let kept = tensors.numbers(&format!("drop_path.{block}.{part}{ending}"))?;
                factors.extend(kept.iter().map(|kept| (kept / (1.0 - rate)) as f32));
            } else {
                factors.extend(vec![1.0; images]);
            }
        }
    }
    Ok(Some(factors))
}

fn rope_of(scale: Option<f64>) -> RopeDraw {
    RopeDraw {
        rescale: scale.unwrap_or(1.0),
        ..RopeDraw::default()
    }
}

fn compare_reference(
    folder: &Path,
    config: &NepaConfig,
    weights: &Weights,
    choice: EngineChoice,
) -> Result<Vec<Comparison>, GoldenError> {
    let reference = Tensors::read(&folder.join("reference.safetensors"))?;
    let dropped = drop_path_names(config, "");
    let mut needed = vec![
        "pixel_values",
        "labels",
        "soft_targets",
        "pooled",
        "logits",
        "loss",
        "eval_logits",
        "eval_loss",
    ];
    needed.extend(dropped.iter().map(String::as_str));
    reference.check(&needed, &["rope_scale", "lam"], &["grad."], &weights.specs)?;
    let pixels = reference.get("pixel_values");
    let images = pixels.dim(0)?;
    let scale = reference
        .tensors
        .get("rope_scale")
        .map(number)
        .transpose()?;
    let draw = PassDraw {
        rope: rope_of(scale),
        drop_path: drop_path(config, &reference, "", images)?,
        masked: None,
    };
    let trained = say(choice, config, weights, pixels, Some(&draw))?;
    let evaluated = say(choice, config, weights, pixels, None)?;

    let setup = TrainingSetup {
        config,
        update: OptimizerConfig::default().settings(),
        groups: &|_| WeightGroup {
            weight_decay: 0.0,
            rate: 0,
            frozen: false,
        },
        micro_batch: images,
        micro_batches: 1,
        exchange: None,
        ablation: Ablation::default(),
    };
    let mut engine = engine_for(choice, &setup, weights.clone())?;
    let report = engine.step(&StepInput {
        images: Images::Device(pixels),
        targets: Some(&targets(reference.get("soft_targets"))?),
        passes: &[draw],
    })?;
    let gradient = engine.gradient()?;

    let labels = reference.numbers("labels")?;
    let eval_loss = cross_entropy(&evaluated.logits, &labels)?;
    let mut comparisons = vec![
        close(
            "pooled output",
            "",
            &trained.pooled,
            reference.get("pooled"),
        )?,
        close("logits", "", &trained.logits, reference.get("logits"))?,
        close(
            "logits in evaluation",
            "",
            &evaluated.logits,
            reference.get("eval_logits"),
        )?,
        absolute("loss", report.loss, number(reference.get("loss"))?),
        absolute(
            "loss in evaluation",
            eval_loss,
            number(reference.get("eval_loss"))?,
        ),
    ];
    comparisons.extend(gradients(&weights.specs, &gradient, &reference)?);
    Ok(comparisons)
}

/// What the model of an engine says of images, under a draw of training or as in evaluation.
fn say(
    choice: EngineChoice,
    config: &NepaConfig,
    weights: &Weights,
    pixels: &Tensor,
    draw: Option<&PassDraw>,
) -> Result<Said, GoldenError> {
    if choice == EngineChoice::Autograd {
        let model = Nepa::new(config, weights, DType::F32, &Device::Cpu)?;
        let (rope, factors) = draw.map_or((RopeDraw::default(), None), |draw| {
            (draw.rope, draw.drop_path.as_deref())
        });
        return Ok(Said {
            pooled: model.pooled(pixels, &rope, factors)?,
            logits: match draw {
                Some(_) => model.classify(pixels, &rope, factors)?,
                None => model.logits(pixels)?,
            },
        });
    }
    let values = pixels.to_dtype(DType::F32)?.flatten_from(1)?;
    let values = values.to_vec2::<f32>()?;
    let images: Vec<&[f32]> = values.iter().map(Vec::as_slice).collect();
    let options = StepOptions {
        drop_path: draw.is_some_and(|draw| draw.drop_path.is_some()),
        ..StepOptions::inference(config, images.len(), config.is_causal)
    };
    let mut step = Step::new(config, &options, CpuDevice::<f32>::default())?;
    step.load_weights(&weights.flat)?;
    let staged = step.stage(&images)?;
    let pass = draw.map_or_else(Pass::default, PassDraw::pass);
    step.forward(staged, images.len(), &pass)?;
    let rows = (images.len(), ());
    Ok(Said {
        pooled: Tensor::from_vec(step.read_pooled()?, rows, &Device::Cpu)?,
        logits: Tensor::from_vec(step.logits()?, rows, &Device::Cpu)?,
    })
}

/// `[B, K]`, flat.
fn targets(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// `-mean log softmax(logits)_label`.
fn cross_entropy(logits: &Tensor, labels: &[f64]) -> candle_core::Result<f64> {
    let classes = logits.dim(1)?;
    let logits = doubles(logits)?;
    let losses = logits.chunks_exact(classes).zip(labels);
    let losses = losses.map(|(logits, label)| {
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|logit| (logit - most).exp()).sum();
        most + sum.ln() - logits.get(*label as usize).unwrap_or(&f64::NAN)
    });
    Ok(losses.sum::<f64>() / labels.len() as f64)
}

/// What is no gradient may be off by no more than a loss, relative to its length.
fn close(
    what: &'static str,
    name: &str,
    ours: &Tensor,
    theirs: &Tensor,
) -> candle_core::Result<Comparison> {
    Ok(Comparison {
        tolerance: LOSS_TOLERANCE,
        ..relative(what, name, ours, theirs)?
    })
}

/// Something that has to be the same: how often it is not.
fn same(what: &'static str, differences: usize) -> Comparison {
    Comparison {
        what,
        name: String::new(),
        error: differences as f64,
        tolerance: 0.0,
        measure: Measure::Absolute,
    }
}

fn compare_trajectory(
    folder: &Path,
    reference: &Tensors,
    config: &NepaConfig,
    weights: &Weights,
    choice: EngineChoice,
) -> Result<Vec<Comparison>, GoldenError> {
    let info: Info = read_info(folder)?;
    let run = &info.trajectory;
    check_tensors(reference, config, run.steps, &weights.specs)?;
    let optimizer = OptimizerConfig {
        beta1: run.beta1,
        beta2: run.beta2,
        eps: run.eps,
        weight_decay: run.weight_decay,
        max_grad_norm: Some(run.max_grad_norm),
        ema_decay: Some(run.ema_decay),
        ..OptimizerConfig::default()
    };
    let freeze = if info.frozen.is_empty() {
        Freeze::Nothing
    } else {
        Freeze::PatchEmbedding
    };
    let groups = LayerGroups::new(config, &optimizer, freeze);
    let group = |name: &str| groups.group(name);
    let factors = LayerRates {
        schedule: LayerSchedule::LayerwiseWarmup,
        layer_decay: run.llrd,
        layer_decay_end: run.llrd,
        warmup_steps: run.warmup_steps,
        total_steps: run.total_steps,
    };
    let blocks = config.num_hidden_layers;
    let peaks = (run.lr, run.head_lr);

    let images = reference.get("batch.0").dim(0)?;
    let setup = TrainingSetup {
        config,
        update: optimizer.settings(),
        groups: &group,
        micro_batch: images,
        micro_batches: 1,
        exchange: None,
        ablation: Ablation::default(),
    };
    let mut engine = engine_for(choice, &setup, weights.clone())?;
    let (mut losses, mut norms, mut group_rates) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..run.steps {
        let draw = PassDraw {
            rope: rope_of(info.rope_scale),
            drop_path: drop_path(config, reference, &format!(".{step}"), images)?,
            masked: None,
        };
        let report = engine.step(&StepInput {
            images: Images::Device(reference.get(&format!("batch.{step}"))),
            targets: Some(&targets(reference.get(&format!("targets.{step}")))?),
            passes: &[draw],
        })?;
        let rates = rates(&factors, blocks, peaks, step);
        engine.update(&rates)?;
        losses.push(report.loss);
        norms.push(report.grad_norm);
        let of_group = |published: &Group| rates[group(&published.names[0]).rate];
        group_rates.extend(run.groups.iter().map(of_group));
    }
    let TrainingState {
        weights: last,
        optimizer: state,
    } = engine.export()?;

    let mut comparisons = compare_groups(&info, config, &weights.specs, group);
    comparisons.push(Comparison {
        what: "trajectory: losses",
        name: String::new(),
        error: greatest_difference(&losses, &reference.numbers("losses")?),
        tolerance: LOSS_TOLERANCE,
        measure: Measure::Absolute,
    });
    for (what, ours, name) in [
        ("trajectory: gradient norms", &norms, "grad_norms"),
        ("trajectory: learning rates", &group_rates, "group_lrs"),
    ] {
        let theirs = reference.get(name);
        let ours = Tensor::from_slice(ours, ours.len(), &Device::Cpu)?;
        comparisons.push(close(what, "", &ours, &theirs.flatten_all()?)?);
    }
    for (what, flat, prefix) in [
        ("trajectory: final weights", &last.flat, "final."),
        ("trajectory: moving average", &state.ema, "ema."),
    ] {
        for spec in &weights.specs {
            comparisons.push(close(
                what,
                &spec.name,
                &weight_of(flat, spec)?,
                reference.get(&format!("{prefix}{}", spec.name)),
            )?);
        }
    }
    let unchanged = |spec: &&ParamSpec| last.flat[spec.range()] == weights.flat[spec.range()];
    let frozen = weights.specs.iter().filter(unchanged);
    let frozen: BTreeSet<String> = frozen.map(|spec| spec.name.clone()).collect();
    let differences = frozen.symmetric_difference(&info.frozen).count();
    comparisons.push(same("trajectory: weights that stay", differences));
    Ok(comparisons)
}

fn check_tensors(
    reference: &Tensors,
    config: &NepaConfig,
    steps: u64,
    specs: &[ParamSpec],
) -> Result<(), GoldenError> {
    let mut names = Vec::new();
    for step in 0..steps {
        names.extend(["batch", "targets"].map(|what| format!("{what}.{step}")));
        names.extend(drop_path_names(config, &format!(".{step}")));
    }
    let mut needed = vec!["losses", "grad_norms", "group_lrs"];
    needed.extend(names.iter().map(String::as_str));
    reference.check(&needed, &[], &["final.", "ema."], specs)
}

/// Decay of each weight, what is frozen, and the rates of drop path.
fn compare_groups(
    info: &Info,
    config: &NepaConfig,
    specs: &[ParamSpec],
    group: impl Fn(&str) -> WeightGroup,
) -> Vec<Comparison> {
    let of_published = |name: &str| {
        let mut groups = info.trajectory.groups.iter();
        groups.find(|group| group.names.iter().any(|one| one == name))
    };
    let wrong = specs.iter().filter(|spec| {
        let ours = group(&spec.name);
        match of_published(&spec.name) {
            Some(theirs) => {
                ours.frozen || ours.weight_decay.to_bits() != theirs.weight_decay.to_bits()
            }
            None => !ours.frozen,
        }
    });
    let ours = DropPath::rates(config);
    let theirs = if info.drop_path_rates.is_empty() {
        vec![0.0; ours.len()]
    } else {
        info.drop_path_rates.clone()
    };
    vec![
        same("trajectory: groups of weights", wrong.count()),
        Comparison {
            what: "rates of drop path",
            name: String::new(),
            error: greatest_difference(&ours, &theirs),
            tolerance: LOSS_TOLERANCE,
            measure: Measure::Absolute,
        },
    ]
}
