//! nvJPEG: results and owning types over the bindings of `nvjpeg-sys`.
//!
//! A [`Library`] is one nvJPEG handle; everything made from it holds it alive by an `Arc`, so
//! nothing outlives its handle. Types that hold an image's state are used by one thread at a time
//! (`&mut self`), which is what nvJPEG asks for; the handle itself may be shared.
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::{CudaContext, sys};
use nvjpeg_sys as nv;

use super::accelerator::CudaStreamRef;
use crate::backend::device::Chroma;
use crate::backend::device::engine_rules::Blame;
use crate::stats::RefusalPhase;

mod batched;
mod decoupled;

pub use batched::{BatchedDecoder, LargestCall};
pub use decoupled::{DecoupledDecoder, SupportCheck};

/// nvJPEG refused something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nvJPEG cannot {doing}: {}", status_text(*status))]
pub struct NvjpegError {
    /// What was being done.
    pub doing: &'static str,
    /// Where in the work that is.
    pub phase: RefusalPhase,
    /// Its status.
    pub status: nv::nvjpegStatus_t,
}

impl NvjpegError {
    /// Whose fault it may be.
    pub(super) fn blame(&self) -> Blame {
        Blame::of(self.status)
    }
}

fn status_text(status: nv::nvjpegStatus_t) -> &'static str {
    match status {
        1 => "not initialised",
        2 => "an invalid parameter",
        3 => "the JPEG is broken",
        4 => "this kind of JPEG is not supported",
        5 => "an allocation failed",
        6 => "the device failed",
        7 => "it was built for another device",
        8 => "an internal error",
        9 => "this implementation does not do that",
        10 => "the JPEG is incomplete",
        _ => "an unknown status",
    }
}

fn check_phase(
    status: nv::nvjpegStatus_t,
    phase: RefusalPhase,
    doing: &'static str,
) -> Result<(), NvjpegError> {
    if status == nv::nvjpegStatus_t_NVJPEG_STATUS_SUCCESS {
        return Ok(());
    }
    Err(NvjpegError {
        doing,
        phase,
        status,
    })
}

/// As [`check_phase`], of what comes before the first image.
fn check(status: nv::nvjpegStatus_t, doing: &'static str) -> Result<(), NvjpegError> {
    check_phase(status, RefusalPhase::Setup, doing)
}

/// A file that an engine does not take, by its own answer to the question.
fn unsupported() -> NvjpegError {
    NvjpegError {
        doing: "decode the JPEG",
        phase: RefusalPhase::Support,
        status: nv::nvjpegStatus_t_NVJPEG_STATUS_JPEG_NOT_SUPPORTED,
    }
}

/// Pieces of memory that nvJPEG took, over all handles of the process.
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// Pieces of device and page-locked memory that nvJPEG took so far.
pub fn allocations() -> usize {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// The context of the newest handle, for the allocators: nvJPEG gives them nothing of ours, and may
/// call them on threads of its own.
static CONTEXT: Mutex<Weak<CudaContext>> = Mutex::new(Weak::new());

/// Runs a call that needs a current context. Where the thread has none, it gets the newest
/// handle's.
fn in_context(call: impl FnOnce() -> sys::CUresult) -> c_int {
    let mut current = null_mut();
    // SAFETY: a place for one pointer.
    let status = unsafe { sys::cuCtxGetCurrent(&raw mut current) };
    if status != sys::CUresult::CUDA_SUCCESS || current.is_null() {
        let context = CONTEXT
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .upgrade();
        let bound = context.is_some_and(|context| context.bind_to_thread().is_ok());
        if !bound {
            return sys::CUresult::CUDA_ERROR_INVALID_CONTEXT as c_int;
        }
    }
    call() as c_int
}

unsafe extern "C" fn device_malloc(start: *mut *mut c_void, num_bytes: usize) -> c_int {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: nvJPEG gives a place for one pointer, and a device address is as wide as one.
    in_context(|| unsafe { sys::cuMemAlloc_v2(start.cast(), num_bytes) })
}

unsafe extern "C" fn device_free(start: *mut c_void) -> c_int {
    // SAFETY: nvJPEG frees what `device_malloc` gave it, once.
    in_context(|| unsafe { sys::cuMemFree_v2(start as sys::CUdeviceptr) })
}

unsafe extern "C" fn pinned_malloc(start: *mut *mut c_void, num_bytes: usize, flags: u32) -> c_int {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: as in `device_malloc`.
    in_context(|| unsafe { sys::cuMemHostAlloc(start, num_bytes, flags) })
}

unsafe extern "C" fn pinned_free(start: *mut c_void) -> c_int {
    // SAFETY: as in `device_free`.
    in_context(|| unsafe { sys::cuMemFreeHost(start) })
}

static mut DEVICE_ALLOCATOR: nv::nvjpegDevAllocator_t = nv::nvjpegDevAllocator_t {
    dev_malloc: Some(device_malloc),
    dev_free: Some(device_free),
};
static mut PINNED_ALLOCATOR: nv::nvjpegPinnedAllocator_t = nv::nvjpegPinnedAllocator_t {
    pinned_malloc: Some(pinned_malloc),
    pinned_free: Some(pinned_free),
};

/// A way of decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Huffman decoding on this host thread, the rest on the device.
    Hybrid,
    /// The JPEG engines of the device.
    Hardware,
}

impl Backend {
    fn raw(self) -> nv::nvjpegBackend_t {
        match self {
            Self::Hybrid => nv::nvjpegBackend_t_NVJPEG_BACKEND_HYBRID,
            Self::Hardware => nv::nvjpegBackend_t_NVJPEG_BACKEND_HARDWARE,
        }
    }
}

/// An nvJPEG handle.
#[derive(Debug)]
pub struct Library {
    handle: nv::nvjpegHandle_t,
    /// The handle belongs to it.
    _context: Arc<CudaContext>,
}

// SAFETY: "nvJPEG library handle ... is thread safe" (nvJPEG documentation, "Thread Safety"); it is
// destroyed once, by its last owner.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// A handle whose default is this backend, for the device of `context`, which is current on
    /// this thread.
    pub fn new(
        context: &Arc<CudaContext>,
        backend: Backend,
        chroma: Chroma,
    ) -> Result<Arc<Self>, NvjpegError> {
        *CONTEXT.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(context);
        let mut handle = null_mut();
        // SAFETY: the allocators live as long as the process and nobody writes them; the handle is
        // written on success.
        let status = unsafe {
            nv::nvjpegCreateEx(
                backend.raw(),
                &raw mut DEVICE_ALLOCATOR,
                &raw mut PINNED_ALLOCATOR,
                chroma.handle_flags(),
                &raw mut handle,
            )
        };
        check(status, "be set up")?;
        Ok(Arc::new(Self {
            handle,
            _context: Arc::clone(context),
        }))
    }

    /// JPEG engines of the device, and cores in each; an error where there are none.
    pub fn hardware(&self) -> Result<(u32, u32), NvjpegError> {
        let (mut engines, mut cores) = (0, 0);
        // SAFETY: two places for numbers.
        let status = unsafe {
            nv::nvjpegGetHardwareDecoderInfo(self.handle, &raw mut engines, &raw mut cores)
        };
        check(status, "say what hardware there is")?;
        Ok((engines, cores))
    }

    /// nvJPEG's version.
    pub fn version() -> Option<(i32, i32, i32)> {
        let mut parts = [0; 3];
        for (kind, part) in parts.iter_mut().enumerate() {
            // SAFETY: the kinds of property are 0 to 2, and each is one number.
            let status = unsafe { nv::nvjpegGetProperty(kind as nv::libraryPropertyType, part) };
            check(status, "say its version").ok()?;
        }
        Some((parts[0], parts[1], parts[2]))
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once, and all that was made from it is gone: it held an
        // `Arc`.
        unsafe { nv::nvjpegDestroy(self.handle) };
    }
}

/// Device memory of one image, or of the wanted part of one: interleaved RGB, rows without padding.
#[derive(Debug, Clone, Copy)]
pub struct Destination {
    /// Address.
    pub start: sys::CUdeviceptr,
    /// Width in pixels.
    pub width: u32,
}

impl Destination {
    fn raw(self) -> nv::nvjpegImage_t {
        let mut image = nv::nvjpegImage_t {
            channel: [null_mut(); 4],
            pitch: [0; 4],
        };
        image.channel[0] = self.start as *mut u8;
        image.pitch[0] = 3 * self.width as usize;
        image
    }
}

fn raw_stream(stream: &CudaStreamRef) -> nv::cudaStream_t {
    // The runtime's stream handle is the driver's.
    stream.0.cu_stream().cast()
}

/// Makes an object of nvJPEG and its destructor.
macro_rules! owned {
    ($name:ident, $raw:ty, $destroy:path, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug)]
        struct $name($raw);

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: created once, destroyed once, by its only owner, before the handle that
                // it was made from.
                unsafe { $destroy(self.0) };
            }
        }
    };
}

owned!(
    State,
    nv::nvjpegJpegState_t,
    nv::nvjpegJpegStateDestroy,
    "Decoding state."
);
owned!(
    Implementation,
    nv::nvjpegJpegDecoder_t,
    nv::nvjpegDecoderDestroy,
    "A decoder of one backend."
);
owned!(
    Bitstream,
    nv::nvjpegJpegStream_t,
    nv::nvjpegJpegStreamDestroy,
    "A parsed file."
);
owned!(
    Params,
    nv::nvjpegDecodeParams_t,
    nv::nvjpegDecodeParamsDestroy,
    "What is asked of a decoder."
);
owned!(
    Pinned,
    nv::nvjpegBufferPinned_t,
    nv::nvjpegBufferPinnedDestroy,
    "Page-locked staging memory."
);
owned!(
    DeviceBuffer,
    nv::nvjpegBufferDevice_t,
    nv::nvjpegBufferDeviceDestroy,
    "Device staging memory."
);

impl Bitstream {
    fn new(library: &Library) -> Result<Self, NvjpegError> {
        let mut bitstream = null_mut();
        // SAFETY: the handle is live; a place for one pointer.
        check(
            unsafe { nv::nvjpegJpegStreamCreate(library.handle, &raw mut bitstream) },
            "make a bitstream",
        )?;
        Ok(Self(bitstream))
    }
}

impl Params {
    /// Those of interleaved RGB.
    fn new(library: &Library) -> Result<Self, NvjpegError> {
        let mut params = null_mut();
        // SAFETY: the handle is live; a place for one pointer.
        let params = unsafe {
            check(
                nv::nvjpegDecodeParamsCreate(library.handle, &raw mut params),
                "make parameters",
            )?;
            Self(params)
        };
        // SAFETY: the parameters are live.
        check(
            unsafe {
                nv::nvjpegDecodeParamsSetOutputFormat(
                    params.0,
                    nv::nvjpegOutputFormat_t_NVJPEG_OUTPUT_RGBI,
                )
            },
            "set the output format",
        )?;
        Ok(params)
    }
}
