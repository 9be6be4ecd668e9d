//! Attention with what belongs to it, and its backward.
use nepa_model::step::device::{Attention, AttentionBackward, Device, Region};

use super::{Bench, EPS, Left, Narrow, Random, Size, Wide};

const HEAD: usize = 64;

/// Of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Norms {
    None,
    Plain,
    Weight,
    Affine,
}

/// Images, tokens, heads; causal; norms; a table an image; a bias.
type Case = ((usize, usize, usize), bool, Norms, bool, bool);

const CASES: [Case; 14] = [
    ((1, 1, 1), true, Norms::Plain, false, true),
    ((2, 1, 2), false, Norms::Affine, false, true),
    ((2, 5, 3), true, Norms::Weight, false, true),
    ((3, 5, 2), true, Norms::None, true, false),
    ((1, 16, 1), false, Norms::None, false, true),
    ((2, 17, 2), true, Norms::Affine, false, false),
    ((2, 17, 2), false, Norms::Affine, true, true),
    ((3, 20, 1), false, Norms::Weight, true, true),
    ((2, 33, 1), true, Norms::Plain, true, true),
    ((1, 65, 1), true, Norms::None, false, true),
    ((1, 100, 2), false, Norms::Plain, false, false),
    ((1, 130, 1), true, Norms::Affine, false, true),
    ((1, 257, 1), false, Norms::Weight, false, true),
    // The longest.
    ((1, 512, 1), true, Norms::None, false, true),
];

/// Weight and bias of the query's norm, then of the key's.
fn head_norms(
    norms: Norms,
    mut region: impl FnMut(&'static str, f64) -> Region,
) -> [Option<Region>; 4] {
    let weights = matches!(norms, Norms::Weight | Norms::Affine);
    let biases = norms == Norms::Affine;
    [
        weights.then(|| region("query weight", 1.0)),
        biases.then(|| region("query bias", 0.0)),
        weights.then(|| region("key weight", 1.0)),
        biases.then(|| region("key bias", 0.0)),
    ]
}

/// A bench for a case, what goes forward on it, and whether `qkv` has a bias.
fn bench<D: Device>(
    device: D,
    number: usize,
    random: &mut Random,
) -> (Bench<D>, Attention, Norms, bool) {
    let ((images, tokens, heads), causal, norms, table_per_image, bias) = CASES[number];
    let size = Size {
        heads,
        ..Size::new(images, tokens, heads * HEAD)
    };
    let case = format!("attention {:?}", CASES[number]);
    let mut bench = Bench::new(device, case, size);
    bench.rounds_within = true;
    let tables = if table_per_image { images } else { 1 };
    let angles = random.f32s(tables * tokens * HEAD / 2, 0.0, 2.0);
    let table = |function: fn(f32) -> f32| angles.iter().map(|angle| function(*angle)).collect();
    let forward = Attention {
        images,
        tokens,
        heads,
        head_size: HEAD,
        causal,
        qk_norm: norms != Norms::None,
        eps: EPS,
        head_norms: head_norms(norms, |name, mean| {
            bench.reads(name, Wide, random.f32s(HEAD, mean, 0.3))
        }),
        rotary: [
            bench.reads("cosines", Wide, table(f32::cos)),
            bench.reads("sines", Wide, table(f32::sin)),
        ],
        table_per_image,
        qkv: bench.reads("qkv", Narrow, random.f32s(3 * size.values(), 0.0, 1.0)),
        out: bench.writes("out", Narrow, size.values()),
        softmax: bench.workspace("softmax", D::SOFTMAX_VALUES * size.rows() * heads),
    };
    (bench, forward, norms, bias)
}

pub(super) fn attention<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for number in 0..CASES.len() {
        let (mut bench, forward, ..) = bench(device(), number, &mut Random(62));
        bench.start();
        bench.device.attention(&forward).unwrap();
        bench.finish(&mut left);
    }
    left
}

pub(super) fn attention_backward<D: Device>(device: impl Fn() -> D) -> Vec<Left> {
    let mut left = Vec::new();
    for number in 0..CASES.len() {
        let mut random = Random(63);
        let (mut bench, forward, norms, bias) = bench(device(), number, &mut random);
        let size = bench.size;
        let (d_out, d_bias) = (
            random.f32s(size.values(), 0.0, 1.0),
            random.f32s(3 * size.width, 0.0, 1.0),
        );
        let args = AttentionBackward {
            forward,
            d_out: bench.reads("d_out", Narrow, d_out),
            d_qkv: bench.writes("d_qkv", Narrow, 3 * size.values()),
            d_qkv_bias: bias.then(|| bench.changes("d_bias", Wide, d_bias)),
            d_head_norms: head_norms(norms, |name, mean| {
                bench.changes(name, Wide, random.f32s(HEAD, mean, 0.3))
            }),
            partials: bench.workspace(
                "partials",
                D::attention_partial_values(size.images, size.heads, HEAD),
            ),
        };
        bench.start();
        bench.device.attention(&args.forward).unwrap();
        bench.device.attention_backward(&args).unwrap();
        bench.finish(&mut left);
    }
    left
}
