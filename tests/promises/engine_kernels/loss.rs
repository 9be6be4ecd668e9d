//! Final norm, cosine loss and its gradient.
use nepa_tests::engine_kernels::loss::{LossInput, cosine_loss};
use nepa_tests::engine_kernels::norm::{Affine, Branch};
use nepa_tests::engine_kernels::twins;

use super::{
    F32, Random, Wide, assert_close, assert_copies, assert_gradient, assert_sums, dot, launched,
};

const EPS: f64 = 1e-12;

#[test]
fn the_backward_twin_of_the_loss_is_its_gradient() {
    let mut random = Random(31);
    let width = 8;
    let x = random.f32s(width, 0.5, 1.0).wide();
    let z = random.f32s(width, 0.0, 1.0).wide();
    let weight = random.f32s(width, 1.0, 0.3).wide();
    let bias = random.f32s(width, 0.0, 0.3).wide();
    let p = twins::layer_norm(&x, &weight, &bias, EPS);
    let grad = twins::cosine_backward(&p, &z);
    assert_gradient("p", &p, &grad, |p| twins::cosine(p, &z));
    let (dx, ..) = twins::layer_norm_backward(&x, &weight, EPS, &grad);
    assert_gradient("x", &x, &dx, |x| {
        twins::cosine(&twins::layer_norm(x, &weight, &bias, EPS), &z)
    });
    // A prediction that is too short is divided by a constant.
    let short = vec![1e-14; width];
    let grad = twins::cosine_backward(&short, &z);
    let length = dot(&z, &z).sqrt();
    for (grad, z) in grad.iter().zip(&z) {
        assert!((grad - z / length / twins::LEAST_LENGTH).abs() < 1e-3 / twins::LEAST_LENGTH);
    }
}

#[test]
fn the_loss_agrees_with_its_twin() {
    let mut random = Random(32);
    for (number, (batch, patches, width, rows_per_piece)) in [
        (1, 1, 8, 64),
        (3, 5, 12, 4),
        (2, 9, 132, 64),
        (1, 16, 768, 8),
        (2, 3, 1024, 5),
    ]
    .into_iter()
    .enumerate()
    {
        for tokens in [patches, patches + 1] {
            let rows = batch * tokens;
            let mut x = random.f32s(rows * width, 0.3, 1.0);
            let mut next = random.f32s(batch * patches * width, 0.0, 0.02);
            let mut current = random.f32s(rows * width, 0.0, 0.02);
            let mut weight = random.f32s(width, 1.0, 0.3);
            let mut bias = random.f32s(width, 0.0, 0.3);
            if number == 4 {
                // Predictions with a length, but less than the least.
                for weight in &mut weight {
                    *weight *= 1e-14;
                }
                bias.fill(0.0);
            }
            if number == 1 {
                // Without a length: a target, an input, and (all the same, so normalised to zero) a prediction.
                next[2 * width..3 * width].fill(0.0);
                current[width..2 * width].fill(0.0);
                x[tokens * width..(tokens + 1) * width].fill(0.5);
                bias.fill(0.0);
            }
            let scale = random.f32s(width, 0.5, 0.2);
            let scale = (number != 2).then_some(&scale[..]);
            let factor = -1.0 / (batch * patches) as f32;
            let input = LossInput {
                x: &x,
                next: &next,
                current: &current,
                affine: Affine {
                    weight: &weight,
                    bias: &bias,
                },
                scale,
                factors: None,
                patches,
                tokens,
                eps: EPS as f32,
                factor,
            };
            let run = |input| launched(|launch| cosine_loss(launch, input, rows_per_piece));
            let got = run(input);
            // A factor of 1 changes no bit.
            let ones = vec![1.0; batch];
            let kept = LossInput {
                factors: Some(&ones),
                ..input
            };
            assert!(run(kept) == got);

            let [x, next, current, weight, bias] =
                [&x, &next, &current, &weight, &bias].map(|values| values.wide());
            let (mut dx, mut d_weight, mut d_bias) = (Vec::new(), Vec::new(), Vec::new());
            let mut reports = Vec::new();
            for row in 0..rows {
                let (image, token) = (row / tokens, row % tokens);
                if token >= patches {
                    for values in [&mut dx, &mut d_weight, &mut d_bias] {
                        values.resize(values.len() + width, 0.0);
                    }
                    reports.extend([0.0; 3]);
                    continue;
                }
                let of = |values: &[f64], row: usize| values[row * width..][..width].to_vec();
                let x = of(&x, row);
                let z = of(&next, image * patches + token);
                let p = twins::layer_norm(&x, &weight, &bias, EPS);
                let grad: Vec<f64> = twins::cosine_backward(&p, &z)
                    .iter()
                    .map(|g| g * f64::from(factor))
                    .collect();
                let (row_dx, row_d_weight, row_d_bias) =
                    twins::layer_norm_backward(&x, &weight, EPS, &grad);
                dx.extend(row_dx);
                d_weight.extend(row_d_weight);
                d_bias.extend(row_d_bias);
                let cosines = [twins::cosine(&p, &z), twins::cosine(&p, &of(&current, row))];
                let win = if cosines[1] > cosines[0] { 1.0 } else { 0.0 };
                reports.extend([cosines[0], cosines[1], win]);
            }

            // Gradients are small differences of terms as large as the greatest of their row.
            for (row, (got, expected)) in got
                .dx
                .chunks_exact(width)
                .zip(dx.chunks_exact(width))
                .enumerate()
            {
                let most = expected
                    .iter()
                    .fold(0.0, |most: f64, dx| most.max(dx.abs()));
                assert_close(
                    &format!("dx of row {row}"),
                    got,
                    expected,
                    F32,
                    8.0 * F32 * most,
                );
            }
            let factors = Random(33).factors(batch);
            for factors in [None, Some(&factors[..])] {
                // The stream's gradient does not depend on what was added to it.
                let stream = got.dx.clone();
                let got = run(LossInput { factors, ..input });
                assert_eq!(got.dx, stream);
                let branch = Branch {
                    scale,
                    factors,
                    tokens,
                };
                let copies = [&got.dx_bf16[..], &got.scaled_dx];
                let added = assert_copies(&got.dx, width, branch, copies, 1e-38);
                for piece in 0..rows.div_ceil(rows_per_piece) {
                    let rows = piece * rows_per_piece..((piece + 1) * rows_per_piece).min(rows);
                    for (quantity, terms) in [&d_weight, &d_bias, &added].into_iter().enumerate() {
                        let part = &got.partials[(piece * 3 + quantity) * width..][..width];
                        let terms = &terms[rows.start * width..rows.end * width];
                        let most = terms
                            .iter()
                            .fold(0.0, |most: f64, term| most.max(term.abs()));
                        let mut sums = twins::column_sums(terms, width);
                        for sum in &mut sums {
                            sum.size += most * rows.len() as f64;
                        }
                        assert_sums("partial", part, &sums, 8.0 * F32);
                    }
                    let part = &got.report[piece * 3..][..3];
                    let mut sums = twins::column_sums(&reports[rows.start * 3..rows.end * 3], 3);
                    for sum in &mut sums {
                        sum.size += rows.len() as f64;
                    }
                    assert_sums("report", part, &sums, 2.0 * F32);
                }
            }
        }
    }
}
