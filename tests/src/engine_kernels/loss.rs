//! The kernel of `loss.cu`. B images of T tokens, of which P predict, D values.
use nepa_model::cuda::arguments::Loss;

use super::norm::{Affine, copy_of};
use super::{Bf16, Launch, optional};

/// What the kernel reads.
#[derive(Debug, Clone, Copy)]
pub struct LossInput<'a> {
    /// `[B * T, D]`.
    pub x: &'a [f32],
    /// `[B * P, D]`.
    pub next: &'a [f32],
    /// `[B * T, D]`.
    pub current: &'a [f32],
    /// Of the final norm.
    pub affine: Affine<'a>,
    /// `[D]`, else 1.
    pub scale: Option<&'a [f32]>,
    /// `[B]`, else 1: of what was added last to each image's stream.
    pub factors: Option<&'a [f32]>,
    /// P.
    pub patches: usize,
    /// T.
    pub tokens: usize,
    /// Of the norm.
    pub eps: f32,
    /// Gradient of the loss by one cosine.
    pub factor: f32,
}

/// What the kernel leaves.
#[derive(Debug, PartialEq)]
pub struct LossGradients {
    /// `[B * T, D]`.
    pub dx: Vec<f32>,
    /// `[B * T, D]`.
    pub dx_bf16: Vec<Bf16>,
    /// `[B * T, D]`, empty without a scale.
    pub scaled_dx: Vec<Bf16>,
    /// `[pieces, 3, D]`.
    pub partials: Vec<f32>,
    /// `[pieces, 3]`.
    pub report: Vec<f32>,
}

/// `cosine_loss`.
pub fn cosine_loss(launch: Launch, input: LossInput<'_>, rows_per_piece: usize) -> LossGradients {
    let width = input.affine.weight.len();
    let len = input.x.len();
    let rows = len / width;
    assert_eq!(
        input.next.len(),
        rows / input.tokens * input.patches * width,
        "embeddings of other images"
    );
    let pieces = rows.div_ceil(rows_per_piece);
    let x = launch.input(input.x);
    let (weight, bias) = (
        launch.input(input.affine.weight),
        launch.input(input.affine.bias),
    );
    let (next, current) = (launch.input(input.next), launch.input(input.current));
    let scale = input.scale.map(|scale| launch.input(scale));
    let factors = input.factors.map(|factors| launch.input(factors));
    let mut dx = launch.output(len);
    let (mut dx_bf16, mut scaled_dx) = (launch.output(len), launch.output(len));
    let mut partials = launch.output(pieces * 3 * width);
    let mut report = launch.output(pieces * 3);
    let args = Loss {
        x: x.address(),
        weight: weight.address(),
        bias: bias.address(),
        next: next.address(),
        current: current.address(),
        scale: optional(scale.as_ref()),
        factors: optional(factors.as_ref()),
        dx: dx.address_mut(),
        dx_bf16: dx_bf16.address_mut(),
        scaled_dx: scaled_dx.address_mut(),
        partials: partials.address_mut(),
        report: report.address_mut(),
        rows: rows as u32,
        patches: input.patches as u32,
        tokens: input.tokens as u32,
        width: width as u32,
        rows_per_piece: rows_per_piece as u32,
        eps: input.eps,
        factor: input.factor,
    };
    launch.run(args.launch());
    LossGradients {
        dx: dx.written(),
        dx_bf16: dx_bf16.written(),
        scaled_dx: copy_of(scaled_dx, scale.is_some()),
        partials: partials.written(),
        report: report.written(),
    }
}
