//! The model as a whole: shortened sequence, gradients everywhere, every key of the configuration,
//! the golden tensors in f64.
mod ablation;
mod classification;

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};

use super::model::{FINAL_NORM, block_name};
use super::pass::Graph;
use super::*;
use crate::init::{Purpose, stream, unit};
use crate::{
    Classes, HiddenAct, ModelError, NepaConfig, RopeDraw, Weights, init_weights, read_published,
};

fn pixels(config: &NepaConfig, batch: usize) -> Tensor {
    let mut rng = stream(5, 6, 7, Purpose::Weights);
    let shape = [
        batch,
        config.num_channels,
        config.image_size,
        config.image_size,
    ];
    let values: Vec<f64> = (0..shape.iter().product::<usize>())
        .map(|_| 2.0 * unit(&mut rng) - 1.0)
        .collect();
    Tensor::from_vec(values, &shape[..], &Device::Cpu).expect("a tensor")
}

/// A model whose LayerScale lets the blocks matter.
fn model(config: &NepaConfig, dtype: DType) -> Nepa {
    let mut weights = init_weights(config, 11);
    let mut rng = stream(12, 13, 14, Purpose::Weights);
    for spec in weights.specs.clone() {
        // What starts at one value, and LayerScale; the head's matrix starts at 0.
        let few = spec.shape.len() == 1 || spec.name == "classifier.weight";
        for value in &mut weights.flat[spec.range()] {
            *value = if few {
                *value + (unit(&mut rng) as f32 - 0.5) * 0.5
            } else {
                *value * 5.0
            };
        }
    }
    Nepa::new(config, &weights, dtype, &Device::Cpu).expect("a model")
}

/// A classifier of five classes.
fn classifier() -> NepaConfig {
    NepaConfig {
        is_causal: false,
        drop_path_prob: 0.3,
        ..NepaConfig::tiny().to_classifier(Classes::Count(5))
    }
}

fn number(scalar: &Tensor) -> f64 {
    let scalar = scalar.to_dtype(DType::F64).and_then(|one| one.to_scalar());
    scalar.expect("a number")
}

fn relative(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |t: &Tensor| {
        t.to_dtype(DType::F64)
            .and_then(|t| t.sqr()?.sum_all()?.to_scalar::<f64>())
            .expect("a number")
            .sqrt()
    };
    let a = a.to_dtype(DType::F64).expect("f64");
    let b = b.to_dtype(DType::F64).expect("f64");
    norm(&(a - &b).expect("same shapes")) / norm(&b)
}

fn variants() -> Vec<NepaConfig> {
    vec![
        NepaConfig::tiny(),
        NepaConfig {
            qk_norm_affine: true,
            qk_norm_bias: true,
            ..NepaConfig::tiny()
        },
        NepaConfig {
            use_gated_mlp: true,
            hidden_act: HiddenAct::Silu,
            qk_norm_affine: true,
            ..NepaConfig::tiny()
        },
        NepaConfig {
            qkv_bias: false,
            hidden_act: HiddenAct::Relu,
            ..NepaConfig::tiny()
        },
    ]
}

/// Loss and gradients.
fn loss_and_gradients(model: &Nepa, rope: &RopeDraw) -> (f64, Vec<Tensor>) {
    let found = model
        .pretrain_loss(&pixels(model.config(), 3), rope)
        .expect("a loss");
    let loss = found
        .loss
        .to_dtype(DType::F64)
        .and_then(|loss| loss.to_scalar::<f64>());
    (
        loss.expect("a number"),
        model.gradients(&found.loss).expect("gradients"),
    )
}

#[test]
fn matmuls_in_bfloat16_stay_near() {
    let rope = RopeDraw::default();
    let config = NepaConfig::tiny();
    let mut model = model(&config, DType::F32);
    let (loss, gradients) = loss_and_gradients(&model, &rope);
    model.set_matmul_type(DType::BF16);
    let (rounded, others) = loss_and_gradients(&model, &rope);
    // 8 bits of precision in each matmul's operands; the sums are f32.
    assert!((loss - rounded).abs() < 0.01, "{loss} {rounded}");
    assert!(loss.to_bits() != rounded.to_bits(), "nothing was rounded");
    for ((own, other), spec) in gradients.iter().zip(&others).zip(model.specs()) {
        assert_eq!(other.dtype(), DType::F32, "{}", spec.name);
        let off = relative(other, own);
        assert!(off < 0.08, "{}: {off}", spec.name);
    }
}

#[test]
fn the_last_patch_is_a_target_only() {
    let rope = RopeDraw {
        shift: [0.1, -0.2],
        jitter: [1.2, 0.8],
        rescale: 1.3,
    };
    for config in variants() {
        let model = model(&config, DType::F64);
        let pixels = pixels(&config, 3);
        let short = model.pretrain_loss(&pixels, &rope).expect("loss");
        let whole =
            pretrain_loss_of(&model.forward(&pixels, &rope, true).expect("forward")).expect("loss");
        assert!(relative(&short.loss, &whole.loss) < 1e-12);
        assert!(
            (short.cos_previous - whole.cos_previous).abs() < 1e-12
                && short.copy_win.to_bits() == whole.copy_win.to_bits()
        );
        assert!(
            (short.cos_target + short.loss.to_scalar::<f64>().expect("a number")).abs() < 1e-12
        );
        let (a, b) = (
            model.gradients(&short.loss).expect("g"),
            model.gradients(&whole.loss).expect("g"),
        );
        for ((a, b), spec) in a.iter().zip(&b).zip(model.specs()) {
            assert!(relative(a, b) < 1e-10, "{}: {}", spec.name, relative(a, b));
        }
    }
}

#[test]
fn every_weight_has_a_finite_gradient_that_is_not_zero() {
    for dtype in [DType::F32, DType::F64] {
        for config in variants() {
            let model = model(&config, dtype);
            let loss = model
                .pretrain_loss(&pixels(&config, 2), &RopeDraw::default())
                .expect("loss");
            for (gradient, spec) in model
                .gradients(&loss.loss)
                .expect("gradients")
                .iter()
                .zip(model.specs())
            {
                let values = gradient
                    .to_dtype(DType::F64)
                    .and_then(|g| g.flatten_all()?.to_vec1::<f64>())
                    .expect("g");
                assert!(values.iter().all(|g| g.is_finite()), "{}", spec.name);
                assert!(
                    values.iter().any(|g| *g != 0.0),
                    "{} has no gradient",
                    spec.name
                );
                assert_eq!(gradient.dims(), spec.shape, "{}", spec.name);
            }
        }
    }
}

#[test]
fn gradients_accumulate_scaled() {
    let config = NepaConfig::tiny();
    let model = model(&config, DType::F32);
    let loss = model
        .pretrain_loss(&pixels(&config, 2), &RopeDraw::default())
        .expect("loss")
        .loss;
    let (mut once, mut twice) = (
        vec![0.0; model.num_weights()],
        vec![0.0; model.num_weights()],
    );
    model
        .backward_into(&loss, 1.0, &mut once)
        .expect("backward");
    for _ in 0..2 {
        model
            .backward_into(&loss, 0.5, &mut twice)
            .expect("backward");
    }
    assert!(
        once.iter()
            .zip(&twice)
            .all(|(a, b)| (a - b).abs() <= 1e-6 * a.abs())
    );
    assert!(matches!(
        model.backward_into(&loss, 1.0, &mut once[1..]),
        Err(ModelError::FlatLength { .. })
    ));
}

#[test]
fn each_key_changes_the_output() {
    let base = NepaConfig::tiny();
    let pixels = pixels(&base, 2);
    let output = |config: &NepaConfig, causal: bool| {
        model(config, DType::F64)
            .forward(&pixels, &RopeDraw::default(), causal)
            .expect("forward")
            .sequence_output
    };
    let plain = output(&base, true);
    for (key, config) in [
        (
            "rope_theta",
            NepaConfig {
                rope_theta: 1000.0,
                ..base.clone()
            },
        ),
        (
            "layer_norm_eps",
            NepaConfig {
                layer_norm_eps: 1e-3,
                ..base.clone()
            },
        ),
        (
            "hidden_act",
            NepaConfig {
                hidden_act: HiddenAct::Silu,
                ..base.clone()
            },
        ),
        (
            "qk_norm",
            NepaConfig {
                qk_norm: false,
                ..base.clone()
            },
        ),
        (
            "num_attention_heads",
            NepaConfig {
                num_attention_heads: 4,
                ..base.clone()
            },
        ),
    ] {
        assert!(
            relative(&output(&config, true), &plain) > 1e-6,
            "{key} has no effect"
        );
    }
    assert!(
        relative(&output(&base, false), &plain) > 1e-3,
        "is_causal has no effect"
    );
    let loss = |config: &NepaConfig| {
        let loss = model(config, DType::F64)
            .pretrain_loss(&pixels, &RopeDraw::default())
            .expect("loss")
            .loss;
        loss.to_scalar::<f64>().expect("a number")
    };
    assert!(
        (loss(&base)
            - loss(&NepaConfig {
                is_causal: false,
                ..base.clone()
            }))
        .abs()
            > 1e-6
    );
    // The class token is rotated by nothing: with one patch row and factor 0, positions vanish.
    let moved = |rescale: f64| {
        let rope = RopeDraw {
            rescale,
            ..RopeDraw::default()
        };
        model(&base, DType::F64)
            .forward(&pixels, &rope, true)
            .expect("forward")
            .sequence_output
    };
    assert!(
        relative(&moved(1.5), &plain) > 1e-6,
        "the rescale has no effect"
    );
    let first = |t: &Tensor| t.narrow(1, 0, 1).expect("the class token");
    assert!(
        relative(&first(&moved(1.5)), &first(&plain)) < 1e-14,
        "the class token sees no rotation"
    );
}

#[test]
fn hidden_states_and_attention_are_those_of_the_forward_pass() {
    let config = NepaConfig::tiny();
    let (model, pixels) = (model(&config, DType::F64), pixels(&config, 2));
    let (blocks, heads) = (config.num_hidden_layers, config.num_attention_heads);
    for causal in [true, false] {
        let output = model
            .forward(&pixels, &RopeDraw::default(), causal)
            .expect("forward");
        let states = model.hidden_states(&pixels, causal).expect("states");
        assert_eq!(states.len(), blocks + 2);
        assert!(states.iter().all(|state| !state.track_op()), "no graph");
        assert!(relative(&states[0], &output.sequence_input) < 1e-14);
        assert!(relative(&states[blocks + 1], &output.sequence_output) < 1e-14);
        for (block, state) in states[..blocks].iter().enumerate() {
            let map = model.attention_map(block, state, causal).expect("a map");
            assert!(!map.track_op(), "nothing is recorded");
            assert_eq!(map.dims(), [2, heads, 17, 17]);
            let rows = map.flatten_to(2).and_then(|map| map.to_vec2::<f64>());
            for (row, weights) in rows.expect("rows").iter().enumerate() {
                assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                let unseen = &weights[row % 17 + 1..];
                assert_eq!(
                    unseen.iter().all(|weight| *weight == 0.0),
                    causal || unseen.is_empty()
                );
            }
            // What the block adds after attention, from the map and the values.
            let layer = block_name(block);
            let pass = model
                .whole_pass(&RopeDraw::default(), causal, Graph::None)
                .expect("a pass");
            let normed = pass
                .norm(state, &format!("{layer}.layernorm_before"))
                .expect("normed");
            let value = pass
                .linear(&normed, &format!("{layer}.attention.attention.value"))
                .and_then(|value| Ok(value.reshape((2, 17, heads, ()))?.transpose(1, 2)?))
                .expect("values");
            let seen = map
                .matmul(&value.contiguous().expect("values"))
                .and_then(|seen| seen.transpose(1, 2)?.flatten_from(2))
                .expect("seen");
            let expected = pass
                .linear(&seen, &format!("{layer}.attention.output.dense"))
                .expect("output");
            let found = pass.attention(&normed, &layer).expect("attention");
            assert!(relative(&found, &expected) < 1e-13);
        }
    }
}

#[test]
fn new_weights_reach_the_next_pass() {
    let config = NepaConfig::tiny();
    let pixels = pixels(&config, 1);
    let a = model(&config, DType::F32);
    let fresh = init_weights(&config, 11);
    let b = Nepa::new(&config, &fresh, DType::F32, &Device::Cpu).expect("a model");
    a.set_weights(&fresh.flat).expect("sets");
    let values = |model: &Nepa| {
        let states = model.hidden_states(&pixels, true).expect("states");
        let last = states.last().expect("a layer").flatten_all();
        last.and_then(|last| last.to_vec1::<f32>()).expect("values")
    };
    assert_eq!(values(&a), values(&b));
}

/// The folder of golden tensors; without it `test` is skipped out loud.
fn golden(test: &str) -> Option<PathBuf> {
    let root = std::env::var_os("NEPA_GOLDEN").map(PathBuf::from);
    if root.is_none() {
        eprintln!("SKIPPED: {test}: NEPA_GOLDEN is not set");
    }
    root
}

#[test]
fn golden_tensors_in_double_precision() {
    let Some(root) = golden("golden_tensors_in_double_precision") else {
        return;
    };
    for folder in ["gelu", "gated", "large_style"] {
        let (config, weights) = read_published(&root.join(folder)).expect("weights");
        let reference = candle_core::safetensors::load(
            root.join(folder).join("reference.safetensors"),
            &Device::Cpu,
        )
        .expect("reference");
        let rescale = reference["rope_scale"]
            .to_vec1::<f64>()
            .expect("one number")[0];
        let model = Nepa::new(&config, &weights, DType::F64, &Device::Cpu).expect("a model");
        let rope = RopeDraw {
            rescale,
            ..RopeDraw::default()
        };
        let output = model
            .forward(&reference["pixel_values"], &rope, config.is_causal)
            .expect("forward");
        let loss = model
            .pretrain_loss(&reference["pixel_values"], &rope)
            .expect("loss")
            .loss;
        assert!(
            relative(&output.sequence_input, &reference["sequence_input"]) < 1e-12,
            "{folder}: input"
        );
        // The published code computes the rotary angles in f32, even in a model in double
        // precision.
        let error = relative(&output.sequence_output, &reference["sequence_output"]);
        assert!(error < 1e-7, "{folder}: output: {error}");
        let error = relative(&loss.reshape(1).expect("one"), &reference["loss"]);
        assert!(error < 1e-7, "{folder}: loss: {error}");
        for (gradient, spec) in model
            .gradients(&loss)
            .expect("gradients")
            .iter()
            .zip(model.specs())
        {
            let error = relative(gradient, &reference[&format!("grad.{}", spec.name)]);
            assert!(error < 1e-6, "{folder}: {}: {error}", spec.name);
        }
    }
}
