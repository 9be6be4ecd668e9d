//! Batches in the memory of a CUDA device, decoded there by nvJPEG, for libraries that have streams
//! of their own. Built with the feature `cuda` only.
//!
//! The loader's work ends on a stream that nobody else uses. A library that takes a batch names the
//! stream of its own work, which waits for the loader's. When the last tensor of the batch goes, the
//! memory is written again after all work that is enqueued on the device by then, on any stream.
#![expect(
    unsafe_code,
    reason = "streams come as addresses, and the thread's context is the driver's"
)]
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use dlpark::ffi::DLDevice;
use dlpark::python::{CudaStreamRequest, ExportRequest};
use nepa_pipeline::cuda::cudarc::driver::{CudaContext, CudaStream, result, sys};
use nepa_pipeline::cuda::{
    CudaBackend, CudaError, CudaStreamRef, EngineConfig, cuda_backend, find_device,
};
use nepa_pipeline::{
    Batch, Dataset, IoCounters, Loader, LoaderConfig, LoaderError, LoaderState, PipelineStats,
    PixelLayout, PixelType, SampleRecord, full_text,
};
use pyo3::prelude::*;

use crate::errors::{Kind, error};
use crate::pixels::{Pixels, Samples};
use crate::source::{Source, source};
use crate::waiting;

/// A device that is open.
pub(crate) struct Cuda {
    /// The loader's work ends here.
    consumer: Guarded<Arc<CudaStream>>,
}

impl Cuda {
    /// Opens device `ordinal`, in the context that other libraries of the process use, too.
    pub(crate) fn open(py: Python<'_>, ordinal: usize) -> PyResult<Self> {
        py.import("nepa._cuda")?.call_method0("load_nvjpeg")?;
        // On a thread of its own, as it takes a second.
        let opened = waiting::interruptible(py, move || Self::open_here(ordinal))?;
        opened.map_err(|cause| error(py, Kind::Device, full_text(&cause), None))
    }

    /// Leaves the context current on this thread.
    fn open_here(ordinal: usize) -> Result<Self, CudaError> {
        let facts = find_device(ordinal)?;
        tracing::info!(
            "cuda:{ordinal} is {}, compute capability {}.{}",
            facts.name,
            facts.compute_capability / 10,
            facts.compute_capability % 10
        );
        let opened = CudaContext::new(ordinal).and_then(|context| context.new_stream());
        opened
            .map(|consumer| Self {
                consumer: Guarded(Some(consumer)),
            })
            .map_err(CudaError::driver("open the device"))
    }

    /// A loader into the device's memory. nvJPEG takes some seconds and gigabytes to start with.
    pub(crate) fn start(
        &self,
        dataset: Arc<Dataset>,
        config: LoaderConfig,
        state: &LoaderState,
        pixel_type: PixelType,
        patch_size: Option<u32>,
    ) -> Result<Box<dyn Source>, LoaderError> {
        let _callers = CallersContext::keep();
        let layout = PixelLayout {
            pixel_type,
            image_size: config.augment.build()?.view_sides()[0],
            patch_size,
        };
        let engines = EngineConfig {
            exif_orientation: config.exif_orientation,
            ..EngineConfig::AUTO
        };
        let consumer = Arc::clone(self.consumer.get());
        let backend = cuda_backend(consumer, layout, &config.normalize, engines)?;
        let loader = Loader::with_backend(dataset, config, Some(state), Arc::new(backend))?;
        Ok(Box::new(Guarded(Some(source(loader)))))
    }
}

/// The context that is current on this thread. It is so again when this is dropped: a library that
/// shares the thread keeps its device by that.
struct CallersContext(Option<sys::CUcontext>);

impl CallersContext {
    fn keep() -> Self {
        Self(current())
    }
}

/// None as well where the driver is not used yet.
fn current() -> Option<sys::CUcontext> {
    result::ctx::get_current().ok().flatten()
}

impl Drop for CallersContext {
    fn drop(&mut self) {
        if current() != self.0 {
            let before = self.0.unwrap_or(std::ptr::null_mut());
            // SAFETY: none, or what was current on this thread a moment ago, which nothing of ours
            // destroys. A device that fails says so to the next call that can tell it.
            let _ = unsafe { result::ctx::set_current(before) };
        }
    }
}

/// Something that works with the device, and leaves the context of a thread that uses or drops it
/// as it was.
struct Guarded<T>(
    /// Taken by `drop`, and only then.
    Option<T>,
);

impl<T> Guarded<T> {
    fn get(&self) -> &T {
        let inner = self.0.as_ref();
        inner.expect("it is there until it is dropped")
    }

    fn get_mut(&mut self) -> &mut T {
        let inner = self.0.as_mut();
        inner.expect("it is there until it is dropped")
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        let _callers = CallersContext::keep();
        drop(self.0.take());
    }
}

impl Source for Guarded<Box<dyn Source>> {
    fn wait(&mut self, timeout: Duration) -> bool {
        let _callers = CallersContext::keep();
        self.get_mut().wait(timeout)
    }

    fn next(&mut self) -> Result<Option<Arc<dyn Pixels>>, LoaderError> {
        let _callers = CallersContext::keep();
        let batch = self.get_mut().next()?;
        Ok(batch.map(|batch| Arc::new(Guarded(Some(batch))) as Arc<dyn Pixels>))
    }

    fn state(&self) -> LoaderState {
        self.get().state()
    }

    fn stats(&self) -> (PipelineStats, IoCounters) {
        self.get().stats()
    }
}

impl Samples for Guarded<Arc<dyn Pixels>> {
    fn epoch(&self) -> u64 {
        self.get().epoch()
    }

    fn samples(&self) -> &[SampleRecord] {
        self.get().samples()
    }

    fn columns(&self) -> Option<&RecordBatch> {
        self.get().columns()
    }

    fn view_sides(&self) -> &[u32] {
        self.get().view_sides()
    }
}

impl Pixels for Guarded<Arc<dyn Pixels>> {
    fn start(&self, view: usize) -> *mut c_void {
        self.get().start(view)
    }

    fn device(&self) -> DLDevice {
        self.get().device()
    }

    fn order_on(&self, request: &ExportRequest<'_>) -> PyResult<()> {
        let _callers = CallersContext::keep();
        self.get().order_on(request)
    }
}

impl Pixels for Batch<CudaBackend> {
    fn start(&self, view: usize) -> *mut c_void {
        assert_eq!(view, 0, "a device renders one view");
        let start = self.memory().of_device().start();
        std::ptr::with_exposed_provenance_mut(start as usize)
    }

    fn device(&self) -> DLDevice {
        let context = self.memory().of_device().context();
        DLDevice::cuda(context.ordinal() as i32)
    }

    fn order_on(&self, request: &ExportRequest<'_>) -> PyResult<()> {
        let context = self.memory().of_device().context();
        let stream = match request.cuda_stream()? {
            CudaStreamRequest::Omitted | CudaStreamRequest::LegacyDefault => {
                context.default_stream()
            }
            CudaStreamRequest::PerThreadDefault => context.per_thread_stream(),
            CudaStreamRequest::Pointer(address) => {
                let handle = std::ptr::with_exposed_provenance_mut(address);
                // SAFETY: by the protocol a live stream of this device, for the time of this call;
                // no longer is it used.
                unsafe { context.wrap_borrowed_stream(handle) }
            }
            // The caller orders its work itself.
            CudaStreamRequest::NoSync => {
                self.lend();
                return Ok(());
            }
        };
        self.lend_to(&CudaStreamRef(stream)).map_err(|cause| {
            let text = format!(
                "the batch cannot be handed to another stream: {}. While a CUDA graph is captured \
                 on that stream it cannot be: take the batch before, and copy it into a tensor of \
                 the graph",
                full_text(&cause)
            );
            Python::attach(|py| error(py, Kind::Device, text, None))
        })
    }
}
