//! Pixels to patches, embeddings to the stream and back.
use candle_core::WithDType;
use nepa_model::step::device::{Assemble, Device, Disassemble, Patchify, Region, Tokens};

use super::{Bench, Left, Narrow, Random, Size, Wide};

pub(super) fn patchify<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    // Images, grid, side of a patch, values of a row.
    for (images, grid, patch, columns) in [
        (1, [2, 2], 1, 8),
        (3, [3, 5], 2, 16),
        (2, [2, 3], 4, 48),
        (2, [1, 3], 14, 592),
    ] {
        let mut random = Random(21);
        let case = format!("patchify, {images} x {grid:?} of {patch}");
        let mut bench = Bench::new(device(), case, Size::new(images, 2, 64));
        let [height, width] = grid.map(|patches| patches * patch);
        let pixels = 3 * height * width;
        let mut image = || -> Vec<D::Wide> {
            let values = random.f32s(pixels, 0.0, 1.0).into_iter();
            values.map(|v| WithDType::from_f64(f64::from(v))).collect()
        };
        let all: Vec<_> = (0..images).map(|_| image()).collect();
        let slices: Vec<&[D::Wide]> = all.iter().map(Vec::as_slice).collect();
        let staged = if D::STAGES_PIXELS {
            bench.workspace("pixels", images * pixels)
        } else {
            Region::default()
        };
        let args = Patchify {
            patches: bench.writes("patches", Narrow, images * grid[0] * grid[1] * columns),
            images,
            channels: 3,
            grid,
            patch,
            columns,
        };
        bench.start();
        let pixels = bench.device.stage(&slices, staged).unwrap();
        bench.device.patchify(pixels, &args).unwrap();
        bench.finish(&mut left);
    }
    left
}

/// Images, patches, tokens, width, and whether which patches are kept is said.
const TOKENS: [(usize, usize, usize, usize, bool); 9] = [
    (2, 1, 1, 8, false),
    (2, 1, 2, 8, false),
    (3, 5, 5, 24, false),
    (3, 5, 6, 24, false),
    (9, 16, 16, 264, false),
    (9, 16, 17, 264, false),
    (3, 5, 3, 24, true),
    (9, 16, 5, 264, true),
    // All of them, but in another order.
    (2, 70, 71, 8, true),
];

/// All patches or the first ones, or of each image others in any order.
fn tokens<D: Device>(
    bench: &mut Bench<D>,
    random: &mut Random,
    patches: usize,
    choice: bool,
) -> Tokens {
    let Size {
        images,
        tokens,
        width,
        ..
    } = bench.size;
    let kept = choice.then(|| {
        let (mut to_patch, mut to_token) = (Vec::new(), vec![0; images * patches]);
        for image in 0..images {
            let kept = &random.order(patches as u32)[..tokens - 1];
            for (token, patch) in (1..).zip(kept) {
                to_token[image * patches + *patch as usize] = token;
            }
            to_patch.extend(kept);
        }
        [
            bench.reads_indices("kept", to_patch),
            bench.reads_indices("tokens", to_token),
        ]
    });
    Tokens {
        images,
        patches,
        tokens,
        width,
        kept,
    }
}

pub(super) fn assemble<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for sizes in TOKENS {
        let (images, patches, num_tokens, width, choice) = sizes;
        let mut random = Random(22);
        let size = Size::new(images, num_tokens, width);
        let mut bench = Bench::new(device(), format!("assemble {sizes:?}"), size);
        let embedding = random.f32s(images * patches * width, 0.0, 1.0);
        let args = Assemble {
            tokens: tokens(&mut bench, &mut random, patches, choice),
            embedding: bench.reads("embedding", Wide, embedding),
            class_token: bench.reads("class token", Wide, random.f32s(width, 0.0, 1.0)),
            x: bench.writes("x", Wide, size.values()),
        };
        bench.start();
        bench.device.assemble(&args).unwrap();
        bench.finish(&mut left);
    }
    left
}

pub(super) fn disassemble<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for sizes in TOKENS {
        let (images, patches, num_tokens, width, choice) = sizes;
        let mut random = Random(23);
        let size = Size::new(images, num_tokens, width);
        let mut bench = Bench::new(device(), format!("disassemble {sizes:?}"), size);
        let args = Disassemble {
            tokens: tokens(&mut bench, &mut random, patches, choice),
            dx: bench.reads("dx", Wide, random.f32s(size.values(), 0.1, 1.0)),
            d_embedding: bench.writes("d_embedding", Narrow, images * patches * width),
            d_class_token: bench.changes("d_class_token", Wide, random.f32s(width, 0.0, 1.0)),
            d_bias: bench.changes("d_bias", Wide, random.f32s(width, 0.0, 1.0)),
            partials: bench.workspace("partials", D::partial_values(images * patches, width)),
        };
        bench.start();
        bench.device.disassemble(&args).unwrap();
        bench.finish(&mut left);
    }
    left
}
