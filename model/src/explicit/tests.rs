//! The explicit step against the tape on many configurations, against finite differences, and
//! against itself with other numbers of threads.
use candle_core::{DType, Device, Tensor};
use rand_core::Rng;

use super::*;
use crate::init::{Purpose, stream, unit};
use crate::{HiddenAct, Nepa, ParamSpec, Weights, init_weights};

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

    fn flat<T: Scalar>(&self) -> Vec<T> {
        let values = self.weights.flat.iter();
        values.map(|value| T::from_f64(f64::from(*value))).collect()
    }

    /// Loss and gradient of the explicit step, in as many micro-batches.
    fn explicit<T: Scalar>(&self, weights: &[T], micro_batches: usize) -> (PretrainReport, Vec<T>) {
        let images: Vec<Vec<T>> = self
            .images
            .iter()
            .map(|image| image.iter().map(|value| T::from_f64(*value)).collect())
            .collect();
        let images = images.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let micro_batch = images.len() / micro_batches;
        let mut model = ExplicitNepa::<T>::new(&self.config, micro_batch).expect("a model");
        let mut gradient = vec![T::zero(); weights.len()];
        let share = 1.0 / micro_batches as f64;
        let mut report = PretrainReport::default();
        for images in images.chunks(micro_batch) {
            let found = model
                .add_gradient(weights, images, &self.rope, share, &mut gradient)
                .expect("a step");
            report.loss += share * found.loss;
            report.cos_target += share * found.cos_target;
            report.cos_previous += share * found.cos_previous;
            report.copy_win += share * found.copy_win;
        }
        model.finish(weights, &mut gradient);
        (report, gradient)
    }

    /// The same by the tape, in double precision.
    fn tape(&self) -> (PretrainReport, Vec<f64>) {
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
        // So that a difference of squares cannot hide behind it, and one value alone has a norm.
        layer_norm_eps: 1e-6,
        ..NepaConfig::tiny()
    }
}

#[test]
fn the_explicit_step_is_the_tapes_on_random_configurations() {
    let mut rng = stream(20_261, 1, 1, Purpose::Weights);
    for number in 0..60 {
        let config = random_config(&mut rng);
        let micro_batches = 1 + number % 3;
        let batch = micro_batches * (1 + (unit(&mut rng) * 3.0) as usize);
        let case = Case::new(&config, batch, number as u64);
        let (expected, expected_gradient) = case.tape();
        let (found, gradient) = case.explicit::<f64>(&case.flat(), micro_batches);
        for (name, found, expected) in [
            ("loss", found.loss, expected.loss),
            ("cos_target", found.cos_target, expected.cos_target),
            ("cos_previous", found.cos_previous, expected.cos_previous),
            ("copy_win", found.copy_win, expected.copy_win),
        ] {
            assert!(
                (found - expected).abs() < 1e-12,
                "{number}: {name} {found}, tape {expected}: {config:?}"
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
        let (expected, expected_gradient) = case.tape();
        let (found, gradient) = case.explicit::<f32>(&case.flat(), 1);
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

#[test]
fn gradients_are_those_of_the_loss() {
    let mut rng = stream(20_261, 1, 2, Purpose::Weights);
    for (number, config) in larger().into_iter().enumerate() {
        let case = Case::new(&config, 2, number as u64);
        let weights = case.flat::<f64>();
        let (_, gradient) = case.explicit(&weights, 1);
        for spec in &case.weights.specs {
            if spec.name.contains("patch_embeddings") {
                // The embedding is a target too, and as one a constant: its gradient is not that of
                // the loss.
                continue;
            }
            let direction: Vec<f64> = spec.range().map(|_| unit(&mut rng) - 0.5).collect();
            let step = 1e-5;
            let loss = |sign: f64| {
                let mut moved = weights.clone();
                for (weight, direction) in moved[spec.range()].iter_mut().zip(&direction) {
                    *weight += sign * step * direction;
                }
                case.explicit(&moved, 1).0.loss
            };
            let measured = (loss(1.0) - loss(-1.0)) / (2.0 * step);
            let values = gradient[spec.range()].iter().zip(&direction);
            let expected: f64 = values.map(|(g, d)| g * d).sum();
            assert!(
                (measured - expected).abs() < 1e-8 + 1e-6 * expected.abs(),
                "{}: {measured}, gradient {expected}",
                spec.name
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
            let step = || case.explicit::<f32>(&case.flat(), 1);
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
fn what_does_not_fit_is_refused() {
    let config = NepaConfig::tiny();
    let case = Case::new(&config, 2, 1);
    let mut model = ExplicitNepa::<f64>::new(&config, 2).expect("a model");
    let (weights, rope) = (case.flat::<f64>(), RopeDraw::default());
    let mut gradient = vec![0.0; weights.len()];
    let images = case.images.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let mut step = |weights: &[f64], images: &[&[f64]]| {
        model.add_gradient(weights, images, &rope, 1.0, &mut gradient)
    };
    assert!(matches!(
        step(&weights[1..], &images),
        Err(ModelError::FlatLength { .. })
    ));
    for images in [&images[..1], &[images[0], &images[1][1..]]] {
        assert!(matches!(
            step(&weights, images),
            Err(ModelError::PixelShape { .. })
        ));
    }
    step(&weights, &images).expect("a step");
}

#[test]
fn the_plan_is_what_is_allocated() {
    for config in larger() {
        let model = ExplicitNepa::<f32>::new(&config, 3).expect("a model");
        let mut values = 0;
        let mut count = |buffer: &Vec<f32>| values += buffer.len();
        let Buffers {
            patches,
            embedding,
            rotary,
            blocks,
            output,
            cosines,
            d_stream,
            normed,
            d_normed,
            hidden,
            d_up,
            d_qkv,
            partial_sums,
        } = &model.buffers;
        for buffer in [
            patches,
            embedding,
            rotary,
            output,
            cosines,
            d_stream,
            normed,
            d_normed,
            hidden,
            d_up,
            d_qkv,
            partial_sums,
        ] {
            count(buffer);
        }
        for block in blocks {
            let memory::BlockBuffers {
                input,
                qkv,
                softmax,
                attention,
                middle,
                up,
            } = block;
            for buffer in [input, qkv, softmax, attention, middle, up] {
                count(buffer);
            }
        }
        let plan = ExplicitNepa::<f32>::plan(&config, 3);
        let scratch = plan
            .parts
            .iter()
            .find(|(name, _)| *name == "threads' scratch");
        let scratch = scratch.expect("is named").1;
        assert_eq!(plan.total_bytes() - scratch, 4 * values as u64);
        assert!(plan.to_string().contains("MLP activations"), "{plan}");
    }
}
