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

/// What has no length, or less than the least by which a vector is divided.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Short {
    Target,
    Input,
    /// All values of a row are one, so it is normalised to zeros.
    Prediction,
    /// It has one, but less than the least.
    Predictions,
}

pub(super) fn where_vectors_have_no_length<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    let (patches, width) = (5, 132);
    for short in [
        Short::Target,
        Short::Input,
        Short::Prediction,
        Short::Predictions,
    ] {
        for tokens in [patches, patches + 1] {
            let size = Size::new(3, tokens, width);
            let mut random = Random(34);
            let case = format!("cosine_loss of {size:?} with a short {short:?}");
            let mut bench = Bench::new(device(), case.clone(), size);
            let mut x = random.f32s(size.values(), 0.3, 1.0);
            let mut next = random.f32s(3 * patches * width, 0.0, 0.02);
            let mut current = random.f32s(size.values(), 0.0, 0.02);
            let mut weight = random.f32s(width, 1.0, 0.3);
            let mut bias = random.f32s(width, 0.0, 0.3);
            match short {
                Short::Target => next[2 * width..3 * width].fill(0.0),
                Short::Input => current[width..2 * width].fill(0.0),
                Short::Prediction => {
                    x[tokens * width..(tokens + 1) * width].fill(0.5);
                    bias.fill(0.0);
                }
                Short::Predictions => {
                    for weight in &mut weight {
                        *weight *= 1e-14;
                    }
                    bias.fill(0.0);
                }
            }
            let dx = bench.writes("dx", Wide, size.values());
            let args = CosineLoss {
                rows: size.as_rows(),
                patches,
                x: bench.reads("x", Wide, x),
                weight: bench.reads("weight", Wide, weight),
                bias: bench.reads("bias", Wide, bias),
                next: bench.reads("next", Wide, next),
                current: bench.reads("current", Wide, current),
                factor: -1.0 / (3 * patches) as f64,
                dx,
                d_weight: bench.changes("d_weight", Wide, vec![0.0; width]),
                d_bias: bench.changes("d_bias", Wide, vec![0.0; width]),
                added: Some(branch_gradient(&mut bench, &mut random, SCALES[3], dx)),
                partials: bench.workspace("partials", D::partial_values(size.rows(), 3 * width)),
            };
            bench.start();
            bench.device.cosine_loss(&args).unwrap();
            let [next, current, wins] = bench.device.cosine_sums().unwrap();
            left.push(numbers(format!("{case}: cosines"), vec![next, current]));
            left.push(numbers(format!("{case}: wins"), vec![wins]));
            bench.finish(&mut left);
        }
    }
    left
}

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
