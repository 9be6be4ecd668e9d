//! The kernels of `activation.cu`.
use nepa_model::cuda::arguments::Activation;

use super::{Bf16, Launch, Memory, optional_mut};

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
        x: x.address(),
        grad: 0,
        result: result.address_mut(),
        dx: 0,
        partials: 0,
        rows: rows as u32,
        width: width as u32,
        rows_per_piece: 0,
        kind: kind as u32,
    };
    launch.run(args.launch(gated));
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
        x: x.address(),
        grad: separate
            .as_ref()
            .map_or(dx.address(), super::Input::address),
        result: optional_mut(result.as_mut()),
        dx: dx.address_mut(),
        partials: partials.address_mut(),
        rows: rows as u32,
        width: width as u32,
        rows_per_piece: rows_per_piece as u32,
        kind: kind as u32,
    };
    launch.run(args.launch(gated));
    ActivationGradients {
        dx: dx.written(),
        result: result.map(Memory::written),
        partials: partials.written(),
    }
}
