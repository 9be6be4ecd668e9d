//! What is evaluated: pixels, and the weights of a checkpoint, trained or not.
use std::fmt;
use std::path::{Path, PathBuf};

use crate::output::Scratch;
use anyhow::ensure;
use candle_core::{DType, Device};
use nepa_model::{Nepa, NepaConfig, init_weights, read_config, read_published};
use nepa_pipeline::{IoConfig, IoRuntime};

use crate::checkpoint::{MANIFEST, RunState, read_state, read_weights, verify_folder};
use crate::output::fetch_checkpoint;
use crate::recipe::ResolvedRecipe;

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

/// A checkpoint, or a folder in the published layout (whose one kind of weights counts as raw), on
/// the local disk.
#[derive(Debug)]
pub(crate) struct Pretrained {
    folder: PathBuf,
    /// Of a checkpoint.
    state: Option<RunState>,
    config: NepaConfig,
    _downloaded: Option<Scratch>,
}

impl Pretrained {
    /// Opens a checkpoint, a run's output (its newest checkpoint), or a published folder; a path or
    /// URL.
    pub(crate) fn open(url: &str, runtime: &IoRuntime) -> anyhow::Result<Self> {
        let local = Path::new(url);
        if local.join("model.safetensors").exists() && !local.join(MANIFEST).exists() {
            return Ok(Self {
                state: None,
                config: read_config(&local.join("config.json"))?,
                folder: local.to_owned(),
                _downloaded: None,
            });
        }
        let (folder, downloaded) = fetch_checkpoint(url, &IoConfig::default(), runtime)?;
        verify_folder(&folder)?;
        Ok(Self {
            state: Some(read_state(&folder)?),
            config: read_config(&folder.join("config.json"))?,
            folder,
            _downloaded: downloaded,
        })
    }

    pub(crate) fn config(&self) -> &NepaConfig {
        &self.config
    }

    /// Optimiser steps done, of a checkpoint.
    pub(crate) fn step(&self) -> Option<u64> {
        self.state.as_ref().map(|state| state.step)
    }

    /// The recipe that a checkpoint was trained by.
    pub(crate) fn recipe(&self) -> Option<&ResolvedRecipe> {
        self.state.as_ref().map(|state| &state.recipe)
    }

    /// The model with weights of that source. `seed` is that of random weights; left out: the run's
    /// own.
    pub(crate) fn model(
        &self,
        source: Source,
        seed: Option<u64>,
        device: &Device,
    ) -> anyhow::Result<Nepa> {
        let weights = match source {
            Source::Pixels => anyhow::bail!("pixels are no model"),
            Source::Random => {
                let seed = seed.or(self.recipe().map(|recipe| recipe.seed));
                let seed = seed.unwrap_or(SEED);
                init_weights(&self.config, seed)
            }
            Source::Raw | Source::Ema if self.state.is_some() => {
                read_weights(&self.folder, source == Source::Ema)?.1
            }
            Source::Raw | Source::Ema => {
                ensure!(
                    source == Source::Raw,
                    "{} is a folder in the published layout, which has one kind of weights: take \
                     'raw' for 'ema'",
                    self.folder.display()
                );
                read_published(&self.folder)?.1
            }
        };
        Ok(Nepa::new(&self.config, &weights, DType::F32, device)?)
    }
}
