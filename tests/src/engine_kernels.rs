//! The CUDA kernels of the training step, run on the CPU by the shim in `cuda_shim/`: safe functions that launch them with the geometry that their files
//! ask for, and plain f64 twins of what they compute.
//!
//! Slow (every CUDA thread is a fiber) and for tests only. All memory that a kernel gets ends, or starts, at a page that nobody may touch; what lies at
//! its other end is looked at after the launch, and so are the inputs.
#![expect(
    unsafe_code,
    reason = "the kernels are C++ and take raw pointers; each gets memory of the size that its file documents"
)]
use std::fmt::Debug;
use std::ptr::NonNull;

pub use crate::kernels::{Bf16, GuardedEnd, ThreadOrder};

pub mod activation;
pub mod embed;
pub mod loss;
pub mod norm;
pub mod twins;

/// Rounds to bf16 as a GPU does: to the nearest, halves to the even one.
pub fn bf16(value: f32) -> Bf16 {
    let bits = value.to_bits();
    Bf16(((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16)
}

/// The value of a bf16.
pub fn widen(value: Bf16) -> f32 {
    f32::from_bits(u32::from(value.0) << 16)
}

/// How one launch is made; its result must not depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// Of the threads of a block.
    pub order: ThreadOrder,
    /// Of all memory that it gets.
    pub guarded: GuardedEnd,
}

impl Launch {
    /// Every way to make one, the first one twice.
    pub const ALL: [Self; 3] = [
        Self::of(ThreadOrder::Forward, GuardedEnd::End),
        Self::of(ThreadOrder::Backward, GuardedEnd::Start),
        Self::of(ThreadOrder::Forward, GuardedEnd::End),
    ];

    const fn of(order: ThreadOrder, guarded: GuardedEnd) -> Self {
        Self { order, guarded }
    }

    fn backward(self) -> bool {
        self.order == ThreadOrder::Backward
    }

    fn input<T: Plain>(self, values: &[T]) -> Input<T> {
        Input {
            memory: Memory::new(values, self.guarded),
            values: values.to_vec(),
        }
    }

    /// Memory that a kernel adds to or changes.
    fn changed<T: Plain>(self, values: &[T]) -> Memory<T> {
        Memory::new(values, self.guarded)
    }

    /// Memory that a kernel must write, every value of it.
    fn output<T: Plain>(self, len: usize) -> Memory<T> {
        Memory::new(&vec![T::UNWRITTEN; len], self.guarded)
    }
}

/// Values of kernels, with one that none writes.
pub trait Plain: Copy + PartialEq + Debug + sealed::Sealed {
    /// A NaN where there is one.
    const UNWRITTEN: Self;
    /// Whether it is [`Plain::UNWRITTEN`], bit for bit.
    fn is_unwritten(self) -> bool;
}

mod sealed {
    /// Only types without padding for which all bytes are values.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
    impl Sealed for super::Bf16 {}
}

impl Plain for f32 {
    const UNWRITTEN: Self = Self::from_bits(0x7fc0_dead);
    fn is_unwritten(self) -> bool {
        self.to_bits() == Self::UNWRITTEN.to_bits()
    }
}

impl Plain for f64 {
    const UNWRITTEN: Self = Self::from_bits(0x7ff8_0000_dead_dead);
    fn is_unwritten(self) -> bool {
        self.to_bits() == Self::UNWRITTEN.to_bits()
    }
}

impl Plain for Bf16 {
    const UNWRITTEN: Self = Self(0x7fad);
    fn is_unwritten(self) -> bool {
        self == Self::UNWRITTEN
    }
}

/// What lies beside the memory of a kernel in its pages.
const BESIDE: u8 = 0xa5;
const PAGE: usize = 4096;

/// Memory of a kernel.
struct Memory<T> {
    start: NonNull<T>,
    len: usize,
    guarded: GuardedEnd,
}

impl<T: Plain> Memory<T> {
    fn new(values: &[T], guarded: GuardedEnd) -> Self {
        assert!(!values.is_empty(), "a kernel gets no empty memory");
        let num_bytes = size_of_val(values);
        // SAFETY: only maps fresh memory.
        let start = unsafe { ffi::cuda_shim_guarded_memory(num_bytes, guarded == GuardedEnd::End) };
        let start = NonNull::new(start.cast()).expect("memory for a kernel");
        let memory = Self {
            start,
            len: values.len(),
            guarded,
        };
        let (beside, beside_bytes) = memory.beside();
        // SAFETY: `values.len()` values and the rest of their last (or first) page were mapped, and nobody else knows of them.
        unsafe {
            beside.write_bytes(BESIDE, beside_bytes);
            start
                .as_ptr()
                .copy_from_nonoverlapping(values.as_ptr(), values.len());
        }
        memory
    }

    /// The rest of the pages: before the memory if its end is guarded, else behind it. A page may be larger than `PAGE`, then this is a part.
    fn beside(&self) -> (*mut u8, usize) {
        let num_bytes = self.len * size_of::<T>();
        let rest = num_bytes.next_multiple_of(PAGE) - num_bytes;
        let start = self.start.as_ptr().cast::<u8>();
        match self.guarded {
            GuardedEnd::End => (start.wrapping_sub(rest), rest),
            GuardedEnd::Start => (start.wrapping_add(num_bytes), rest),
        }
    }

    fn values(&self) -> &[T] {
        // SAFETY: so many values were written in `new`, and no kernel runs between two calls.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn as_ptr(&self) -> *const T {
        self.start.as_ptr()
    }

    fn as_mut_ptr(&mut self) -> *mut T {
        self.start.as_ptr()
    }

    /// What a kernel has left there; panics if it left a value unwritten.
    #[track_caller]
    fn written(self) -> Vec<T> {
        if let Some(place) = self.values().iter().position(|value| value.is_unwritten()) {
            panic!("value {place} of {} was not written", self.len);
        }
        self.values().to_vec()
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        let num_bytes = self.len * size_of::<T>();
        let rest = num_bytes.next_multiple_of(PAGE) - num_bytes;
        let start = self.start.as_ptr().cast::<u8>();
        let beside = match self.guarded {
            GuardedEnd::End => start.wrapping_sub(rest),
            GuardedEnd::Start => start.wrapping_add(num_bytes),
        };
        // SAFETY: mapped, and written, in `new`; unmapped here with the same size and end, and never again used.
        let untouched = unsafe {
            let untouched = std::slice::from_raw_parts(beside, rest)
                .iter()
                .all(|byte| *byte == BESIDE);
            ffi::cuda_shim_free_guarded_memory(start, num_bytes, self.guarded == GuardedEnd::End);
            untouched
        };
        if !std::thread::panicking() {
            assert!(untouched, "a kernel wrote beside its memory");
        }
    }
}

/// Memory that a kernel reads.
struct Input<T: Plain> {
    memory: Memory<T>,
    values: Vec<T>,
}

impl<T: Plain> Input<T> {
    fn as_ptr(&self) -> *const T {
        self.memory.as_ptr()
    }
}

impl<T: Plain> Drop for Input<T> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(
                self.values == self.memory.values(),
                "a kernel changed its input"
            );
        }
    }
}

/// A pointer to what may not be there.
fn optional<T: Plain>(input: Option<&Input<T>>) -> *const T {
    input.map_or(std::ptr::null(), Input::as_ptr)
}

fn optional_mut<T: Plain>(memory: Option<&mut Memory<T>>) -> *mut T {
    memory.map_or(std::ptr::null_mut(), Memory::as_mut_ptr)
}

mod ffi {
    unsafe extern "C" {
        pub(super) fn cuda_shim_guarded_memory(bytes: usize, at_end: bool) -> *mut u8;
        pub(super) fn cuda_shim_free_guarded_memory(memory: *mut u8, bytes: usize, at_end: bool);
    }
}
