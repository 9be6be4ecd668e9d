//! Memory of a GPU.
#![expect(unsafe_code, reason = "the driver takes and gives addresses")]
use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use super::error::{CudaStepError, failed};

/// Device memory.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) start: sys::CUdeviceptr,
    context: Arc<CudaContext>,
}

impl Memory {
    pub(super) fn new(context: &Arc<CudaContext>, num_bytes: usize) -> Result<Self, CudaStepError> {
        context
            .bind_to_thread()
            .map_err(failed("making the context current"))?;
        // SAFETY: any length but 0 is allowed, and the driver answers with an error for that.
        let start =
            unsafe { result::malloc_sync(num_bytes) }.map_err(failed("taking device memory"))?;
        Ok(Self {
            start,
            context: Arc::clone(context),
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // A failed release is not worth a panic in a destructor.
        let _ = self.context.synchronize().and_then(|()| {
            // SAFETY: allocated by `malloc_sync`, freed once, and no work of the context uses it
            // any more.
            unsafe { result::free_sync(self.start) }
        });
    }
}
