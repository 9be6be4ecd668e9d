//! Final norm, cosine loss and its gradient: what has no influence on the gradient of the stream.
//! `operations.rs` compares what they compute.
use nepa_tests::engine_kernels::loss::{LossInput, cosine_loss};
use nepa_tests::engine_kernels::norm::Affine;

use super::{Random, launched};

#[test]
fn the_streams_gradient_does_not_depend_on_what_was_added() {
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
            let x = random.f32s(rows * width, 0.3, 1.0);
            let next = random.f32s(batch * patches * width, 0.0, 0.02);
            let current = random.f32s(rows * width, 0.0, 0.02);
            let weight = random.f32s(width, 1.0, 0.3);
            let bias = random.f32s(width, 0.0, 0.3);
            let scale = random.f32s(width, 0.5, 0.2);
            let input = LossInput {
                x: &x,
                next: &next,
                current: &current,
                affine: Affine {
                    weight: &weight,
                    bias: &bias,
                },
                scale: (number != 2).then_some(&scale[..]),
                factors: None,
                patches,
                tokens,
                eps: 1e-12,
                factor: -1.0 / (batch * patches) as f32,
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
            let factors = Random(33).factors(batch);
            let dropped = LossInput {
                factors: Some(&factors),
                ..input
            };
            assert_eq!(run(dropped).dx, got.dx);
        }
    }
}
