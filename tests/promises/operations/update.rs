//! What comes after the backward pass: LayerScale's gradients, the gradient's norm, the update and
//! the narrow copies.
use nepa_model::step::adamw::{AdamW, AdamWSettings, Group, WeightGroup};
use nepa_model::step::device::{Arenas, Device, LayerScale};

use super::{Bench, Left, Narrow, Random, Size, Wide, numbers};

pub(super) fn layer_scale<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for (rows, columns) in [(1, 4), (5, 132), (132, 64), (3, 3072)] {
        let mut random = Random(43);
        let case = format!("layer_scale, {rows} x {columns}");
        let mut bench = Bench::new(device(), case, Size::new(1, 2, 64));
        let mut numbers = |len| random.f32s(len, 0.2, 1.0);
        let args = LayerScale {
            weight: bench.reads("weight", Wide, numbers(rows * columns)),
            d_weight: bench.changes("d_weight", Wide, numbers(rows * columns)),
            bias: bench.reads("bias", Wide, numbers(rows)),
            d_bias: bench.changes("d_bias", Wide, numbers(rows)),
            scale: bench.reads("scale", Wide, numbers(rows)),
            d_scale: bench.changes("d_scale", Wide, numbers(rows)),
            columns,
        };
        bench.start();
        bench.device.layer_scale(&args).unwrap();
        bench.finish(&mut left);
    }
    left
}

/// What becomes of the moving average.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Average {
    None,
    Starts,
    GoesOn,
}

/// Groups of so many weights each, every one with settings of its own; the fourth is frozen.
fn groups(lens: &[usize]) -> Vec<Group> {
    let mut end = 0;
    let group = |(number, len): (usize, &usize)| {
        end += len;
        Group {
            range: end - len..end,
            of: WeightGroup {
                weight_decay: 0.5 * (number % 3) as f64,
                rate: number % 2,
                frozen: number == 3,
            },
        }
    };
    lens.iter().enumerate().map(group).collect()
}

fn rule(average: Average) -> AdamW<'static> {
    let settings = AdamWSettings {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        average_decay: (average != Average::None).then_some(0.7),
    };
    AdamW::new(&settings, 3, &[0.02, 0.006], average == Average::GoesOn)
}

/// Weights, first and second moments.
fn state(random: &mut Random, len: usize) -> [Vec<f32>; 3] {
    let squares = random.f32s(len, 0.0, 0.5).into_iter().map(|v| v * v);
    let squares = squares.collect();
    [
        random.f32s(len, 0.0, 0.1),
        random.f32s(len, 0.0, 0.3),
        squares,
    ]
}

pub(super) fn adamw<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for lens in [&[1][..], &[5, 3, 1030, 7, 2001, 1, 1], &[40_000, 16]] {
        for average in [Average::None, Average::Starts, Average::GoesOn] {
            // No clipping; none, as the norm is less; clipping, and of what f32 cannot square.
            for (max_norm, scale) in [
                (None, 0.5),
                (Some(1e6), 0.5),
                (Some(0.1), 0.5),
                (Some(1.0), 1e25),
            ] {
                let mut random = Random(41);
                let case = format!("adamw {lens:?} {average:?}, to {max_norm:?} of {scale}");
                let mut bench = Bench::new(device(), case.clone(), Size::new(1, 2, 64));
                let len = lens.iter().sum();
                let [weights, m, v] = state(&mut random, len);
                let gradient = random.f32s(len, 0.0, scale);
                let before = random.f32s(len, 0.0, 0.1);
                let weights = bench.changes("weights", Wide, weights);
                let arenas = Arenas {
                    weights,
                    gradient: bench.reads("gradient", Wide, gradient),
                    m: bench.changes("m", Wide, m),
                    v: bench.changes("v", Wide, v),
                    average: match average {
                        Average::None => bench.reads("average", Wide, before),
                        Average::Starts => bench.writes("average", Wide, len),
                        Average::GoesOn => bench.changes("average", Wide, before),
                    },
                    narrow: if D::HAS_NARROW {
                        bench.writes("narrow", Narrow, len)
                    } else {
                        bench.shares("narrow", weights);
                        weights
                    },
                };
                bench.start();
                let norm = bench.device.gradient_norm(arenas.gradient, max_norm);
                let updated = bench.device.adamw(&arenas, &groups(lens), &rule(average));
                updated.unwrap();
                left.push(numbers(format!("{case}: norm"), vec![norm.unwrap()]));
                bench.finish(&mut left);
            }
        }
    }
    left
}

pub(super) fn where_the_norm_is_not_finite_nothing_changes<D: Device>(
    device: impl Fn() -> D,
) -> Vec<Left> {
    let mut left = Vec::new();
    let len = 40_001;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (place, average) in [
            (0, Average::None),
            (20_000, Average::Starts),
            (len - 1, Average::GoesOn),
        ] {
            let mut random = Random(42);
            let case = format!("adamw with {bad} at {place}");
            let mut bench = Bench::new(device(), case, Size::new(1, 2, 64));
            let [weights, m, v] = state(&mut random, len);
            let mut gradient = random.f32s(len, 0.0, 1.0);
            gradient[place] = bad;
            let (before, copies) = (random.f32s(len, 0.0, 0.1), random.f32s(len, 0.0, 0.1));
            let weights = bench.reads("weights", Wide, weights);
            let arenas = Arenas {
                weights,
                gradient: bench.reads("gradient", Wide, gradient),
                m: bench.reads("m", Wide, m),
                v: bench.reads("v", Wide, v),
                average: bench.reads("average", Wide, before),
                narrow: if D::HAS_NARROW {
                    bench.reads("narrow", Narrow, copies)
                } else {
                    weights
                },
            };
            bench.start();
            let norm = bench.device.gradient_norm(arenas.gradient, Some(1.0));
            assert!(!norm.unwrap().is_finite(), "with {bad}");
            let groups = groups(&[len]);
            bench
                .device
                .adamw(&arenas, &groups, &rule(average))
                .unwrap();
            bench.finish(&mut left);
        }
    }
    left
}

pub(super) fn narrow<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for len in [1, 7, 2048, 5003] {
        let mut bench = Bench::new(device(), format!("narrow {len}"), Size::new(1, 2, 64));
        let wide = bench.reads("wide", Wide, Random(45).f32s(len, 0.0, 1.0));
        let narrow = if D::HAS_NARROW {
            bench.writes("narrow", Narrow, len)
        } else {
            bench.shares("narrow", wide);
            wide
        };
        bench.start();
        bench.device.narrow(wide, narrow).unwrap();
        bench.finish(&mut left);
    }
    left
}

pub(super) fn add<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for len in [1, 7, 2048, 40_005] {
        let mut bench = Bench::new(device(), format!("add {len}"), Size::new(1, 2, 64));
        let mut random = Random(46);
        let sums = bench.changes("sums", Wide, random.f32s(len, 0.5, 1.0));
        let values = bench.reads("values", Wide, random.f32s(len, 0.5, 1.0));
        bench.start();
        bench.device.add(sums, values).unwrap();
        bench.finish(&mut left);
    }
    left
}
