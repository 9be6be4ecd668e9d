//! LayerNorm, the addition before it, and sums over rows; `operations.rs` compares what they compute.
use nepa_tests::engine_kernels::norm::{
    Affine, Branch, NormInput, add_partials, layer_norm_backward, layer_norm_forward,
    residual_norm_forward,
};
use nepa_tests::engine_kernels::twins;

use super::{BF16, F32, Random, Wide, assert_close, assert_gradient, assert_sums, dot, launched};

const EPS: f32 = 1e-12;
/// Rows and width: one row, fewer and more rows than a block takes, widths that no warp divides, the published widths.
const SHAPES: [(usize, usize); 7] = [
    (1, 4),
    (7, 12),
    (8, 132),
    (19, 260),
    (9, 384),
    (10, 768),
    (3, 1024),
];
/// Rows of an image, where images have factors: the last one may be cut off.
const TOKENS: [usize; 7] = [1, 7, 4, 5, 2, 3, 2];

#[test]
fn layer_norm_agrees_with_its_twin() {
    let mut random = Random(1);
    for (rows, width) in SHAPES {
        // Far from zero for its spread: one pass over squares would lose the variance.
        for (mean, deviation) in [(0.0, 1.0), (30.0, 0.1)] {
            let x = random.f32s(rows * width, mean, deviation);
            let weight = random.f32s(width, 1.0, 0.3);
            let bias = random.f32s(width, 0.0, 0.3);
            let affine = Affine {
                weight: &weight,
                bias: &bias,
            };
            let got = launched(|launch| layer_norm_forward(launch, &x, affine, EPS));
            // What the mean in f32 is off by, in deviations.
            let offset = F32 * (1.0 + mean / deviation);
            let (mut h, mut means, mut rstds) = (Vec::new(), Vec::new(), Vec::new());
            for row in x.wide().chunks_exact(width) {
                h.extend(twins::layer_norm(
                    row,
                    &weight.wide(),
                    &bias.wide(),
                    f64::from(EPS),
                ));
                let (mean, rstd) = twins::statistics(row, f64::from(EPS));
                means.push(mean);
                rstds.push(rstd);
            }
            assert_close("h", &got.h[..], &h, BF16, 8.0 * offset);
            assert_close("mean", &got.mean[..], &means, F32, F32 * deviation);
            assert_close("rstd", &got.rstd[..], &rstds, 4.0 * F32 + offset, 0.0);
        }
    }
}

#[test]
fn what_a_block_adds_is_scaled_added_and_normed() {
    let mut random = Random(2);
    for (number, (rows, width)) in SHAPES.into_iter().enumerate() {
        let x = random.f32s(rows * width, 0.0, 1.0);
        let y = random.bf16s(rows * width, 2.0);
        let scale = random.f32s(width, 0.5, 0.2);
        let weight = random.f32s(width, 1.0, 0.3);
        let bias = random.f32s(width, 0.0, 0.3);
        let affine = Affine {
            weight: &weight,
            bias: &bias,
        };
        let tokens = TOKENS[number];
        let images = rows.div_ceil(tokens);
        let (factors, kept) = (Random(9).factors(images), vec![1.0; images]);
        for scale in [Some(&scale[..]), None] {
            let run = |factors, affine, in_place| {
                let branch = Branch {
                    scale,
                    factors,
                    tokens,
                };
                launched(|launch| {
                    residual_norm_forward(launch, &x, &y, branch, affine, width, EPS, in_place)
                })
            };
            for factors in [None, Some(&factors[..])] {
                let (stream, normed) = run(factors, Some(affine), false);
                assert!(run(factors, Some(affine), true) == (stream.clone(), normed));
                assert!(run(factors, None, number % 2 == 0) == (stream.clone(), None));
                // The norm is exactly that of the new stream.
                let (_, normed) = run(factors, Some(affine), false);
                let alone = launched(|launch| layer_norm_forward(launch, &stream, affine, EPS));
                assert_eq!(normed, Some(alone));
            }
            // A factor of 1 changes no bit.
            let none = run(None, Some(affine), false);
            assert!(run(Some(&kept), Some(affine), false) == none);
        }
    }
}

#[test]
fn an_addition_of_the_size_of_a_new_layer_scale_is_not_lost() {
    let x = Random(3).f32s(768, 0.0, 1.0);
    let y = Random(4).bf16s(768, 1.0);
    let scale = vec![1e-5; 768];
    let branch = Branch {
        scale: Some(&scale),
        ..Branch::default()
    };
    let (stream, _) =
        launched(|launch| residual_norm_forward(launch, &x, &y, branch, None, 768, EPS, false));
    let changed = (0..768)
        .filter(|&i| stream[i].to_bits() != x[i].to_bits())
        .count();
    assert!(changed > 760, "{changed} of 768 values changed");
}

#[test]
fn the_backward_twin_of_layer_norm_is_its_gradient() {
    let mut random = Random(5);
    let width = 12;
    let x = random.f32s(width, 0.5, 1.0).wide();
    let weight = random.f32s(width, 1.0, 0.3).wide();
    let bias = random.f32s(width, 0.0, 0.3).wide();
    let grad = random.f32s(width, 0.0, 1.0).wide();
    let eps = 1e-12;
    let (dx, d_weight, d_bias) = twins::layer_norm_backward(&x, &weight, eps, &grad);
    assert_gradient("dx", &x, &dx, |x| {
        dot(&grad, &twins::layer_norm(x, &weight, &bias, eps))
    });
    assert_gradient("weight", &weight, &d_weight, |weight| {
        dot(&grad, &twins::layer_norm(&x, weight, &bias, eps))
    });
    assert_gradient("bias", &bias, &d_bias, |bias| {
        dot(&grad, &twins::layer_norm(&x, &weight, bias, eps))
    });
}

#[test]
fn the_streams_gradient_does_not_depend_on_what_was_added() {
    let mut random = Random(6);
    for (number, (rows, width)) in SHAPES.into_iter().enumerate() {
        let x = random.f32s(rows * width, 0.3, 1.0);
        let weight = random.f32s(width, 1.0, 0.3);
        let bias = vec![0.0; width];
        let dh = random.bf16s(rows * width, 1.0);
        let before = random.f32s(rows * width, 0.0, 1.0);
        let scale = random.f32s(width, 0.5, 0.2);
        let affine = Affine {
            weight: &weight,
            bias: &bias,
        };
        let statistics = launched(|launch| layer_norm_forward(launch, &x, affine, EPS));
        let input = NormInput {
            x: &x,
            mean: &statistics.mean,
            rstd: &statistics.rstd,
            weight: &weight,
        };
        let rows_per_piece = [64, 3, 5, 16, 8, 7, 1][number];
        let tokens = TOKENS[number];
        let images = rows.div_ceil(tokens);
        let (factors, ones) = (Random(9).factors(images), vec![1.0; images]);
        let run = |branch, copies, rows_per_piece| {
            launched(|launch| {
                layer_norm_backward(launch, &dh, input, &before, branch, copies, rows_per_piece)
            })
        };
        let plain = Branch {
            scale: Some(&scale),
            factors: None,
            tokens,
        };
        let got = run(plain, true, rows_per_piece);
        let without = run(plain, false, 64);
        assert_eq!(got.dx, without.dx);
        assert!(without.dx_bf16.is_empty() && without.scaled_dx.is_empty());
        // A factor of 1 changes no bit.
        let kept = Branch {
            factors: Some(&ones),
            ..plain
        };
        assert!(run(kept, true, rows_per_piece) == got);
        for branch in [
            plain,
            Branch {
                scale: None,
                ..plain
            },
            Branch {
                factors: Some(&factors),
                ..plain
            },
            Branch {
                scale: None,
                factors: Some(&factors),
                tokens,
            },
        ] {
            assert_eq!(run(branch, true, rows_per_piece).dx, got.dx);
        }
    }
}

#[test]
fn partial_sums_are_added_to_the_outputs_that_are_wanted() {
    let mut random = Random(8);
    for (pieces, width, outputs, gap) in
        [(1, 1, 1, 0), (100, 20, 4, 3), (33, 96, 3, 0), (7, 40, 2, 9)]
    {
        let stride = outputs * width + gap;
        let partials = random.f32s(pieces * stride, 0.0, 1.0);
        let before = random.f32s(width, 0.0, 1.0);
        // One is left out, if there are several.
        let out: Vec<Option<&[f32]>> = (0..outputs)
            .map(|output| (output != 1).then_some(&before[..]))
            .collect();
        let got = launched(|launch| add_partials(launch, &partials, stride, pieces, &out));
        assert_eq!(got.len(), outputs);
        for (output, got) in got.into_iter().enumerate() {
            let Some(got) = got else {
                assert_eq!(output, 1);
                continue;
            };
            let mut expected = twins::column_sums(&before.wide(), width);
            for piece in 0..pieces {
                let part = &partials[piece * stride + output * width..][..width];
                for (sum, part) in expected.iter_mut().zip(part) {
                    sum.add(f64::from(*part));
                }
            }
            assert_sums("output", &got, &expected, 0.0);
        }
    }
}
