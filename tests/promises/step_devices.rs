//! The training step over its devices: the CPU in f64 is the oracle (`model/src/step/tests.rs` proves
//! it), the CPU in f32 and the GPU's kernels on an emulated device follow it.
use candle_core::{Device, Tensor};
use nepa_model::cpu::CpuDevice;
use nepa_model::objective::{Autograd, HeadLoss, NextEmbedding};
use nepa_model::step::device::Device as StepDevice;
use nepa_model::step::{Kept, SumTree};
use nepa_model::{
    Classes, DropPath, ModelError, NepaConfig, ParamSpec, Pass, RopeDraw, Step, StepOptions,
    Weights, init_weights,
};
use nepa_tests::emulated_device::{EmulatedDevice, emulated};
use nepa_tests::step_variants::{norm, off, small, variants_of};
use nepa_tests::stepping::{self, ADAMW, Classified, add};

fn variants() -> [(&'static str, NepaConfig); 5] {
    let [gelu, gated, bidirectional] = variants_of(&small());
    [
        gelu,
        gated,
        bidirectional,
        (
            "no biases, no norms of heads",
            NepaConfig {
                qkv_bias: false,
                qk_norm: false,
                ..small()
            },
        ),
        (
            "no LayerScale",
            NepaConfig {
                layerscale_value: None,
                ..small()
            },
        ),
    ]
}

fn pixels(config: &NepaConfig, batch: usize) -> Vec<Vec<f32>> {
    let (side, mut number) = (config.image_size, 1u32);
    let mut noise = || {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (number >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let image = |image: usize| {
        (0..3 * side * side)
            .map(|i| ((i * (image + 3)) as f32 / 97.0).sin() * 0.7 + noise() * 0.6)
            .collect()
    };
    (0..batch).map(image).collect()
}

fn weights(config: &NepaConfig) -> Weights {
    let mut weights = init_weights(config, 3);
    let mut number = 7u32;
    for spec in weights.specs.clone() {
        let vector = spec.shape.len() == 1;
        for value in &mut weights.flat[spec.range()] {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if vector {
                *value += ((number >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.3;
            } else {
                *value *= 3.0;
            }
        }
    }
    weights
}

/// How far a device may be from f64: of a report's number, of the whole gradient, of the gradient
/// of one weight.
struct Limits {
    report: f64,
    gradient: f64,
    weight: f64,
}

const F32: Limits = Limits {
    report: 1e-6,
    gradient: 1e-5,
    weight: 5e-5,
};
const BF16: Limits = Limits {
    report: 5e-3,
    gradient: 2e-2,
    weight: 6e-2,
};

/// Two micro-batches: reports, gradient, its norm.
fn gradient<D: StepDevice<Wide = f32>>(
    config: &NepaConfig,
    weights: &Weights,
    pixels: &[Vec<f32>],
    device: D,
) -> (Vec<nepa_model::PretrainReport>, Vec<f32>, f64) {
    let mut step = stepping::pretraining(config, &weights.flat, 2, device).unwrap();
    let mut reports = Vec::new();
    for (number, images) in pixels.chunks(2).enumerate() {
        let rope = RopeDraw::draw(config, 1, 1, number as u64);
        let slices = images.iter().map(Vec::as_slice).collect::<Vec<_>>();
        reports.push(add(&mut step, &slices, &rope, 0.5).unwrap());
    }
    let norm = step.finish(Some(1.0)).unwrap();
    (reports, step.read_gradient().unwrap(), norm)
}

/// The same in f64, rounded at the end.
fn oracle(
    config: &NepaConfig,
    weights: &Weights,
    pixels: &[Vec<f32>],
) -> (Vec<nepa_model::PretrainReport>, Vec<f32>, f64) {
    let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let options = StepOptions::pretraining(config, 2);
    let mut step = Step::new(config, &options, CpuDevice::<f64>::default()).unwrap();
    step.load_weights(&wide(&weights.flat)).unwrap();
    step.clear_gradient().unwrap();
    let mut reports = Vec::new();
    for (number, images) in pixels.chunks(2).enumerate() {
        let rope = RopeDraw::draw(config, 1, 1, number as u64);
        let images = images.iter().map(|image| wide(image)).collect::<Vec<_>>();
        let slices = images.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let staged = step.stage(&slices).unwrap();
        let pass = Pass::of(&rope);
        let found = step.add_gradient(staged, 2, &pass, 0.5, &mut NextEmbedding);
        reports.push(found.unwrap());
    }
    let norm = step.finish(Some(1.0)).unwrap();
    let gradient = step.read_gradient().unwrap();
    (reports, gradient.iter().map(|v| *v as f32).collect(), norm)
}

fn follows_the_oracle<D: StepDevice<Wide = f32>>(device: impl Fn() -> D, limits: &Limits) {
    for (name, config) in variants() {
        let (weights, pixels) = (weights(&config), pixels(&config, 4));
        let (reports, gradient, found_norm) = gradient(&config, &weights, &pixels, device());
        let (references, expected, expected_norm) = oracle(&config, &weights, &pixels);
        for (found, reference) in reports.iter().zip(&references) {
            for (what, found, reference) in [
                ("loss", found.loss, reference.loss),
                ("cos_target", found.cos_target, reference.cos_target),
                ("cos_previous", found.cos_previous, reference.cos_previous),
            ] {
                assert!(
                    (found - reference).abs() < limits.report,
                    "{name}: {what} {found}, in f64 {reference}"
                );
            }
            // A win by less than the device can tell may be lost.
            assert!(
                (found.copy_win - reference.copy_win).abs() <= 2.0 / 32.0,
                "{name}"
            );
        }
        assert!(
            (found_norm / expected_norm - 1.0).abs() < limits.gradient,
            "{name}: {found_norm} {expected_norm}"
        );
        assert!(
            (found_norm - norm(gradient.iter().copied())).abs() < 1e-5 * found_norm,
            "{name}: the norm is that of the gradient"
        );
        assert!(off(&gradient, &expected) < limits.gradient, "{name}");
        for spec in &weights.specs {
            let off = off(&gradient[spec.range()], &expected[spec.range()]);
            if is_rounding_only(&config, spec) {
                continue;
            }
            println!("{name}: {} {off:.1e}", spec.name);
            assert!(off < limits.weight, "{name}: {}: {off}", spec.name);
        }
    }
}

#[test]
fn the_cpu_in_f32_follows_f64() {
    follows_the_oracle(CpuDevice::<f32>::default, &F32);
}

#[test]
fn the_kernels_follow_f64() {
    follows_the_oracle(|| emulated(0), &BF16);
}

/// What a step of micro-batches of one image each sums to.
fn sum<D: StepDevice<Wide = f32>>(images: &[&[f32]], device: D) -> Vec<f32> {
    let config = small();
    let options = StepOptions {
        partial_sums: SumTree::new(images.len()).partial_sums(),
        ..StepOptions::pretraining(&config, 1)
    };
    let flat = weights(&config).flat;
    let mut step = stepping::of_options(&options, &config, &flat, device).unwrap();
    step.begin_gradient(images.len()).unwrap();
    for image in images {
        add(&mut step, &[image], &RopeDraw::default(), 0.25).unwrap();
    }
    let mut sum = Vec::new();
    step.read_sum(&mut sum).unwrap();
    sum
}

fn sums_are_a_tree<D: StepDevice<Wide = f32>>(device: impl Fn() -> D) {
    let pixels = pixels(&small(), 4);
    let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let [a, b, c, d] = [0, 1, 2, 3].map(|image| sum(&slices[image..=image], device()));
    let whole = sum(&slices, device());
    for (place, found) in whole.iter().enumerate() {
        let expected = (a[place] + b[place]) + (c[place] + d[place]);
        assert_eq!(found.to_bits(), expected.to_bits(), "value {place}");
    }
}

#[test]
fn micro_batches_are_added_by_the_tree_on_the_cpu() {
    sums_are_a_tree(CpuDevice::<f32>::default);
}

#[test]
fn micro_batches_are_added_by_the_tree_on_the_kernels() {
    sums_are_a_tree(|| emulated(0));
}

/// Without a norm behind it, a key's bias moves all scores of a query alike and has no gradient but rounding.
fn is_rounding_only(config: &NepaConfig, spec: &ParamSpec) -> bool {
    (!config.qk_norm && spec.name.ends_with("key.bias")) || spec.name.ends_with("k_norm.bias")
}

/// Steps whose mean losses are compared.
const WINDOW: u64 = 20;

#[test]
fn training_in_bf16_follows_training_in_f32() {
    let config = NepaConfig {
        hidden_size: 64,
        num_attention_heads: 1,
        num_hidden_layers: 1,
        intermediate_size: 96,
        ..small()
    };
    let (weights, pixels) = (init_weights(&config, 5), pixels(&config, 3));
    let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let mut kernels = stepping::pretraining(&config, &weights.flat, 3, emulated(0)).unwrap();
    let mut cpu =
        stepping::pretraining(&config, &weights.flat, 3, CpuDevice::<f32>::default()).unwrap();
    let (steps, mut first, mut last, mut sums) = (200, 0.0, 0.0, (0.0, 0.0));
    for number in 1..=steps {
        let rope = RopeDraw::draw(&config, 9, number, 0);
        let lr = 2e-4 * (number as f64 / 20.0).min(1.0);
        let expected = whole_step(&mut cpu, &slices, &rope, lr);
        let found = whole_step(&mut kernels, &slices, &rope, lr);
        sums.0 += found;
        sums.1 += expected;
        // Single steps may differ more: where the loss jumps, it jumps a little earlier or later.
        if number % WINDOW == 0 {
            let (found, expected) = (sums.0 / WINDOW as f64, sums.1 / WINDOW as f64);
            println!("to step {number}: mean loss {found:.5}, in f32 {expected:.5}");
            assert!(
                (found - expected).abs() <= 1e-2 * expected.abs(),
                "step {number}: {found}, in f32 {expected}"
            );
            sums = (0.0, 0.0);
        }
        if number == 1 {
            first = found;
            // The average starts as a copy.
            let state = kernels.export().unwrap();
            assert!(state.average == state.weights);
        }
        last = found;
    }
    assert!(last < first - 0.1, "it learns: {first} {last}");
    let (found, expected) = (kernels.export().unwrap(), cpu.export().unwrap());
    assert_eq!((found.updates, expected.updates), (steps, steps));
    for (name, found, expected) in [
        ("weights", &found.weights, &expected.weights),
        ("average", &found.average, &expected.average),
    ] {
        let off = off(found, expected);
        assert!(off < 5e-2, "{name}: {off}");
    }
}

/// A step of one micro-batch with its update; the loss.
fn whole_step<D: StepDevice<Wide = f32>>(
    step: &mut Step<D>,
    images: &[&[f32]],
    rope: &RopeDraw,
    lr: f64,
) -> f64 {
    step.clear_gradient().unwrap();
    let report = add(step, images, rope, 1.0).unwrap();
    step.finish(Some(1.0)).unwrap();
    step.update(&ADAMW, &[lr]).unwrap();
    report.loss
}

/// A sum over (image, column) of fixed numbers times tanh of the mean over patches.
fn head(output: &Tensor) -> Result<HeadLoss<f64>, ModelError> {
    let (images, tokens, width) = output.dims3()?;
    let mean = output.narrow(1, 1, tokens - 1)?.mean(1)?;
    let factors = (0..images * width).map(|i| ((i * 7919) as f32).sin());
    let factors = Tensor::from_iter(factors, &Device::Cpu)?.reshape((images, width))?;
    let loss = ((mean.tanh()? * factors)?.sum_all()? / images as f64)?;
    Ok(HeadLoss {
        report: f64::from(loss.to_scalar::<f32>()?),
        loss,
        weights: Vec::new(),
    })
}

/// Loss and gradient of another objective over a rectangle of patches, of which some are kept, with
/// dropped branches.
fn all_of_it<D: StepDevice<Wide = f32>>(config: &NepaConfig, device: D) -> (f64, Vec<f32>) {
    let options = StepOptions {
        grid: Some([3, 5]),
        causal: false,
        kept_patches: Some(6),
        drop_path: true,
        ..StepOptions::whole(config, 2)
    };
    let len = 3 * 15 * config.patch_size.pow(2);
    let value = |image: usize, i: usize| ((i * (image + 3)) as f32 / 97.0).sin();
    let image = |image| (0..len).map(|i| value(image, i)).collect();
    let images: Vec<Vec<f32>> = (0..2).map(image).collect();
    let slices: Vec<&[f32]> = images.iter().map(Vec::as_slice).collect();
    let weights = weights(config).flat;
    let mut step = stepping::of_options(&options, config, &weights, device).unwrap();
    let staged = step.stage(&slices).unwrap();
    let pass = Pass {
        kept: Some(&[14, 0, 3, 7, 2, 11, 1, 5, 4, 13, 12, 9]),
        drop_path: Some(&[1.25, 0.0, 2.0, 1.5, 0.5, 1.0, 0.0, 1.75]),
        ..Pass::default()
    };
    let mut objective = Autograd::new(head);
    let loss = step.add_gradient(staged, 2, &pass, 1.0, &mut objective);
    let loss = loss.unwrap();
    step.finish(None).unwrap();
    (loss, step.read_gradient().unwrap())
}

#[test]
fn what_drops_keeps_and_bends_is_one_on_all_devices() {
    for (name, config) in variants_of(&small()) {
        let (expected, reference) = all_of_it(&config, CpuDevice::<f32>::default());
        let (loss, gradient) = all_of_it(&config, emulated(1));
        assert!(
            (loss - expected).abs() < 2e-2 * expected.abs().max(0.1),
            "{name}: {loss} {expected}"
        );
        let off = off(&gradient, &reference);
        assert!(off < 3e-2, "{name}: {off}");
    }
}

/// Classifiers with either kind of pooling, of as many classes as no vector divides.
fn classifiers() -> Vec<(String, NepaConfig)> {
    let mut all = Vec::new();
    for (name, config) in variants() {
        for add_pooling_layer in [true, false] {
            let config = NepaConfig {
                add_pooling_layer,
                drop_path_prob: if config.qk_norm { 0.5 } else { 0.0 },
                ..config.to_classifier(Classes::Count(5))
            };
            all.push((
                format!("{name}, pooling layer: {add_pooling_layer}"),
                config,
            ));
        }
    }
    all
}

/// A classifier's step of three images on a device.
fn classified<D: StepDevice<Wide = f32>>(
    config: &NepaConfig,
    weights: &Weights,
    device: D,
) -> Classified {
    let pixels = pixels(config, 3);
    let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let targets = [
        [0.9, 0.025, 0.025, 0.025, 0.025],
        [0.1, 0.5, 0.2, 0.1, 0.1],
        [0.0, 0.0, 0.3, 0.0, 0.7],
    ];
    let (targets, rope) = (targets.as_flattened(), RopeDraw::draw(config, 2, 1, 0));
    // Some of both kinds.
    let factors = DropPath::draw(config, 4, 1, 0, 3);
    let pass = Pass {
        drop_path: factors.as_deref(),
        ..Pass::of(&rope)
    };
    stepping::classify(config, &weights.flat, &slices, targets, &pass, device).unwrap()
}

/// Weights of a classifier whose head is not zero.
fn classifier_weights(config: &NepaConfig) -> Weights {
    let mut weights = weights(config);
    let spec = weights
        .specs
        .iter()
        .find(|spec| spec.name == "classifier.weight");
    let range = spec.expect("a head").range();
    for (number, value) in weights.flat[range].iter_mut().enumerate() {
        *value = (number as f32 * 0.77).sin() * 0.4;
    }
    weights
}

/// A classifier on a device, and on the CPU in f32, which `model/src/step/tests` holds to f64.
fn classifiers_follow<D: StepDevice<Wide = f32>>(device: impl Fn() -> D, limits: &Limits) {
    for (name, config) in classifiers() {
        let weights = classifier_weights(&config);
        let expected = classified(&config, &weights, CpuDevice::<f32>::default());
        let found = classified(&config, &weights, device());
        let loss = (found.report.loss - expected.report.loss).abs();
        assert!(loss < 4.0 * limits.report, "{name}: loss {loss}");
        assert!(
            off(&found.logits, &expected.logits) < limits.gradient,
            "{name}"
        );
        assert!(
            (found.norm / expected.norm - 1.0).abs() < limits.gradient,
            "{name}"
        );
        for spec in &weights.specs {
            let range = spec.range();
            let [gradient, reference] =
                [&found.gradient, &expected.gradient].map(|all| &all[range.clone()]);
            let frozen = spec.name.contains("patch_embeddings");
            if frozen {
                assert!(gradient.iter().all(|value| *value == 0.0), "{}", spec.name);
            } else if !is_rounding_only(&config, spec) {
                let off = off(gradient, reference);
                println!("{name}: {} {off:.1e}", spec.name);
                assert!(off < limits.weight, "{name}: {}: {off}", spec.name);
            }
            let [before, after] =
                [&weights.flat, &found.state.weights].map(|all| &all[range.clone()]);
            assert_eq!(before == after, frozen, "{name}: {}", spec.name);
        }
    }
}

#[test]
fn classifiers_on_the_kernels_follow_the_cpu() {
    classifiers_follow(|| emulated(0), &BF16);
}

#[test]
fn other_orders_of_threads_change_no_bit_of_a_classifier() {
    let (_, config) = &classifiers()[0];
    let weights = classifier_weights(config);
    let expected = classified(config, &weights, emulated(0));
    for seed in [1_000, 7] {
        assert!(
            classified(config, &weights, emulated(seed)) == expected,
            "{seed}"
        );
    }
}

#[test]
fn every_launch_gives_the_same_bits_again() {
    let (_, config) = &variants()[1];
    let (weights, pixels) = (weights(config), pixels(config, 3));
    let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let run = |seed, norms, activations| {
        let options = StepOptions {
            kept: Some(Kept { norms, activations }),
            ..StepOptions::pretraining(config, 3)
        };
        let step = stepping::of_options(&options, config, &weights.flat, emulated(seed));
        let mut step = step.unwrap();
        let report = add(&mut step, &slices, &RopeDraw::default(), 1.0).unwrap();
        step.finish(None).unwrap();
        (report, step.read_gradient().unwrap())
    };
    let expected = run(0, true, false);
    for (seed, norms, activations) in [(1_000, true, false), (2_000, true, true), (7, false, false)]
    {
        let same = run(seed, norms, activations) == expected;
        assert!(same, "seed {seed}, keeping {norms} {activations}");
    }
}

#[test]
fn what_the_kernels_cannot_compute_is_refused() {
    for (part, config) in [
        (
            "heads of 64 values",
            NepaConfig {
                num_attention_heads: 4,
                ..small()
            },
        ),
        (
            "at most 512 tokens",
            NepaConfig {
                image_size: 168,
                ..small()
            },
        ),
        (
            "multiple of 8",
            NepaConfig {
                intermediate_size: 100,
                ..small()
            },
        ),
    ] {
        let options = StepOptions::pretraining(&config, 1);
        let error = Step::<EmulatedDevice>::new(&config, &options, emulated(0));
        let error = error.map(|_| ()).unwrap_err();
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
}
