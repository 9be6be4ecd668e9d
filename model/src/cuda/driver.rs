//! The GPU that launches: one stream, one allocation, our kernels, matmuls by cuBLASLt.
#![expect(
    unsafe_code,
    reason = "the driver and cuBLASLt take addresses; all of them lie in the one allocation that is made here, or are the caller's pixels"
)]
use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute_enum};
use cudarc::driver::{CudaFunction, CudaStream, DriverError, result};
use cudarc::nvrtc::Ptx;

use super::arguments::{Attention, Launch};
use super::error::{CudaStepError, failed};
use super::launcher::{Launcher, Matmul};
use super::matmuls::{self, ChosenAlgorithms, Matmuls};
use super::memory::Memory;
use crate::step::{Shape, StepOptions};
use crate::{MemoryPlan, NepaConfig};

/// The kernels of one file, compiled by the build script.
struct Module {
    /// For every device, compiled by the driver when it is loaded.
    ptx: &'static str,
    /// Machine code, by the compute capability that it was made for, as 10 x major + minor.
    machine_code: [(i32, &'static [u8]); 2],
}

macro_rules! module {
    ($name:literal) => {
        Module {
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")),
            machine_code: [
                (
                    90,
                    include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".sm_90.cubin")),
                ),
                (
                    80,
                    include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".sm_80.cubin")),
                ),
            ],
        }
    };
}

const MODULES: [Module; 7] = [
    module!("activation"),
    module!("attention"),
    module!("embed"),
    module!("loss"),
    module!("norm"),
    module!("optimizer"),
    module!("pool"),
];

impl Module {
    /// What a device of this compute capability loads: machine code that was made for it or for a
    /// smaller one of its generation, else PTX, whose compilation takes seconds.
    fn image(&self, capability: i32) -> Ptx {
        let runs = |made_for: i32| made_for / 10 == capability / 10 && made_for <= capability;
        let fitting = self
            .machine_code
            .iter()
            .find(|(made_for, _)| runs(*made_for));
        fitting.map_or_else(
            || Ptx::from_src(self.ptx),
            |(_, code)| Ptx::from_binary(code.to_vec()),
        )
    }

    /// The names of its kernels: what PTX says between `.entry` and the parameters.
    fn kernels(&self) -> impl Iterator<Item = &'static str> {
        self.ptx
            .split(".entry ")
            .skip(1)
            .filter_map(|kernel| kernel.split(['(', ' ', '\n']).next())
    }
}

/// Kernels whose blocks ask for more shared memory than the 48 KiB that every block may have.
const LARGE_BLOCKS: [&str; 2] = ["attention_forward", "attention_backward"];
/// What cuBLASLt and the driver take beside the plan when their kernels are first used; a generous
/// guess until a GPU has said.
const LIBRARIES_BYTES: u64 = 512 << 20;

/// One GPU for one step. All work goes to one stream, from one thread at a time.
#[derive(Debug)]
pub struct CudaLauncher {
    // Dropped in this order: the matmuls' workspace and the memory before the context.
    matmuls: Matmuls,
    memory: Option<Memory>,
    kernels: HashMap<&'static str, CudaFunction>,
    /// Most shared memory of a block, in bytes.
    most_shared_bytes: i32,
    name: String,
    stream: Arc<CudaStream>,
}

impl CudaLauncher {
    /// Loads the kernels for the device of `stream`, where everything will run.
    pub fn new(stream: Arc<CudaStream>) -> Result<Self, CudaStepError> {
        use CUdevice_attribute as Attribute;
        let context = stream.context();
        let attribute = |attribute| {
            let value = context.attribute(attribute);
            value.map_err(failed("asking what the device can do"))
        };
        let capability = 10 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?
            + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let most_shared_bytes =
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut kernels = HashMap::new();
        for source in &MODULES {
            let module = context
                .load_module(source.image(capability))
                .map_err(failed("loading the training step's kernels"))?;
            for name in source.kernels() {
                let function = module
                    .load_function(name)
                    .map_err(failed("loading a kernel"))?;
                kernels.insert(name, function);
            }
        }
        for kernel in LARGE_BLOCKS {
            let function = kernels
                .get(kernel)
                .ok_or(CudaStepError::NoKernel { kernel })?;
            ask_for_shared_memory(function, most_shared_bytes)
                .map_err(failed("asking for shared memory"))?;
        }
        Ok(Self {
            matmuls: Matmuls::new(&stream)?,
            memory: None,
            kernels,
            most_shared_bytes,
            name: context
                .name()
                .map_err(failed("asking for the device's name"))?,
            stream,
        })
    }

    /// Whether the kernels can compute a model on this device; [`super::check`] says
    /// whether they can anywhere.
    pub fn check(&self, config: &NepaConfig, options: &StepOptions) -> Result<(), CudaStepError> {
        let tokens = Shape::new(config, options).tokens;
        let backward = Attention {
            tokens: tokens as u32,
            d_qkv: 1,
            ..Attention::default()
        };
        let needed = backward.launch(1).geometry().shared_bytes;
        let available = self.most_shared_bytes.unsigned_abs();
        if needed > available {
            return Err(CudaStepError::SharedMemory {
                tokens,
                needed,
                available,
            });
        }
        Ok(())
    }

    /// Where everything runs.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The matmuls' algorithms so far, to be saved with a run.
    pub fn chosen_algorithms(&self) -> ChosenAlgorithms {
        self.matmuls.chosen(&self.name)
    }

    /// Takes over those of a run that goes on, before its first matmul. Says whether they hold:
    /// those of another device or another version of cuBLASLt do not, and are chosen anew.
    pub fn take_algorithms(&mut self, saved: &ChosenAlgorithms) -> bool {
        self.matmuls.take(&self.name, saved)
    }

    fn bind(&self) -> Result<(), CudaStepError> {
        let bound = self.stream.context().bind_to_thread();
        bound.map_err(failed("making the context current"))
    }
}

/// All the shared memory that a block of this kernel can have, and all of a multiprocessor's memory
/// for it.
fn ask_for_shared_memory(
    function: &CudaFunction,
    most_shared_bytes: i32,
) -> Result<(), DriverError> {
    use CUfunction_attribute_enum as Attribute;
    const ALL_PERCENT: i32 = 100;
    let own = function.get_attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
    function.set_attribute(
        Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
        most_shared_bytes - own,
    )?;
    function.set_attribute(
        Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
        ALL_PERCENT,
    )
}

impl Launcher for CudaLauncher {
    type Error = CudaStepError;

    /// The matmuls' workspace, what choosing their algorithms takes for a while, and the libraries'
    /// own.
    fn beside(config: &NepaConfig, micro_batch: usize) -> MemoryPlan {
        let rows = (micro_batch * (config.num_patches() + 1)) as u64;
        let up = config.intermediate_size * if config.use_gated_mlp { 2 } else { 1 };
        let widest = up.max(3 * config.hidden_size) as u64;
        let mut plan = MemoryPlan::default();
        plan.add("workspace of matmuls", matmuls::WORKSPACE_BYTES as u64);
        plan.add("choosing the matmuls' algorithms", 2 * rows * widest);
        plan.add("kernels of the libraries", LIBRARIES_BYTES);
        plan
    }

    fn allocate(&mut self, num_bytes: u64) -> Result<u64, CudaStepError> {
        let memory = Memory::new(self.stream.context(), num_bytes as usize)?;
        Ok(self.memory.insert(memory).start)
    }

    fn launch<A: Copy>(&mut self, launch: Launch<A>) -> Result<(), CudaStepError> {
        self.bind()?;
        let kernel = launch.kernel();
        let function = self.kernels.get(kernel);
        let function = function.ok_or(CudaStepError::NoKernel { kernel })?;
        let geometry = launch.geometry();
        let [x, y, z] = geometry.grid;
        let [block_x, block_y, block_z] = geometry.block;
        let arguments = std::ptr::from_ref(launch.arguments()).cast_mut().cast();
        // SAFETY: a launch's argument is a mirror of its kernel's only one, which is copied before
        // this returns; what it points to is this device's memory (or the caller's pixels), as
        // large as the step has planned it.
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
        .map_err(failed(kernel))
    }

    fn matmul(&mut self, matmul: &Matmul) -> Result<(), CudaStepError> {
        self.bind()?;
        self.matmuls.multiply(matmul)
    }

    fn zero(&mut self, address: u64, num_bytes: u64) -> Result<(), CudaStepError> {
        self.bind()?;
        // SAFETY: a part of this device's memory.
        unsafe { result::memset_d8_async(address, 0, num_bytes as usize, self.stream.cu_stream()) }
            .map_err(failed("writing zeros"))
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), CudaStepError> {
        self.bind()?;
        // SAFETY: a part of this device's memory; a copy from memory that is not page-locked has
        // read it all when the call returns.
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
