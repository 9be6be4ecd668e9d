//! The engine sets that are compared, by name.
use nepa_pipeline::{cuda::Chroma, cuda::EngineConfig};

/// Who decodes, and how nvJPEG does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum EngineSet {
    /// The CPU alone; the device normalises.
    Cpu,
    /// nvJPEG on the decode threads: the part that the crop reads, chroma replicated.
    Hybrid,
    /// The same with chroma interpolated.
    HybridInterpolated,
    /// Whole images, chroma replicated.
    HybridWhole,
    /// Whole images, chroma interpolated.
    HybridWholeInterpolated,
    /// The device's JPEG engines, nvJPEG on the decode threads and the CPU, by speed; chroma
    /// replicated.
    Engines,
    /// The same with chroma interpolated.
    EnginesInterpolated,
    /// By the files' bytes alone, so that a run repeats.
    Fixed,
}

impl EngineSet {
    /// As the report calls it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Hybrid => "hybrid, part, replicated",
            Self::HybridInterpolated => "hybrid, part, interpolated",
            Self::HybridWhole => "hybrid, whole, replicated",
            Self::HybridWholeInterpolated => "hybrid, whole, interpolated",
            Self::Engines => "engines + hybrid + CPU, replicated",
            Self::EnginesInterpolated => "engines + hybrid + CPU, interpolated",
            Self::Fixed => "hybrid or CPU, fixed",
        }
    }

    /// What the loader is told.
    pub(crate) fn config(self) -> EngineConfig {
        let interpolated = |config| EngineConfig {
            chroma: Chroma::Interpolated,
            ..config
        };
        let whole = EngineConfig {
            part_only: false,
            ..EngineConfig::HYBRID
        };
        match self {
            Self::Cpu => EngineConfig::CPU,
            Self::Hybrid => EngineConfig::HYBRID,
            Self::HybridInterpolated => interpolated(EngineConfig::HYBRID),
            Self::HybridWhole => whole,
            Self::HybridWholeInterpolated => interpolated(whole),
            Self::Engines => EngineConfig::AUTO,
            Self::EnginesInterpolated => interpolated(EngineConfig::AUTO),
            Self::Fixed => EngineConfig::FIXED,
        }
    }

    /// Most that pixels may differ from the CPU's on photos, in 255ths: on average, and all but one
    /// in a thousand.
    ///
    /// Replicated chroma differs from libjpeg-turbo's interpolated one by 0.23 and 8.0 on the
    /// photos of the test data, decoded by libjpeg-turbo both times.
    pub(crate) fn limits(self) -> (f64, f64) {
        match self.config() {
            config if !config.hybrid => (0.001, 0.01),
            config if config.chroma == Chroma::Replicated => (0.75, 12.0),
            _ => (0.75, 6.0),
        }
    }
}
