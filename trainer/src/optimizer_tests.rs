//! Names without decay, the formulas step by step, clipping, restoring.
use super::*;
use nepa_model::NepaConfig;
use nepa_model::cpu::global_norm;

/// An optimiser before its first step.
fn fresh(config: &OptimizerConfig, specs: &[ParamSpec]) -> Result<Optimizer, OptimizerError> {
    let len = specs.iter().map(ParamSpec::len).sum();
    let state = OptimizerState {
        step: 0,
        m: vec![0.0; len],
        v: vec![0.0; len],
        ema: Vec::new(),
    };
    Optimizer::from_state(config.settings(), |name| config.group(name), specs, state)
}

/// One update of pretraining; the norm of the gradient.
fn update(
    optimizer: &mut Optimizer,
    weights: &mut [f32],
    gradients: &[f32],
    rates: [f64; 2],
) -> f64 {
    let norm = global_norm(gradients);
    optimizer.step_with_norm(weights, gradients, &rates, norm);
    norm
}

fn spec(name: &str, len: usize, offset: usize) -> ParamSpec {
    ParamSpec {
        name: name.into(),
        shape: vec![len],
        offset,
    }
}

#[test]
fn decay_goes_by_name() {
    for name in [
        "vit_nepa.embeddings.patch_embeddings.projection.bias",
        "vit_nepa.encoder.layer.0.layernorm_after.weight",
        "vit_nepa.encoder.layer.0.attention.attention.q_norm.weight",
        "vit_nepa.encoder.layer.0.output.layer_scale.lambda1",
        "vit_nepa.layernorm.weight",
        "fc_norm.weight",
        "blocks.0.norm.weight",
    ] {
        assert!(!decays(name), "{name}");
    }
    for name in [
        "vit_nepa.embeddings.cls_token",
        "vit_nepa.embeddings.patch_embeddings.projection.weight",
        "vit_nepa.encoder.layer.0.intermediate.gate_proj.weight",
        "normal.weight",
    ] {
        assert!(decays(name), "{name}");
    }
    let specs = ParamSpec::all(&NepaConfig::tiny());
    let optimizer = fresh(&OptimizerConfig::default(), &specs).expect("valid");
    assert_eq!(
        optimizer.groups.first().map(|group| group.range.start),
        Some(0)
    );
    assert!(
        optimizer
            .groups
            .windows(2)
            .all(|pair| pair[0].range.end == pair[1].range.start)
    );
    for spec in &specs {
        let group = optimizer
            .groups
            .iter()
            .find(|group| group.range.start <= spec.offset && spec.range().end <= group.range.end);
        assert_eq!(
            group.expect("covered").of.weight_decay > 0.0,
            decays(&spec.name),
            "{}",
            spec.name
        );
    }
}

/// The formulas of `torch.optim.AdamW` in f64, written out for one element.
#[test]
fn steps_are_those_of_the_formulas() {
    let config = OptimizerConfig {
        ema_decay: Some(0.9),
        embedding_lr_factor: 0.5,
        ..OptimizerConfig::default()
    };
    let specs = [
        spec("vit_nepa.embeddings.cls_token", 1, 0),
        spec("a.bias", 1, 1),
        spec("b.weight", 1, 2),
    ];
    let mut optimizer = fresh(&config, &specs).expect("valid");
    let mut weights = [0.5f32, -0.25, 1.5];
    let mut expected: Vec<(f64, f64, f64, f64)> = weights
        .iter()
        .map(|w| (f64::from(*w), 0.0, 0.0, 0.0))
        .collect();
    for step in 1..=6i32 {
        let gradients: Vec<f32> = (0..3)
            .map(|i| (step * (i + 1)) as f32 * 0.3 - 1.0)
            .collect();
        let lr = 0.01 * f64::from(step);
        let norm = update(&mut optimizer, &mut weights, &gradients, config.rates(lr));
        let true_norm = gradients
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        assert!((norm - true_norm).abs() < 1e-12);
        let clip = (1.0 / (true_norm + 1e-6)).min(1.0);
        for (i, (w, m, v, ema)) in expected.iter_mut().enumerate() {
            let g = f64::from(gradients[i]) * clip;
            let lr = if i == 0 { 0.5 * lr } else { lr };
            *w *= 1.0 - lr * if i == 1 { 0.0 } else { 0.05 };
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.95 * *v + 0.05 * g * g;
            let (m_hat, v_hat) = (
                *m / (1.0 - 0.9f64.powi(step)),
                *v / (1.0 - 0.95f64.powi(step)),
            );
            *w -= lr * m_hat / (v_hat.sqrt() + 1e-8);
            *ema = if step == 1 { *w } else { 0.9 * *ema + 0.1 * *w };
            let got = (f64::from(weights[i]), f64::from(optimizer.state().ema[i]));
            assert!(
                (got.0 - *w).abs() < 1e-6,
                "step {step}, weight {i}: {} should be {w}",
                got.0
            );
            assert!(
                (got.1 - *ema).abs() < 1e-6,
                "step {step}, average {i}: {} should be {ema}",
                got.1
            );
        }
    }
    assert_eq!(optimizer.state().step, 6);
}

#[test]
fn clipping_never_enlarges() {
    assert!((clip_factor(0.5, Some(1.0)) - 1.0).abs() < f64::EPSILON);
    assert!((clip_factor(4.0, Some(1.0)) - 1.0 / (4.0 + 1e-6)).abs() < 1e-15);
    assert!((clip_factor(4.0, None) - 1.0).abs() < f64::EPSILON);
    assert!(!global_norm(&[1.0, f32::NAN]).is_finite());
    let gradients: Vec<f32> = (0..100_003).map(|i| (i as f32 * 0.7).sin()).collect();
    let plain = gradients
        .iter()
        .map(|g| f64::from(*g).powi(2))
        .sum::<f64>()
        .sqrt();
    assert!((global_norm(&gradients) / plain - 1.0).abs() < 1e-12);
}

#[test]
fn a_norm_that_is_not_finite_changes_nothing() {
    let specs = [spec("a.weight", 3, 0)];
    let mut optimizer = fresh(&OptimizerConfig::default(), &specs).expect("valid");
    let mut weights = [1.0f32, 2.0, 3.0];
    optimizer.step_with_norm(&mut weights, &[1.0, f32::NAN, 0.0], &[1.0], f64::NAN);
    assert_eq!(
        weights.map(f32::to_bits),
        [1.0f32, 2.0, 3.0].map(f32::to_bits)
    );
    assert!(optimizer.state().m.iter().all(|m| *m == 0.0));
}

#[test]
fn a_restored_state_goes_on_bit_for_bit() {
    let specs = [spec("a.weight", 40, 0), spec("b.bias", 7, 40)];
    let config = OptimizerConfig::default();
    let gradients: Vec<f32> = (0..47).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut straight = fresh(&config, &specs).expect("valid");
    let mut weights = vec![0.1f32; 47];
    let rates = config.rates(1e-2);
    update(&mut straight, &mut weights, &gradients, rates);
    let mut again = weights.clone();
    let group = |name: &str| config.group(name);
    let settings = config.settings();
    let mut restored =
        Optimizer::from_state(settings, group, &specs, straight.state().clone()).expect("valid");
    update(&mut straight, &mut weights, &gradients, rates);
    update(&mut restored, &mut again, &gradients, rates);
    assert_eq!((weights, straight.state()), (again, restored.state()));
    let mut short = straight.state().clone();
    short.v.pop();
    let error = Optimizer::from_state(settings, group, &specs, short)
        .expect_err("another model")
        .to_string();
    assert!(
        error.contains("second moment") && error.contains("46"),
        "{error}"
    );
}

#[test]
fn what_is_frozen_stays_bit_for_bit_but_is_in_the_average() {
    let specs = [
        spec("a.weight", 3, 0),
        spec("b.weight", 2, 3),
        spec("c.weight", 2, 5),
    ];
    let config = OptimizerConfig {
        ema_decay: Some(0.5),
        ..OptimizerConfig::default()
    };
    let group = |name: &str| WeightGroup {
        weight_decay: 0.1,
        // One that no update has.
        rate: if name == "b.weight" { 9 } else { 0 },
        frozen: name == "b.weight",
    };
    let state = OptimizerState {
        step: 1,
        m: vec![0.25; 7],
        v: vec![0.125; 7],
        ema: vec![0.0; 7],
    };
    let mut optimizer =
        Optimizer::from_state(config.settings(), group, &specs, state).expect("valid");
    assert_eq!(optimizer.num_rates(), 1);
    let mut weights = [0.5f32; 7];
    let mut gradients = [1.0f32, 2.0, 2.0, f32::NAN, 1e30, 0.0, 4.0];
    optimizer.forget_frozen(&mut gradients);
    let norm = global_norm(&gradients);
    assert!((norm - 5.0).abs() < 1e-12, "{norm}");
    optimizer.step_with_norm(&mut weights, &gradients, &[0.1], norm);
    let state = optimizer.state();
    for (number, frozen) in [false, false, false, true, true, false, false]
        .into_iter()
        .enumerate()
    {
        for (what, value, before) in [
            ("weight", weights[number], 0.5f32),
            ("m", state.m[number], 0.25),
            ("v", state.v[number], 0.125),
        ] {
            assert_eq!(
                value.to_bits() == before.to_bits(),
                frozen,
                "{what} {number}"
            );
        }
        let average = 0.5 * weights[number];
        assert!(
            (state.ema[number] - average).abs() < 1e-7,
            "average {number}"
        );
    }
}

#[test]
fn impossible_settings_are_refused() {
    for (config, key) in [
        (
            OptimizerConfig {
                beta2: 1.0,
                ..OptimizerConfig::default()
            },
            "beta2",
        ),
        (
            OptimizerConfig {
                eps: 0.0,
                ..OptimizerConfig::default()
            },
            "eps",
        ),
        (
            OptimizerConfig {
                max_grad_norm: Some(0.0),
                ..OptimizerConfig::default()
            },
            "max_grad_norm",
        ),
        (
            OptimizerConfig {
                ema_decay: Some(1.5),
                ..OptimizerConfig::default()
            },
            "ema_decay",
        ),
    ] {
        assert!(
            fresh(&config, &[])
                .expect_err(key)
                .to_string()
                .contains(key)
        );
    }
}
