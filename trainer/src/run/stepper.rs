//! The training steps of a recipe without its run: nothing is written, and no checkpoint is made.
//! The weights move as in a run, which changes no time. Called by `nepa pretrain --synthetic` and
//! `nepa profile --consumer step`.
use std::sync::Arc;

use candle_core::Device;
use nepa_pipeline::{Dataset, IoRuntime};

use super::agree::of_engine;
use super::batches::TrainBatch;
use super::draws::micro_batches;
use super::options::Options;
use super::phase::{Phase, Pretraining};
use super::setup::engine;
use crate::engine::{Engine, TrainingState};
use crate::error::RunError;
use crate::ranks::Ranks;
use crate::recipe::{Recipe, ResolvedRecipe};

/// Trains on what it is given.
pub(crate) struct Stepper {
    recipe: ResolvedRecipe,
    phase: Box<dyn Phase>,
    engine: Box<dyn Engine>,
    ranks: Ranks,
    /// Memory for mixed images.
    mixed: Vec<f32>,
    step: u64,
}

impl Stepper {
    /// From new weights, for this rank's part of each step.
    pub(super) fn new(
        recipe: ResolvedRecipe,
        mut phase: Box<dyn Phase>,
        device: &Device,
        ranks: &Ranks,
    ) -> Result<Self, RunError> {
        let training = TrainingState::new(phase.weights(&recipe)?);
        let engine = engine(&recipe, phase.as_ref(), training, device, ranks);
        let engine = engine.map_err(of_engine)?;
        Ok(Self {
            recipe,
            phase,
            engine,
            ranks: ranks.clone(),
            mixed: Vec::new(),
            step: 0,
        })
    }

    /// Pretraining with a recipe, from new weights, on a data set that is open.
    pub(crate) fn pretraining(
        recipe: Recipe,
        dataset: &Arc<Dataset>,
        device: &Device,
        runtime: &IoRuntime,
    ) -> Result<Self, RunError> {
        recipe.check(1)?;
        let recipe = recipe.resolve(dataset.num_samples(), dataset.fingerprint())?;
        let phase = Pretraining::new(&Options::default(), runtime);
        Self::new(recipe, Box::new(phase), device, &Ranks::alone())
    }

    /// One step; it is computed when this returns.
    pub(crate) fn step(&mut self, batch: &TrainBatch) -> Result<(), RunError> {
        let Self {
            recipe,
            phase,
            engine,
            ranks,
            mixed,
            step,
        } = self;
        let own = micro_batches(recipe, ranks);
        let draws = phase.draws(recipe, batch.samples(), *step, own)?;
        // The report holds the loss, so the device has computed it when this returns.
        let report = draws.step(engine.as_mut(), batch, mixed);
        report.map_err(of_engine)?;
        // The first rates are 0.
        let peak = recipe.train.warmup_steps;
        engine.update(&phase.rates(recipe, peak))?;
        *step += 1;
        Ok(())
    }
}
