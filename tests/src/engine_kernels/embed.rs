//! The kernels of `embed.cu`. B images of side S, P patches of side p, T tokens, D values.
use super::{Bf16, Launch, Plain};

/// Mirror of `Patchify`.
#[repr(C)]
#[derive(Debug)]
struct Patchify {
    pixels: *const std::ffi::c_void,
    patches: *mut Bf16,
    batch: u32,
    side: u32,
    patch: u32,
    columns: u32,
    in_patches: u32,
}
const _: () = assert!(size_of::<Patchify>() == 40);

/// Mirror of `Assemble`.
#[repr(C)]
#[derive(Debug)]
struct Assemble {
    embedding: *const f32,
    class_token: *const f32,
    x: *mut f32,
    batch: u32,
    patches: u32,
    tokens: u32,
    width: u32,
}
const _: () = assert!(size_of::<Assemble>() == 40);

/// Mirror of `Disassemble`.
#[repr(C)]
#[derive(Debug)]
struct Disassemble {
    dx: *const f32,
    d_embedding: *mut Bf16,
    partials: *mut f32,
    batch: u32,
    patches: u32,
    tokens: u32,
    width: u32,
    rows_per_piece: u32,
}
const _: () = assert!(size_of::<Disassemble>() == 48);

/// How pixels lie; the numbers are the kernels'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Layout {
    /// `[B, 3, S, S]`.
    Nchw = 0,
    /// `[B, P, 3 * p * p]`.
    Patches = 1,
}

/// `patchify_f32` or `patchify_bf16`, as the pixels are: `[B * P, columns]`.
pub fn patchify<T: Plain>(
    launch: Launch,
    layout: Layout,
    pixels: &[T],
    (side, patch): (usize, usize),
    columns: usize,
) -> Vec<Bf16> {
    let batch = pixels.len() / (3 * side * side);
    let patches = (side / patch).pow(2);
    let pixels = launch.input(pixels);
    let mut result = launch.output(batch * patches * columns);
    let args = Patchify {
        pixels: pixels.as_ptr().cast(),
        patches: result.as_mut_ptr(),
        batch: batch as u32,
        side: side as u32,
        patch: patch as u32,
        columns: columns as u32,
        in_patches: layout as u32,
    };
    // SAFETY: all memory is as large as the kernel's file says for these images and columns.
    unsafe {
        ffi::engine_shim_patchify(size_of::<T>() == 2, &raw const args, launch.backward());
    }
    result.written()
}

/// `assemble`: `[B * T, D]`.
pub fn assemble(
    launch: Launch,
    embedding: &[f32],
    class_token: &[f32],
    patches: usize,
    tokens: usize,
) -> Vec<f32> {
    let width = class_token.len();
    let batch = embedding.len() / (patches * width);
    let (embedding, class_token) = (launch.input(embedding), launch.input(class_token));
    let mut x = launch.output(batch * tokens * width);
    let args = Assemble {
        embedding: embedding.as_ptr(),
        class_token: class_token.as_ptr(),
        x: x.as_mut_ptr(),
        batch: batch as u32,
        patches: patches as u32,
        tokens: tokens as u32,
        width: width as u32,
    };
    // SAFETY: all memory is as large as the kernel's file says for these images, tokens and this width.
    unsafe { ffi::engine_shim_assemble(&raw const args, launch.backward()) };
    x.written()
}

/// `disassemble`: the embedding's gradient `[B * P, D]`, and partial sums `[pieces, D]`.
pub fn disassemble(
    launch: Launch,
    dx: &[f32],
    patches: usize,
    tokens: usize,
    width: usize,
    rows_per_piece: usize,
) -> (Vec<Bf16>, Vec<f32>) {
    let batch = dx.len() / (tokens * width);
    let dx = launch.input(dx);
    let mut d_embedding = launch.output(batch * patches * width);
    let mut partials = launch.output((batch * patches).div_ceil(rows_per_piece) * width);
    let args = Disassemble {
        dx: dx.as_ptr(),
        d_embedding: d_embedding.as_mut_ptr(),
        partials: partials.as_mut_ptr(),
        batch: batch as u32,
        patches: patches as u32,
        tokens: tokens as u32,
        width: width as u32,
        rows_per_piece: rows_per_piece as u32,
    };
    // SAFETY: all memory is as large as the kernel's file says for these images, tokens, this width and these pieces.
    unsafe { ffi::engine_shim_disassemble(&raw const args, launch.backward()) };
    (d_embedding.written(), partials.written())
}

mod ffi {
    use super::{Assemble, Disassemble, Patchify};

    unsafe extern "C" {
        pub(super) fn engine_shim_patchify(bf16: bool, args: *const Patchify, backward: bool);
        pub(super) fn engine_shim_assemble(args: *const Assemble, backward: bool);
        pub(super) fn engine_shim_disassemble(args: *const Disassemble, backward: bool);
    }
}
