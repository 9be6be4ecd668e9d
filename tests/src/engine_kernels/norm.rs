//! The kernels of `norm.cu`.
use nepa_model::cuda::arguments::{AddPartials, NormBackward, NormForward};

use super::{Bf16, Launch, Memory, optional, optional_mut};

/// Weight and bias of a norm.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// `[D]`.
    pub weight: &'a [f32],
    /// `[D]`.
    pub bias: &'a [f32],
}

/// By what the output of a block is multiplied before it is added to the stream.
#[derive(Debug, Clone, Copy, Default)]
pub struct Branch<'a> {
    /// `[D]`, else 1.
    pub scale: Option<&'a [f32]>,
    /// One an image, else 1.
    pub factors: Option<&'a [f32]>,
    /// Rows of an image.
    pub tokens: usize,
}

/// What is left of a copy that a kernel writes, or of one that it must leave alone: nothing.
pub(super) fn copy_of(memory: Memory<Bf16>, written: bool) -> Vec<Bf16> {
    if written {
        return memory.written();
    }
    memory.left_alone();
    Vec::new()
}

/// What a norm's forward pass leaves.
#[derive(Debug, PartialEq)]
pub struct Normed {
    /// `[N, D]`.
    pub h: Vec<Bf16>,
    /// `[N]`.
    pub mean: Vec<f32>,
    /// `[N]`.
    pub rstd: Vec<f32>,
}

/// `layer_norm_forward`.
pub fn layer_norm_forward(launch: Launch, x: &[f32], affine: Affine<'_>, eps: f32) -> Normed {
    let width = affine.weight.len();
    let rows = x.len() / width;
    let (x, weight, bias) = (
        launch.input(x),
        launch.input(affine.weight),
        launch.input(affine.bias),
    );
    let (mut h, mut mean, mut rstd) = (
        launch.output(rows * width),
        launch.output(rows),
        launch.output(rows),
    );
    let args = NormForward {
        x: x.address(),
        weight: weight.address(),
        bias: bias.address(),
        h: h.address_mut(),
        mean: mean.address_mut(),
        rstd: rstd.address_mut(),
        rows: rows as u32,
        width: width as u32,
        eps,
        ..NormForward::default()
    };
    launch.run(args.launch());
    Normed {
        h: h.written(),
        mean: mean.written(),
        rstd: rstd.written(),
    }
}

/// `residual_norm_forward`: the new stream, and its norm if there is one. In place, the stream is overwritten.
#[expect(
    clippy::too_many_arguments,
    reason = "one call with the kernel's arguments"
)]
pub fn residual_norm_forward(
    launch: Launch,
    x: &[f32],
    y: &[Bf16],
    branch: Branch<'_>,
    affine: Option<Affine<'_>>,
    width: usize,
    eps: f32,
    in_place: bool,
) -> (Vec<f32>, Option<Normed>) {
    let rows = x.len() / width;
    let y = launch.input(y);
    let scale = branch.scale.map(|scale| launch.input(scale));
    let factors = branch.factors.map(|factors| launch.input(factors));
    let weight = affine.map(|affine| launch.input(affine.weight));
    let bias = affine.map(|affine| launch.input(affine.bias));
    let mut h = affine.map(|_| launch.output(rows * width));
    let mut mean = affine.map(|_| launch.output(rows));
    let mut rstd = affine.map(|_| launch.output(rows));
    let separate = (!in_place).then(|| launch.input(x));
    let mut x_out = if in_place {
        launch.changed(x)
    } else {
        launch.output(x.len())
    };
    let args = NormForward {
        x: separate
            .as_ref()
            .map_or(x_out.address(), super::Input::address),
        y: y.address(),
        scale: optional(scale.as_ref()),
        factors: optional(factors.as_ref()),
        x_out: x_out.address_mut(),
        weight: optional(weight.as_ref()),
        bias: optional(bias.as_ref()),
        h: optional_mut(h.as_mut()),
        mean: optional_mut(mean.as_mut()),
        rstd: optional_mut(rstd.as_mut()),
        rows: rows as u32,
        width: width as u32,
        tokens: branch.tokens as u32,
        eps,
    };
    launch.run(args.launch());
    let normed = match (h, mean, rstd) {
        (Some(h), Some(mean), Some(rstd)) => Some(Normed {
            h: h.written(),
            mean: mean.written(),
            rstd: rstd.written(),
        }),
        _ => None,
    };
    (x_out.written(), normed)
}

/// What `layer_norm_backward` reads beside the gradients.
#[derive(Debug, Clone, Copy)]
pub struct NormInput<'a> {
    /// `[N, D]`.
    pub x: &'a [f32],
    /// `[N]`.
    pub mean: &'a [f32],
    /// `[N]`.
    pub rstd: &'a [f32],
    /// `[D]`.
    pub weight: &'a [f32],
}

/// What `layer_norm_backward` leaves.
#[derive(Debug, PartialEq)]
pub struct NormGradients {
    /// `[N, D]`.
    pub dx: Vec<f32>,
    /// `[N, D]`.
    pub dx_bf16: Vec<Bf16>,
    /// `[N, D]`, empty without a scale.
    pub scaled_dx: Vec<Bf16>,
    /// `[pieces, 3, D]`.
    pub partials: Vec<f32>,
}

/// `layer_norm_backward`; without `copies` no bf16 is written.
pub fn layer_norm_backward(
    launch: Launch,
    dh: &[Bf16],
    input: NormInput<'_>,
    dx: &[f32],
    branch: Branch<'_>,
    copies: bool,
    rows_per_piece: usize,
) -> NormGradients {
    let width = input.weight.len();
    let rows = dx.len() / width;
    let pieces = rows.div_ceil(rows_per_piece);
    let dh = launch.input(dh);
    let (x, mean, rstd, weight) = (
        launch.input(input.x),
        launch.input(input.mean),
        launch.input(input.rstd),
        launch.input(input.weight),
    );
    let scale = branch.scale.map(|scale| launch.input(scale));
    let factors = branch.factors.map(|factors| launch.input(factors));
    let mut dx = launch.changed(dx);
    let mut dx_bf16 = copies.then(|| launch.output(rows * width));
    let mut scaled_dx = copies.then(|| launch.output(rows * width));
    let mut partials = launch.output(pieces * 3 * width);
    let args = NormBackward {
        dh: dh.address(),
        x: x.address(),
        mean: mean.address(),
        rstd: rstd.address(),
        weight: weight.address(),
        scale: optional(scale.as_ref()),
        factors: optional(factors.as_ref()),
        dx: dx.address_mut(),
        dx_bf16: optional_mut(dx_bf16.as_mut()),
        scaled_dx: optional_mut(scaled_dx.as_mut()),
        partials: partials.address_mut(),
        rows: rows as u32,
        width: width as u32,
        rows_per_piece: rows_per_piece as u32,
        tokens: branch.tokens as u32,
    };
    launch.run(args.launch());
    NormGradients {
        dx: dx.written(),
        dx_bf16: dx_bf16.map_or_else(Vec::new, Memory::written),
        scaled_dx: scaled_dx.map_or_else(Vec::new, |memory| copy_of(memory, scale.is_some())),
        partials: partials.written(),
    }
}

/// `add_partials`: pieces lie `stride` values apart; outputs that are `None` are left out.
pub fn add_partials(
    launch: Launch,
    partials: &[f32],
    stride: usize,
    pieces: usize,
    out: &[Option<&[f32]>],
) -> Vec<Option<Vec<f32>>> {
    let width = out
        .iter()
        .flatten()
        .next()
        .expect("an output is wanted")
        .len();
    assert!(
        partials.len() >= (pieces - 1) * stride + out.len() * width,
        "too few partial sums"
    );
    let partials = launch.input(partials);
    let mut memory: Vec<_> = out
        .iter()
        .map(|out| out.map(|out| launch.changed(out)))
        .collect();
    let mut pointers = [0; 4];
    for (pointer, memory) in pointers.iter_mut().zip(&mut memory) {
        *pointer = optional_mut(memory.as_mut());
    }
    let args = AddPartials {
        partials: partials.address(),
        out: pointers,
        stride: stride as u64,
        pieces: pieces as u32,
        width: width as u32,
        outputs: out.len() as u32,
    };
    launch.run(args.launch());
    memory
        .into_iter()
        .map(|memory| memory.map(Memory::written))
        .collect()
}
