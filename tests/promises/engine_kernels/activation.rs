//! The MLP's activations, plain and gated.
use nepa_tests::engine_kernels::activation::{Kind, activation_backward, activation_forward};
use nepa_tests::engine_kernels::{Bf16, bf16, twins};

use super::{BF16, F32, Random, Wide, assert_close, assert_gradient, assert_sums, dot, launched};

const KINDS: [Kind; 3] = [Kind::Gelu, Kind::Silu, Kind::Relu];
/// Rows, width, rows of a piece.
const SHAPES: [(usize, usize, usize); 4] = [(1, 8, 64), (67, 24, 64), (13, 264, 5), (9, 3072, 64)];

/// Normal ones, and in front what is far out, zero and small.
fn inputs(random: &mut Random, len: usize) -> Vec<Bf16> {
    let edges = [0.0, -0.0, 1e-6, -30.0, 30.0, -4.1, 3.0, -0.7];
    let mut values = random.bf16s(len, 1.5);
    for (value, edge) in values.iter_mut().zip(edges) {
        *value = bf16(edge);
    }
    values
}

#[test]
fn the_twins_of_the_activations_are_right() {
    // Abramowitz and Stegun, table 7.1, and what is missing to 1 at 4.
    for (x, expected) in [
        (0.5, 0.520_499_877_8),
        (1.0, 0.842_700_792_9),
        (2.0, 0.995_322_265_0),
        (4.0, 1.0 - 1.541_725_79e-8),
    ] {
        assert!((twins::erf(x) - expected).abs() < 2e-10, "erf({x})");
        assert!((twins::erf(-x) + expected).abs() < 2e-10, "erf(-{x})");
    }
    for x in [2.999_999, 3.000_001] {
        assert!((twins::erf(x) - 0.999_977_909_5).abs() < 1e-9, "erf({x})");
    }
    for kind in KINDS {
        for x in [-6.0, -3.0, -1.0, -0.2, 0.3, 2.0, 5.0] {
            let slope = twins::activation(kind, x).1;
            assert_gradient("slope", &[x], &[slope], |x| twins::activation(kind, x[0]).0);
        }
        let (row, grad) = ([0.7, -1.1, -0.4, 1.3], [0.9, -0.2]);
        let gradient = twins::gated_activation_backward(kind, &row, &grad);
        assert_gradient("gated", &row, &gradient, |row| {
            dot(&grad, &twins::gated_activation(kind, row))
        });
    }
}

#[test]
fn activations_agree_with_their_twins() {
    let mut random = Random(11);
    for kind in KINDS {
        for (rows, width, _) in SHAPES {
            for gated in [false, true] {
                let columns = width * if gated { 2 } else { 1 };
                let x = inputs(&mut random, rows * columns);
                let got = launched(|launch| activation_forward(launch, kind, gated, &x, width));
                let mut expected = Vec::new();
                for row in x.wide().chunks_exact(columns) {
                    if gated {
                        expected.extend(twins::gated_activation(kind, row));
                    } else {
                        expected.extend(row.iter().map(|x| twins::activation(kind, *x).0));
                    }
                }
                assert_close("result", &got[..], &expected, BF16 + F32, 2.0 * F32);
            }
        }
    }
}

#[test]
fn activation_backward_agrees_with_its_twin() {
    let mut random = Random(12);
    for kind in KINDS {
        for (number, (rows, width, rows_per_piece)) in SHAPES.into_iter().enumerate() {
            for gated in [false, true] {
                let columns = width * if gated { 2 } else { 1 };
                let x = inputs(&mut random, rows * columns);
                let grad = random.bf16s(rows * width, 1.0);
                let run = |in_place_and_again| {
                    launched(|launch| {
                        activation_backward(
                            launch,
                            kind,
                            gated,
                            &x,
                            &grad,
                            width,
                            rows_per_piece,
                            in_place_and_again,
                        )
                    })
                };
                let got = run(number % 2 == 0);
                let other = run(number % 2 == 1);
                assert!(got.dx == other.dx && got.partials == other.partials);
                let forward = launched(|launch| activation_forward(launch, kind, gated, &x, width));
                assert_eq!(got.result.or(other.result), Some(forward));

                let grad = grad.wide();
                let mut dx = Vec::new();
                for (row, grad) in x.wide().chunks_exact(columns).zip(grad.chunks_exact(width)) {
                    if gated {
                        dx.extend(twins::gated_activation_backward(kind, row, grad));
                    } else {
                        dx.extend((0..width).map(|i| grad[i] * twins::activation(kind, row[i]).1));
                    }
                }
                assert_close("dx", &got.dx[..], &dx, BF16 + F32, 8.0 * F32);
                for (part, rows) in got
                    .partials
                    .chunks_exact(columns)
                    .zip(dx.chunks(rows_per_piece * columns))
                {
                    let mut sums = twins::column_sums(rows, columns);
                    // Slopes far below zero are small differences.
                    for sum in &mut sums {
                        sum.size += (rows.len() / columns) as f64;
                    }
                    assert_sums("partial", part, &sums, F32);
                }
            }
        }
    }
}
