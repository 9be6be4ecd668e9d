//! Everything of this package that needs an NVIDIA GPU; built with the feature `cuda` only.
//!
//! Three layers, each using only the one before: *symbols* (cudarc's and nvjpeg-sys's bindings, and
//! [`libraries`]), *results* (an error for each call that can fail: [`CudaError`]), *owning types*.
//! [`check_device`], or [`find_device`] where no model is computed, comes before all of them:
//! afterwards the driver, the libraries and the device are known to be there.
//!
//! Unsafe code is allowed here and in `image/libjpeg.rs`, and nowhere else in the package; each
//! block says why it is sound.
#![expect(unsafe_code, reason = "the CUDA driver and nvJPEG are C interfaces")]

use std::sync::Arc;

use cudarc::driver::CudaStream;

use crate::backend::BackendError;
use crate::backend::device::{DeviceBackend, PixelLayout};
use crate::image::Normalize;

mod accelerator;
mod batch;
mod decoders;
mod device;
mod error;
mod hybrid;
mod image_memory;
pub mod libraries;
pub mod nvjpeg;
mod shared;

pub use crate::backend::device::{Chroma, EngineConfig};
pub use accelerator::{CudaAccelerator, CudaEvent, CudaMemory, CudaPinned, CudaStreamRef};
pub use decoders::cuda_decoders;

/// Batches in the memory of a CUDA device.
pub type CudaBackend = DeviceBackend<CudaAccelerator>;

/// The backend of a loader whose consumer enqueues its work on `consumer`.
pub fn cuda_backend(
    consumer: Arc<CudaStream>,
    layout: PixelLayout,
    normalize: &Normalize,
    engines: EngineConfig,
) -> Result<CudaBackend, BackendError> {
    let accelerator = CudaAccelerator::new(Arc::clone(consumer.context()), layout, normalize)?;
    let decoders = cuda_decoders(&accelerator, engines)?;
    Ok(DeviceBackend::new(
        Arc::new(accelerator),
        decoders,
        layout,
        CudaStreamRef(consumer),
    ))
}

/// The bindings of the CUDA driver, in the version that candle uses as well.
pub use cudarc;
pub use device::{DeviceFacts, check_device, count_devices, find_device, keep_freed_memory};
pub use error::CudaError;
