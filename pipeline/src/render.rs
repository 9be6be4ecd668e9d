//! Encoded image and plan to normalised pixels: decode, crop, resize, flip, normalise.
use crate::{Augment, CropPlan, ImageError};
use rand_chacha::ChaCha8Rng;

/// Pixel normalisation, per channel: `(rgb / 255 - mean) / std`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Normalize {
    /// Mean of R, G, B in `[0, 1]`.
    pub mean: [f32; 3],
    /// Standard deviation of R, G, B.
    pub std: [f32; 3],
}

impl Default for Normalize {
    /// NEPA's: 0.5 and 0.5.
    fn default() -> Self {
        Self { mean: [0.5; 3], std: [0.5; 3] }
    }
}

/// What one thread needs to render samples on the CPU; holds its scratch memory.
#[derive(Debug, Default)]
pub struct CpuRenderer {}

impl CpuRenderer {
    /// A renderer; `exif_orientation` says whether the EXIF orientation is applied.
    pub fn new(_normalize: Normalize, _exif_orientation: bool) -> Self {
        unimplemented!()
    }

    /// Reads the header, draws the plan, decodes and renders into `output` (`[3, S, S]`, S = the plan's output side).
    pub fn render(
        &mut self,
        _encoded: &[u8],
        _augment: &dyn Augment,
        _rng: &mut ChaCha8Rng,
        _output: &mut [f32],
    ) -> Result<CropPlan, ImageError> {
        unimplemented!()
    }
}
