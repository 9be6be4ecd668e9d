//! Which JPEG engines a device's loader uses, and how. Here and not behind the feature `cuda`, so
//! that it can be chosen and tested anywhere.
use serde::{Deserialize, Serialize};

/// How colour that was stored at a lower resolution is enlarged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Chroma {
    /// Each value is repeated: nvJPEG's default.
    #[default]
    Replicated,
    /// Values between are computed, as libjpeg does ("fancy upsampling").
    Interpolated,
}

impl Chroma {
    /// Flags of an nvJPEG handle. `NVJPEG_FLAGS_UPSAMPLING_WITH_INTERPOLATION` is of nvJPEG 12.1;
    /// nvjpeg-sys does not have it.
    pub fn handle_flags(self) -> u32 {
        match self {
            Self::Replicated => 0,
            Self::Interpolated => 1 << 5,
        }
    }
}

/// Which engines are used, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent switches, set by name"
)]
pub struct EngineConfig {
    /// The device's JPEG engines, if it has them. Not together with `fixed`.
    pub hardware: bool,
    /// nvJPEG on the decode threads.
    pub hybrid: bool,
    /// Who decodes an image follows from its bytes alone, so that a run repeats bit for bit:
    /// nvJPEG's hybrid decoder, if the header suits it and nvJPEG takes the file, else the
    /// processor. An engine that stops working ends the run, where otherwise the processor would
    /// take over.
    pub fixed: bool,
    /// How nvJPEG enlarges colour.
    pub chroma: Chroma,
    /// Whether the hybrid decoder makes only the part of an image that the crop reads, and not all
    /// of it.
    pub part_only: bool,
    /// Whether each image of the device's engines is checked for pixels that were never written.
    /// Costs a copy from the device and a wait a call: for checks.
    pub verify_hardware: bool,
    /// Whether EXIF orientation is applied.
    pub exif_orientation: bool,
    /// Width and height in pixels of the largest image that is decoded on the device, in whatever
    /// shape its pixels lie; the processor decodes larger ones. Memory for such an image is taken
    /// for each that may be under way ([`Self::device_bytes`]).
    pub largest: [u32; 2],
}

/// Images of one call. The engines work on several at once, and a call costs as much as some
/// images.
pub(crate) const IMAGES_A_CALL: usize = 64;
/// Threads that feed the device's engines: while one waits for its call, the engines have the
/// other's.
pub(crate) const CALLS_AT_ONCE: usize = 2;
/// Images that a decode thread has in flight on the device, each on a stream of its own: of the
/// hybrid decoder's five or more small kernels each waits for the one before, and for room between
/// the kernels of the training step.
pub const IMAGES_A_THREAD: usize = 2;
/// Bytes that an engine may write past the pixels: it works in blocks.
const SLACK_BYTES: usize = 1 << 16;

impl EngineConfig {
    /// Pixels of the largest image.
    pub fn largest_pixels(&self) -> u64 {
        u64::from(self.largest[0]) * u64::from(self.largest[1])
    }

    /// Bytes of device memory for one image.
    pub fn image_bytes(&self) -> usize {
        3 * self.largest_pixels() as usize + SLACK_BYTES
    }

    /// Device memory for images under way with so many decode threads, in bytes. nvJPEG takes about
    /// as much again for itself.
    pub fn device_bytes(&self, decode_threads: usize) -> u64 {
        let hybrid = if self.hybrid {
            IMAGES_A_THREAD * decode_threads
        } else {
            0
        };
        let hardware = if self.uses_hardware() {
            IMAGES_A_CALL * CALLS_AT_ONCE
        } else {
            0
        };
        ((hybrid + hardware) * self.image_bytes()) as u64
    }

    /// All engines, by measured speed.
    pub const AUTO: Self = Self {
        hardware: true,
        hybrid: true,
        fixed: false,
        chroma: Chroma::Replicated,
        part_only: true,
        verify_hardware: false,
        exif_orientation: true,
        largest: [2560, 1920],
    };
    /// Without the device's engines.
    pub const HYBRID: Self = Self {
        hardware: false,
        ..Self::AUTO
    };
    /// The processor alone; the device only normalises.
    pub const CPU: Self = Self {
        hybrid: false,
        ..Self::HYBRID
    };
    /// By the file's bytes alone.
    pub const FIXED: Self = Self {
        fixed: true,
        ..Self::HYBRID
    };

    /// Whether the device's engines may get images: they are fed by measured speed, which nothing
    /// that repeats can be.
    pub fn uses_hardware(&self) -> bool {
        self.hardware && self.hybrid && !self.fixed
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self::AUTO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_all_engines_are_chosen_by_speed() {
        assert!(EngineConfig::default().uses_hardware());
        for config in [EngineConfig::HYBRID, EngineConfig::CPU, EngineConfig::FIXED] {
            assert!(!config.uses_hardware(), "{config:?}");
        }
        let both = EngineConfig {
            fixed: true,
            ..EngineConfig::AUTO
        };
        assert!(!both.uses_hardware());
        assert_eq!(Chroma::Interpolated.handle_flags(), 32);
    }
}
