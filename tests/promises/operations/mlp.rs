//! The activation of an MLP, plain and gated.
use nepa_model::HiddenAct;
use nepa_model::step::device::{Activation, ActivationBackward, Device};

use super::{Bench, Left, Narrow, Random, Size, Wide};

/// Rows and width of the result.
const SIZES: [(usize, usize); 4] = [(1, 8), (67, 24), (150, 264), (9, 3072)];

/// Which, and whether there is a gate.
fn kinds() -> impl Iterator<Item = (HiddenAct, bool)> {
    let acts = [HiddenAct::Gelu, HiddenAct::Silu, HiddenAct::Relu];
    acts.into_iter()
        .flat_map(|act| [false, true].map(|gated| (act, gated)))
}

/// Normal ones, and in front what is far out, zero and small.
fn inputs(random: &mut Random, len: usize) -> Vec<f32> {
    let edges = [0.0, -0.0, 1e-6, -30.0, 30.0, -4.1, 3.0, -0.7];
    let mut values = random.f32s(len, 0.0, 1.5);
    values[..edges.len()].copy_from_slice(&edges);
    values
}

fn bench<D: Device>(
    device: D,
    name: &str,
    (rows, width): (usize, usize),
    (act, gated): (HiddenAct, bool),
) -> (Bench<D>, usize) {
    let case = format!("{name}, {rows} x {width}, {act:?}, gated: {gated}");
    let columns = width * if gated { 2 } else { 1 };
    (Bench::new(device, case, Size::new(1, rows, width)), columns)
}

pub(super) fn activation<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for (act, gated) in kinds() {
        for (rows, width) in SIZES {
            let mut random = Random(11);
            let (mut bench, columns) = bench(device(), "activation", (rows, width), (act, gated));
            let args = Activation {
                rows,
                width,
                gated,
                act,
                x: bench.reads("x", Narrow, inputs(&mut random, rows * columns)),
                result: bench.writes("result", Narrow, rows * width),
            };
            bench.start();
            bench.device.activation(&args).unwrap();
            bench.finish(&mut left);
        }
    }
    left
}

pub(super) fn activation_backward<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for (act, gated) in kinds() {
        for (rows, width) in SIZES {
            for again in [false, true] {
                let mut random = Random(12);
                let name = format!("activation_backward, again: {again}");
                let (mut bench, columns) = bench(device(), &name, (rows, width), (act, gated));
                let x = inputs(&mut random, rows * columns);
                let d_result = random.f32s(rows * width, 0.1, 1.0);
                let args = ActivationBackward {
                    forward: Activation {
                        rows,
                        width,
                        gated,
                        act,
                        x: bench.reads("x", Narrow, x),
                        result: bench.writes("result", Narrow, rows * width),
                    },
                    again,
                    d_result: bench.reads("d_result", Narrow, d_result),
                    dx: bench.writes("dx", Narrow, rows * columns),
                    d_bias: bench.changes("d_bias", Wide, random.f32s(columns, 0.0, 1.0)),
                    partials: bench.workspace("partials", D::partial_values(rows, columns)),
                };
                bench.start();
                if !again {
                    bench.device.activation(&args.forward).unwrap();
                }
                bench.device.activation_backward(&args).unwrap();
                bench.finish(&mut left);
            }
        }
    }
    left
}
