//! Classifiers: the golden tensors, both kinds of pooling, drop path, the loss.
use std::collections::HashMap;

use super::*;
use crate::{DropPath, ParamSpec, fold_layerscale};

/// Classifiers that differ in what a configuration can say.
fn classifiers() -> Vec<NepaConfig> {
    let last_token = NepaConfig {
        add_pooling_layer: false,
        ..classifier()
    };
    vec![
        classifier(),
        NepaConfig {
            is_causal: true,
            ..last_token.clone()
        },
        NepaConfig {
            layerscale_value: None,
            qk_norm: false,
            qkv_bias: false,
            use_gated_mlp: true,
            hidden_act: HiddenAct::Silu,
            ..last_token
        },
    ]
}

/// Factors of a pass from the golden flags: 1 kept, 0 dropped, for blocks of a rate above 0.
fn golden_factors(config: &NepaConfig, reference: &HashMap<String, Tensor>) -> Option<Vec<f32>> {
    let images = reference["pixel_values"].dims()[0];
    let mut factors = Vec::new();
    for (block, rate) in DropPath::rates(config).into_iter().enumerate() {
        for part in ["attention", "mlp"] {
            match reference.get(&format!("drop_path.{block}.{part}")) {
                Some(kept) => factors.extend(
                    kept.to_vec1::<f32>()
                        .expect("flags")
                        .into_iter()
                        .map(|kept| (f64::from(kept) / (1.0 - rate)) as f32),
                ),
                None => factors.extend(vec![1.0; images]),
            }
        }
    }
    (config.drop_path_prob > 0.0).then_some(factors)
}

#[test]
fn golden_classifiers() {
    let Some(root) = golden("golden_classifiers") else {
        return;
    };
    // In f64 what differs are the factors of drop path and the rotary angles, f32 both there.
    for (folder, dtype, tolerance) in [
        ("cls_gelu", DType::F64, 1e-7),
        ("cls_gated", DType::F64, 1e-7),
        ("cls_gelu", DType::F32, 1e-6),
        ("cls_gated", DType::F32, 1e-6),
    ] {
        let (config, weights) = read_published(&root.join(folder)).expect("weights");
        let path = root.join(folder).join("reference.safetensors");
        let reference = candle_core::safetensors::load(path, &Device::Cpu).expect("reference");
        let model = Nepa::new(&config, &weights, dtype, &Device::Cpu).expect("a model");
        let rescale = reference.get("rope_scale");
        let rescale = rescale.map_or(1.0, |scale| scale.to_vec1::<f64>().expect("one")[0]);
        let rope = RopeDraw {
            rescale,
            ..RopeDraw::default()
        };
        let factors = golden_factors(&config, &reference);
        let pixels = &reference["pixel_values"];
        let logits = model.classify(pixels, &rope, factors.as_deref());
        let logits = logits.expect("logits");
        let loss = soft_cross_entropy(&logits, &reference["soft_targets"]).expect("a loss");
        let pooled = model.pooled(pixels, &rope, factors.as_deref());
        let eval_logits = model.logits(pixels).expect("logits");
        let labels = reference["labels"].to_vec1::<i64>().expect("labels");
        let classes = config.num_classes().expect("a classifier") as i64;
        let hard = labels
            .iter()
            .flat_map(|label| (0..classes).map(move |k| f32::from(u8::from(k == *label))));
        let hard = Tensor::from_iter(hard, &Device::Cpu)
            .and_then(|hard| hard.reshape((labels.len(), classes as usize)));
        let eval_loss = soft_cross_entropy(&eval_logits, &hard.expect("targets")).expect("a loss");
        let shaped = |scalar: &Tensor| scalar.reshape(1).expect("one");
        for (name, found) in [
            ("pooled", &pooled.expect("pooled")),
            ("logits", &logits),
            ("loss", &shaped(&loss)),
            ("eval_logits", &eval_logits),
            ("eval_loss", &shaped(&eval_loss)),
        ] {
            let error = relative(found, &reference[name]);
            assert!(error < tolerance, "{folder} {dtype:?}: {name}: {error}");
        }
        let gradients = model.gradients(&loss).expect("gradients");
        for (gradient, spec) in gradients.iter().zip(model.specs()) {
            let error = relative(gradient, &reference[&format!("grad.{}", spec.name)]);
            assert!(error < 1e-5, "{folder} {dtype:?}: {}: {error}", spec.name);
        }
    }
}

#[test]
fn every_weight_of_a_classifier_has_a_gradient() {
    for config in classifiers() {
        let model = model(&config, DType::F32);
        let pixels = pixels(&config, 3);
        let logits = model.classify(&pixels, &RopeDraw::default(), None);
        let logits = logits.expect("logits");
        assert_eq!(logits.dims(), [3, 5]);
        let targets = Tensor::full(0.2f32, (3, 5), &Device::Cpu).expect("targets");
        let loss = soft_cross_entropy(&logits, &targets).expect("a loss");
        let mut flat = vec![0.0; model.num_weights()];
        model
            .backward_into(&loss, 1.0, &mut flat)
            .expect("gradients");
        for spec in model.specs() {
            let values = &flat[spec.range()];
            let fine = values.iter().all(|g| g.is_finite()) && values.iter().any(|g| *g != 0.0);
            assert!(fine, "{}", spec.name);
        }
    }
}

#[test]
fn without_pooling_the_last_token_alone_is_classified() {
    let config = NepaConfig {
        add_pooling_layer: false,
        ..classifier()
    };
    let (model, pixels) = (model(&config, DType::F64), pixels(&config, 2));
    let output = model.forward(&pixels, &RopeDraw::default(), config.is_causal);
    let last = output.and_then(|output| Ok(output.sequence_output.narrow(1, 16, 1)?.squeeze(1)?));
    let pooled = model.pooled(&pixels, &RopeDraw::default(), None);
    assert!(relative(&pooled.expect("pooled"), &last.expect("the last")) < 1e-15);
    assert!(
        model
            .specs()
            .iter()
            .all(|spec| !spec.name.starts_with("fc_norm"))
    );
    // The last patch reaches the last token under a causal mask, and a patch's pixels the mean.
    let causal = NepaConfig {
        is_causal: true,
        ..config
    };
    let logits = |config: &NepaConfig, pixels: &Tensor| {
        super::model(config, DType::F64)
            .logits(pixels)
            .expect("logits")
    };
    assert!(
        relative(
            &logits(&causal, &pixels),
            &model.logits(&pixels).expect("logits")
        ) > 1e-3
    );
}

#[test]
fn a_dropped_branch_adds_nothing_and_a_kept_one_more() {
    let config = NepaConfig {
        num_hidden_layers: 1,
        ..classifier()
    };
    let (model, pixels) = (model(&config, DType::F64), pixels(&config, 2));
    let rope = RopeDraw::default();
    let pooled = |factors: [f32; 4]| {
        model
            .pooled(&pixels, &rope, Some(&factors))
            .expect("pooled")
    };
    let of_image = |pooled: &Tensor, image: usize| pooled.narrow(0, image, 1).expect("one");
    let (plain, none) = (pooled([1.0; 4]), pooled([0.0; 4]));
    let without = model.pooled(&pixels, &rope, None).expect("pooled");
    assert!(relative(&plain, &without) < 1e-15);
    // Attention of the first image is left out; the second image is as it was.
    let one = pooled([0.0, 1.0, 1.0, 1.0]);
    assert!(relative(&of_image(&one, 0), &of_image(&plain, 0)) > 1e-3);
    assert!(relative(&of_image(&one, 1), &of_image(&plain, 1)) < 1e-15);
    let mlp = pooled([1.0, 1.0, 0.0, 1.0]);
    assert!(
        relative(&of_image(&mlp, 0), &of_image(&one, 0)) > 1e-3,
        "attention, then MLP"
    );
    // Without both, the final norm sees the embeddings.
    let pass = model.whole_pass(&rope, false, Graph::None).expect("a pass");
    let input = pass.sequences(&pixels).expect("a pass").sequence_input;
    let normed = pass.norm(&input, FINAL_NORM).expect("normed");
    let mean = normed.narrow(1, 1, 16).and_then(|patches| patches.mean(1));
    assert!(relative(&none, &mean.expect("a mean")) < 1e-14);
    let message = model
        .classify(&pixels, &rope, Some(&[1.0; 3]))
        .expect_err("too few");
    assert!(
        message
            .to_string()
            .contains("a factor for each image of each branch")
    );
}

#[test]
fn a_model_of_pretraining_does_not_classify() {
    let config = NepaConfig::tiny();
    let message = model(&config, DType::F32).logits(&pixels(&config, 1));
    let message = message.expect_err("no classes").to_string();
    assert!(message.contains("finetune"), "{message}");
}

#[test]
fn soft_cross_entropy_is_that_of_the_definition() {
    let logits = Tensor::new(&[[1.0f64, -2.0, 0.5], [1e4, 0.0, -1e4]], &Device::Cpu);
    let targets = Tensor::new(&[[0.7f32, 0.2, 0.1], [0.0, 1.0, 0.0]], &Device::Cpu);
    let loss = soft_cross_entropy(&logits.expect("logits"), &targets.expect("targets"));
    let sum = (1f64.exp() + (-2f64).exp() + 0.5f64.exp()).ln();
    let first = -(f64::from(0.7f32) * (1.0 - sum)
        + f64::from(0.2f32) * (-2.0 - sum)
        + f64::from(0.1f32) * (0.5 - sum));
    let expected = f64::midpoint(first, 1e4);
    assert!((number(&loss.expect("a loss")) - expected).abs() < 1e-9);
}

#[test]
fn layer_scale_folds_into_the_linear_layers() {
    let gated = NepaConfig {
        use_gated_mlp: true,
        ..NepaConfig::tiny()
    };
    for config in [NepaConfig::tiny(), gated, classifier()] {
        let whole = model(&config, DType::F32);
        let weights = Weights {
            specs: ParamSpec::all(&config),
            flat: whole.flat_weights().expect("weights"),
        };
        let (folded_config, folded) = fold_layerscale(&config, &weights);
        assert!(folded_config.layerscale_value.is_none());
        assert_eq!(folded.specs.len() + 2 * 3, weights.specs.len());
        let folded = Nepa::new(&folded_config, &folded, DType::F32, &Device::Cpu);
        let output = |model: &Nepa| {
            let output = model.forward(&pixels(&config, 2), &RopeDraw::default(), true);
            output.expect("forward").sequence_output
        };
        let folded = folded.expect("a model");
        let error = relative(&output(&folded), &output(&whole));
        assert!(error < 1e-6, "{error}");
        // Once more there is nothing to do.
        let again = Weights {
            specs: ParamSpec::all(&folded_config),
            flat: folded.flat_weights().expect("weights"),
        };
        assert_eq!(
            fold_layerscale(&folded_config, &again),
            (folded_config, again)
        );
    }
}
