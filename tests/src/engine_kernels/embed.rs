//! The kernels of `embed.cu`. B images of H x W pixels, P patches of side p, T tokens, D values.
use nepa_model::cuda::arguments::{Assemble, Disassemble, Patchify};

use super::{Bf16, Launch, Plain, optional};

/// How pixels lie; the numbers are the kernels'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Layout {
    /// `[B, 3, H, W]`.
    Nchw = 0,
    /// `[B, P, 3 * p * p]`.
    Patches = 1,
}

/// `patchify_f32` or `patchify_bf16`, as the pixels are: `[B * P, columns]`. The size is height,
/// width and that of a patch.
pub fn patchify<T: Plain>(
    launch: Launch,
    layout: Layout,
    pixels: &[T],
    (height, width, patch): (usize, usize, usize),
    columns: usize,
) -> Vec<Bf16> {
    let batch = pixels.len() / (3 * height * width);
    let patches = (height / patch) * (width / patch);
    let pixels = launch.input(pixels);
    let mut result = launch.output(batch * patches * columns);
    let args = Patchify {
        pixels: pixels.address(),
        patches: result.address_mut(),
        batch: batch as u32,
        height: height as u32,
        width: width as u32,
        patch: patch as u32,
        columns: columns as u32,
        layout: layout as u32,
    };
    launch.run(args.launch(size_of::<T>() == 2));
    result.written()
}

/// `assemble`: `[B * T, D]`. Kept patches are `[B, T - 1]`, else they come in order.
pub fn assemble(
    launch: Launch,
    embedding: &[f32],
    class_token: &[f32],
    patches: usize,
    tokens: usize,
    kept: Option<&[u32]>,
) -> Vec<f32> {
    let width = class_token.len();
    let batch = embedding.len() / (patches * width);
    let (embedding, class_token) = (launch.input(embedding), launch.input(class_token));
    let kept = kept.map(|kept| launch.input(kept));
    let mut x = launch.output(batch * tokens * width);
    let args = Assemble {
        embedding: embedding.address(),
        class_token: class_token.address(),
        kept: optional(kept.as_ref()),
        x: x.address_mut(),
        batch: batch as u32,
        patches: patches as u32,
        tokens: tokens as u32,
        width: width as u32,
    };
    launch.run(args.launch());
    x.written()
}

/// `disassemble`: the embedding's gradient `[B * P, D]`, and partial sums `[pieces, D]`. The token
/// of each patch, 0 for none, is `[B, P]`; else they come in order.
pub fn disassemble(
    launch: Launch,
    dx: &[f32],
    (patches, tokens): (usize, usize),
    token_of: Option<&[u32]>,
    width: usize,
    rows_per_piece: usize,
) -> (Vec<Bf16>, Vec<f32>) {
    let batch = dx.len() / (tokens * width);
    let dx = launch.input(dx);
    let token_of = token_of.map(|token_of| launch.input(token_of));
    let mut d_embedding = launch.output(batch * patches * width);
    let mut partials = launch.output((batch * patches).div_ceil(rows_per_piece) * width);
    let args = Disassemble {
        dx: dx.address(),
        token_of: optional(token_of.as_ref()),
        d_embedding: d_embedding.address_mut(),
        partials: partials.address_mut(),
        batch: batch as u32,
        patches: patches as u32,
        tokens: tokens as u32,
        width: width as u32,
        rows_per_piece: rows_per_piece as u32,
    };
    launch.run(args.launch());
    (d_embedding.written(), partials.written())
}
