//! The final norm, the cosine loss and its gradient.
use nepa_model::step::device::{CosineLoss, Device};

use super::norm::{SCALES, branch_gradient};
use super::{Bench, Left, Random, Size, Wide, numbers};

/// Images, patches, width.
const SIZES: [(usize, usize, usize); 5] = [
    (1, 1, 8),
    (3, 5, 12),
    (5, 31, 132),
    (1, 16, 768),
    (2, 3, 1024),
];

pub(super) fn cosine_loss<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for (images, patches, width) in SIZES {
        for tokens in [patches, patches + 1] {
            let size = Size::new(images, tokens, width);
            // Without blocks no branch was added, and what goes in is what comes out.
            let alone = std::iter::once(None);
            for added in alone.chain(SCALES.into_iter().map(Some)) {
                let mut random = Random(32);
                let case = format!("cosine_loss of {patches} patches, {size:?} {added:?}");
                let mut bench = Bench::new(device(), case.clone(), size);
                let x = random.f32s(size.values(), 0.3, 1.0);
                // Somewhat like what is predicted, as in training.
                let mut next = random.f32s(images * patches * width, 0.0, 1.0);
                let of_image = next.chunks_exact_mut(patches * width);
                for (next, x) in of_image.zip(x.chunks_exact(tokens * width)) {
                    for (next, x) in next.iter_mut().zip(x) {
                        *next = 0.02 * (*next + *x);
                    }
                }
                let current = random.f32s(size.values(), 0.0, 0.02);
                let x = bench.reads("x", Wide, x);
                let dx = bench.writes("dx", Wide, size.values());
                let args = CosineLoss {
                    rows: size.as_rows(),
                    patches,
                    x,
                    weight: bench.reads("weight", Wide, random.f32s(width, 1.0, 0.3)),
                    bias: bench.reads("bias", Wide, random.f32s(width, 0.0, 0.3)),
                    next: bench.reads("next", Wide, next),
                    current: if added.is_some() {
                        bench.reads("current", Wide, current)
                    } else {
                        x
                    },
                    factor: -1.0 / (images * patches) as f64,
                    dx,
                    d_weight: bench.changes("d_weight", Wide, random.f32s(width, 0.0, 0.1)),
                    d_bias: bench.changes("d_bias", Wide, random.f32s(width, 0.0, 0.1)),
                    added: added.map(|scales| branch_gradient(&mut bench, &mut random, scales, dx)),
                    partials: bench
                        .workspace("partials", D::partial_values(size.rows(), 3 * width)),
                };
                bench.start();
                bench.device.cosine_loss(&args).unwrap();
                let [next, current, wins] = bench.device.cosine_sums().unwrap();
                left.push(numbers(format!("{case}: cosines"), vec![next, current]));
                left.push(numbers(format!("{case}: wins"), vec![wins]));
                bench.finish(&mut left);
            }
        }
    }
    left
}
