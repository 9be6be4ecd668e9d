//! Opens weights, wherever they lie and however they came about: a run's output (its newest
//! checkpoint), a checkpoint, or a folder in the published layout, for pretraining or a classifier,
//! on a disk or at a URL. Every command that takes weights begins here.
//!
//! What is fetched lies in a scratch folder that goes with the [`WeightsFolder`]. A checkpoint is
//! compared with its manifest, byte for byte; a published folder has none.
mod error;
mod find;
mod names;
mod preprocessor;
mod store;

use std::path::PathBuf;

use nepa_model::{NepaConfig, Weights, read_config, read_published};
use nepa_pipeline::{IoConfig, IoRuntime};
use serde::Serialize;

use crate::checkpoint::{RunState, read_state, read_weights, verify_folder};
use crate::console::words;
use crate::output::Scratch;
use crate::recipe::{FromWeights, ResolvedRecipe};
use crate::transform::Transform;

pub(crate) use error::WeightsError;
pub(crate) use find::bring;
pub(crate) use names::{CONFIG, PREPROCESSOR, WEIGHTS};
pub(crate) use preprocessor::Preprocessor;

use find::{Found, Kind};
use names::PICKLED_AVERAGE;

/// Weights as trained, or their moving average.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Which {
    /// The weights as trained.
    Raw,
    /// Their moving average.
    Ema,
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Raw => "raw weights",
            Self::Ema => "moving average",
        })
    }
}

impl From<FromWeights> for Which {
    /// Of those that are there; new ones begin in their place.
    fn from(weights: FromWeights) -> Self {
        match weights {
            FromWeights::Ema => Self::Ema,
            FromWeights::Raw | FromWeights::Random => Self::Raw,
        }
    }
}

/// Weights that were found and, if need be, fetched; they are read when they are asked for.
#[derive(Debug)]
pub(crate) struct WeightsFolder {
    /// As it was given, without secrets.
    place: String,
    folder: PathBuf,
    /// Of a checkpoint.
    state: Option<Box<RunState>>,
    config: NepaConfig,
    preprocessor: Option<Preprocessor>,
    _scratch: Option<Scratch>,
}

/// Finds weights behind a path or URL, fetches them if need be, and reads all but the weights.
pub(crate) fn open(
    url: &str,
    io: &IoConfig,
    runtime: &IoRuntime,
) -> Result<WeightsFolder, WeightsError> {
    let Found {
        place,
        folder,
        kind,
        scratch,
    } = find::find(url, io, runtime)?;
    let in_place = |source| WeightsError::Model {
        place: place.clone(),
        source,
    };
    let state = match kind {
        Kind::Checkpoint => {
            verify_folder(&folder)?;
            Some(Box::new(read_state(&folder)?))
        }
        Kind::Published => None,
    };
    let config = read_config(&folder.join(CONFIG)).map_err(in_place)?;
    Ok(WeightsFolder {
        preprocessor: Preprocessor::read(&folder)?,
        config,
        state,
        folder,
        _scratch: scratch,
        place,
    })
}

impl WeightsFolder {
    /// As it was given, without secrets.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    pub(crate) fn config(&self) -> &NepaConfig {
        &self.config
    }

    /// Optimiser steps done, of a checkpoint.
    pub(crate) fn step(&self) -> Option<u64> {
        self.state.as_ref().map(|state| state.step)
    }

    /// Weights of one kind for people: "raw weights of step 1,000".
    pub(crate) fn describe(&self, which: Which) -> String {
        match self.step() {
            Some(step) => format!("{which} of step {}", words::count(step)),
            None => which.to_string(),
        }
    }

    /// The recipe that a checkpoint was trained by.
    pub(crate) fn recipe(&self) -> Option<&ResolvedRecipe> {
        self.state.as_ref().map(|state| &state.recipe)
    }

    /// What a published folder says about its pixels.
    pub(crate) fn preprocessor(&self) -> Option<&Preprocessor> {
        self.preprocessor.as_ref()
    }

    /// How its run, one of fine-tuning, evaluates itself, if it does.
    pub(crate) fn evaluated_by(&self) -> Option<Transform> {
        Some(self.recipe()?.finetune.as_ref()?.eval.as_ref()?.transform)
    }

    /// The kinds of weights that are there: both in a checkpoint, if its run keeps an average; a
    /// published folder has one kind, which counts as raw.
    pub(crate) fn kinds(&self) -> Vec<Which> {
        // The average is a copy after the first step.
        let averages =
            |state: &RunState| state.step > 0 && state.recipe.optimizer.ema_decay.is_some();
        match &self.state {
            Some(state) if averages(state) => vec![Which::Raw, Which::Ema],
            _ => vec![Which::Raw],
        }
    }

    /// Reads weights of one kind.
    pub(crate) fn weights(&self, which: Which) -> Result<Weights, WeightsError> {
        if !self.kinds().contains(&which) {
            return Err(self.no_average());
        }
        if self.state.is_some() {
            return Ok(read_weights(&self.folder, which == Which::Ema)?.1);
        }
        let read = read_published(&self.folder);
        let (_, weights) = read.map_err(|source| WeightsError::Model {
            place: self.place.clone(),
            source,
        })?;
        Ok(weights)
    }

    fn no_average(&self) -> WeightsError {
        let place = self.place.clone();
        if self.state.is_none() && self.folder.join(PICKLED_AVERAGE).exists() {
            return WeightsError::PickledAverage { place };
        }
        WeightsError::NoAverage {
            place,
            why: match &self.state {
                None => "a folder in the published layout has one kind of weights",
                Some(state) if state.step == 0 => "its run is at step 0",
                Some(_) => "its run keeps none (optimizer.ema_decay is not set)",
            },
        }
    }
}
