//! The kernel step's device on an NVIDIA GPU: one stream, one allocation, our kernels, and matrix products by cuBLASLt. Built with the feature `cuda` only.
#![expect(
    unsafe_code,
    reason = "the driver and cuBLASLt take addresses; all of them lie in the one allocation that is made here, or are the caller's pixels"
)]
mod products;

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute_enum};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream, DriverError, result, sys};
use cudarc::nvrtc::Ptx;

use crate::ModelError;
use crate::kernel_step::arguments::Launch;
use crate::kernel_step::{Product, StepDevice};
use products::Products;

/// Compiled by the build script from `kernels/`, and the kernels in each.
const MODULES: [(&str, &[&str]); 6] = [
    (
        include_str!(concat!(env!("OUT_DIR"), "/activation.ptx")),
        &[
            "activation_forward",
            "activation_backward",
            "gated_activation_forward",
            "gated_activation_backward",
        ],
    ),
    (
        include_str!(concat!(env!("OUT_DIR"), "/attention.ptx")),
        &["attention_forward", "attention_backward"],
    ),
    (
        include_str!(concat!(env!("OUT_DIR"), "/embed.ptx")),
        &["patchify_f32", "patchify_bf16", "assemble", "disassemble"],
    ),
    (
        include_str!(concat!(env!("OUT_DIR"), "/loss.ptx")),
        &["cosine_loss"],
    ),
    (
        include_str!(concat!(env!("OUT_DIR"), "/norm.ptx")),
        &[
            "layer_norm_forward",
            "residual_norm_forward",
            "layer_norm_backward",
            "column_sums",
            "add_partials",
        ],
    ),
    (
        include_str!(concat!(env!("OUT_DIR"), "/optimizer.ptx")),
        &[
            "layer_scale_finish",
            "norm_partials",
            "norm_final",
            "adamw_update",
            "copy_to_bf16",
        ],
    ),
];

/// The device refused something.
#[derive(Debug, thiserror::Error)]
pub enum CudaStepError {
    /// The driver.
    #[error("{doing} failed: {detail}")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        detail: String,
    },
    /// cuBLASLt.
    #[error("a product of {m} x {k} by {k} x {n} failed: {detail}")]
    Product {
        /// Rows of the result.
        m: usize,
        /// Columns of the result.
        n: usize,
        /// Length of its sums.
        k: usize,
        /// What it said.
        detail: String,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

fn failed(doing: &'static str) -> impl FnOnce(DriverError) -> CudaStepError {
    move |error| CudaStepError::Driver {
        doing,
        detail: error.to_string(),
    }
}

/// One GPU for one step. All work goes to one stream, from one thread at a time.
#[derive(Debug)]
pub struct CudaStepDevice {
    // Dropped in this order: the products' workspace and the memory before the context.
    products: Products,
    memory: Option<Memory>,
    kernels: HashMap<&'static str, CudaFunction>,
    stream: Arc<CudaStream>,
}

impl CudaStepDevice {
    /// Loads the kernels for the device of `stream`, where everything will run.
    pub fn new(stream: Arc<CudaStream>) -> Result<Self, CudaStepError> {
        let context = stream.context();
        let mut kernels = HashMap::new();
        for (source, names) in MODULES {
            let module = context
                .load_module(Ptx::from_src(source))
                .map_err(failed("loading the training step's kernels"))?;
            for name in names {
                let function = module
                    .load_function(name)
                    .map_err(failed("loading a kernel"))?;
                kernels.insert(*name, function);
            }
        }
        // More than 48 KiB of shared memory must be asked for.
        let most = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .map_err(failed("asking for the size of shared memory"))?;
        for name in ["attention_forward", "attention_backward"] {
            let function = &kernels[name];
            let own = function
                .get_attribute(CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
                .map_err(failed("asking for a kernel's shared memory"))?;
            function
                .set_attribute(
                    CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    most - own,
                )
                .map_err(failed("asking for shared memory"))?;
        }
        Ok(Self {
            products: Products::new(&stream)?,
            memory: None,
            kernels,
            stream,
        })
    }

    /// Where everything runs.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    fn bind(&self) -> Result<(), CudaStepError> {
        let bound = self.stream.context().bind_to_thread();
        bound.map_err(failed("making the context current"))
    }
}

/// Device memory.
#[derive(Debug)]
struct Memory {
    start: sys::CUdeviceptr,
    context: Arc<CudaContext>,
}

impl Memory {
    fn new(context: &Arc<CudaContext>, num_bytes: usize) -> Result<Self, CudaStepError> {
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
            // SAFETY: allocated by `malloc_sync`, freed once, and no work of the context uses it any more.
            unsafe { result::free_sync(self.start) }
        });
    }
}

impl StepDevice for CudaStepDevice {
    type Error = CudaStepError;

    fn allocate(&mut self, num_bytes: u64) -> Result<u64, CudaStepError> {
        let memory = Memory::new(self.stream.context(), num_bytes as usize)?;
        Ok(self.memory.insert(memory).start)
    }

    fn launch<A: Copy>(&mut self, launch: Launch<A>) -> Result<(), CudaStepError> {
        self.bind()?;
        let function = &self.kernels[launch.kernel()];
        let geometry = launch.geometry();
        let [x, y, z] = geometry.grid;
        let [block_x, block_y, block_z] = geometry.block;
        let arguments = std::ptr::from_ref(launch.arguments()).cast_mut().cast();
        // SAFETY: a launch's argument is a mirror of its kernel's only one, which is copied before this returns; what it points to is this device's
        // memory (or the caller's pixels), as large as the step has planned it.
        unsafe {
            result::launch_kernel(
                function.cu_function(),
                (x, y, z),
                (block_x, block_y, block_z),
                geometry.shared_bytes,
                self.stream.cu_stream(),
                &mut [arguments],
            )
        }
        .map_err(failed(launch.kernel()))
    }

    fn multiply(&mut self, product: Product) -> Result<(), CudaStepError> {
        self.bind()?;
        self.products.multiply(&product)
    }

    fn zero(&mut self, address: u64, num_bytes: u64) -> Result<(), CudaStepError> {
        self.bind()?;
        // SAFETY: a part of this device's memory.
        unsafe { result::memset_d8_async(address, 0, num_bytes as usize, self.stream.cu_stream()) }
            .map_err(failed("writing zeros"))
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), CudaStepError> {
        self.bind()?;
        // SAFETY: a part of this device's memory; a copy from memory that is not page-locked has read it all when the call returns.
        unsafe { result::memcpy_htod_async(address, bytes, self.stream.cu_stream()) }
            .map_err(failed("copying to the device"))
    }

    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), CudaStepError> {
        self.bind()?;
        // SAFETY: a part of this device's memory; the wait below comes before `bytes` is used.
        unsafe { result::memcpy_dtoh_async(bytes, address, self.stream.cu_stream()) }
            .map_err(failed("copying from the device"))?;
        self.stream
            .synchronize()
            .map_err(failed("waiting for the device"))
    }
}
