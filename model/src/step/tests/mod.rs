//! The step on the CPU against candle's autograd on many configurations, against finite differences,
//! and against itself: other numbers of threads, other memory, parts of what it can do.
mod classifier;
mod micro_batches;

use candle_core::{DType, Device, Tensor, Var};
use rand_core::Rng;

use super::*;
use crate::cpu::CpuDevice;
use crate::init::{Purpose, stream, unit};
use crate::objective::{Autograd, HeadLoss, NextEmbedding, PretrainReport};
use crate::{
    HiddenAct, ModelError, Nepa, NepaConfig, ParamSpec, Real, RopeDraw, Weights, init_weights,
};

/// A configuration, its weights (such that the blocks matter) and images.
struct Case {
    config: NepaConfig,
    weights: Weights,
    images: Vec<Vec<f64>>,
    rope: RopeDraw,
}

impl Case {
    fn new(config: &NepaConfig, batch: usize, seed: u64) -> Self {
        let mut rng = stream(seed, 1, 2, Purpose::Weights);
        let mut weights = init_weights(config, seed);
        for spec in weights.specs.clone() {
            let vector = spec.shape.len() == 1;
            for value in &mut weights.flat[spec.range()] {
                *value = if vector {
                    *value + (unit(&mut rng) as f32 - 0.5) * 0.5
                } else {
                    *value * 5.0
                };
            }
        }
        let len = config.num_channels * config.image_size * config.image_size;
        let mut image = || (0..len).map(|_| 2.0 * unit(&mut rng) - 1.0).collect();
        let images = (0..batch).map(|_| image()).collect();
        let rope = RopeDraw {
            shift: [0.1, -0.2],
            jitter: [1.2, 0.8],
            rescale: 1.3,
        };
        Self {
            config: config.clone(),
            weights,
            images,
            rope,
        }
    }

    fn flat<T: Real>(&self) -> Vec<T> {
        let values = self.weights.flat.iter();
        values.map(|value| T::from_f64(f64::from(*value))).collect()
    }

    fn images<T: Real>(&self) -> Vec<Vec<T>> {
        let image = |image: &Vec<f64>| image.iter().map(|value| T::from_f64(*value)).collect();
        self.images.iter().map(image).collect()
    }

    /// Loss and gradient of NEPA's step, in as many micro-batches.
    fn step<T: Real>(&self, weights: &[T], micro_batches: usize) -> (PretrainReport, Vec<T>) {
        let micro_batch = self.images.len() / micro_batches;
        self.step_of(
            weights,
            &StepOptions::pretraining(&self.config, micro_batch),
        )
    }

    fn step_of<T: Real>(&self, weights: &[T], options: &StepOptions) -> (PretrainReport, Vec<T>) {
        let images = self.images::<T>();
        let images = images.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let mut step = Step::new(&self.config, options, CpuDevice::<T>::default()).expect("a step");
        step.load_weights(weights).expect("weights");
        step.clear_gradient().expect("a gradient");
        let mut report = PretrainReport::default();
        for micro_batch in images.chunks(options.images) {
            let (count, pass) = (micro_batch.len(), Pass::of(&self.rope));
            let share = count as f64 / images.len() as f64;
            let staged = step.stage(micro_batch).expect("images");
            let found = step
                .add_gradient(staged, count, &pass, share, &mut NextEmbedding)
                .expect("a step");
            report.loss += share * found.loss;
            report.cos_target += share * found.cos_target;
            report.cos_previous += share * found.cos_previous;
            report.copy_win += share * found.copy_win;
        }
        step.finish(None).expect("an end");
        (report, step.read_gradient().expect("a gradient"))
    }

    /// The same by candle's autograd, in double precision.
    fn autograd(&self) -> (PretrainReport, Vec<f64>) {
        let model =
            Nepa::new(&self.config, &self.weights, DType::F64, &Device::Cpu).expect("a model");
        let (channels, size) = (self.config.num_channels, self.config.image_size);
        let shape = (self.images.len(), channels, size, size);
        let pixels = Tensor::from_vec(self.images.concat(), shape, &Device::Cpu).expect("a tensor");
        let found = model.pretrain_loss(&pixels, &self.rope).expect("a loss");
        let gradients = model.gradients(&found.loss).expect("gradients");
        let values = gradients.iter().flat_map(|gradient| {
            let flat = gradient.flatten_all().and_then(|flat| flat.to_vec1());
            flat.expect("values")
        });
        let report = PretrainReport {
            loss: found.loss.to_scalar().expect("a number"),
            cos_target: found.cos_target,
            cos_previous: found.cos_previous,
            copy_win: found.copy_win,
        };
        (report, values.collect())
    }
}

/// The norm of the difference over the norm, of one weight's gradient.
fn off(spec: &ParamSpec, got: &[f64], expected: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let (got, expected) = (&got[spec.range()], &expected[spec.range()]);
    norm(&mut got.iter().zip(expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied())
}

/// Any architecture that is allowed, small.
fn random_config(rng: &mut impl Rng) -> NepaConfig {
    let mut below = |n: u64| (unit(rng) * n as f64) as usize;
    let heads = 1 + below(4);
    let (patch, across) = (1 + below(4), 1 + below(11));
    NepaConfig {
        hidden_size: heads * 4 * (1 + below(6)),
        num_attention_heads: heads,
        num_hidden_layers: below(4),
        intermediate_size: 1 + below(90),
        image_size: patch * across,
        patch_size: patch,
        num_channels: 1 + below(3),
        hidden_act: [HiddenAct::Gelu, HiddenAct::Silu, HiddenAct::Relu][below(3)],
        use_gated_mlp: below(2) == 1,
        qkv_bias: below(3) > 0,
        qk_norm: below(3) > 0,
        qk_norm_affine: below(2) == 1,
        qk_norm_bias: below(2) == 1,
        is_causal: below(3) > 0,
        layerscale_value: [Some(0.3), None][usize::from(below(4) == 0)],
        // So that a difference of squares cannot hide behind it, and one value alone has a norm.
        layer_norm_eps: 1e-6,
        ..NepaConfig::tiny()
    }
}

#[test]
fn the_step_is_that_of_autograd_on_random_configurations() {
    let mut rng = stream(20_261, 1, 1, Purpose::Weights);
    for number in 0..60 {
        let config = random_config(&mut rng);
        let micro_batches = 1 + number % 3;
        let batch = micro_batches * (1 + (unit(&mut rng) * 3.0) as usize);
        let case = Case::new(&config, batch, number as u64);
        let (expected, expected_gradient) = case.autograd();
        let (found, gradient) = case.step::<f64>(&case.flat(), micro_batches);
        for (name, found, expected) in [
            ("loss", found.loss, expected.loss),
            ("cos_target", found.cos_target, expected.cos_target),
            ("cos_previous", found.cos_previous, expected.cos_previous),
            ("copy_win", found.copy_win, expected.copy_win),
        ] {
            assert!(
                (found - expected).abs() < 1e-12,
                "{number}: {name} {found}, autograd {expected}: {config:?}"
            );
        }
        for spec in &case.weights.specs {
            let length = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
            if length(&expected_gradient[spec.range()]) < 1e-13 {
                // Nothing but rounding: a bias that softmax does not see, or a block without
                // neighbours.
                assert!(length(&gradient[spec.range()]) < 1e-12, "{}", spec.name);
                continue;
            }
            let off = off(spec, &gradient, &expected_gradient);
            assert!(off < 1e-9, "{number}: {}: {off}: {config:?}", spec.name);
        }
    }
}

/// More tokens than a block of queries and more rows than a piece, and every part of the
/// architecture.
fn larger() -> Vec<NepaConfig> {
    let large = NepaConfig {
        hidden_size: 40,
        num_attention_heads: 2,
        intermediate_size: 72,
        image_size: 26,
        patch_size: 2,
        ..NepaConfig::tiny()
    };
    vec![
        NepaConfig {
            use_gated_mlp: true,
            hidden_act: HiddenAct::Silu,
            qk_norm_affine: true,
            qk_norm_bias: true,
            ..large.clone()
        },
        NepaConfig {
            is_causal: false,
            ..large.clone()
        },
        large,
    ]
}

#[test]
fn single_precision_stays_near() {
    for (number, config) in larger().into_iter().enumerate() {
        let case = Case::new(&config, 3, number as u64);
        let (expected, expected_gradient) = case.autograd();
        let (found, gradient) = case.step::<f32>(&case.flat(), 1);
        assert!((found.loss - expected.loss).abs() < 1e-6);
        let gradient = gradient.into_iter().map(f64::from).collect::<Vec<_>>();
        let whole = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        for spec in &case.weights.specs {
            // A key's bias moves all scores of a query alike: its gradient is rounding only, unless
            // a norm follows.
            if whole(&expected_gradient[spec.range()]) < 1e-9 * whole(&expected_gradient) {
                continue;
            }
            let off = off(spec, &gradient, &expected_gradient);
            assert!(off < 2e-5, "{}: {off}", spec.name);
        }
    }
}

/// Along a random direction of one weight, the slope of `loss` over all weights is what the gradient
/// says.
fn assert_is_slope(
    what: &str,
    spec: &ParamSpec,
    (weights, gradient): (&[f64], &[f64]),
    loss: impl Fn(&[f64]) -> f64,
    rng: &mut impl Rng,
) {
    let direction: Vec<f64> = spec.range().map(|_| unit(rng) - 0.5).collect();
    let step = 1e-5;
    let moved = |sign: f64| {
        let mut moved = weights.to_vec();
        for (weight, direction) in moved[spec.range()].iter_mut().zip(&direction) {
            *weight += sign * step * direction;
        }
        loss(&moved)
    };
    let measured = (moved(1.0) - moved(-1.0)) / (2.0 * step);
    let values = gradient[spec.range()].iter().zip(&direction);
    let expected: f64 = values.map(|(g, d)| g * d).sum();
    assert!(
        (measured - expected).abs() < 1e-8 + 1e-6 * expected.abs(),
        "{what}: {}: {measured}, gradient {expected}",
        spec.name
    );
}

#[test]
fn gradients_are_those_of_the_loss() {
    let mut rng = stream(20_261, 1, 2, Purpose::Weights);
    for (number, config) in larger().into_iter().enumerate() {
        let case = Case::new(&config, 2, number as u64);
        let weights = case.flat::<f64>();
        let (_, gradient) = case.step(&weights, 1);
        for spec in &case.weights.specs {
            if spec.name.contains("patch_embeddings") {
                // The embedding is a target too, and as one a constant: its gradient is not that of
                // the loss.
                continue;
            }
            let loss = |moved: &[f64]| case.step(moved, 1).0.loss;
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
fn threads_change_no_bit() {
    for config in larger() {
        let case = Case::new(&config, 5, 3);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let step = || case.step::<f32>(&case.flat(), 1);
            let (report, gradient) = pool.expect("threads").install(step);
            (
                report,
                gradient.iter().map(|g| g.to_bits()).collect::<Vec<_>>(),
            )
        };
        let one = with(1);
        assert!(one == with(2) && one == with(4));
    }
}

#[test]
fn what_is_kept_changes_no_bit() {
    for config in larger() {
        let case = Case::new(&config, 3, 5);
        let with = |norms, activations| {
            let options = StepOptions {
                kept: Some(Kept { norms, activations }),
                ..StepOptions::pretraining(&config, 3)
            };
            case.step_of::<f32>(&case.flat(), &options)
        };
        let least = with(false, false);
        for (norms, activations) in [(true, false), (false, true), (true, true)] {
            assert!(with(norms, activations) == least, "{norms} {activations}");
        }
    }
}

#[test]
fn a_micro_batch_may_have_fewer_images() {
    let config = NepaConfig::tiny();
    let case = Case::new(&config, 5, 1);
    let flat = case.flat::<f64>();
    let (expected, gradient) = case.step(&flat, 5);
    // Two, two, and one.
    let (found, uneven) = case.step_of(&flat, &StepOptions::pretraining(&config, 2));
    assert!((found.loss - expected.loss).abs() < 1e-12);
    for spec in &case.weights.specs {
        assert!(off(spec, &uneven, &gradient) < 1e-9, "{}", spec.name);
    }
}

#[test]
fn the_last_patch_changes_nothing_under_the_mask() {
    let config = NepaConfig::tiny();
    let case = Case::new(&config, 2, 7);
    let (report, gradient) = case.step::<f64>(&case.flat(), 1);
    let (whole, of_whole) = case.step_of(&case.flat(), &StepOptions::whole(&config, 2));
    assert!((report.loss - whole.loss).abs() < 1e-13);
    for spec in &case.weights.specs {
        let off = off(spec, &of_whole, &gradient);
        assert!(off < 1e-10, "{}: {off}", spec.name);
    }
}

/// A classifier's loss of the mean over patches, in f64: a sum over (image, column) of fixed
/// numbers times tanh of the mean.
fn head(output: &Tensor) -> Result<HeadLoss<f64>, ModelError> {
    let (images, tokens, width) = output.dims3()?;
    let mean = output.narrow(1, 1, tokens - 1)?.mean(1)?;
    let factors = (0..images * width).map(|i| ((i * 7919) as f64).sin());
    let factors = Tensor::from_iter(factors, &Device::Cpu)?.reshape((images, width))?;
    let loss = ((mean.tanh()? * factors)?.sum_all()? / images as f64)?;
    Ok(HeadLoss {
        report: loss.to_scalar()?,
        loss,
        weights: Vec::new(),
    })
}

/// Loss, gradient and gradient of the input sequence of [`head`], by a step.
fn head_step(case: &Case, options: &StepOptions, pass: &Pass<'_>) -> (f64, Vec<f64>, Vec<f64>) {
    let images = case.images::<f64>();
    let images = images.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let mut step = Step::new(&case.config, options, CpuDevice::<f64>::default()).expect("a step");
    step.load_weights(&case.flat()).expect("weights");
    step.clear_gradient().expect("a gradient");
    let staged = step.stage(&images).expect("images");
    let mut objective = Autograd::new(head);
    let loss = step
        .add_gradient(staged, images.len(), pass, 1.0, &mut objective)
        .expect("a step");
    step.finish(None).expect("an end");
    let gradient = step.read_gradient().expect("a gradient");
    (
        loss,
        gradient,
        step.read_input_gradient().expect("a gradient"),
    )
}

#[test]
fn another_objective_trains_through_the_encoder() {
    for (number, config) in larger().into_iter().enumerate() {
        for (causal, layerscale_value) in [(true, Some(0.4)), (false, None)] {
            let config = NepaConfig {
                is_causal: causal,
                layerscale_value,
                ..config.clone()
            };
            let case = Case::new(&config, 2, number as u64);
            let model =
                Nepa::new(&config, &case.weights, DType::F64, &Device::Cpu).expect("a model");
            let (channels, size) = (config.num_channels, config.image_size);
            let pixels = case.images.concat();
            let pixels = Tensor::from_vec(pixels, (2, channels, size, size), &Device::Cpu);
            let output = model
                .forward(&pixels.expect("a tensor"), &case.rope, causal)
                .expect("a pass");
            let expected = head(&output.sequence_output).expect("a loss");
            let gradients = model.gradients(&expected.loss).expect("gradients");
            let options = StepOptions::whole(&config, 2);
            let (loss, gradient, _) = head_step(&case, &options, &Pass::of(&case.rope));
            assert!((loss - expected.report).abs() < 1e-12);
            for (spec, expected) in case.weights.specs.iter().zip(gradients) {
                let expected = expected
                    .flatten_all()
                    .and_then(|flat| flat.to_vec1::<f64>());
                let expected = expected.expect("values");
                let length = expected.iter().map(|v| v * v).sum::<f64>().sqrt();
                let apart = gradient[spec.range()].iter().zip(&expected);
                let apart = apart.map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
                assert!(
                    apart < 1e-9 * length + 1e-12,
                    "{}: {apart} of {length}",
                    spec.name
                );
            }
        }
    }
}

#[test]
fn weights_of_a_head_have_their_gradient() {
    let config = NepaConfig::tiny();
    let (case, width) = (Case::new(&config, 4, 9), config.hidden_size);
    let weight =
        Var::from_tensor(&Tensor::arange(0f64, width as f64, &Device::Cpu).expect("numbers"));
    let weight = weight.expect("a weight");
    let options = StepOptions::whole(&config, 2);
    let mut step = Step::new(&config, &options, CpuDevice::<f64>::default()).expect("a step");
    step.load_weights(&case.flat()).expect("weights");
    step.clear_gradient().expect("a gradient");
    // The loss is linear in the weight, so its gradient is the output's sum over a column.
    let mut objective = Autograd::new(|output: &Tensor| {
        Ok(HeadLoss {
            loss: output.broadcast_mul(&weight)?.sum_all()?,
            report: (),
            weights: vec![weight.clone()],
        })
    });
    let mut expected = vec![0.0; width];
    let images = case.images.iter().map(Vec::as_slice).collect::<Vec<_>>();
    for images in images.chunks(2) {
        let staged = step.stage(images).expect("images");
        step.add_gradient(staged, 2, &Pass::default(), 0.5, &mut objective)
            .expect("a step");
        let output = step.read_output().expect("an output");
        for row in output.chunks_exact(width) {
            for (sum, value) in expected.iter_mut().zip(row) {
                *sum += 0.5 * value;
            }
        }
    }
    let found = objective.take_gradients();
    let values = found[0].to_vec1::<f64>().expect("values");
    for (found, expected) in values.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
    }
    assert!(objective.take_gradients().is_empty(), "taken once");
}

/// A rectangle of patches, of which some are kept, with dropped branches.
fn all_of_it() -> (NepaConfig, StepOptions, Vec<u32>, Vec<f32>) {
    let config = NepaConfig {
        layerscale_value: Some(0.4),
        ..NepaConfig::tiny()
    };
    let options = StepOptions {
        grid: Some([3, 5]),
        causal: false,
        kept_patches: Some(6),
        drop_path: true,
        ..StepOptions::whole(&config, 2)
    };
    let kept = vec![14, 0, 3, 7, 2, 11, 1, 5, 4, 13, 12, 9];
    let factors = [1.25, 0.0, 2.0, 1.5, 0.5, 1.0, 0.0, 1.75, 1.1, 0.9, 1.2, 0.3];
    (config, options, kept, factors.to_vec())
}

#[test]
fn what_drops_keeps_and_bends_has_the_gradient_of_its_loss() {
    let (config, options, kept, factors) = all_of_it();
    let mut case = Case::new(&config, 2, 3);
    let pixels = config.num_channels * 15 * config.patch_size.pow(2);
    let mut rng = stream(5, 1, 2, Purpose::Weights);
    for image in &mut case.images {
        *image = (0..pixels).map(|_| 2.0 * unit(&mut rng) - 1.0).collect();
    }
    let rope = case.rope;
    let pass = Pass {
        rope,
        kept: Some(&kept),
        drop_path: Some(&factors),
    };
    let (_, gradient, of_input) = head_step(&case, &options, &pass);
    assert_eq!(of_input.len(), 2 * 7 * config.hidden_size);
    assert!(of_input.iter().any(|value| *value != 0.0));
    for spec in case.weights.specs.clone() {
        let direction: Vec<f32> = spec.range().map(|_| unit(&mut rng) as f32 - 0.5).collect();
        let step = 1e-3f32;
        let flat = case.weights.flat.clone();
        let mut loss = |sign: f32| {
            let moved = flat[spec.range()].iter().zip(&direction);
            let moved: Vec<f32> = moved.map(|(weight, d)| weight + sign * step * d).collect();
            case.weights.flat[spec.range()].copy_from_slice(&moved);
            head_step(&case, &options, &pass).0
        };
        let (forward, back) = (loss(1.0), loss(-1.0));
        // What was really moved, which f32 has rounded.
        let moved =
            |sign: f32, i: usize| f64::from(flat[spec.offset + i] + sign * step * direction[i]);
        let expected: f64 = (0..spec.len())
            .map(|i| gradient[spec.offset + i] * (moved(1.0, i) - moved(-1.0, i)))
            .sum();
        case.weights.flat = flat.clone();
        let measured = forward - back;
        assert!(
            (measured - expected).abs() < 1e-9 + 1e-4 * expected.abs(),
            "{}: {measured}, gradient {expected}",
            spec.name
        );
    }
}

#[test]
fn parts_that_do_nothing_change_nothing() {
    let config = NepaConfig::tiny();
    let case = Case::new(&config, 2, 3);
    let patches = config.num_patches() as u32;
    let plain = StepOptions {
        causal: false,
        ..StepOptions::whole(&config, 2)
    };
    let pass = Pass::of(&case.rope);
    let expected = head_step(&case, &plain, &pass);
    let (kept, factors) = (
        (0..patches).chain(0..patches).collect::<Vec<_>>(),
        vec![1.0; 2 * config.num_hidden_layers * 2],
    );
    let options = StepOptions {
        kept_patches: Some(patches as usize),
        drop_path: true,
        grid: Some([config.patches_per_side(); 2]),
        ..plain
    };
    let pass = Pass {
        kept: Some(&kept),
        drop_path: Some(&factors),
        ..pass
    };
    assert!(head_step(&case, &options, &pass) == expected);
}

#[test]
fn layers_are_those_of_the_reference() {
    let config = NepaConfig::tiny();
    let case = Case::new(&config, 3, 11);
    let model = Nepa::new(&config, &case.weights, DType::F64, &Device::Cpu).expect("a model");
    let shape = (3, config.num_channels, config.image_size, config.image_size);
    let pixels = Tensor::from_vec(case.images.concat(), shape, &Device::Cpu).expect("a tensor");
    for causal in [true, false] {
        let expected = model.hidden_states(&pixels, causal).expect("states");
        let options = StepOptions::inference(&config, 4, causal);
        let mut step = Step::new(&config, &options, CpuDevice::<f64>::default()).expect("a step");
        step.load_weights(&case.flat()).expect("weights");
        let images = case.images.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let staged = step.stage(&images).expect("images");
        step.forward(staged, 3, &Pass::default()).expect("a pass");
        for (layer, expected) in expected.iter().enumerate() {
            let found = if layer <= config.num_hidden_layers {
                step.read_hidden(layer)
            } else {
                step.read_output()
            };
            let expected = expected
                .flatten_all()
                .and_then(|flat| flat.to_vec1::<f64>());
            let apart = found
                .expect("values")
                .into_iter()
                .zip(expected.expect("values"));
            let worst = apart.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-11, "layer {layer}: {worst}");
        }
        let all = StepOptions::whole(&config, 4);
        let bytes = |options| Step::<CpuDevice<f64>>::plan(&config, options).total_bytes();
        assert!(bytes(&options) < bytes(&all) / 2);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let config = NepaConfig::tiny();
    let case = Case::new(&config, 2, 1);
    let options = StepOptions::pretraining(&config, 2);
    let new = |options: &StepOptions| Step::new(&config, options, CpuDevice::<f64>::default());
    let mut step = new(&options).expect("a step");
    let flat = case.flat::<f64>();
    assert!(matches!(
        step.load_weights(&flat[1..]),
        Err(ModelError::FlatLength { .. })
    ));
    step.load_weights(&flat).expect("weights");
    let images = case.images.iter().map(Vec::as_slice).collect::<Vec<_>>();
    for wrong in [vec![images[0], &images[1][1..]], [images[0]; 3].to_vec()] {
        let error = step.stage(&wrong).map(|_| ()).expect_err("refused");
        assert!(matches!(error, ModelError::Images { .. }), "{error}");
    }
    // An update needs a gradient and groups, each of them once.
    let settings = adamw::AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        average_decay: None,
    };
    let refused = |result: Result<(), ModelError>, part: &str| {
        let error = result.expect_err("refused").to_string();
        assert!(error.contains(part), "{part} in {error}");
    };
    refused(step.update(&settings, &[1.0]), "no gradient");
    step.clear_gradient().expect("a gradient");
    let staged = step.stage(&images).expect("images");
    step.add_gradient(staged, 2, &Pass::default(), 1.0, &mut NextEmbedding)
        .expect("a step");
    refused(step.update(&settings, &[1.0]), "no gradient");
    step.finish(None).expect("an end");
    refused(step.update(&settings, &[1.0]), "groups");
    step.set_groups(|_| adamw::WeightGroup {
        weight_decay: 0.0,
        rate: 0,
        frozen: false,
    });
    step.clear_gradient().expect("a gradient");
    step.finish(None).expect("an end");
    step.update(&settings, &[1.0]).expect("an update");
    refused(step.update(&settings, &[1.0]), "no gradient");

    let kept = StepOptions {
        kept_patches: Some(3),
        ..options.clone()
    };
    let mut keeps = new(&kept).expect("a step");
    let staged = keeps.stage(&images).expect("images");
    for patches in [
        None,
        Some(&[0u32, 1, 2, 3, 4][..]),
        Some(&[0, 1, 2, 3, 4, 16]),
        Some(&[0, 1, 2, 3, 4, 3]),
    ] {
        let pass = Pass {
            kept: patches,
            ..Pass::default()
        };
        refused(keeps.forward(staged, 2, &pass), "patch");
    }
    for (options, part) in [
        (
            StepOptions {
                kept_patches: Some(17),
                ..options.clone()
            },
            "more than there are",
        ),
        (
            StepOptions {
                causal: false,
                ..options.clone()
            },
            "without the causal mask",
        ),
        (
            StepOptions {
                images: 0,
                ..options.clone()
            },
            "no image",
        ),
    ] {
        refused(new(&options).map(|_| ()), part);
    }
    let mut infers = new(&StepOptions::inference(&config, 2, true)).expect("a step");
    let staged = infers.stage(&images).expect("images");
    let result = infers.add_gradient(staged, 2, &Pass::default(), 1.0, &mut NextEmbedding);
    refused(result.map(|_| ()), "inference");
}

#[test]
fn the_plan_is_what_is_allocated() {
    for config in larger() {
        let options = StepOptions::pretraining(&config, 3);
        let plan = Step::<CpuDevice<f32>>::plan(&config, &options);
        let step = Step::new(&config, &options, CpuDevice::<f32>::default()).expect("a step");
        assert_eq!(step.memory(), &plan);
        assert_eq!(step.device().num_bytes(), plan.total_bytes());
        assert!(plan.to_string().contains("MLP activations"), "{plan}");
    }
}
