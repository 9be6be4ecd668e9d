//! LayerScale's gradients, the norm, and the update, which is the trainer's own, bit for bit.
use nepa_model::ParamSpec;
use nepa_model::cpu::global_norm;
use nepa_model::step::adamw::{AdamW, AdamWSettings, Group, WeightGroup, clip_factor};
use nepa_tests::engine_kernels::optimizer::{
    AdamWNumbers, NormResult, ScaledLinear, Segment, Updated, adamw_update, copy_to_bf16,
    gradient_norm, layer_scale_finish,
};
use nepa_tests::engine_kernels::twins::Sum;
use nepa_tests::engine_kernels::{Bf16, bf16};
use nepa_trainer::optimizer::{Optimizer, OptimizerConfig, OptimizerState};

use super::{Random, assert_gradient, assert_sums, dot, launched};

/// Weights whose settings change in the middle of a vector, of a block and of neither.
fn specs(lens: &[usize]) -> Vec<ParamSpec> {
    let names = [
        "vit_nepa.embeddings.cls_token",
        "vit_nepa.embeddings.patch_embeddings.projection.bias",
        "vit_nepa.encoder.layer.0.attention.output.dense.weight",
        "vit_nepa.encoder.layer.0.layer_scale.lambda1",
        "vit_nepa.encoder.layer.0.output.dense.weight",
        "vit_nepa.encoder.layer.0.output.dense.bias",
        "vit_nepa.layernorm.weight",
    ];
    let mut offset = 0;
    names
        .iter()
        .zip(lens)
        .map(|(name, len)| {
            offset += len;
            ParamSpec {
                name: (*name).to_owned(),
                shape: vec![*len],
                offset: offset - len,
            }
        })
        .collect()
}

#[test]
fn the_update_is_the_trainers_bit_for_bit() {
    let mut random = Random(41);
    for (number, lens) in [
        &[1][..],
        &[5, 3, 1030, 7, 2001, 1, 1],
        &[8, 4, 4000, 16],
        &[2, 2, 1, 1, 1, 1, 3],
    ]
    .into_iter()
    .enumerate()
    {
        let specs = specs(lens);
        let len: usize = lens.iter().sum();
        let config = OptimizerConfig {
            embedding_lr_factor: 0.3,
            ema_decay: (number != 3).then_some(0.99),
            max_grad_norm: (number != 2).then_some(1.0),
            ..OptimizerConfig::default()
        };
        let settings = config.settings();
        // The biases of the embedding and of a block stay as they are.
        let group = |name: &str| WeightGroup {
            frozen: name.ends_with("bias"),
            ..config.group(name)
        };
        let zeros = OptimizerState {
            step: 0,
            m: vec![0.0; len],
            v: vec![0.0; len],
            ema: Vec::new(),
        };
        let mut optimizer = Optimizer::from_state(settings, group, &specs, zeros).unwrap();
        let mut weights = random.f32s(len, 0.0, 0.1);
        let mut state = Updated {
            weights: weights.clone(),
            m: vec![0.0; len],
            v: vec![0.0; len],
            // What is there before the first step does not count.
            average: config.ema_decay.map(|_| vec![f32::INFINITY; len]),
            copy: (number != 1).then(|| vec![Bf16(0); len]),
        };
        for step in 1..=3 {
            let gradient = random.f32s(len, 0.0, if step == 2 { 1e-3 } else { 0.5 });
            let rates = config.rates(1e-2 / step as f64);
            let rule = AdamW::new(&settings.adamw, step, &rates, step > 1);
            let segments: Vec<Segment> = specs
                .iter()
                .map(|spec| {
                    let (range, of) = (spec.range(), group(&spec.name));
                    Segment::new(&Group { range, of }, &rule)
                })
                .collect();
            let numbers = AdamWNumbers {
                step,
                betas: (config.beta1, config.beta2),
                eps: config.eps,
                decay: config.ema_decay.unwrap_or(0.0),
            };
            let before = state.clone();
            let max_norm = config.max_grad_norm.unwrap_or(f64::INFINITY);
            let norm = launched(|launch| gradient_norm(launch, &gradient, max_norm));
            let expected = global_norm(&gradient);
            assert!((norm.norm - expected).abs() <= 1e-13 * expected);
            assert_eq!(norm.finite, 1);
            assert_eq!(
                norm.clip.to_bits(),
                (clip_factor(norm.norm, config.max_grad_norm) as f32).to_bits()
            );

            state = launched(|launch| {
                adamw_update(launch, &state, &gradient, &segments, norm, numbers)
            });
            optimizer.step_with_norm(&mut weights, &gradient, &rates, norm.norm);
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&state.weights), bits(&weights));
            assert_eq!(bits(&state.m), bits(&optimizer.state().m));
            assert_eq!(bits(&state.v), bits(&optimizer.state().v));
            assert_eq!(
                bits(state.average.as_deref().unwrap_or_default()),
                bits(&optimizer.state().ema)
            );
            for spec in specs.iter().filter(|spec| group(&spec.name).frozen) {
                for (before, after) in [
                    (&before.weights, &state.weights),
                    (&before.m, &state.m),
                    (&before.v, &state.v),
                ] {
                    assert_eq!(bits(&before[spec.range()]), bits(&after[spec.range()]));
                }
            }
            let rounded: Vec<Bf16> = weights.iter().copied().map(bf16).collect();
            assert_eq!(state.copy.clone().unwrap_or(rounded.clone()), rounded);
            assert_eq!(launched(|launch| copy_to_bf16(launch, &weights)), rounded);
        }
    }
}

#[test]
fn where_the_norm_is_not_finite_nothing_is_updated() {
    let mut random = Random(42);
    let len = 40_001;
    let before = Updated {
        weights: random.f32s(len, 0.0, 1.0),
        m: random.f32s(len, 0.0, 1.0),
        v: random.f32s(len, 2.0, 0.1),
        average: Some(random.f32s(len, 0.0, 1.0)),
        copy: Some(random.bf16s(len, 1.0)),
    };
    let settings = AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        average_decay: Some(0.99),
    };
    let group = Group {
        range: 0..len,
        of: WeightGroup {
            weight_decay: 0.1,
            rate: 0,
            frozen: false,
        },
    };
    let rule = AdamW::new(&settings, 5, &[1e-3], true);
    let segments = [Segment::new(&group, &rule)];
    let numbers = AdamWNumbers {
        step: 5,
        betas: (0.9, 0.95),
        eps: 1e-8,
        decay: 0.99,
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut gradient = random.f32s(len, 0.0, 1.0);
        gradient[len - 1] = bad;
        // Compared below, not by `launched`: a NaN is not even itself.
        for launch in nepa_tests::engine_kernels::Launch::ALL {
            assert_eq!(gradient_norm(launch, &gradient, 1.0).finite, 0);
        }
        let norm = NormResult {
            norm: 1.0,
            clip: 1.0,
            finite: 0,
        };
        gradient[len - 1] = 0.0;
        let after =
            launched(|launch| adamw_update(launch, &before, &gradient, &segments, norm, numbers));
        assert_eq!(after, before);
    }
    // Large gradients have a norm: it is summed in f64.
    let gradient = vec![1e30; len];
    let norm = launched(|launch| gradient_norm(launch, &gradient, 1.0));
    assert!((norm.norm / (1e30 * (len as f64).sqrt()) - 1.0).abs() < 1e-6);
    assert_eq!(norm.finite, 1);
}

#[test]
fn layer_scale_takes_its_gradient_from_the_weights() {
    // The layer x -> scale * (W a + b), by differences; G = dx a^T.
    let (rows, columns) = (3, 4);
    let mut random = Random(43);
    let mut numbers = |len| random.f32s(len, 0.0, 1.0);
    let (a, dx) = (numbers(columns), numbers(rows));
    let linear = ScaledLinear {
        weight: numbers(rows * columns),
        bias: Some(numbers(rows)),
        scale: numbers(rows),
    };
    let unscaled = ScaledLinear {
        weight: (0..rows * columns)
            .map(|i| dx[i / columns] * a[i % columns])
            .collect(),
        bias: Some(dx.clone()),
        scale: vec![0.0; rows],
    };
    let got = launched(|launch| layer_scale_finish(launch, &linear, &unscaled));
    let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let at = [
        wide(&linear.weight),
        wide(linear.bias.as_ref().unwrap()),
        wide(&linear.scale),
    ]
    .concat();
    let gradient = [
        wide(&got.weight),
        wide(got.bias.as_ref().unwrap()),
        wide(&got.scale),
    ]
    .concat();
    assert_gradient("layer", &at, &gradient, |at| {
        let (weight, rest) = at.split_at(rows * columns);
        let (bias, scale) = rest.split_at(rows);
        let out: Vec<f64> = (0..rows)
            .map(|row| {
                scale[row] * (dot(&weight[row * columns..][..columns], &wide(&a)) + bias[row])
            })
            .collect();
        dot(&out, &wide(&dx))
    });
}

#[test]
fn layer_scale_agrees_with_its_twin() {
    let mut random = Random(44);
    for (rows, columns, with_bias) in [(1, 4, true), (5, 132, false), (3, 3072, true)] {
        let mut linear = || ScaledLinear {
            weight: random.f32s(rows * columns, 0.0, 1.0),
            bias: with_bias.then(|| random.f32s(rows, 0.0, 1.0)),
            scale: random.f32s(rows, 0.0, 1.0),
        };
        let (linear, gradient) = (linear(), linear());
        let got = launched(|launch| layer_scale_finish(launch, &linear, &gradient));
        for i in 0..rows * columns {
            let expected = gradient.weight[i] * linear.scale[i / columns];
            assert_eq!(got.weight[i].to_bits(), expected.to_bits());
        }
        for row in 0..rows {
            let mut sum = Sum::default();
            sum.add(f64::from(gradient.scale[row]));
            for i in row * columns..(row + 1) * columns {
                sum.add(f64::from(linear.weight[i]) * f64::from(gradient.weight[i]));
            }
            if let (Some(bias), Some(d_bias), Some(got)) = (&linear.bias, &gradient.bias, &got.bias)
            {
                sum.add(f64::from(bias[row]) * f64::from(d_bias[row]));
                let expected = d_bias[row] * linear.scale[row];
                assert_eq!(got[row].to_bits(), expected.to_bits());
            }
            assert_sums("scale", &got.scale[row..=row], &[sum], 0.0);
        }
    }
}
