//! Where batches lie: in this process's memory, or in a CUDA device's.
use nepa_pipeline::PixelType;
use pyo3::prelude::*;

use crate::cuda::Cuda;
use crate::errors::{Kind, error};

/// Where a loader's batches lie.
pub(crate) enum Device {
    Cpu,
    Cuda(Cuda),
}

impl Device {
    /// Opens the device of this name, as PyTorch writes it.
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
        Cuda::open(py, ordinal).map(Self::Cuda)
    }

    /// Refuses batches that it cannot fill: views of these sides, and values of this type, or bytes.
    pub(crate) fn check(
        &self,
        py: Python<'_>,
        sides: &[u32],
        pixel_type: Option<PixelType>,
    ) -> PyResult<()> {
        let text = match self {
            Self::Cuda(_) if pixel_type.is_none() => {
                "dtype = \"uint8\" is the CPU's: on a GPU it is \"float32\" or \"bfloat16\". Or \
                 load with device=\"cpu\""
            }
            Self::Cuda(_) if sides.len() > 1 => {
                "a transform of several views (MultiCrop) is the CPU's: load with device=\"cpu\", \
                 or take a transform of one view"
            }
            Self::Cpu | Self::Cuda(_) => return Ok(()),
        };
        Err(error(py, Kind::Setting, text.to_owned(), None))
    }
}
