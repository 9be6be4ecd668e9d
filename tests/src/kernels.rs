//! The CUDA kernels of the pipeline, run on the CPU by the shim in `cuda_shim/`: safe functions that launch them as the pipeline does on a GPU.
//!
//! Slow (every CUDA thread is a fiber) and for tests only. `S` is the side of a sample, `p` that of a patch.
#![expect(
    unsafe_code,
    reason = "the kernels are C++ and take raw pointers; what they may touch is checked here before each call"
)]
use std::ffi::{CString, c_void};
use std::process::Command;
use std::ptr::NonNull;

pub use nepa_pipeline::Normalization;
use nepa_pipeline::{CropJob, CropPlan, Orientation, StoredPixels};

/// A bfloat16 as its bits, the upper half of a float's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Bf16(pub u16);

mod sealed {
    /// Only types whose memory the kernels know.
    pub trait Sealed {
        /// Whether it is the two-byte one.
        const BF16: bool;
    }
    impl Sealed for f32 {
        const BF16: bool = false;
    }
    impl Sealed for super::Bf16 {
        const BF16: bool = true;
    }
}

/// A type of the values that the kernels write: `f32` or [`Bf16`].
pub trait Value: sealed::Sealed + Copy {}
impl Value for f32 {}
impl Value for Bf16 {}

/// How the values of a sample lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[3, S, S]`.
    Nchw,
    /// `[P, 3 * p * p]`, patches row by row, each (channel, row, column).
    Patches {
        /// The patch's side, which divides S.
        side: u32,
    },
}

impl Layout {
    fn arguments(self, side: u32) -> (bool, u32) {
        match self {
            Self::Nchw => (false, 0),
            Self::Patches { side: patch } => {
                assert!(
                    patch > 0 && side.is_multiple_of(patch),
                    "patches of {patch} do not tile {side}"
                );
                (true, patch)
            }
        }
    }
}

/// In which order the threads of a block run between two barriers. A result that depends on it lacks a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadOrder {
    /// By their number.
    Forward,
    /// The last one first.
    Backward,
    /// The warps, and the blocks, in any order that comes of this seed.
    Random(u64),
}

impl ThreadOrder {
    /// As the shim takes it (`ThreadOrder::of` in `cuda_cpu_shim.h`).
    pub(crate) fn code(self) -> u64 {
        match self {
            Self::Forward => 0,
            Self::Backward => 1,
            Self::Random(seed) => seed | 1 << 63,
        }
    }
}

/// Which end of an image's memory meets the page that nobody may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardedEnd {
    /// A read before the image ends the program.
    Start,
    /// A read past the image ends the program.
    End,
}

/// An image as stored, in memory whose one end is guarded; the unused ends of its rows hold what the test says.
#[derive(Debug)]
pub struct StoredImage {
    memory: NonNull<u8>,
    num_bytes: usize,
    pitch_bytes: usize,
    width: u32,
    height: u32,
    guarded: GuardedEnd,
}

impl StoredImage {
    /// Copies `pixels`, `[height, width, 3]`; a row takes `padding` bytes more than its pixels, each of them `fill`.
    ///
    /// # Panics
    ///
    /// If the size does not fit the pixels, or there is no memory.
    pub fn new(
        pixels: &[u8],
        (width, height): (u32, u32),
        padding: usize,
        fill: u8,
        guarded: GuardedEnd,
    ) -> Self {
        let row_bytes = width as usize * 3;
        assert!(row_bytes > 0 && height > 0, "an empty image");
        assert_eq!(
            pixels.len(),
            row_bytes * height as usize,
            "pixels of another size"
        );
        let pitch_bytes = row_bytes + padding;
        // The last row needs no padding: nothing may be read behind it.
        let num_bytes = pitch_bytes * (height as usize - 1) + row_bytes;
        // SAFETY: only maps fresh memory.
        let memory =
            unsafe { ffi::cuda_shim_guarded_memory(num_bytes, guarded == GuardedEnd::End) };
        let memory = NonNull::new(memory).expect("memory for an image");
        // SAFETY: so many bytes were mapped there, zeroed by the system, and nobody else knows of them.
        let bytes = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), num_bytes) };
        bytes.fill(fill);
        for (target, source) in bytes
            .chunks_mut(pitch_bytes)
            .zip(pixels.chunks_exact(row_bytes))
        {
            target[..row_bytes].copy_from_slice(source);
        }
        Self {
            memory,
            num_bytes,
            pitch_bytes,
            width,
            height,
            guarded,
        }
    }
}

impl Drop for StoredImage {
    fn drop(&mut self) {
        // SAFETY: mapped with the same size and end in `new`, and never again used.
        unsafe {
            ffi::cuda_shim_free_guarded_memory(
                self.memory.as_ptr(),
                self.num_bytes,
                self.guarded == GuardedEnd::End,
            );
        }
    }
}

/// One crop of a launch.
#[derive(Debug, Clone)]
pub struct Crop<'a> {
    /// The image as stored.
    pub image: &'a StoredImage,
    /// How it is turned.
    pub orientation: Orientation,
    /// What is to be made of it; the output side is the launch's.
    pub plan: CropPlan,
    /// Where in the output its sample begins, in values.
    pub slot_start: usize,
}

/// Launches the crop kernel of the type and layout, all crops at once.
///
/// # Panics
///
/// If a slot does not lie in the output, two overlap, or a plan does not fit its image or the side.
pub fn crop<T: Value>(
    layout: Layout,
    crops: &[Crop<'_>],
    side: u32,
    normalization: Normalization,
    output: &mut [T],
    order: ThreadOrder,
) {
    let (patches, patch) = layout.arguments(side);
    let slots = slots(crops.iter().map(|crop| crop.slot_start), side, output);
    let jobs: Vec<CropJob> = crops
        .iter()
        .zip(slots)
        .map(|(crop, slot)| {
            let (image, rect) = (crop.image, crop.plan.rect);
            assert_eq!(
                crop.plan.output_size, side,
                "the plan is for another output side"
            );
            let (width, height) = crop.orientation.upright_size(image.width, image.height);
            let lies_inside = |start: f64, length: f64, limit: u32| {
                start >= 0.0 && length > 0.0 && start + length <= f64::from(limit) * (1.0 + 1e-9)
            };
            assert!(
                lies_inside(rect.x, rect.width, width) && lies_inside(rect.y, rect.height, height),
                "the rectangle {rect:?} does not lie inside {width} x {height}"
            );
            let pixels = StoredPixels {
                address: image.memory.as_ptr().expose_provenance() as u64,
                pitch_bytes: image.pitch_bytes as u64,
                width: image.width,
                height: image.height,
            };
            let slot = slot.expose_provenance() as u64;
            CropJob::new(pixels, crop.orientation, &crop.plan, slot)
        })
        .collect();
    // SAFETY: each job's image is borrowed and as large as it says, its rectangle lies inside, its slot holds 3 * S * S values of T in `output`, which
    // is ours alone; the kernels read nothing else, and the shim returns when they are done.
    unsafe {
        ffi::cuda_shim_crop(
            T::BF16,
            patches,
            jobs.as_ptr(),
            jobs.len() as u32,
            side,
            patch,
            &raw const normalization,
            order.code(),
        );
    }
}

/// Launches the kernel that normalises finished crops, `[N, S, S, 3]`, each to its slot in the output.
///
/// # Panics
///
/// If a slot does not lie in the output, two overlap, or the crops have another size.
pub fn convert<T: Value>(
    layout: Layout,
    crops: &[u8],
    slot_starts: &[usize],
    side: u32,
    normalization: Normalization,
    output: &mut [T],
    order: ThreadOrder,
) {
    let (patches, patch) = layout.arguments(side);
    assert_eq!(
        crops.len(),
        slot_starts.len() * slot_len(side),
        "crops of another size"
    );
    let slots = slots(slot_starts.iter().copied(), side, output);
    // SAFETY: there are as many crops of S * S pixels as slots, each slot holds 3 * S * S values of T in `output`, which is ours alone.
    unsafe {
        ffi::cuda_shim_convert(
            T::BF16,
            patches,
            crops.as_ptr(),
            slots.as_ptr(),
            slots.len() as u32,
            side,
            patch,
            &raw const normalization,
            order.code(),
        );
    }
}

fn slot_len(side: u32) -> usize {
    3 * side as usize * side as usize
}

/// Pointers to the slots, after a check that they lie in the output and apart from each other.
fn slots<T: Value>(
    starts: impl Iterator<Item = usize>,
    side: u32,
    output: &mut [T],
) -> Vec<*mut c_void> {
    let starts: Vec<usize> = starts.collect();
    assert!(side > 0 && !starts.is_empty(), "nothing to launch");
    let mut sorted = starts.clone();
    sorted.sort_unstable();
    sorted.push(output.len());
    assert!(
        sorted
            .windows(2)
            .all(|pair| pair[1] >= pair[0] + slot_len(side)),
        "slots overlap or end outside the output"
    );
    starts
        .iter()
        .map(|&start| output[start..].as_mut_ptr().cast())
        .collect()
}

/// What a program says on standard error that runs `body` and is ended by it. In the test that calls this the program is the test itself, once
/// more, with the environment variable set.
///
/// # Panics
///
/// If the program ends well.
pub fn message_of_abort(variable: &str, body: impl FnOnce()) -> String {
    if std::env::var_os(variable).is_some() {
        body();
        std::process::exit(0);
    }
    let name = std::thread::current().name().map(str::to_owned);
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program)
        .args([&name.expect("a test's thread"), "--exact", "--nocapture"])
        .env(variable, "1")
        .output()
        .expect("this program starts again");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    said
}

/// Runs a kernel of the shim's own test whose threads do not all reach its barrier: the program aborts.
pub fn barrier_in_a_branch() {
    // SAFETY: takes and touches nothing.
    unsafe { ffi::cuda_shim_barrier_in_a_branch() }
}

/// Runs a kernel of the shim's own test: each block of `num_threads` numbers is reversed through dynamic shared memory, with a barrier or (a mistake)
/// without one.
///
/// # Panics
///
/// If the numbers are no whole blocks.
pub fn reverse_blocks(
    numbers: &[u32],
    num_threads: u32,
    with_barrier: bool,
    order: ThreadOrder,
) -> Vec<u32> {
    assert!(num_threads > 0 && !numbers.is_empty());
    assert!(numbers.len().is_multiple_of(num_threads as usize));
    let mut reversed = vec![0; numbers.len()];
    // SAFETY: both hold as many whole blocks.
    unsafe {
        ffi::cuda_shim_reverse(
            numbers.as_ptr(),
            reversed.as_mut_ptr(),
            numbers.len() as u32 / num_threads,
            num_threads,
            with_barrier,
            order.code(),
        );
    }
    reversed
}

/// Runs a kernel of the shim's own test: what each block finds in static shared memory, in which each leaves its number.
pub fn look_into_shared(num_blocks: u32) -> Vec<u32> {
    let mut found = vec![0; num_blocks as usize];
    // SAFETY: a place for each block.
    unsafe { ffi::cuda_shim_look_into_shared(found.as_mut_ptr(), num_blocks) }
    found
}

/// Whether the shim can launch a kernel, of any package, by its name.
pub fn is_known(kernel: &str) -> bool {
    let kernel = CString::new(kernel).expect("a name");
    // SAFETY: a string that ends with a zero and lives until the call returns.
    unsafe { ffi::cuda_shim_knows(kernel.as_ptr()) }
}

/// Of `cuda_shim/launch.cpp`.
mod ffi {
    use std::ffi::{c_char, c_void};

    use super::{CropJob, Normalization};

    unsafe extern "C" {
        pub(super) fn cuda_shim_crop(
            bf16: bool,
            patches: bool,
            jobs: *const CropJob,
            num_jobs: u32,
            side: u32,
            patch: u32,
            normalization: *const Normalization,
            order: u64,
        );
        pub(super) fn cuda_shim_convert(
            bf16: bool,
            patches: bool,
            crops: *const u8,
            slots: *const *mut c_void,
            num_crops: u32,
            side: u32,
            patch: u32,
            normalization: *const Normalization,
            order: u64,
        );
        pub(super) fn cuda_shim_barrier_in_a_branch();
        pub(super) fn cuda_shim_reverse(
            source: *const u32,
            target: *mut u32,
            num_blocks: u32,
            num_threads: u32,
            with_barrier: bool,
            order: u64,
        );
        pub(super) fn cuda_shim_knows(kernel: *const c_char) -> bool;
        pub(super) fn cuda_shim_look_into_shared(found: *mut u32, num_blocks: u32);
        pub(super) fn cuda_shim_guarded_memory(bytes: usize, at_end: bool) -> *mut u8;
        pub(super) fn cuda_shim_free_guarded_memory(memory: *mut u8, bytes: usize, at_end: bool);
    }
}
