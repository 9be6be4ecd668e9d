//! Classifiers on the CPU: against candle's autograd, against finite differences, and against
//! themselves.
use candle_core::{DType, Device, Tensor};

use super::*;
use crate::config::Classes;
use crate::objective::{Classification, ClassificationReport};
use crate::step::adamw::{AdamWSettings, WeightGroup};
use crate::{DropPath, soft_cross_entropy};

/// A classifier whose head is not zero, and targets for its images, `[B, K]`.
struct Labelled {
    case: Case,
    targets: Vec<f32>,
    classes: usize,
}

impl Labelled {
    fn new(config: &NepaConfig, classes: usize, batch: usize, seed: u64) -> Self {
        let config = config.to_classifier(Classes::Count(classes));
        let mut case = Case::new(&config, batch, seed);
        let mut rng = stream(seed, 3, 4, Purpose::Weights);
        for spec in case.weights.specs.clone() {
            if spec.name == "classifier.weight" {
                for value in &mut case.weights.flat[spec.range()] {
                    *value = unit(&mut rng) as f32 - 0.5;
                }
            }
        }
        let mut targets = Vec::new();
        for _ in 0..batch {
            let row: Vec<f64> = (0..classes)
                .map(|_| unit(&mut rng).powi(4) + 1e-3)
                .collect();
            let sum: f64 = row.iter().sum();
            targets.extend(row.iter().map(|value| (value / sum) as f32));
        }
        Self {
            case,
            targets,
            classes,
        }
    }

    /// What drop path draws for each micro-batch of so many images, the last perhaps of fewer.
    fn factors(&self, micro_batch: usize) -> Vec<Option<Vec<f32>>> {
        let sizes = self.case.images.chunks(micro_batch).map(<[_]>::len);
        let draw = |(number, images)| DropPath::draw(&self.case.config, 5, 1, number, images);
        (0..).zip(sizes).map(draw).collect()
    }

    /// Loss, images that are right, and gradient, in micro-batches of so many images.
    fn step<T: Real>(&self, weights: &[T], micro_batch: usize) -> (ClassificationReport, Vec<T>) {
        let case = &self.case;
        let images = case.images::<T>();
        let images = images.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let options = StepOptions::training(&case.config, micro_batch);
        let device = CpuDevice::<T>::default();
        let mut step = Step::new(&case.config, &options, device).expect("a step");
        step.load_weights(weights).expect("weights");
        step.clear_gradient().expect("a gradient");
        let mut all = ClassificationReport::default();
        let parts = images.chunks(micro_batch).zip(self.factors(micro_batch));
        let targets = self.targets.chunks(micro_batch * self.classes);
        for ((part, factors), targets) in parts.zip(targets) {
            let pass = Pass {
                drop_path: factors.as_deref(),
                ..Pass::of(&case.rope)
            };
            let share = part.len() as f64 / images.len() as f64;
            let staged = step.stage(part).expect("images");
            let mut objective = Classification::new(targets);
            let found = step
                .add_gradient(staged, part.len(), &pass, share, &mut objective)
                .expect("a step");
            assert_eq!(found.images, part.len());
            all.loss += share * found.loss;
            all.correct += found.correct;
            all.images += found.images;
        }
        step.finish(None).expect("an end");
        (all, step.read_gradient().expect("a gradient"))
    }

    /// The same by candle's autograd, in double precision.
    fn autograd(&self, micro_batch: usize) -> (ClassificationReport, Vec<f64>) {
        let Case {
            config,
            weights,
            images,
            rope,
        } = &self.case;
        let model = Nepa::new(config, weights, DType::F64, &Device::Cpu).expect("a model");
        let (channels, size) = (config.num_channels, config.image_size);
        let mut all = ClassificationReport::default();
        let mut gradient = vec![0.0; weights.flat.len()];
        let parts = images.chunks(micro_batch).zip(self.factors(micro_batch));
        let targets = self.targets.chunks(micro_batch * self.classes);
        for ((part, factors), targets) in parts.zip(targets) {
            let pixels = (part.concat(), (part.len(), channels, size, size));
            let pixels = Tensor::from_vec(pixels.0, pixels.1, &Device::Cpu).expect("a tensor");
            let logits = model.classify(&pixels, rope, factors.as_deref());
            let logits = logits.expect("logits");
            let shape = (part.len(), self.classes);
            let targets = Tensor::from_slice(targets, shape, &Device::Cpu).expect("a tensor");
            let loss = soft_cross_entropy(&logits, &targets).expect("a loss");
            let share = part.len() as f64 / images.len() as f64;
            all.loss += share * loss.to_scalar::<f64>().expect("a number");
            let best = |values: Tensor| values.argmax(1).and_then(|best| best.to_vec1::<u32>());
            let (found, right) = (best(logits), best(targets));
            let both = found
                .expect("classes")
                .into_iter()
                .zip(right.expect("classes"));
            all.correct += both.filter(|(found, right)| found == right).count();
            all.images += part.len();
            let gradients = model.gradients(&loss).expect("gradients");
            let values = gradients.iter().flat_map(|gradient| {
                let flat = gradient
                    .flatten_all()
                    .and_then(|flat| flat.to_vec1::<f64>());
                flat.expect("values")
            });
            for (sum, value) in gradient.iter_mut().zip(values) {
                *sum += share * value;
            }
        }
        (all, gradient)
    }
}

/// With and without everything that a classifier may have.
fn configs() -> Vec<NepaConfig> {
    let [gated, open, large] = <[NepaConfig; 3]>::try_from(larger()).expect("three");
    vec![
        NepaConfig {
            add_pooling_layer: true,
            drop_path_prob: 0.5,
            ..open.clone()
        },
        NepaConfig {
            add_pooling_layer: true,
            layerscale_value: None,
            qkv_bias: false,
            ..gated
        },
        NepaConfig {
            add_pooling_layer: false,
            ..large.clone()
        },
        NepaConfig {
            add_pooling_layer: false,
            drop_path_prob: 0.3,
            layerscale_value: None,
            qk_norm: false,
            ..open
        },
        NepaConfig {
            add_pooling_layer: true,
            num_hidden_layers: 0,
            ..large
        },
    ]
}

fn assert_same(
    what: &str,
    specs: &[ParamSpec],
    (found, gradient): &(ClassificationReport, Vec<f64>),
    (expected, expected_gradient): &(ClassificationReport, Vec<f64>),
) {
    assert!(
        (found.loss - expected.loss).abs() < 1e-11,
        "{what}: loss {}, autograd {}",
        found.loss,
        expected.loss
    );
    assert_eq!(
        (found.correct, found.images),
        (expected.correct, expected.images),
        "{what}"
    );
    for spec in specs {
        let length = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        if length(&expected_gradient[spec.range()]) < 1e-13 {
            assert!(length(&gradient[spec.range()]) < 1e-12, "{}", spec.name);
            continue;
        }
        let off = off(spec, gradient, expected_gradient);
        assert!(off < 1e-9, "{what}: {}: {off}", spec.name);
    }
}

#[test]
fn a_classifier_is_that_of_autograd() {
    for (number, config) in configs().into_iter().enumerate() {
        for (classes, micro_batch) in [(1, 2), (2, 3), (7, 1), (1000, 2)] {
            let labelled = Labelled::new(&config, classes, 3, number as u64);
            let found = labelled.step::<f64>(&labelled.case.flat(), micro_batch);
            let expected = labelled.autograd(micro_batch);
            let what = format!("{number}, {classes} classes, {micro_batch} at a time");
            assert_same(&what, &labelled.case.weights.specs, &found, &expected);
        }
    }
}

#[test]
fn a_classifier_is_that_of_autograd_on_random_configurations() {
    let mut rng = stream(20_261, 1, 7, Purpose::Weights);
    for number in 0..30 {
        let config = NepaConfig {
            add_pooling_layer: number % 2 == 0,
            drop_path_prob: [0.0, 0.4][number % 4 / 2],
            ..random_config(&mut rng)
        };
        let labelled = Labelled::new(&config, 1 + number % 9, 3, number as u64);
        let found = labelled.step::<f64>(&labelled.case.flat(), 2);
        let expected = labelled.autograd(2);
        let what = format!("{number}: {config:?}");
        assert_same(&what, &labelled.case.weights.specs, &found, &expected);
    }
}

#[test]
fn a_classifiers_gradients_are_those_of_its_loss() {
    let mut rng = stream(20_261, 1, 8, Purpose::Weights);
    for (number, config) in configs().into_iter().enumerate() {
        let labelled = Labelled::new(&config, 5, 2, number as u64);
        let weights = labelled.case.flat::<f64>();
        let (_, gradient) = labelled.step(&weights, 2);
        for spec in &labelled.case.weights.specs {
            let loss = |moved: &[f64]| labelled.step(moved, 2).0.loss;
            assert_is_slope(
                &number.to_string(),
                spec,
                (&weights, &gradient),
                loss,
                &mut rng,
            );
        }
    }
}

#[test]
fn a_classifier_in_single_precision_stays_near() {
    for (number, config) in configs().into_iter().enumerate() {
        let labelled = Labelled::new(&config, 1000, 3, number as u64);
        let (found, gradient) = labelled.step::<f32>(&labelled.case.flat(), 3);
        let (expected, expected_gradient) = labelled.autograd(3);
        assert!((found.loss - expected.loss).abs() < 1e-5);
        let gradient = gradient.into_iter().map(f64::from).collect::<Vec<_>>();
        let whole = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        for spec in &labelled.case.weights.specs {
            if whole(&expected_gradient[spec.range()]) < 1e-9 * whole(&expected_gradient) {
                continue;
            }
            let off = off(spec, &gradient, &expected_gradient);
            assert!(off < 2e-5, "{number}: {}: {off}", spec.name);
        }
    }
}

#[test]
fn threads_change_no_bit_of_a_classifier() {
    let config = NepaConfig {
        add_pooling_layer: true,
        is_causal: false,
        hidden_size: 144,
        num_attention_heads: 2,
        num_hidden_layers: 1,
        image_size: 14,
        ..NepaConfig::tiny()
    };
    // So many that all products of the head are split.
    let labelled = Labelled::new(&config, 200, 70, 3);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let step = || labelled.step::<f32>(&labelled.case.flat(), 70);
        let (report, gradient) = pool.expect("threads").install(step);
        (
            report,
            gradient.iter().map(|g| g.to_bits()).collect::<Vec<_>>(),
        )
    };
    let one = with(1);
    assert!(one == with(2) && one == with(4));
}

#[test]
fn logits_need_no_gradient() {
    for (number, config) in configs().into_iter().enumerate() {
        let labelled = Labelled::new(&config, 6, 3, number as u64);
        let Case {
            config,
            weights,
            images,
            ..
        } = &labelled.case;
        let model = Nepa::new(config, weights, DType::F64, &Device::Cpu).expect("a model");
        let shape = (3, config.num_channels, config.image_size, config.image_size);
        let pixels = Tensor::from_vec(images.concat(), shape, &Device::Cpu).expect("a tensor");
        let pooled = model.pooled(&pixels, &RopeDraw::default(), None);
        // Room for more images than there are.
        let options = StepOptions::inference(config, 5, config.is_causal);
        let device = CpuDevice::<f64>::default();
        let mut step = Step::new(config, &options, device).expect("a step");
        step.load_weights(&labelled.case.flat()).expect("weights");
        let slices = images.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let staged = step.stage(&slices).expect("images");
        step.forward(staged, 3, &Pass::default()).expect("a pass");
        for (what, found, expected) in [
            ("pooled", step.read_pooled(), pooled),
            ("logits", step.logits(), model.logits(&pixels)),
        ] {
            let expected = expected.expect(what).flatten_all();
            let expected = expected.and_then(|flat| flat.to_vec1::<f64>()).expect(what);
            let found = found.expect(what);
            assert_eq!(found.len(), expected.len(), "{what}");
            let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
            let worst = apart.fold(0.0, f64::max);
            assert!(worst < 1e-11, "{number}: {what}: {worst}");
        }
    }
}

fn refused<R>(result: Result<R, ModelError>, part: &str) {
    let error = result.map(|_| ()).expect_err("refused").to_string();
    assert!(error.contains(part), "{part} in {error}");
}

#[test]
fn what_is_no_classification_is_refused() {
    let config = NepaConfig::tiny();
    let case = Case::new(&config, 2, 1);
    let slices = case.images.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let step = |config: &NepaConfig, options: &StepOptions, flat: &[f64]| {
        let mut step = Step::new(config, options, CpuDevice::<f64>::default()).expect("a step");
        step.load_weights(flat).expect("weights");
        step.clear_gradient().expect("a gradient");
        step
    };
    let mut pretrains = step(&config, &StepOptions::whole(&config, 2), &case.flat());
    let staged = pretrains.stage(&slices).expect("images");
    pretrains
        .forward(staged, 2, &Pass::default())
        .expect("a pass");
    refused(pretrains.logits(), "no head");

    let labelled = Labelled::new(&config, 3, 2, 1);
    let (config, flat) = (&labelled.case.config, labelled.case.flat());
    let mut cut = step(config, &StepOptions::pretraining(config, 2), &flat);
    let staged = cut.stage(&slices).expect("images");
    cut.forward(staged, 2, &Pass::default()).expect("a pass");
    refused(cut.logits(), "sees all patches");

    let mut whole = step(config, &StepOptions::training(config, 2), &flat);
    let staged = whole.stage(&slices).expect("images");
    for targets in [
        &labelled.targets[1..],
        &[labelled.targets.as_slice(), &[0.0]].concat(),
    ] {
        let mut objective = Classification::new(targets);
        let pass = Pass::default();
        let result = whole.add_gradient(staged, 2, &pass, 1.0, &mut objective);
        refused(result, "a target of each of its classes");
    }
    let masks = NepaConfig {
        use_mask_token: true,
        ..NepaConfig::tiny()
    };
    let options = StepOptions::training(&masks, 2);
    let device = CpuDevice::<f64>::default();
    refused(Step::new(&masks, &options, device), "masks no patches");
}

const SETTINGS: AdamWSettings = AdamWSettings {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    average_decay: Some(0.5),
};

/// Three groups: the head's weights at a rate of their own, the patch embedding and the last block's
/// LayerScale frozen.
fn group(name: &str) -> WeightGroup {
    WeightGroup {
        weight_decay: 0.1,
        rate: name.starts_with("classifier").into(),
        frozen: name.contains("patch_embeddings") || name.ends_with("1.layer_scale.lambda1"),
    }
}

#[test]
fn frozen_weights_have_no_part_in_a_step() {
    let config = NepaConfig {
        add_pooling_layer: true,
        is_causal: false,
        layerscale_value: Some(0.4),
        ..NepaConfig::tiny()
    };
    let labelled = Labelled::new(&config, 4, 2, 6);
    let (case, specs) = (&labelled.case, &labelled.case.weights.specs);
    let slices = case.images.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let options = StepOptions::training(&case.config, 2);
    let device = CpuDevice::<f64>::default();
    let mut step = Step::new(&case.config, &options, device).expect("a step");
    let ones = |value| vec![value; case.weights.flat.len()];
    let before = FlatState {
        weights: case.flat::<f64>(),
        m: ones(0.25),
        v: ones(0.125),
        average: ones(0.0),
        updates: 1,
    };
    step.load(&before).expect("a state");
    step.set_groups(group);
    step.clear_gradient().expect("a gradient");
    let staged = step.stage(&slices).expect("images");
    let mut objective = Classification::new(&labelled.targets);
    let pass = Pass::of(&case.rope);
    step.add_gradient(staged, 2, &pass, 1.0, &mut objective)
        .expect("a step");
    let norm = step.finish(Some(1.0)).expect("an end");
    let (_, gradient) = labelled.step::<f64>(&case.flat(), 2);
    let trained = specs.iter().filter(|spec| !group(&spec.name).frozen);
    let values = trained.flat_map(|spec| &gradient[spec.range()]);
    let expected = values.map(|value| value * value).sum::<f64>().sqrt();
    assert!((norm / expected - 1.0).abs() < 1e-12, "{norm} {expected}");
    let left = step.read_gradient().expect("a gradient");
    refused(step.update(&SETTINGS, &[0.1]), "more learning rates");
    step.update(&SETTINGS, &[0.0, 0.1]).expect("an update");
    let after = step.export().expect("a state");
    for spec in specs {
        let (range, group) = (spec.range(), group(&spec.name));
        let same = |a: &[f64], b: &[f64]| a[range.clone()] == b[range.clone()];
        let stays = group.frozen || group.rate == 0;
        assert_eq!(
            same(&after.weights, &before.weights),
            stays,
            "{}",
            spec.name
        );
        assert_eq!(same(&after.m, &before.m), group.frozen, "{}", spec.name);
        assert_eq!(same(&after.v, &before.v), group.frozen, "{}", spec.name);
        let halves: Vec<f64> = after.weights.iter().map(|weight| 0.5 * weight).collect();
        assert!(same(&after.average, &halves), "{}", spec.name);
        let zero = left[range.clone()].iter().all(|value| *value == 0.0);
        assert_eq!(zero, group.frozen, "{}", spec.name);
    }
}

#[test]
fn a_gradient_that_stops_early_is_the_same_above() {
    let config = NepaConfig {
        add_pooling_layer: true,
        layerscale_value: Some(0.4),
        ..NepaConfig::tiny()
    };
    let labelled = Labelled::new(&config, 4, 2, 9);
    let (case, specs) = (&labelled.case, &labelled.case.weights.specs);
    let (_, whole) = labelled.step::<f64>(&case.flat(), 2);
    let slices = case.images.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let options = StepOptions::training(&case.config, 2);
    let device = CpuDevice::<f64>::default();
    let mut step = Step::new(&case.config, &options, device).expect("a step");
    step.load_weights(&case.flat()).expect("weights");
    let backbone = ["embeddings", "layer.0.", "layer.1.", "vit_nepa"];
    for (number, _) in backbone.iter().enumerate() {
        let frozen = |name: &str| backbone[..=number].iter().any(|part| name.contains(part));
        step.set_groups(|name| WeightGroup {
            frozen: frozen(name),
            ..group("")
        });
        step.clear_gradient().expect("a gradient");
        let staged = step.stage(&slices).expect("images");
        let mut objective = Classification::new(&labelled.targets);
        step.add_gradient(staged, 2, &Pass::of(&case.rope), 1.0, &mut objective)
            .expect("a step");
        refused(
            step.read_input_gradient().map(drop),
            "embeddings are frozen",
        );
        step.finish(None).expect("an end");
        let found = step.read_gradient().expect("a gradient");
        for spec in specs {
            let (found, whole) = (&found[spec.range()], &whole[spec.range()]);
            if frozen(&spec.name) {
                assert!(found.iter().all(|value| *value == 0.0), "{}", spec.name);
            } else {
                assert!(found == whole, "{number}: {}", spec.name);
            }
        }
    }
}

#[test]
fn a_gradient_is_ended_once() {
    let labelled = Labelled::new(&NepaConfig::tiny(), 3, 2, 8);
    let case = &labelled.case;
    let slices = case.images.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let options = StepOptions::training(&case.config, 2);
    let device = CpuDevice::<f64>::default();
    let mut step = Step::new(&case.config, &options, device).expect("a step");
    step.load_weights(&case.flat()).expect("weights");
    step.set_groups(group);
    let staged = step.stage(&slices).expect("images");
    let add = |step: &mut Step<CpuDevice<f64>>| {
        let mut objective = Classification::new(&labelled.targets);
        step.add_gradient(staged, 2, &Pass::default(), 1.0, &mut objective)
    };
    // Nothing was cleared; ended already; of other groups; applied already.
    refused(add(&mut step), "clear it");
    refused(step.finish(None), "clear it");
    step.clear_gradient().expect("a gradient");
    add(&mut step).expect("a step");
    step.finish(None).expect("an end");
    let whole = step.read_gradient().expect("a gradient");
    refused(step.finish(None), "clear it");
    refused(add(&mut step), "clear it");
    assert!(step.read_gradient().expect("a gradient") == whole);
    step.set_groups(|_| WeightGroup {
        frozen: true,
        ..group("")
    });
    refused(step.update(&SETTINGS, &[0.1]), "no gradient");
    step.clear_gradient().expect("a gradient");
    let norm = step.finish(None).expect("an end");
    assert!(norm.abs() < 1e-15);
    step.update(&SETTINGS, &[]).expect("nothing has a rate");
    refused(step.finish(None), "clear it");
}
