//! What is evaluated: pixels, and the weights of a checkpoint, trained or not.
use std::fmt;

use anyhow::ensure;
use candle_core::{DType, Device};
use nepa_model::{Nepa, init_weights};

use crate::weights::{WeightsFolder, Which};

/// Seed of random weights where no run gives one.
const SEED: u64 = 1337;

/// What features are computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Source {
    /// The pixels themselves, of images no larger than 32 x 32.
    Pixels,
    /// New random weights of the checkpoint's architecture: with the run's own seed, those that it
    /// began with.
    Random,
    /// The weights as trained.
    Raw,
    /// Their moving average.
    Ema,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pixels => "pixels",
            Self::Random => "random weights",
            Self::Raw => "raw weights",
            Self::Ema => "moving average",
        })
    }
}

impl Source {
    /// The weights of a folder that it is; none of pixels.
    pub(crate) fn which(self) -> Option<Which> {
        match self {
            Self::Raw => Some(Which::Raw),
            Self::Ema => Some(Which::Ema),
            Self::Pixels | Self::Random => None,
        }
    }

    /// The model of a folder with weights of this source. `seed` is that of random weights; left
    /// out: the run's own.
    pub(crate) fn model(
        self,
        folder: &WeightsFolder,
        seed: Option<u64>,
        device: &Device,
    ) -> anyhow::Result<Nepa> {
        let weights = if let Some(which) = self.which() {
            folder.weights(which)?
        } else {
            ensure!(self == Self::Random, "pixels are no model");
            let seed = seed.or(folder.recipe().map(|recipe| recipe.seed));
            init_weights(folder.config(), seed.unwrap_or(SEED))
        };
        Ok(Nepa::new(folder.config(), &weights, DType::F32, device)?)
    }
}
