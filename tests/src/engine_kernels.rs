//! The CUDA kernels of the training step, run on the CPU by the shim in `cuda_shim/`: safe functions that launch them as the training step does, with its own
//! arguments and geometry, and plain f64 twins of what they compute.
//!
//! Slow (every CUDA thread is a fiber) and for tests only. All memory that a kernel gets ends, or starts, at a page that nobody may touch; what lies at
//! its other end is looked at after the launch, and so are the inputs.
#![expect(
    unsafe_code,
    reason = "the kernels are C++ and take raw pointers; each gets memory of the size that its file documents"
)]
use std::ffi::{CString, c_char, c_void};
use std::fmt::Debug;
use std::ptr::NonNull;

use nepa_model::cuda::arguments;

pub use crate::kernels::{Bf16, GuardedEnd, ThreadOrder};

pub mod activation;
pub mod attention;
pub mod attention_twin;
pub mod embed;
pub mod loss;
pub mod norm;
pub mod optimizer;
pub mod shim;
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
    /// Every way to make one.
    pub const ALL: [Self; 3] = [
        Self::of(ThreadOrder::Forward, GuardedEnd::End),
        Self::of(ThreadOrder::Backward, GuardedEnd::Start),
        Self::of(ThreadOrder::Random(1), GuardedEnd::End),
    ];

    const fn of(order: ThreadOrder, guarded: GuardedEnd) -> Self {
        Self { order, guarded }
    }

    /// Launches a kernel as the training step does.
    fn run<A>(self, launch: arguments::Launch<A>) {
        // SAFETY: the addresses are of memory made here, of the size that the kernel's file asks for: each function that calls this sees to it.
        unsafe { run(&launch, self.order) };
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

/// Launches a kernel of the training step by its name and with its own geometry; returns when it is done.
///
/// # Safety
///
/// The addresses in its argument are of memory of the size that the kernel's file asks for, and nobody else uses it meanwhile.
pub(crate) unsafe fn run<A>(launch: &arguments::Launch<A>, order: ThreadOrder) {
    let kernel = CString::new(launch.kernel()).expect("a name");
    let geometry = launch.geometry();
    // SAFETY: only the mirrors of the kernels' structs make a launch, so the argument is that of the kernel; the caller answers for what it points to.
    let known = unsafe {
        ffi::engine_shim_launch(
            kernel.as_ptr(),
            std::ptr::from_ref(launch.arguments()).cast(),
            geometry.grid.as_ptr(),
            geometry.block.as_ptr(),
            geometry.shared_bytes,
            order.code(),
        )
    };
    assert!(known, "no kernel {kernel:?}");
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
    impl Sealed for u32 {}
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

impl Plain for u32 {
    const UNWRITTEN: Self = 0xdead_beef;
    fn is_unwritten(self) -> bool {
        self == Self::UNWRITTEN
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
/// Memory starts at a multiple of this, so that it may end so much before its guarded end.
const ALIGNMENT: usize = 16;

/// Memory of a kernel.
struct Memory<T> {
    start: NonNull<T>,
    len: usize,
    guarded: GuardedEnd,
}

impl<T> Memory<T> {
    /// What is mapped for so many values.
    fn num_bytes(len: usize) -> usize {
        (len * size_of::<T>()).next_multiple_of(ALIGNMENT)
    }

    /// The rest of the pages, in front of the memory and behind it. Where a page is larger than `PAGE` these are parts.
    fn beside(&self) -> [(*mut u8, usize); 2] {
        let start = self.start.as_ptr().cast::<u8>();
        let used = self.len * size_of::<T>();
        let mapped = Self::num_bytes(self.len);
        let rest = mapped.next_multiple_of(PAGE) - mapped;
        let (front, behind) = match self.guarded {
            GuardedEnd::End => (rest, mapped - used),
            GuardedEnd::Start => (0, mapped - used + rest),
        };
        [
            (start.wrapping_sub(front), front),
            (start.wrapping_add(used), behind),
        ]
    }
}

impl<T: Plain> Memory<T> {
    fn new(values: &[T], guarded: GuardedEnd) -> Self {
        assert!(!values.is_empty(), "a kernel gets no empty memory");
        let num_bytes = Self::num_bytes(values.len());
        // SAFETY: only maps fresh memory.
        let start = unsafe { ffi::cuda_shim_guarded_memory(num_bytes, guarded == GuardedEnd::End) };
        let start = NonNull::new(start.cast()).expect("memory for a kernel");
        let memory = Self {
            start,
            len: values.len(),
            guarded,
        };
        // SAFETY: the values and the rest of their first and last page were mapped, and nobody else knows of them.
        unsafe {
            for (beside, len) in memory.beside() {
                beside.write_bytes(BESIDE, len);
            }
            start
                .as_ptr()
                .copy_from_nonoverlapping(values.as_ptr(), values.len());
        }
        memory
    }

    fn values(&self) -> &[T] {
        // SAFETY: so many values were written in `new`, and no kernel runs between two calls.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn as_ptr(&self) -> *const T {
        self.start.as_ptr()
    }

    /// For a kernel that reads it.
    fn address(&self) -> u64 {
        self.as_ptr().expose_provenance() as u64
    }

    /// For a kernel that writes it.
    fn address_mut(&mut self) -> u64 {
        self.as_mut_ptr().expose_provenance() as u64
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

    /// Panics if a kernel has written a value there.
    #[track_caller]
    fn left_alone(self) {
        if let Some(place) = self.values().iter().position(|v| !v.is_unwritten()) {
            panic!("value {place} of {} was written", self.len);
        }
    }
}

impl<T> Drop for Memory<T> {
    fn drop(&mut self) {
        // SAFETY: mapped and written in `new`.
        let untouched = self.beside().into_iter().all(|(beside, len)| unsafe {
            std::slice::from_raw_parts(beside, len)
                .iter()
                .all(|byte| *byte == BESIDE)
        });
        let start = self.start.as_ptr().cast();
        // SAFETY: mapped in `new` with the same size and end, and never again used.
        unsafe {
            ffi::cuda_shim_free_guarded_memory(
                start,
                Self::num_bytes(self.len),
                self.guarded == GuardedEnd::End,
            );
        }
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
    fn address(&self) -> u64 {
        self.memory.address()
    }

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

/// The address of what may not be there.
fn optional<T: Plain>(input: Option<&Input<T>>) -> u64 {
    input.map_or(0, Input::address)
}

fn optional_mut<T: Plain>(memory: Option<&mut Memory<T>>) -> u64 {
    memory.map_or(0, Memory::address_mut)
}

mod ffi {
    use super::{c_char, c_void};

    unsafe extern "C" {
        pub(super) fn engine_shim_launch(
            kernel: *const c_char,
            arguments: *const c_void,
            grid: *const u32,
            block: *const u32,
            shared_bytes: u32,
            order: u64,
        ) -> bool;
        pub(super) fn cuda_shim_guarded_memory(bytes: usize, at_end: bool) -> *mut u8;
        pub(super) fn cuda_shim_free_guarded_memory(memory: *mut u8, bytes: usize, at_end: bool);
    }
}
