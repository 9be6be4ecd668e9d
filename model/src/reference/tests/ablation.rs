//! Each ablation of the paper does what it says.
use super::*;
use crate::Ablation;

const EMBEDDING: &str = "vit_nepa.embeddings.patch_embeddings.projection.bias";
const MASK_TOKEN: &str = "vit_nepa.embeddings.mask_token";

fn loss(model: &Nepa, draw: &PretrainDraw<'_>, ablation: &Ablation) -> PretrainLoss {
    let found = model.ablated_loss(&pixels(model.config(), 2), draw, ablation);
    found.expect("a loss")
}

fn plain(model: &Nepa, ablation: &Ablation) -> PretrainLoss {
    loss(model, &PretrainDraw::default(), ablation)
}

/// The gradient of one weight.
fn gradient(model: &Nepa, loss: &Tensor, name: &str) -> Vec<f64> {
    let place = model.index[name];
    let gradients = model.gradients(loss).expect("gradients");
    let gradient = gradients[place].flatten_all();
    gradient.and_then(|g| g.to_vec1()).expect("values")
}

/// The derivative of the loss by a value of a weight, by differences.
fn difference(model: &Nepa, name: &str, value: usize, loss: impl Fn() -> f64) -> f64 {
    let var = &model.vars[model.index[name]];
    let (step, shape) = (1e-5, var.shape().clone());
    let values = var
        .flatten_all()
        .and_then(|all| all.to_vec1::<f64>())
        .expect("values");
    let set = |offset: f64| {
        let mut values = values.clone();
        values[value] += offset;
        let values = Tensor::from_vec(values, shape.clone(), &Device::Cpu).expect("a tensor");
        var.set(&values).expect("sets");
    };
    set(step);
    let above = loss();
    set(-step);
    let below = loss();
    set(0.0);
    (above - below) / (2.0 * step)
}

#[test]
fn no_ablation_is_the_published_loss() {
    for config in [
        NepaConfig::tiny(),
        NepaConfig {
            is_causal: false,
            ..NepaConfig::tiny()
        },
    ] {
        let model = model(&config, DType::F64);
        let whole = model.forward(&pixels(&config, 2), &RopeDraw::default(), config.is_causal);
        let whole = pretrain_loss_of(&whole.expect("forward")).expect("a loss");
        let found = plain(&model, &Ablation::default());
        assert!((number(&found.loss) - number(&whole.loss)).abs() < 1e-12);
        assert!((found.cos_previous - whole.cos_previous).abs() < 1e-12);
        let (a, b) = (model.gradients(&found.loss), model.gradients(&whole.loss));
        for (a, b) in a.expect("gradients").iter().zip(&b.expect("gradients")) {
            assert!(relative(a, b) < 1e-10);
        }
    }
}

#[test]
fn without_stop_gradient_the_embedding_learns_as_a_target_too() {
    let stopped = Ablation::default();
    let through = Ablation {
        stop_gradient: false,
        ..stopped
    };
    for is_causal in [true, false] {
        let model = model(
            &NepaConfig {
                is_causal,
                ..NepaConfig::tiny()
            },
            DType::F64,
        );
        let (a, b) = (plain(&model, &stopped), plain(&model, &through));
        assert_eq!(
            number(&a.loss).to_bits(),
            number(&b.loss).to_bits(),
            "the same loss"
        );
        let with = gradient(&model, &b.loss, EMBEDDING);
        let without = gradient(&model, &a.loss, EMBEDDING);
        for value in [0, 17, 40] {
            // Differences know of no stopped gradient: they are the whole one.
            let expected = difference(&model, EMBEDDING, value, || {
                number(&plain(&model, &through).loss)
            });
            assert!(
                (with[value] - expected).abs() < 1e-8,
                "{} {expected}",
                with[value]
            );
            assert!(
                (without[value] - expected).abs() > 1e-5,
                "it differs from the stopped one"
            );
        }
    }
}

#[test]
fn without_shift_every_token_predicts_itself() {
    let ablation = Ablation {
        shift: false,
        ..Ablation::default()
    };
    for is_causal in [true, false] {
        let config = NepaConfig {
            is_causal,
            ..NepaConfig::tiny()
        };
        let model = model(&config, DType::F64);
        let output = model.forward(&pixels(&config, 2), &RopeDraw::default(), is_causal);
        let output = output.expect("forward");
        let rows = |sequence: &Tensor| sequence.flatten_to(1)?.to_vec2::<f64>();
        let (out, target) = (
            rows(&output.sequence_output).expect("rows"),
            rows(&output.sequence_input).expect("rows"),
        );
        assert_eq!(out.len(), 2 * 17, "the class token and the last patch, too");
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosines = out
            .iter()
            .zip(&target)
            .map(|(a, b)| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt());
        let expected = -cosines.sum::<f64>() / 34.0;
        let found = plain(&model, &ablation);
        assert!((number(&found.loss) - expected).abs() < 1e-12);
        assert!((found.cos_target + expected).abs() < 1e-12);
        assert!((number(&plain(&model, &Ablation::default()).loss) - expected).abs() > 1e-3);
    }
}

#[test]
fn without_shift_a_model_that_does_nothing_has_the_best_loss() {
    // Why the paper's run without it fails: a token is its own target.
    let config = NepaConfig {
        layerscale_value: Some(0.0),
        is_causal: false,
        ..NepaConfig::tiny()
    };
    let weights = init_weights(&config, 3);
    let model = Nepa::new(&config, &weights, DType::F64, &Device::Cpu).expect("a model");
    let ablation = Ablation {
        shift: false,
        ..Ablation::default()
    };
    let found = number(&plain(&model, &ablation).loss);
    assert!(found < -0.95, "only the final norm is between: {found}");
    assert!(number(&plain(&model, &Ablation::default()).loss) > -0.9);
}

#[test]
fn masked_patches_are_the_mask_token_for_the_blocks_and_themselves_as_targets() {
    let config = NepaConfig {
        use_mask_token: true,
        is_causal: false,
        ..NepaConfig::tiny()
    };
    let ablation = Ablation {
        mask_ratio: 0.4,
        ..Ablation::default()
    };
    let model = model(&config, DType::F64);
    let masked = ablation.draw_masked(&config, 1, 2, 3, 2).expect("a mask");
    let draw = PretrainDraw {
        masked: Some(&masked),
        ..PretrainDraw::default()
    };
    let found = loss(&model, &draw, &ablation);

    // By hand: the token in place of the patches, cosines with the patches themselves.
    let pass = model
        .whole_pass(&RopeDraw::default(), false, Graph::Record)
        .expect("a pass");
    let patches = pass.patch_embeddings(&pixels(&config, 2)).expect("patches");
    let own = patches
        .flatten_to(1)
        .and_then(|all| all.to_vec2::<f64>())
        .expect("rows");
    let token = pass
        .weight(MASK_TOKEN)
        .flatten_all()
        .and_then(|token| token.to_vec1());
    let token: Vec<f64> = token.expect("values");
    let seen: Vec<f64> = own
        .iter()
        .zip(&masked)
        .flat_map(|(patch, masked)| {
            if *masked {
                token.clone()
            } else {
                patch.clone()
            }
        })
        .collect();
    let seen = Tensor::from_vec(seen, patches.shape(), &Device::Cpu).expect("a tensor");
    let output = pass
        .encode(&pass.with_class_token(&seen).expect("tokens"))
        .expect("encodes");
    let cosines = composed::cosine_rows(&output.narrow(1, 0, 16).expect("rows"), &patches);
    let expected = -number(&cosines.and_then(|all| all.mean_all()).expect("a mean"));
    assert!((number(&found.loss) - expected).abs() < 1e-12);

    // The token learns, by the whole loss.
    let with = gradient(&model, &found.loss, MASK_TOKEN);
    for value in [0, 30] {
        let expected = difference(&model, MASK_TOKEN, value, || {
            number(&loss(&model, &draw, &ablation).loss)
        });
        assert!((with[value] - expected).abs() < 1e-8 && expected.abs() > 1e-6);
    }
    // A pass without a mask leaves it without a gradient, and says so.
    let unmasked = model.ablated_loss(&pixels(&config, 2), &PretrainDraw::default(), &ablation);
    let missing = model
        .gradients(&unmasked.expect("a loss").loss)
        .expect_err("no gradient");
    assert!(missing.to_string().contains(MASK_TOKEN), "{missing}");
    for (config, masked) in [(NepaConfig::tiny(), &masked[..]), (config, &masked[1..])] {
        let model = super::model(&config, DType::F32);
        let draw = PretrainDraw {
            masked: Some(masked),
            ..PretrainDraw::default()
        };
        let refused = model.ablated_loss(&pixels(&config, 2), &draw, &ablation);
        let refused = refused
            .expect_err("no token, or too few values")
            .to_string();
        assert!(refused.contains("use_mask_token"), "{refused}");
    }
}

#[test]
fn under_a_causal_mask_the_last_patch_stays_a_target_only() {
    let config = NepaConfig {
        use_mask_token: true,
        ..NepaConfig::tiny()
    };
    let model = model(&config, DType::F64);
    let ablation = Ablation::default();
    let of = |masked: &[bool]| {
        let draw = PretrainDraw {
            masked: Some(masked),
            ..PretrainDraw::default()
        };
        number(&loss(&model, &draw, &ablation).loss)
    };
    let none = [false; 32];
    let [mut first, mut last] = [none; 2];
    (first[0], last[15]) = (true, true);
    assert_eq!(of(&last).to_bits(), of(&none).to_bits());
    assert!((of(&first) - of(&none)).abs() > 1e-6);
}

#[test]
fn without_rotary_positions_the_order_of_patches_does_not_matter() {
    // A whole image's patches in another order, as pixels.
    let config = NepaConfig {
        is_causal: false,
        ..NepaConfig::tiny()
    };
    let pixels = pixels(&config, 1);
    let rows = |from: usize| pixels.narrow(2, from, 7).expect("a row of patches");
    let moved = Tensor::cat(&[&rows(14), &rows(0), &rows(21), &rows(7)], 2).expect("pixels");
    let outputs = |use_rope: bool| {
        let config = NepaConfig {
            use_rope,
            ..config.clone()
        };
        let model = model(&config, DType::F64);
        [&pixels, &moved].map(|pixels| {
            let rope = RopeDraw {
                rescale: 1.4,
                ..RopeDraw::default()
            };
            let output = model.forward(pixels, &rope, false).expect("forward");
            output.sequence_output
        })
    };
    let of_row = |output: &Tensor, row: usize| output.narrow(1, 1 + 4 * row, 4).expect("a row");
    for use_rope in [false, true] {
        let [plain, moved] = outputs(use_rope);
        let class = |output: &Tensor| output.narrow(1, 0, 1).expect("the class token");
        for (a, b) in [
            (class(&plain), class(&moved)),
            (of_row(&plain, 2), of_row(&moved, 0)),
            (of_row(&plain, 1), of_row(&moved, 3)),
        ] {
            let off = relative(&a, &b);
            assert_eq!(off < 1e-12, !use_rope, "{off}");
            assert!(!use_rope || off > 1e-4, "{off}");
        }
    }
}
