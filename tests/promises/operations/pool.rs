//! What a classifier takes of the stream, and the gradient of that.
use nepa_model::step::device::{Device, Pool, PoolBackward};

use super::norm::{SCALES, branch_gradient};
use super::{Bench, Left, Random, Size, Wide};

/// One token, numbers of tokens that no block of rows divides, the widest.
const SIZES: [Size; 6] = [
    Size::new(1, 1, 4),
    Size::new(3, 2, 12),
    Size::new(5, 32, 132),
    Size::new(2, 129, 64),
    Size::new(1, 17, 768),
    Size::new(2, 5, 1024),
];

/// The last token; all but the class token; all.
fn taken(size: Size) -> Vec<usize> {
    let mut taken = vec![1, size.tokens.max(2) - 1, size.tokens];
    taken.dedup();
    taken
}

pub(super) fn pool<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for size in SIZES {
        for taken in taken(size) {
            let mut random = Random(51);
            let case = format!("pool the last {taken} of {size:?}");
            let mut bench = Bench::new(device(), case, size);
            let args = Pool {
                rows: size.as_rows(),
                taken,
                x: bench.reads("x", Wide, random.f32s(size.values(), 0.4, 1.0)),
                weight: bench.reads("weight", Wide, random.f32s(size.width, 1.0, 0.3)),
                bias: bench.reads("bias", Wide, random.f32s(size.width, 0.2, 0.3)),
                pooled: bench.writes("pooled", Wide, size.images * size.width),
            };
            bench.start();
            bench.device.pool(&args).unwrap();
            bench.finish(&mut left);
        }
    }
    left
}

pub(super) fn pool_backward<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for size in SIZES {
        for taken in taken(size) {
            // Without blocks no branch was added.
            let alone = std::iter::once(None);
            for added in alone.chain(SCALES.into_iter().map(Some)) {
                let mut random = Random(52);
                let case = format!("pool_backward of the last {taken} of {size:?} {added:?}");
                let mut bench = Bench::new(device(), case, size);
                let of_images = size.images * size.width;
                let dx = bench.writes("dx", Wide, size.values());
                let args = PoolBackward {
                    rows: size.as_rows(),
                    taken,
                    x: bench.reads("x", Wide, random.f32s(size.values(), 0.4, 1.0)),
                    weight: bench.reads("weight", Wide, random.f32s(size.width, 1.0, 0.3)),
                    d_pooled: bench.reads("d_pooled", Wide, random.f32s(of_images, 0.1, 1.0)),
                    dx,
                    d_weight: bench.changes("d_weight", Wide, random.f32s(size.width, 0.0, 0.1)),
                    d_bias: bench.changes("d_bias", Wide, random.f32s(size.width, 0.0, 0.1)),
                    added: added.map(|scales| branch_gradient(&mut bench, &mut random, scales, dx)),
                    partials: bench
                        .workspace("partials", D::partial_values(size.rows(), 3 * size.width)),
                };
                bench.start();
                bench.device.pool_backward(&args).unwrap();
                bench.finish(&mut left);
            }
        }
    }
    left
}
