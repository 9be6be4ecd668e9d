//! Whether a CUDA device can be used, found out step by step, so that the error names the first
//! thing that is missing.
use cudarc::driver::CudaContext;
use cudarc::driver::result::{device, init, mem_pool};
use cudarc::driver::sys::{self, CUdevice_attribute, CUresult};

use super::error::CudaError;
use super::libraries::Library;

/// Compute capability that our kernels and candle's were compiled for, as 10 x major + minor.
const BUILT_FOR: &str = env!("NEPA_CUDA_COMPUTE_CAP");

/// A device that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Its number, from 0.
    pub ordinal: usize,
    /// As NVIDIA calls it.
    pub name: String,
    /// As 10 x major + minor.
    pub compute_capability: u32,
    /// All of its memory.
    pub memory_bytes: usize,
    /// CUDA version that the driver supports, as 1000 x major + 10 x minor.
    pub driver_version: u32,
}

/// Devices that the driver shows this process, at least one.
pub fn count_devices() -> Result<usize, CudaError> {
    Ok(check_driver()?.1)
}

/// The driver's CUDA version and its number of devices, if it can be used by this program.
fn check_driver() -> Result<(u32, usize), CudaError> {
    if let Some(tried) = Library::Driver.load_error() {
        return Err(CudaError::NoDriver { tried });
    }
    let no_device = |answer: String| CudaError::NoDevice {
        answer,
        visible_devices: visible_devices(),
    };
    init().map_err(|error| match error.0 {
        // NVIDIA's libcuda to link against, in place of the driver's.
        CUresult::CUDA_ERROR_STUB_LIBRARY => CudaError::NoDriver {
            tried: format!("{error}"),
        },
        _ => no_device(format!("cuInit: {error}")),
    })?;
    let mut driver_version = 0;
    // SAFETY: the pointer is to a live integer of the type that the driver writes.
    unsafe { sys::cuDriverGetVersion(&raw mut driver_version) }
        .result()
        .map_err(CudaError::driver("say its version"))?;
    let driver_version = driver_version.unsigned_abs();
    if driver_version < sys::CUDA_VERSION {
        return Err(CudaError::OldDriver {
            found: driver_version,
            needed: sys::CUDA_VERSION,
        });
    }
    let num_devices = device::get_count()
        .map_err(CudaError::driver("count its devices"))?
        .unsigned_abs() as usize;
    if num_devices == 0 {
        return Err(no_device("it counts 0".to_owned()));
    }
    Ok((driver_version, num_devices))
}

fn visible_devices() -> Option<String> {
    std::env::var("CUDA_VISIBLE_DEVICES").ok()
}

/// The oldest device that the loader's kernels are compiled to machine code for, as 10 x major +
/// minor: the least of `MACHINE_CODE` in `accelerator.rs`.
const OLDEST_MACHINE_CODE: u32 = 80;

/// Finds out whether a loader can use device `ordinal`: driver, device, their versions. nvJPEG is
/// not among that: the CPU can decode in its place.
pub fn find_device(ordinal: usize) -> Result<DeviceFacts, CudaError> {
    let facts = describe(ordinal)?;
    // The driver compiles the kernels' text for what is newer than `BUILT_FOR`.
    let needed = built_for().min(OLDEST_MACHINE_CODE);
    check_capability(&facts.name, facts.compute_capability, needed)?;
    Ok(facts)
}

/// Finds out whether device `ordinal` can be used by this program: what [`find_device`] does, and
/// the libraries that candle opens with it (cuBLAS, cuRAND) and its kernels.
pub fn check_device(ordinal: usize) -> Result<DeviceFacts, CudaError> {
    let facts = describe(ordinal)?;
    check_capability(&facts.name, facts.compute_capability, built_for())?;
    for library in [Library::CublasLt, Library::Cublas, Library::Curand] {
        if let Some(tried) = library.load_error() {
            return Err(CudaError::NoLibrary {
                library: library.name(),
                tried,
            });
        }
    }
    Ok(facts)
}

fn built_for() -> u32 {
    BUILT_FOR.parse().unwrap_or(0)
}

/// What the driver says of a device.
fn describe(ordinal: usize) -> Result<DeviceFacts, CudaError> {
    let (driver_version, num_devices) = check_driver()?;
    if ordinal >= num_devices {
        return Err(CudaError::NoSuchDevice {
            ordinal,
            num_devices,
            visible_devices: visible_devices(),
        });
    }
    facts(ordinal, driver_version)
}

/// Lets the driver keep memory that candle frees, so that the next step takes it again without a
/// call to the system; by default it is given back at every synchronisation.
pub fn keep_freed_memory(context: &CudaContext) -> Result<(), CudaError> {
    let doing = "keep freed memory";
    context.bind_to_thread().map_err(CudaError::driver(doing))?;
    // SAFETY: the device is the context's own, the pool is its default one, and the attribute is
    // one 64-bit number.
    unsafe {
        let pool = device::get_mem_pool(context.cu_device()).map_err(CudaError::driver(doing))?;
        let mut threshold = u64::MAX;
        mem_pool::set_attribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut threshold).cast(),
        )
        .map_err(CudaError::driver(doing))
    }
}

fn facts(ordinal: usize, driver_version: u32) -> Result<DeviceFacts, CudaError> {
    let handle =
        device::get(ordinal as i32).map_err(CudaError::driver("give a handle to the device"))?;
    let attribute = |attribute| {
        // SAFETY: the handle is the driver's own, of just now.
        unsafe { device::get_attribute(handle, attribute) }
            .map_err(CudaError::driver("say the device's compute capability"))
    };
    let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    // SAFETY: as above.
    let memory_bytes = unsafe { device::total_mem(handle) }
        .map_err(CudaError::driver("say how much memory the device has"))?;
    Ok(DeviceFacts {
        ordinal,
        name: device::get_name(handle).map_err(CudaError::driver("say the device's name"))?,
        compute_capability: (10 * major + minor).unsigned_abs(),
        memory_bytes,
        driver_version,
    })
}

/// candle compiles for 90 and above with the features of that one generation (`sm_90a`), which no
/// other can run; below, newer devices can.
fn check_capability(name: &str, found: u32, built_for: u32) -> Result<(), CudaError> {
    let exactly = built_for >= 90;
    if found == built_for || !exactly && found > built_for {
        return Ok(());
    }
    Err(CudaError::OtherDevice {
        name: name.to_owned(),
        found,
        needed: built_for,
        exactly,
    })
}
