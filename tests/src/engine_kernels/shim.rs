//! Kernels of the shim's own tests.
use super::{Bf16, Launch};

/// One warp multiplies `a [16, 16]` by `b [16, 8]`, which it loads as it lies or transposed: `[16, 8]`.
pub fn multiply(launch: Launch, a: &[Bf16; 256], b: &[Bf16; 128], transposed: bool) -> Vec<f32> {
    let (a, b) = (launch.input(a), launch.input(b));
    let mut d = launch.output(128);
    // SAFETY: all three have the sizes that the kernel reads and writes.
    unsafe {
        ffi::engine_shim_multiply(
            a.as_ptr(),
            b.as_ptr(),
            d.as_mut_ptr(),
            transposed,
            launch.order.code(),
        );
    }
    d.written()
}

/// Runs a kernel with a shuffle that not all threads of a warp reach: the program aborts.
pub fn shuffle_in_a_branch() {
    // SAFETY: takes and touches nothing.
    unsafe { ffi::engine_shim_shuffle_in_a_branch() }
}

mod ffi {
    use super::Bf16;

    unsafe extern "C" {
        pub(super) fn engine_shim_multiply(
            a: *const Bf16,
            b: *const Bf16,
            d: *mut f32,
            transposed: bool,
            order: u64,
        );
        pub(super) fn engine_shim_shuffle_in_a_branch();
    }
}
