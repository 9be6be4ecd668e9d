//! In place of `cuda.rs` in a build without the feature `cuda`: there is no such device.
use std::sync::Arc;

use nepa_pipeline::{Dataset, LoaderConfig, LoaderError, LoaderState, PixelType};
use pyo3::prelude::*;

use crate::errors::{Kind, error};
use crate::source::Source;

/// None.
pub(crate) enum Cuda {}

impl Cuda {
    /// Says which build is needed.
    pub(crate) fn open(py: Python<'_>, ordinal: usize) -> PyResult<Self> {
        let text = format!(
            "device = \"cuda:{ordinal}\" needs a build of nepa with CUDA, and this one has none: \
             `make cuda-wheel` in a checkout builds one (docs/python.md). Or load with \
             device=\"cpu\" and copy: images.to(\"cuda:{ordinal}\")"
        );
        Err(error(py, Kind::Setting, text, None))
    }

    pub(crate) fn start(
        &self,
        _dataset: Arc<Dataset>,
        _config: LoaderConfig,
        _state: &LoaderState,
        _pixel_type: PixelType,
        _patch_size: Option<u32>,
    ) -> Result<Box<dyn Source>, LoaderError> {
        match *self {}
    }
}
