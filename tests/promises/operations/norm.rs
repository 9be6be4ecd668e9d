//! LayerNorm, the sum with a branch before it, and the backward of both.
use nepa_model::step::device::{
    AddBranch, Branch, BranchGradient, Device, Norm, NormBackward, Region,
};

use super::{Bench, Left, Narrow, Random, Size, Wide};

/// One row, numbers of rows that no piece divides, widths that no warp divides, the widest.
const SIZES: [Size; 6] = [
    Size::new(1, 1, 4),
    Size::new(1, 7, 12),
    Size::new(5, 31, 132),
    Size::new(3, 43, 64),
    Size::new(2, 32, 384),
    Size::new(3, 1, 1024),
];

/// What scales a branch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales {
    pub(super) scale: bool,
    pub(super) factors: bool,
}

pub(super) const SCALES: [Scales; 4] = [
    Scales {
        scale: false,
        factors: false,
    },
    Scales {
        scale: true,
        factors: false,
    },
    Scales {
        scale: false,
        factors: true,
    },
    Scales {
        scale: true,
        factors: true,
    },
];

fn branch<D: Device>(bench: &mut Bench<D>, random: &mut Random, scales: Scales) -> Branch {
    let Size { images, width, .. } = bench.size;
    let (scale, factors) = (random.f32s(width, 0.5, 0.2), random.factors(images));
    Branch {
        scale: scales.scale.then(|| bench.reads("scale", Wide, scale)),
        factors: scales
            .factors
            .then(|| bench.reads("factors", Wide, factors)),
    }
}

/// Copies are wanted where they differ from `dx`.
pub(super) fn branch_gradient<D: Device>(
    bench: &mut Bench<D>,
    random: &mut Random,
    scales: Scales,
    dx: Region,
) -> BranchGradient {
    let size = bench.size;
    let of_branch = branch(bench, random, scales);
    let has_copy = D::HAS_NARROW || scales.factors;
    if !has_copy {
        bench.shares("factored", dx);
    }
    BranchGradient {
        branch: of_branch,
        factored: has_copy.then(|| bench.writes("factored", Narrow, size.values())),
        scaled: scales
            .scale
            .then(|| bench.writes("scaled", Narrow, size.values())),
        d_bias: bench.changes(
            "d_bias of the branch",
            Wide,
            random.f32s(size.width, 0.0, 1.0),
        ),
    }
}

fn norm<D: Device>(bench: &mut Bench<D>, random: &mut Random) -> Norm {
    let size = bench.size;
    Norm {
        weight: bench.reads("weight", Wide, random.f32s(size.width, 1.0, 0.3)),
        bias: bench.reads("bias", Wide, random.f32s(size.width, 0.0, 0.3)),
        normed: bench.writes("normed", Narrow, size.values()),
        mean: bench.writes("mean", Wide, size.rows()),
        rstd: bench.writes("rstd", Wide, size.rows()),
    }
}

pub(super) fn layer_norm<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for size in SIZES {
        let mut random = Random(1);
        let mut bench = Bench::new(device(), format!("layer_norm {size:?}"), size);
        let x = bench.reads("x", Wide, random.f32s(size.values(), 0.5, 1.5));
        let norm = norm(&mut bench, &mut random);
        bench.start();
        bench.device.layer_norm(&size.as_rows(), x, &norm).unwrap();
        bench.finish(&mut left);
    }
    left
}

pub(super) fn add_branch<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for size in SIZES {
        for scales in SCALES {
            for normed in [false, true] {
                let mut random = Random(2);
                let case = format!("add_branch {size:?} {scales:?}, norm: {normed}");
                let mut bench = Bench::new(device(), case, size);
                let args = AddBranch {
                    rows: size.as_rows(),
                    x: bench.reads("x", Wide, random.f32s(size.values(), 0.5, 1.0)),
                    y: bench.reads("y", Narrow, random.f32s(size.values(), 0.0, 2.0)),
                    branch: branch(&mut bench, &mut random, scales),
                    x_out: bench.writes("x_out", Wide, size.values()),
                    norm: normed.then(|| norm(&mut bench, &mut random)),
                };
                bench.start();
                bench.device.add_branch(&args).unwrap();
                bench.finish(&mut left);
            }
        }
    }
    left
}

pub(super) fn norm_backward<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for size in SIZES {
        let alone = std::iter::once(None);
        for added in alone.chain(SCALES.into_iter().map(Some)) {
            for again in [false, true] {
                let mut random = Random(3);
                let case = format!("norm_backward {size:?} {added:?}, again: {again}");
                let mut bench = Bench::new(device(), case, size);
                let (x, dx) = (
                    random.f32s(size.values(), 0.3, 1.0),
                    random.f32s(size.values(), 0.1, 1.0),
                );
                let d_normed = random.f32s(size.values(), 0.1, 1.0);
                let dx = bench.changes("dx", Wide, dx);
                let added =
                    added.map(|scales| branch_gradient(&mut bench, &mut random, scales, dx));
                let args = NormBackward {
                    rows: size.as_rows(),
                    x: bench.reads("x", Wide, x),
                    norm: norm(&mut bench, &mut random),
                    again,
                    d_normed: bench.uses_up("d_normed", Narrow, d_normed),
                    dx,
                    d_weight: bench.changes("d_weight", Wide, random.f32s(size.width, 0.0, 1.0)),
                    d_bias: bench.changes("d_bias", Wide, random.f32s(size.width, 0.0, 1.0)),
                    added,
                    partials: bench
                        .workspace("partials", D::partial_values(size.rows(), 3 * size.width)),
                };
                bench.start();
                let forward = bench.device.layer_norm(&args.rows, args.x, &args.norm);
                forward.unwrap();
                if again {
                    bench.spoil(args.norm.normed);
                }
                bench.device.norm_backward(&args).unwrap();
                bench.finish(&mut left);
            }
        }
    }
    left
}
