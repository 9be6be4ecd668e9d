//! nvJPEG: results and owning types over the bindings of `nvjpeg-sys`.
//!
//! A [`Library`] is one nvJPEG handle; everything made from it holds it alive by an `Arc`, so nothing outlives its handle. Types that hold an
//! image's state are used by one thread at a time (`&mut self`), which is what nvJPEG asks for; the handle itself may be shared.
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::{CudaContext, sys};
use nvjpeg_sys as nv;

use super::accelerator::CudaStreamRef;
use crate::backend::device::Chroma;
use crate::backend::device::engine_rules::{Blame, HostSides};
use crate::image::PixelRect;
use crate::stats::RefusalPhase;

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
    pub fn blame(&self) -> Blame {
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

// SAFETY: "nvJPEG library handle ... is thread safe" (nvJPEG documentation, "Thread Safety"); it is destroyed once, by its last owner.
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
        // SAFETY: the allocators live as long as the process and nobody writes them; the handle is written on success.
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
        // SAFETY: created once, destroyed once, and all that was made from it is gone: it held an `Arc`.
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
                // SAFETY: created once, destroyed once, by its only owner, before the handle that it was made from.
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

/// Asks the device's engines whether they take a file, on the thread that would send it to them.
#[derive(Debug)]
pub struct SupportCheck {
    // Dropped before the handle.
    bitstream: Bitstream,
    params: Params,
    library: Arc<Library>,
}

// SAFETY: as for `DecoupledDecoder`.
unsafe impl Send for SupportCheck {}

impl SupportCheck {
    /// For the engines of this handle.
    pub fn new(library: &Arc<Library>) -> Result<Self, NvjpegError> {
        Ok(Self {
            bitstream: Bitstream::new(library)?,
            params: Params::new(library)?,
            library: Arc::clone(library),
        })
    }

    /// An error where they do not. Reads the file's markers only.
    pub fn check(&mut self, bytes: &[u8]) -> Result<(), NvjpegError> {
        // SAFETY: the objects are live, and so are the bytes; a pointer to them that stays is not
        // used before the next file's comes.
        check_phase(
            unsafe {
                nv::nvjpegJpegStreamParseHeader(
                    self.library.handle,
                    bytes.as_ptr(),
                    bytes.len(),
                    self.bitstream.0,
                )
            },
            RefusalPhase::Parse,
            "parse the JPEG's header",
        )?;
        let mut refuses = 0;
        // SAFETY: the objects are live; 0 is written where the file is supported.
        check_phase(
            unsafe {
                nv::nvjpegDecodeBatchedSupportedEx(
                    self.library.handle,
                    self.bitstream.0,
                    self.params.0,
                    &raw mut refuses,
                )
            },
            RefusalPhase::Support,
            "say whether its engines take the JPEG",
        )?;
        if refuses == 0 {
            Ok(())
        } else {
            Err(unsupported())
        }
    }
}

/// What one image in flight needs on the host.
#[derive(Debug)]
struct HostSide {
    bitstream: Bitstream,
    pinned: Pinned,
    /// A copy of the file: nvJPEG keeps a pointer into it, and does not say for how long. It costs
    /// some 10 us of an image's 600.
    file: Vec<u8>,
}

/// Decodes one image after another in three phases: on the host, over the bus, on the device.
///
/// The host phase of an image may overlap with the device phases of the one before, as each uses a
/// host side of its own; NVIDIA's sample does the same. Before the next transfer the device must be
/// done with the last image: [`Self::transfer_and_decode`] says so. It must also be done with it
/// before this is dropped; whoever owns it drops the memory of its images first, which waits.
#[derive(Debug)]
pub struct DecoupledDecoder {
    // In this order they are dropped: the state before the buffers attached to it, everything before the handle.
    state: State,
    implementation: Implementation,
    params: Params,
    host: [HostSide; 2],
    _device: DeviceBuffer,
    sides: HostSides,
    library: Arc<Library>,
}

// SAFETY: nvJPEG objects are bound to no thread; `&mut self` keeps two threads from using them at once.
unsafe impl Send for DecoupledDecoder {}

impl DecoupledDecoder {
    /// A decoder of this backend to interleaved RGB.
    pub fn new(library: &Arc<Library>, backend: Backend) -> Result<Self, NvjpegError> {
        let handle = library.handle;
        let mut implementation = null_mut();
        // SAFETY: each call below gets the live handle (or what was just made from it) and a place for one pointer.
        let implementation = unsafe {
            check(
                nv::nvjpegDecoderCreate(handle, backend.raw(), &raw mut implementation),
                "make a decoder",
            )?;
            Implementation(implementation)
        };
        let params = Params::new(library)?;
        let mut device = null_mut();
        // SAFETY: as above; the allocator is a static.
        let device = unsafe {
            check(
                nv::nvjpegBufferDeviceCreate(handle, &raw mut DEVICE_ALLOCATOR, &raw mut device),
                "make a device buffer",
            )?;
            DeviceBuffer(device)
        };
        let side = || {
            let bitstream = Bitstream::new(library)?;
            let mut pinned = null_mut();
            // SAFETY: as above; the allocator is a static.
            let pinned = unsafe {
                check(
                    nv::nvjpegBufferPinnedCreate(
                        handle,
                        &raw mut PINNED_ALLOCATOR,
                        &raw mut pinned,
                    ),
                    "make a page-locked buffer",
                )?;
                Pinned(pinned)
            };
            Ok(HostSide {
                bitstream,
                pinned,
                file: Vec::new(),
            })
        };
        let host = [side()?, side()?];
        // The last to be made and the first to be dropped, where a step fails too.
        let mut state = null_mut();
        // SAFETY: as above.
        let state = unsafe {
            check(
                nv::nvjpegDecoderStateCreate(handle, implementation.0, &raw mut state),
                "make a decoder's state",
            )?;
            State(state)
        };
        // SAFETY: both are live, and the buffer lives as long as the state.
        check(
            unsafe { nv::nvjpegStateAttachDeviceBuffer(state.0, device.0) },
            "attach the device buffer",
        )?;
        Ok(Self {
            host,
            state,
            implementation,
            params,
            _device: device,
            sides: HostSides::default(),
            library: Arc::clone(library),
        })
    }

    /// The host phase: parses the file and decodes its Huffman codes; of the pixels only `part`
    /// will be made, or all. A decoder that was once asked for a part is always asked for one.
    /// `bytes` are not needed afterwards. After an error the image is given up; one that is in
    /// flight is not touched.
    pub fn decode_on_host(
        &mut self,
        bytes: &[u8],
        part: Option<PixelRect>,
    ) -> Result<(), NvjpegError> {
        if let Some(part) = part {
            // SAFETY: the parameters are live.
            check_phase(
                unsafe {
                    nv::nvjpegDecodeParamsSetROI(
                        self.params.0,
                        part.left as c_int,
                        part.top as c_int,
                        part.width as c_int,
                        part.height as c_int,
                    )
                },
                RefusalPhase::Support,
                "be told which part is wanted",
            )?;
        }
        // The last transfer is from the other side; this one's was over before that one began.
        let HostSide {
            bitstream,
            pinned,
            file,
        } = &mut self.host[self.sides.free()];
        file.clear();
        file.extend_from_slice(bytes);
        // SAFETY: nvJPEG may keep a pointer into the file in the bitstream; both live in this side,
        // and the file is not written before the bitstream gets the next one.
        check_phase(
            unsafe {
                nv::nvjpegJpegStreamParse(
                    self.library.handle,
                    file.as_ptr(),
                    file.len(),
                    0,
                    0,
                    bitstream.0,
                )
            },
            RefusalPhase::Parse,
            "parse the JPEG",
        )?;
        let mut refuses = 0;
        // SAFETY: all objects are live; 0 is written where the image is supported.
        check_phase(
            unsafe {
                nv::nvjpegDecoderJpegSupported(
                    self.implementation.0,
                    bitstream.0,
                    self.params.0,
                    &raw mut refuses,
                )
            },
            RefusalPhase::Support,
            "say whether the JPEG is supported",
        )?;
        if refuses != 0 {
            return Err(unsupported());
        }
        // SAFETY: all objects are live, and no transfer reads this side's buffer.
        unsafe {
            check_phase(
                nv::nvjpegStateAttachPinnedBuffer(self.state.0, pinned.0),
                RefusalPhase::Host,
                "attach a page-locked buffer",
            )?;
            check_phase(
                nv::nvjpegDecodeJpegHost(
                    self.library.handle,
                    self.implementation.0,
                    self.state.0,
                    self.params.0,
                    bitstream.0,
                ),
                RefusalPhase::Host,
                "decode the JPEG on the host",
            )
        }
    }

    /// Enqueues the other phases of the image that was last decoded on the host, without an error.
    /// After an error here part of them may be enqueued: the caller waits for the stream before it
    /// uses this decoder again.
    ///
    /// # Safety
    ///
    /// The device is done with this decoder's last image; `destination` is device memory for the wanted part and stays until the stream has
    /// done this.
    pub unsafe fn transfer_and_decode(
        &mut self,
        destination: Destination,
        stream: &CudaStreamRef,
    ) -> Result<(), NvjpegError> {
        let bitstream = &self.host[self.sides.free()].bitstream;
        let mut image = destination.raw();
        // SAFETY: all objects are live, and the caller answers for the rest.
        unsafe {
            check_phase(
                nv::nvjpegDecodeJpegTransferToDevice(
                    self.library.handle,
                    self.implementation.0,
                    self.state.0,
                    bitstream.0,
                    raw_stream(stream),
                ),
                RefusalPhase::Transfer,
                "move the JPEG to the device",
            )?;
            self.sides.transferred();
            check_phase(
                nv::nvjpegDecodeJpegDevice(
                    self.library.handle,
                    self.implementation.0,
                    self.state.0,
                    &raw mut image,
                    raw_stream(stream),
                ),
                RefusalPhase::Device,
                "decode the JPEG on the device",
            )
        }
    }
}

/// The largest call, for which memory is taken beforehand.
#[derive(Debug, Clone, Copy)]
pub struct LargestCall {
    /// Images.
    pub num_images: usize,
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
}

/// Decodes many images in one call, on the device's JPEG engines. The device must be done with all
/// that it was asked for before it is dropped.
#[derive(Debug)]
pub struct BatchedDecoder {
    state: State,
    largest: LargestCall,
    /// Images for which the state is set up.
    batch_size: Option<usize>,
    has_failed: bool,
    library: Arc<Library>,
}

// SAFETY: as for `DecoupledDecoder`.
unsafe impl Send for BatchedDecoder {}

impl BatchedDecoder {
    /// A decoder of the handle's default backend to interleaved RGB.
    pub fn new(library: &Arc<Library>, largest: LargestCall) -> Result<Self, NvjpegError> {
        Ok(Self {
            state: Self::state(library, largest)?,
            largest,
            batch_size: None,
            has_failed: false,
            library: Arc::clone(library),
        })
    }

    fn state(library: &Arc<Library>, largest: LargestCall) -> Result<State, NvjpegError> {
        let mut state = null_mut();
        // SAFETY: the handle is live; a place for one pointer.
        let state = unsafe {
            check(
                nv::nvjpegJpegStateCreate(library.handle, &raw mut state),
                "make a state",
            )?;
            State(state)
        };
        // SAFETY: handle and state are live, and the state has no work yet.
        let reserved = check(
            unsafe {
                nv::nvjpegDecodeBatchedPreAllocate(
                    library.handle,
                    state.0,
                    largest.num_images as c_int,
                    largest.width as c_int,
                    largest.height as c_int,
                    nv::nvjpegChromaSubsampling_t_NVJPEG_CSS_444,
                    nv::nvjpegOutputFormat_t_NVJPEG_OUTPUT_RGBI,
                )
            },
            "take the memory of the largest call beforehand",
        );
        if let Err(error) = reserved {
            // NVIDIA calls it a hint: without it the first calls are slower.
            tracing::info!("{error}; it is taken as calls need it");
        }
        Ok(state)
    }

    /// Whether a call of so many images needs no [`Self::set_up`].
    #[must_use]
    pub fn is_set_up_for(&self, batch_size: usize) -> bool {
        self.batch_size == Some(batch_size)
    }

    /// Sets the state up for calls of so many images; after a failed call with a new state, as what
    /// such a call leaves behind is not said anywhere.
    ///
    /// # Safety
    ///
    /// The device is done with all that this decoder was asked for.
    pub unsafe fn set_up(&mut self, batch_size: usize) -> Result<(), NvjpegError> {
        self.batch_size = None;
        if self.has_failed {
            self.state = Self::state(&self.library, self.largest)?;
            self.has_failed = false;
        }
        // SAFETY: handle and state are live and not in use. One host thread: the engines need none.
        let set_up = check_phase(
            unsafe {
                nv::nvjpegDecodeBatchedInitialize(
                    self.library.handle,
                    self.state.0,
                    batch_size as c_int,
                    1,
                    nv::nvjpegOutputFormat_t_NVJPEG_OUTPUT_RGBI,
                )
            },
            RefusalPhase::Batch,
            "set up a batch",
        );
        self.has_failed = set_up.is_err();
        set_up?;
        self.batch_size = Some(batch_size);
        Ok(())
    }

    /// Enqueues the decoding of all files. After an error nothing of them may be used, and the caller
    /// waits for the stream and sets the state up again.
    ///
    /// # Safety
    ///
    /// The state is set up for so many images, and the device is done with the call before. The
    /// destinations are device memory for the whole images, which nothing on the device uses any
    /// more: the engines may write when they are called and not in the stream's order. Destinations
    /// and files stay until the stream has done this.
    pub unsafe fn decode(
        &mut self,
        files: &[&[u8]],
        destinations: &[Destination],
        stream: &CudaStreamRef,
    ) -> Result<(), NvjpegError> {
        assert_eq!(files.len(), destinations.len());
        assert!(self.is_set_up_for(files.len()), "a call of another size");
        let starts = files.iter().map(|file| file.as_ptr()).collect::<Vec<_>>();
        let lengths = files.iter().map(|file| file.len()).collect::<Vec<_>>();
        let mut images = destinations
            .iter()
            .map(|destination| destination.raw())
            .collect::<Vec<_>>();
        // SAFETY: three arrays of the length that the state was set up for; the caller answers for what they point to.
        let decoded = check_phase(
            unsafe {
                nv::nvjpegDecodeBatched(
                    self.library.handle,
                    self.state.0,
                    starts.as_ptr(),
                    lengths.as_ptr(),
                    images.as_mut_ptr(),
                    raw_stream(stream),
                )
            },
            RefusalPhase::Batch,
            "decode a batch",
        );
        if decoded.is_err() {
            (self.batch_size, self.has_failed) = (None, true);
        }
        decoded
    }
}
