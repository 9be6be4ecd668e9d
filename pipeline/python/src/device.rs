//! Where batches lie: in this process's memory, or in a CUDA device's.
use pyo3::prelude::*;

use crate::errors::{Kind, error};

#[cfg(feature = "cuda")]
use crate::cuda::Cuda;

/// Where a loader's batches lie.
pub(crate) enum Device {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
}

impl Device {
    /// The device of this name, as PyTorch writes it.
    pub(crate) fn open(py: Python<'_>, name: &str) -> PyResult<Self> {
        if name == "cpu" {
            return Ok(Self::Cpu);
        }
        let number = name.strip_prefix("cuda:").map(str::parse::<usize>);
        let Some(Ok(ordinal)) = number else {
            let text = format!(
                "device = {name:?}: it is \"cpu\", or a GPU by its number, as \"cuda:0\" (of \
                 several processes each names its own, as f\"cuda:{{local_rank}}\")"
            );
            return Err(error(py, Kind::Setting, text, None));
        };
        open_cuda(py, ordinal)
    }
}

#[cfg(feature = "cuda")]
fn open_cuda(py: Python<'_>, ordinal: usize) -> PyResult<Device> {
    py.import("nepa._cuda")?.call_method0("load_nvjpeg")?;
    let opened = crate::waiting::interruptible(py, move || Cuda::open(ordinal))?;
    let opened = opened.map_err(|cause| {
        let text = nepa_pipeline::full_text(&cause);
        error(py, Kind::Device, text, None)
    });
    opened.map(Device::Cuda)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(py: Python<'_>, ordinal: usize) -> PyResult<Device> {
    let text = format!(
        "device = \"cuda:{ordinal}\" needs a build of nepa with CUDA, and this one has none: \
         install the wheel that `make wheel-cuda` of the source tree builds. Or load with \
         device=\"cpu\" and copy: images.to(\"cuda:{ordinal}\")"
    );
    Err(error(py, Kind::Setting, text, None))
}
