//! CUDA as the [`Accelerator`] of the device path: streams, events, memory, and the launches of our
//! kernels.
//!
//! Memory is taken from the driver directly and counted; nothing of it belongs to a stream, so its
//! order is `device.rs`'s alone.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DeviceRepr, DriverError, LaunchConfig, PushKernelArg,
    result, sys,
};
use cudarc::nvrtc::Ptx;

use crate::backend::device::{
    Accelerator, CropJob, Normalization, PixelLayout, PixelType, StoredPixels, Target,
};
use crate::backend::{BackendError, PlannedImage};
use crate::image::Normalize;

/// Compiled by the build script from `kernels/crop.cu`.
const KERNELS: &str = include_str!(concat!(env!("OUT_DIR"), "/crop.ptx"));
/// The same as machine code, by the compute capability that it was made for, as 10 x major + minor.
const MACHINE_CODE: [(i32, &[u8]); 2] = [
    (
        90,
        include_bytes!(concat!(env!("OUT_DIR"), "/crop.sm_90.cubin")),
    ),
    (
        80,
        include_bytes!(concat!(env!("OUT_DIR"), "/crop.sm_80.cubin")),
    ),
];

/// What the device loads: machine code that was made for it or for a smaller one of its generation,
/// else PTX, which the driver compiles.
fn image(context: &CudaContext) -> Result<Ptx, DriverError> {
    let (major, minor) = context.compute_capability()?;
    let capability = 10 * major + minor;
    let runs = |made_for: i32| made_for / 10 == major && made_for <= capability;
    let fitting = MACHINE_CODE.iter().find(|(made_for, _)| runs(*made_for));
    Ok(fitting.map_or_else(
        || Ptx::from_src(KERNELS),
        |(_, code)| Ptx::from_binary(code.to_vec()),
    ))
}

/// Crops of one launch, as `MAX_JOBS` in `kernels/crop.cu`.
const MAX_JOBS: usize = 32;
/// Output pixels on a side of a block of `crop_*`, and threads of a block of `convert_*`; as in
/// `kernels/crop.cu`.
const TILE: u32 = 16;
const THREADS: u32 = TILE * TILE;

/// Mirror of `CropJobs`: a kernel argument by value, so that a launch needs no copy of its own.
#[derive(Clone, Copy)]
#[repr(C)]
struct CropJobs([CropJob; MAX_JOBS]);

// SAFETY: plain numbers in C's layout, the same as the kernels' structs.
unsafe impl DeviceRepr for CropJobs {}
// SAFETY: as above.
unsafe impl DeviceRepr for Normalization {}

fn failed(doing: &'static str) -> impl FnOnce(DriverError) -> BackendError {
    move |error| BackendError {
        doing,
        source: if is_lost(error.0) {
            Box::new(DeviceLost(error))
        } else {
            error.to_string().into()
        },
    }
}

/// The device failed in a way that this process cannot leave behind.
#[derive(Debug, thiserror::Error)]
#[error(
    "{0}. The device is lost to this process, as every later call on it fails too: start a new \
     one, from the last checkpoint (--resume). If it comes again at the same place, decode \
     without nvJPEG (loader.jpeg = \"cpu\" in a recipe), and look for Xid lines in the kernel's \
     log (dmesg): they tell failing hardware from a failing program"
)]
struct DeviceLost(DriverError);

/// Errors after which a context answers every call with an error ("sticky" in NVIDIA's
/// documentation).
fn is_lost(error: sys::CUresult) -> bool {
    use sys::CUresult as Cuda;
    matches!(
        error,
        Cuda::CUDA_ERROR_ECC_UNCORRECTABLE
            | Cuda::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | Cuda::CUDA_ERROR_ILLEGAL_ADDRESS
            | Cuda::CUDA_ERROR_LAUNCH_TIMEOUT
            | Cuda::CUDA_ERROR_ASSERT
            | Cuda::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Cuda::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Cuda::CUDA_ERROR_MISALIGNED_ADDRESS
            | Cuda::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Cuda::CUDA_ERROR_INVALID_PC
            | Cuda::CUDA_ERROR_LAUNCH_FAILED
            | Cuda::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | Cuda::CUDA_ERROR_UNKNOWN
    )
}

/// One CUDA device for the loader.
#[derive(Debug)]
pub struct CudaAccelerator {
    context: Arc<CudaContext>,
    normalize: Normalize,
    normalization: Normalization,
    crop: CudaFunction,
    convert: CudaFunction,
    allocations: Arc<AtomicUsize>,
}

impl CudaAccelerator {
    /// Loads the kernels for batches of this layout.
    pub fn new(
        context: Arc<CudaContext>,
        layout: PixelLayout,
        normalize: &Normalize,
    ) -> Result<Self, BackendError> {
        let module = context
            .load_module(image(&context).map_err(failed("asking what the device can do"))?)
            .map_err(failed("loading the kernels"))?;
        let value = match layout.pixel_type {
            PixelType::F32 => "f32",
            PixelType::Bf16 => "bf16",
        };
        let order = layout.patch_size.map_or("nchw", |_| "patches");
        let load = |kernel| {
            module
                .load_function(&format!("{kernel}_{value}_{order}"))
                .map_err(failed("loading a kernel"))
        };
        Ok(Self {
            crop: load("crop")?,
            convert: load("convert")?,
            context,
            normalize: *normalize,
            normalization: (*normalize).into(),
            allocations: Arc::default(),
        })
    }

    /// Pieces of device and page-locked memory taken so far.
    pub fn allocations(&self) -> usize {
        self.allocations.load(Ordering::Relaxed)
    }

    /// How pixels are normalised.
    pub(super) fn normalize(&self) -> Normalize {
        self.normalize
    }

    /// The context; current on this thread afterwards, for libraries that expect it.
    pub(super) fn bind(&self) -> Result<&Arc<CudaContext>, BackendError> {
        self.context
            .bind_to_thread()
            .map_err(failed("making the context current"))?;
        Ok(&self.context)
    }

    /// Waits until all that is enqueued on `stream` is done; `event` marks its end afterwards. An
    /// error if the device has failed.
    pub(super) fn settle(
        &self,
        event: &CudaEvent,
        stream: &CudaStreamRef,
    ) -> Result<(), BackendError> {
        self.record(event, stream)?;
        self.synchronize(event)
    }

    /// The crop of a decoded image.
    pub(super) fn crop_job(
        planned: &PlannedImage<'_>,
        pixels: StoredPixels,
        target: &Target<'_, Self>,
    ) -> CropJob {
        let slot = target.memory.at(target.offset_bytes);
        CropJob::new(pixels, planned.header.orientation, &planned.views[0], slot)
    }

    /// Enqueues a copy of all of `from` to the device.
    ///
    /// # Safety
    ///
    /// `to` is device memory for as many bytes; both ends stay until the stream has done this.
    pub(super) unsafe fn upload_to(
        &self,
        from: &CudaPinned,
        to: sys::CUdeviceptr,
        stream: &CudaStreamRef,
    ) -> Result<(), BackendError> {
        self.bind()?;
        // SAFETY: as in `as_mut`; only reads.
        let bytes = unsafe { std::slice::from_raw_parts(from.start, from.num_bytes) };
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_htod_async(to, bytes, stream.0.cu_stream()) }
            .map_err(failed("copying to the device"))
    }

    /// Copies from the device at once.
    ///
    /// # Safety
    ///
    /// `from` is device memory of as many bytes, which nothing writes now.
    pub(super) unsafe fn download_from(
        &self,
        from: sys::CUdeviceptr,
        to: &mut [u8],
    ) -> Result<(), BackendError> {
        self.bind()?;
        // SAFETY: the caller's promise.
        unsafe { result::memcpy_dtoh_sync(to, from) }.map_err(failed("copying from the device"))
    }

    /// Enqueues the crops of decoded images, [`MAX_JOBS`] a launch.
    ///
    /// # Safety
    ///
    /// The images and slots of the jobs lie in device memory, are as large as the jobs and the
    /// layout say, and stay until the stream has done this.
    pub(super) unsafe fn launch_crops(
        &self,
        jobs: &[CropJob],
        layout: PixelLayout,
        stream: &CudaStreamRef,
    ) -> Result<(), BackendError> {
        let side = layout.image_size;
        let patch = layout.patch_size.unwrap_or(1);
        let tiles = side.div_ceil(TILE);
        for jobs in jobs.chunks(MAX_JOBS) {
            let mut all = CropJobs([CropJob::default(); MAX_JOBS]);
            all.0[..jobs.len()].copy_from_slice(jobs);
            let mut launch = stream.0.launch_builder(&self.crop);
            launch
                .arg(&all)
                .arg(&side)
                .arg(&patch)
                .arg(&self.normalization);
            let config = LaunchConfig {
                grid_dim: (tiles, tiles, jobs.len() as u32),
                block_dim: (TILE, TILE, 1),
                shared_mem_bytes: 0,
            };
            // SAFETY: the arguments are the kernel's, and the caller answers for what they point
            // to.
            unsafe { launch.launch(config) }
                .map(drop)
                .map_err(failed("launching the crop kernel"))?;
        }
        Ok(())
    }
}

/// A CUDA stream.
#[derive(Debug, Clone)]
pub struct CudaStreamRef(pub Arc<CudaStream>);

/// A point in a stream. A thread that waits for one sleeps: decoding needs the processor more than
/// it needs the microseconds.
#[derive(Debug)]
pub struct CudaEvent {
    raw: sys::CUevent,
    context: Arc<CudaContext>,
}

// SAFETY: the driver's events are bound to no thread and may be used by several at once.
unsafe impl Send for CudaEvent {}
// SAFETY: as above.
unsafe impl Sync for CudaEvent {}

impl CudaEvent {
    fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        // The driver takes a set of bits; cudarc's enum has no value for two of them at once.
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32
            | sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        context.bind_to_thread()?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a place for one pointer; the context is current.
        unsafe { sys::cuEventCreate(&raw mut raw, flags) }.result()?;
        Ok(Self {
            raw,
            context: Arc::clone(context),
        })
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        let destroyed = self.context.bind_to_thread().and_then(|()| {
            // SAFETY: created once, destroyed once. The driver keeps what is still waited for.
            unsafe { result::event::destroy(self.raw) }
        });
        report(destroyed);
    }
}

/// Page-locked host memory, cached as ordinary memory is.
#[derive(Debug)]
pub struct CudaPinned {
    start: *mut u8,
    num_bytes: usize,
    context: Arc<CudaContext>,
}

// SAFETY: the memory belongs to this value alone and is bound to no thread.
unsafe impl Send for CudaPinned {}

impl AsMut<[u8]> for CudaPinned {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: `start` points to `num_bytes` initialised bytes of this value alone. That the
        // device does not read them now is what `device.rs` waits for before it writes.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.num_bytes) }
    }
}

impl Drop for CudaPinned {
    fn drop(&mut self) {
        let freed = self.context.synchronize().and_then(|()| {
            // SAFETY: allocated by `malloc_host`, freed once, and no work of the context uses it
            // any more.
            unsafe { result::free_host(self.start.cast()) }
        });
        report(freed);
    }
}

/// Device memory.
#[derive(Debug)]
pub struct CudaMemory {
    start: sys::CUdeviceptr,
    num_bytes: usize,
    context: Arc<CudaContext>,
}

impl CudaMemory {
    /// Address on the device.
    pub fn start(&self) -> sys::CUdeviceptr {
        self.start
    }

    /// Length.
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// The context that it belongs to.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// A copy of its first bytes in host memory, taken after all work on `stream`. Blocks; for
    /// tests and inspection.
    pub fn read(&self, num_bytes: usize, stream: &CudaStreamRef) -> Result<Vec<u8>, BackendError> {
        assert!(num_bytes <= self.num_bytes, "a read past the end");
        stream
            .0
            .synchronize()
            .map_err(failed("waiting for the device"))?;
        let mut bytes = vec![0; num_bytes];
        // SAFETY: both ends are as long as the copy, and the call returns when it is done.
        unsafe { result::memcpy_dtoh_sync(&mut bytes, self.start) }
            .map_err(failed("copying from the device"))?;
        Ok(bytes)
    }

    fn at(&self, offset_bytes: usize) -> u64 {
        assert!(offset_bytes < self.num_bytes, "a slot outside of its batch");
        self.start + offset_bytes as u64
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        let freed = self.context.synchronize().and_then(|()| {
            // SAFETY: allocated by `malloc_sync`, freed once, and no work of the context uses it
            // any more.
            unsafe { result::free_sync(self.start) }
        });
        report(freed);
    }
}

/// A failed release is not worth a panic in a destructor; and where the device is lost, all fail,
/// so that only the first is told.
fn report(freed: Result<(), DriverError>) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if let Err(error) = freed
        && !TOLD.swap(true, Ordering::Relaxed)
    {
        tracing::error!("memory or an event of the CUDA device could not be released: {error}");
    }
}

impl Accelerator for CudaAccelerator {
    type Stream = CudaStreamRef;
    type Event = CudaEvent;
    type Pinned = CudaPinned;
    type Memory = CudaMemory;

    /// The loader's kernels are small and many, and each waits for the one before: of the highest
    /// priority they go between the blocks of the training step's large ones, which lose next to
    /// nothing.
    fn stream(&self) -> Result<CudaStreamRef, BackendError> {
        self.bind()?;
        let (least, greatest) = result::stream::get_priority_range()
            .map_err(failed("asking for the priorities of streams"))?;
        let stream = if least == greatest {
            self.context.new_stream()
        } else {
            self.context.new_stream_with_priority(greatest)
        };
        stream.map(CudaStreamRef).map_err(failed("making a stream"))
    }

    fn event(&self) -> Result<CudaEvent, BackendError> {
        CudaEvent::new(&self.context).map_err(failed("making an event"))
    }

    fn pinned(&self, num_bytes: usize) -> Result<CudaPinned, BackendError> {
        let context = Arc::clone(self.bind()?);
        // SAFETY: any length is allowed; the flags ask for ordinary cached memory.
        let start = unsafe { result::malloc_host(num_bytes, 0) }
            .map_err(failed("taking page-locked memory"))?
            .cast::<u8>();
        // SAFETY: just allocated with this length.
        unsafe { start.write_bytes(0, num_bytes) };
        self.allocations.fetch_add(1, Ordering::Relaxed);
        Ok(CudaPinned {
            start,
            num_bytes,
            context,
        })
    }

    fn memory(&self, num_bytes: usize) -> Result<CudaMemory, BackendError> {
        let context = Arc::clone(self.bind()?);
        // SAFETY: any length but 0 is allowed, and the driver answers with an error for that.
        let start =
            unsafe { result::malloc_sync(num_bytes) }.map_err(failed("taking device memory"))?;
        self.allocations.fetch_add(1, Ordering::Relaxed);
        Ok(CudaMemory {
            start,
            num_bytes,
            context,
        })
    }

    fn upload(
        &self,
        from: &CudaPinned,
        to: &CudaMemory,
        stream: &CudaStreamRef,
    ) -> Result<(), BackendError> {
        assert!(from.num_bytes <= to.num_bytes, "a copy past the end");
        // SAFETY: both ends are as long as the copy, and both stay until the stream is done:
        // dropping either waits for it.
        unsafe { self.upload_to(from, to.start, stream) }
    }

    fn place(&self, from: &CudaPinned, target: &Target<'_, Self>) -> Result<(), BackendError> {
        assert_eq!(from.num_bytes, target.layout.slot_bytes(), "not one slot");
        assert!(target.offset_bytes + from.num_bytes <= target.memory.num_bytes);
        let slot = target.memory.at(target.offset_bytes);
        // SAFETY: the slot is as long as the copy, and both ends stay until the stream is done:
        // dropping either waits for it.
        unsafe { self.upload_to(from, slot, target.stream) }
    }

    fn convert(&self, crop: &CudaMemory, target: &Target<'_, Self>) -> Result<(), BackendError> {
        let layout = target.layout;
        let num_pixels = layout.image_size * layout.image_size;
        assert!(
            3 * num_pixels as usize <= crop.num_bytes,
            "a crop past its end"
        );
        assert!(target.offset_bytes + layout.slot_bytes() <= target.memory.num_bytes);
        let patch = layout.patch_size.unwrap_or(1);
        let slot = target.memory.at(target.offset_bytes);
        let mut launch = target.stream.0.launch_builder(&self.convert);
        launch
            .arg(&crop.start)
            .arg(&slot)
            .arg(&layout.image_size)
            .arg(&patch)
            .arg(&self.normalization);
        let config = LaunchConfig {
            grid_dim: (num_pixels.div_ceil(THREADS), 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the arguments are the kernel's; the crop and the slot are as large as was checked
        // above, and stay until the stream is done.
        unsafe { launch.launch(config) }
            .map(drop)
            .map_err(failed("launching the conversion kernel"))
    }

    fn record(&self, event: &CudaEvent, stream: &CudaStreamRef) -> Result<(), BackendError> {
        self.bind()?;
        // SAFETY: both are live, and of the one context that this accelerator makes them in.
        unsafe { result::event::record(event.raw, stream.0.cu_stream()) }
            .map_err(failed("recording an event"))
    }

    fn record_all(&self, event: &CudaEvent) -> Result<(), BackendError> {
        let context = self.bind()?;
        // SAFETY: both are live, and the event is of this context.
        let recorded = unsafe { sys::cuCtxRecordEvent(context.cu_ctx(), event.raw) }.result();
        // Where the driver has no such mark this thread waits, and the event stays at what it marked
        // last, which is done then too.
        recorded
            .or_else(|_| context.synchronize())
            .map_err(failed("marking the end of all work on the device"))
    }

    fn wait(&self, stream: &CudaStreamRef, event: &CudaEvent) -> Result<(), BackendError> {
        self.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: as in `record`.
        unsafe { result::stream::wait_event(stream.0.cu_stream(), event.raw, flags) }
            .map_err(failed("letting a stream wait for an event"))
    }

    fn synchronize(&self, event: &CudaEvent) -> Result<(), BackendError> {
        self.bind()?;
        // SAFETY: the event is live.
        unsafe { result::event::synchronize(event.raw) }.map_err(failed("waiting for the device"))
    }
}
