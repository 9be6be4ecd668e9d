//! What all CUDA decoders of a loader share: settings, counts of refusals, who is to blame for
//! them.
use std::sync::atomic::AtomicBool;

use super::nvjpeg::NvjpegError;
use crate::backend::BackendError;
use crate::backend::device::EngineConfig;
use crate::backend::device::engine_rules::{Blame, Patience};
use crate::image::ImageHeader;
use crate::stats::{DecoderCounters, JpegEngine};

/// What all decoders of a loader share.
#[derive(Debug)]
pub(super) struct Shared {
    pub config: EngineConfig,
    pub counters: DecoderCounters,
    /// With the hybrid decoder.
    pub patience: Patience,
    /// Whether it was said that a thread's decoder is not what it should be.
    pub has_warned: AtomicBool,
}

impl Shared {
    /// Counts a refusal and says it to whoever looks for it.
    pub(super) fn refused(&self, engine: JpegEngine, refusal: &NvjpegError) {
        self.counters.refused(engine, refusal.phase, refusal.status);
        tracing::debug!("{refusal}; another decoder takes the image");
    }

    /// The hybrid decoder refused an image on a device that works. An error where no other decoder
    /// may take it.
    pub(super) fn refused_by_hybrid(&self, refusal: &NvjpegError) -> Result<(), BackendError> {
        self.refused(JpegEngine::Hybrid, refusal);
        let blame = refusal.blame();
        let fixed = self.config.fixed;
        if fixed && blame == Blame::Image {
            // As its bytes say, however many they are.
            return Ok(());
        }
        if fixed && blame == Blame::Surroundings {
            return Err(not_fixed(refusal.to_string()));
        }
        if !self.patience.refused(blame) {
            return Ok(());
        }
        let what = format!(
            "nvJPEG's hybrid decoder refused many images in a row, the last one as follows: \
             {refusal}"
        );
        if fixed {
            return Err(not_fixed(what));
        }
        tracing::warn!(
            "{what}. It is not used any more, and the decode threads decode alone. Look whether \
             the device has free memory (nvidia-smi) and whether libnvjpeg fits the driver"
        );
        Ok(())
    }

    /// Whether the hybrid decoder is not used any more; where decoders are fixed, its refusals end
    /// the run instead.
    pub(super) fn has_given_hybrid_up(&self) -> bool {
        !self.config.fixed && self.patience.is_given_up()
    }
}

/// Why a run whose decoders are fixed cannot go on.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what}. Who decodes is fixed by the files' bytes (loader.jpeg = \"fixed\"), so the CPU must \
     not take over: its pixels are others. Look whether the device has free memory (nvidia-smi) \
     and whether libnvjpeg fits the driver, or choose \"auto\" or \"cpu\""
)]
struct NotFixed {
    what: String,
}

pub(super) fn not_fixed(what: String) -> BackendError {
    BackendError {
        doing: "decoding with nvJPEG",
        source: Box::new(NotFixed { what }),
    }
}

/// A [`BackendError`] of nvJPEG's.
pub(super) fn failed(error: NvjpegError) -> BackendError {
    BackendError {
        doing: "decoding with nvJPEG",
        source: Box::new(error),
    }
}

/// Stored width and height.
pub(super) fn stored_size(header: &ImageHeader) -> (u32, u32) {
    // Swapping twice is not swapping.
    header.orientation.upright_size(header.width, header.height)
}
