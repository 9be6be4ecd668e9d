//! The kernels of `activation.cu`.
use super::{Bf16, Launch, Memory, optional_mut};

/// Mirror of `Activation`.
#[repr(C)]
#[derive(Debug)]
struct Activation {
    x: *const Bf16,
    grad: *const Bf16,
    result: *mut Bf16,
    dx: *mut Bf16,
    partials: *mut f32,
    rows: u32,
    width: u32,
    rows_per_piece: u32,
    kind: u32,
}
const _: () = assert!(size_of::<Activation>() == 56);

/// Which function; the numbers are the kernels'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// With erf.
    Gelu = 0,
    /// x times its sigmoid.
    Silu = 1,
    /// Rectifier.
    Relu = 2,
}

/// `activation_forward` or `gated_activation_forward`: `[N, M]` from `[N, M]` or `[N, 2 M]`.
pub fn activation_forward(
    launch: Launch,
    kind: Kind,
    gated: bool,
    x: &[Bf16],
    width: usize,
) -> Vec<Bf16> {
    let rows = x.len() / (width * if gated { 2 } else { 1 });
    let x = launch.input(x);
    let mut result = launch.output(rows * width);
    let args = Activation {
        x: x.as_ptr(),
        grad: std::ptr::null(),
        result: result.as_mut_ptr(),
        dx: std::ptr::null_mut(),
        partials: std::ptr::null_mut(),
        rows: rows as u32,
        width: width as u32,
        rows_per_piece: 0,
        kind: kind as u32,
    };
    // SAFETY: all memory is as large as the kernel's file says for these rows and this width.
    unsafe { ffi::engine_shim_activation_forward(gated, &raw const args, launch.backward()) };
    result.written()
}

/// What a backward leaves.
#[derive(Debug, PartialEq)]
pub struct ActivationGradients {
    /// As x.
    pub dx: Vec<Bf16>,
    /// The activation once more, if it was asked for.
    pub result: Option<Vec<Bf16>>,
    /// `[pieces, columns of x]`.
    pub partials: Vec<f32>,
}

/// `activation_backward` or `gated_activation_backward`. In place, the first overwrites `grad`.
#[expect(
    clippy::too_many_arguments,
    reason = "one call with the kernel's arguments"
)]
pub fn activation_backward(
    launch: Launch,
    kind: Kind,
    gated: bool,
    x: &[Bf16],
    grad: &[Bf16],
    width: usize,
    rows_per_piece: usize,
    in_place_and_again: bool,
) -> ActivationGradients {
    let rows = grad.len() / width;
    let x_len = x.len();
    let x = launch.input(x);
    let in_place = in_place_and_again && !gated;
    let separate = (!in_place).then(|| launch.input(grad));
    let mut dx = if in_place {
        launch.changed(grad)
    } else {
        launch.output(x_len)
    };
    let mut result = in_place_and_again.then(|| launch.output(rows * width));
    let mut partials = launch.output(rows.div_ceil(rows_per_piece) * x_len / rows);
    let args = Activation {
        x: x.as_ptr(),
        grad: separate.as_ref().map_or(dx.as_ptr(), super::Input::as_ptr),
        result: optional_mut(result.as_mut()),
        dx: dx.as_mut_ptr(),
        partials: partials.as_mut_ptr(),
        rows: rows as u32,
        width: width as u32,
        rows_per_piece: rows_per_piece as u32,
        kind: kind as u32,
    };
    // SAFETY: all memory is as large as the kernel's file says for these rows, this width and these pieces.
    unsafe { ffi::engine_shim_activation_backward(gated, &raw const args, launch.backward()) };
    ActivationGradients {
        dx: dx.written(),
        result: result.map(Memory::written),
        partials: partials.written(),
    }
}

mod ffi {
    use super::Activation;

    unsafe extern "C" {
        pub(super) fn engine_shim_activation_forward(
            gated: bool,
            args: *const Activation,
            backward: bool,
        );
        pub(super) fn engine_shim_activation_backward(
            gated: bool,
            args: *const Activation,
            backward: bool,
        );
    }
}
