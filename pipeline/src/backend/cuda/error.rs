//! What can go wrong with a CUDA device, each with what was tried and what to do.
use cudarc::driver::DriverError;

/// A CUDA device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The driver's library cannot be opened.
    #[error(
        "there is no NVIDIA driver here: its library cannot be opened ({tried}). Install the driver, or give the container the GPU \
         (docker run --gpus all, with NVIDIA's container toolkit on the host); `nvidia-smi` shows whether it works"
    )]
    NoDriver {
        /// Files and the dynamic loader's answers.
        tried: String,
    },
    /// The driver does not know some device, or cannot reach it.
    #[error(
        "the NVIDIA driver is here and finds no usable GPU ({answer}){}. `nvidia-smi` must list one; a container needs --gpus all",
        visible(visible_devices.as_ref())
    )]
    NoDevice {
        /// The driver's answer.
        answer: String,
        /// `CUDA_VISIBLE_DEVICES`, if it is set.
        visible_devices: Option<String>,
    },
    /// A number beyond the last device.
    #[error(
        "there is no device cuda:{ordinal}: the driver shows {num_devices}, counted from 0{}",
        visible(visible_devices.as_ref())
    )]
    NoSuchDevice {
        /// The number that was asked for.
        ordinal: usize,
        /// How many there are.
        num_devices: usize,
        /// `CUDA_VISIBLE_DEVICES`, if it is set.
        visible_devices: Option<String>,
    },
    /// The driver is older than what this program was compiled for.
    #[error(
        "the NVIDIA driver supports CUDA {}, and this program was built for CUDA {}: update the driver (CUDA 13.0 needs 580 or newer)", version(*found), version(*needed)
    )]
    OldDriver {
        /// Version that the driver supports, as 1000 x major + 10 x minor.
        found: u32,
        /// Version of the toolkit.
        needed: u32,
    },
    /// The GPU's code was made for another generation.
    #[error(
        "{name} has compute capability {}.{}, and this program's kernels were compiled for {}.{}{}: build it with CUDA_COMPUTE_CAP={found} make cuda",
        found / 10, found % 10, needed / 10, needed % 10, if *exactly { " alone" } else { " or newer" }
    )]
    OtherDevice {
        /// The device.
        name: String,
        /// Its compute capability, as 10 x major + minor.
        found: u32,
        /// That of the kernels.
        needed: u32,
        /// Whether newer devices cannot run them either.
        exactly: bool,
    },
    /// A library that comes with the toolkit and not with the driver cannot be opened.
    #[error(
        "{library} of CUDA 13 is not on this machine ({tried}). Run scripts/cuda-toolkit.sh of the source tree, which puts it where this \
         program looks, or name its folder in LD_LIBRARY_PATH (beside PyTorch for CUDA 13: site-packages/nvidia/cu13/lib)"
    )]
    NoLibrary {
        /// Its name.
        library: &'static str,
        /// Files and the dynamic loader's answers.
        tried: String,
    },
    /// The driver refused something.
    #[error("the CUDA driver failed to {doing}")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// Its answer.
        source: DriverError,
    },
}

impl CudaError {
    /// For `map_err`: the driver failed to do this.
    pub fn driver(doing: &'static str) -> impl FnOnce(DriverError) -> Self {
        move |source| Self::Driver { doing, source }
    }
}

fn visible(devices: Option<&String>) -> String {
    devices.map_or_else(String::new, |devices| {
        format!("; CUDA_VISIBLE_DEVICES is {devices:?}")
    })
}

/// 13000 is 13.0.
fn version(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}
