//! A batch whose pixels others may read and write where they lie.
use std::ffi::c_void;

use arrow::record_batch::RecordBatch;
use dlpark::ffi::DLDevice;
use dlpark::python::ExportRequest;
use nepa_pipeline::{Batch, HostBatch, ImageBackend, Pixel, SampleRecord};
use pyo3::prelude::*;

/// What a batch of any backend holds.
pub(crate) trait Samples: Send + Sync {
    fn epoch(&self) -> u64;
    /// One a sample, in order.
    fn samples(&self) -> &[SampleRecord];
    fn columns(&self) -> Option<&RecordBatch>;
    /// Sides of the views in pixels.
    fn view_sides(&self) -> &[u32];
}

impl<B: ImageBackend> Samples for Batch<B>
where
    Self: Send + Sync,
{
    fn epoch(&self) -> u64 {
        self.epoch()
    }

    fn samples(&self) -> &[SampleRecord] {
        self.samples()
    }

    fn columns(&self) -> Option<&RecordBatch> {
        self.columns()
    }

    fn view_sides(&self) -> &[u32] {
        self.view_sides()
    }
}

/// Where its pixels lie.
pub(crate) trait Pixels: Samples {
    /// Start of a view's array: all samples side by side. Valid for as long as the batch.
    fn start(&self, view: usize) -> *mut c_void;

    fn device(&self) -> DLDevice;

    /// Sees to it that the consumer's stream, if it names one, finds the pixels written.
    fn order_on(&self, request: &ExportRequest<'_>) -> PyResult<()>;
}

impl<P: Pixel> Pixels for HostBatch<P> {
    fn start(&self, view: usize) -> *mut c_void {
        // Lent for writing, too: the pool writes all of it again before it is read again.
        self.view_array(view).as_ptr().cast_mut().cast()
    }

    fn device(&self) -> DLDevice {
        DLDevice::CPU
    }

    fn order_on(&self, _: &ExportRequest<'_>) -> PyResult<()> {
        Ok(())
    }
}
