//! The kernel of `loss.cu`. B images of T tokens, of which P predict, D values.
use super::norm::Affine;
use super::{Bf16, Launch, optional};

/// Mirror of `Loss`.
#[repr(C)]
#[derive(Debug)]
struct Loss {
    x: *const f32,
    weight: *const f32,
    bias: *const f32,
    next: *const f32,
    current: *const f32,
    scale: *const f32,
    dx: *mut f32,
    dx_bf16: *mut Bf16,
    scaled_dx: *mut Bf16,
    partials: *mut f32,
    report: *mut f32,
    rows: u32,
    patches: u32,
    tokens: u32,
    width: u32,
    rows_per_piece: u32,
    eps: f32,
    factor: f32,
}
const _: () = assert!(size_of::<Loss>() == 120);

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
    /// `[D]`.
    pub scale: Option<&'a [f32]>,
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
    /// `[B * T, D]`.
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
    let mut dx = launch.output(len);
    let (mut dx_bf16, mut scaled_dx) = (launch.output(len), launch.output(len));
    let mut partials = launch.output(pieces * 3 * width);
    let mut report = launch.output(pieces * 3);
    let args = Loss {
        x: x.as_ptr(),
        weight: weight.as_ptr(),
        bias: bias.as_ptr(),
        next: next.as_ptr(),
        current: current.as_ptr(),
        scale: optional(scale.as_ref()),
        dx: dx.as_mut_ptr(),
        dx_bf16: dx_bf16.as_mut_ptr(),
        scaled_dx: scaled_dx.as_mut_ptr(),
        partials: partials.as_mut_ptr(),
        report: report.as_mut_ptr(),
        rows: rows as u32,
        patches: input.patches as u32,
        tokens: input.tokens as u32,
        width: width as u32,
        rows_per_piece: rows_per_piece as u32,
        eps: input.eps,
        factor: input.factor,
    };
    // SAFETY: all memory is as large as the kernel's file says for these images, tokens, this width and these pieces.
    unsafe { ffi::engine_shim_cosine_loss(&raw const args, launch.backward()) };
    LossGradients {
        dx: dx.written(),
        dx_bf16: dx_bf16.written(),
        scaled_dx: scaled_dx.written(),
        partials: partials.written(),
        report: report.written(),
    }
}

mod ffi {
    use super::Loss;

    unsafe extern "C" {
        pub(super) fn engine_shim_cosine_loss(args: *const Loss, backward: bool);
    }
}
