//! The GPU's pretraining step, launch by launch on an emulated device: loss, gradients and training are those of the f32 engine, up to bf16's rounding.
use nepa_model::kernel_step::{FlatState, Kept, KernelStep, Update};
use nepa_model::{ExplicitNepa, NepaConfig, ParamSpec, RopeDraw, Weights, init_weights};
use nepa_tests::emulated_device::EmulatedDevice;
use nepa_tests::step_variants::{norm, off, small, variants_of};
use nepa_trainer::cpu_engine::CpuEngine;
use nepa_trainer::engine::{Engine, Images, TrainingState};
use nepa_trainer::optimizer::OptimizerConfig;

fn variants() -> [(&'static str, NepaConfig); 4] {
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

/// A step that holds these weights.
fn step(config: &NepaConfig, weights: &Weights, micro_batch: usize) -> KernelStep<EmulatedDevice> {
    let mut step = KernelStep::new(config, micro_batch, EmulatedDevice::default()).unwrap();
    step.load(&FlatState::new(weights.flat.clone())).unwrap();
    step
}

#[test]
fn loss_and_gradients_are_those_of_the_f32_step() {
    for (name, config) in variants() {
        let (weights, pixels) = (weights(&config), pixels(&config, 4));
        let mut explicit = ExplicitNepa::<f32>::new(&config, 2).unwrap();
        let mut expected = vec![0.0; weights.flat.len()];
        let mut kernels = step(&config, &weights, 2);
        kernels.clear_gradient().unwrap();
        for (number, images) in pixels.chunks(2).enumerate() {
            let rope = RopeDraw::draw(&config, 1, 1, number as u64);
            let slices = images.iter().map(Vec::as_slice).collect::<Vec<_>>();
            let reference = explicit
                .add_gradient(&weights.flat, &slices, &rope, 0.5, &mut expected)
                .unwrap();
            let staging = kernels.stage(&slices).unwrap();
            let found = kernels.add_gradient(staging, &rope, 0.5).unwrap();
            for (what, found, reference) in [
                ("loss", found.loss, reference.loss),
                ("cos_target", found.cos_target, reference.cos_target),
                ("cos_previous", found.cos_previous, reference.cos_previous),
            ] {
                assert!(
                    (found - reference).abs() < 5e-3,
                    "{name}: {what} {found}, in f32 {reference}"
                );
            }
            // A win by less than bf16 can tell may be lost.
            assert!(
                (found.copy_win - reference.copy_win).abs() <= 2.0 / 32.0,
                "{name}"
            );
        }
        explicit.finish(&weights.flat, &mut expected);
        let found_norm = kernels.finish(Some(1.0)).unwrap();
        let gradient = kernels.read_gradient().unwrap();
        let expected_norm = norm(expected.iter().copied());
        assert!(
            (found_norm / expected_norm - 1.0).abs() < 2e-2,
            "{name}: {found_norm} {expected_norm}"
        );
        assert!(
            (found_norm - norm(gradient.iter().copied())).abs() < 1e-5 * found_norm,
            "{name}: the norm is that of the gradient"
        );
        assert!(off(&gradient, &expected) < 2e-2, "{name}");
        for spec in &weights.specs {
            let off = off(&gradient[spec.range()], &expected[spec.range()]);
            if is_rounding_only(&config, spec) {
                continue;
            }
            println!("{name}: {} {off:.1e}", spec.name);
            assert!(off < 6e-2, "{name}: {}: {off}", spec.name);
        }
    }
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
    let settings = OptimizerConfig {
        ema_decay: Some(0.9),
        ..OptimizerConfig::default()
    };
    let (weights, pixels) = (init_weights(&config, 5), pixels(&config, 3));
    let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let mut kernels = step(&config, &weights, 3);
    kernels.set_groups(|name| settings.group(name)).unwrap();
    let mut engine = CpuEngine::new(&config, &settings, TrainingState::new(weights), 3).unwrap();
    let (steps, mut first, mut last, mut sums) = (200, 0.0, 0.0, (0.0, 0.0));
    for step in 1..=steps {
        let rope = RopeDraw::draw(&config, 9, step, 0);
        let expected = engine.step(&Images::Host(&slices), &[rope]).unwrap();
        kernels.clear_gradient().unwrap();
        let staging = kernels.stage(&slices).unwrap();
        let found = kernels.add_gradient(staging, &rope, 1.0).unwrap();
        kernels.finish(settings.max_grad_norm).unwrap();
        sums.0 += found.loss;
        sums.1 += expected.loss;
        // Single steps may differ more: where the loss jumps, it jumps a little earlier or later.
        if step % WINDOW == 0 {
            let (found, expected) = (sums.0 / WINDOW as f64, sums.1 / WINDOW as f64);
            println!("to step {step}: mean loss {found:.5}, in f32 {expected:.5}");
            assert!(
                (found - expected).abs() <= 1e-2 * expected.abs(),
                "step {step}: {found}, in f32 {expected}"
            );
            sums = (0.0, 0.0);
        }
        let lr = 2e-4 * (step as f64 / 20.0).min(1.0);
        engine.update(lr).unwrap();
        kernels
            .update(&Update {
                step,
                lr,
                beta1: settings.beta1,
                beta2: settings.beta2,
                eps: settings.eps,
                average_decay: settings.ema_decay,
            })
            .unwrap();
        if step == 1 {
            first = found.loss;
            // The average starts as a copy.
            let state = kernels.export().unwrap();
            assert!(state.average == state.weights);
        }
        last = found.loss;
    }
    assert!(last < first - 0.1, "it learns: {first} {last}");
    let (found, expected) = (kernels.export().unwrap(), engine.export().unwrap());
    for (name, found, expected) in [
        ("weights", &found.weights, &expected.weights.flat),
        ("average", &found.average, &expected.optimizer.ema),
    ] {
        assert!(
            off(found, expected) < 5e-2,
            "{name}: {}",
            off(found, expected)
        );
    }
}

#[test]
fn every_launch_gives_the_same_bits_again() {
    let (_, config) = &variants()[1];
    let (weights, pixels) = (weights(config), pixels(config, 3));
    let slices = pixels.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let run = |seed, kept| {
        let device = EmulatedDevice::of_seed(seed);
        let mut kernels = KernelStep::keeping(config, 3, device, kept).unwrap();
        kernels.load(&FlatState::new(weights.flat.clone())).unwrap();
        kernels.clear_gradient().unwrap();
        let staging = kernels.stage(&slices).unwrap();
        let report = kernels
            .add_gradient(staging, &RopeDraw::default(), 1.0)
            .unwrap();
        kernels.finish(None).unwrap();
        (report, kernels.read_gradient().unwrap())
    };
    let expected = run(0, Kept::Least);
    for (seed, kept) in [(1_000, Kept::Least), (2_000, Kept::Activations)] {
        assert!(run(seed, kept) == expected, "seed {seed}, keeping {kept:?}");
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
        let error = KernelStep::new(&config, 1, EmulatedDevice::default())
            .map(|_| ())
            .unwrap_err();
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
}
