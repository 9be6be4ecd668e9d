//! The MLP's activations, plain and gated; what they compute, `operations.rs` compares.
use nepa_tests::engine_kernels::activation::{Kind, activation_backward, activation_forward};
use nepa_tests::engine_kernels::{Bf16, bf16};

use super::{Random, launched};

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
fn activations_are_the_same_in_place_and_again() {
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
            }
        }
    }
}
