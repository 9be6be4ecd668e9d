//! How well loading hides behind training: the same steps on batches that are there already, then
//! with the loader.
//!
//! Nothing is written. The weights move as in a run, which changes no time. Called by `nepa
//! pretrain --synthetic`.
use std::time::{Duration, Instant};

use serde::Serialize;

use super::batches::{Batches, TrainBatch};
use super::options::Options;
use super::set_up::set_up;
use super::setup::{Setup, engine, loader_config};
use crate::engine::{Engine, TrainingState};
use crate::error::RunError;

/// Steps before each measurement: kernels are compiled, memory pools grow, queues fill.
const WARM_UP: u64 = 3;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Overlap {
    /// Steps of each measurement.
    pub steps: u64,
    pub batch: usize,
    /// Images a second on a batch that is there already.
    pub synthetic_images_per_second: f64,
    /// Images a second with loading.
    pub loaded_images_per_second: f64,
    /// The second by the first; 1 is perfect.
    pub ratio: f64,
    /// Time that a step waits for its batch: mean and longest.
    pub wait_ms_mean: f64,
    pub wait_ms_max: f64,
}

impl std::fmt::Display for Overlap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "synthetic (one batch again and again): {:.1} images/s",
            self.synthetic_images_per_second
        )?;
        writeln!(
            f,
            "with the loader:                       {:.1} images/s, a step waits {:.1} ms for its \
             batch (longest {:.1})",
            self.loaded_images_per_second, self.wait_ms_mean, self.wait_ms_max
        )?;
        write!(
            f,
            "ratio:                                 {:.3} over {} steps of {} images",
            self.ratio, self.steps, self.batch
        )
    }
}

/// Measures `steps` steps of a recipe each way.
pub(crate) fn measure_overlap(options: &Options, steps: u64) -> Result<Overlap, RunError> {
    let Setup {
        recipe,
        mut phase,
        dataset,
        device,
        runtime: _runtime,
    } = set_up(options)?;
    let config = loader_config(&recipe, None);
    let precision = recipe.train.precision;
    let mut batches = Batches::open(dataset, config, None, &device, precision, recipe.engines())?;
    let training = TrainingState::new(phase.weights(&recipe)?);
    let mut engine = engine(&recipe, phase.as_ref(), training, &device)?;
    let mut mixed = Vec::new();
    let peak = recipe.train.warmup_steps;
    let mut step = |engine: &mut dyn Engine, batch: &TrainBatch, step: u64| {
        let draws = phase.draws(&recipe, batch.samples(), step)?;
        // The report holds the loss, so the device has computed it when this returns.
        draws.step(engine, batch, &mut mixed)?;
        Ok::<_, RunError>(engine.update(&phase.rates(&recipe, peak))?)
    };
    let mut next = || {
        batches.next_batch()?.ok_or(RunError::LoaderEnded {
            step: 0,
            steps: recipe.train.steps,
        })
    };

    let first = next()?;
    for number in 0..WARM_UP {
        step(engine.as_mut(), &first, number)?;
    }
    // The loader's queues are full by now, or fill up during the first of these.
    let started = Instant::now();
    for number in 0..steps {
        step(engine.as_mut(), &first, number)?;
    }
    let synthetic = started.elapsed();
    drop(first);

    let mut waits = Vec::new();
    let mut started = Instant::now();
    for number in 0..WARM_UP + steps {
        if number == WARM_UP {
            started = Instant::now();
        }
        let waiting = Instant::now();
        let batch = next()?;
        if number >= WARM_UP {
            waits.push(waiting.elapsed());
        }
        step(engine.as_mut(), &batch, number)?;
    }
    let loaded = started.elapsed();

    let batch = recipe.train.batch;
    let rate = |time: Duration| steps as f64 * batch as f64 / time.as_secs_f64();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(Overlap {
        steps,
        batch,
        synthetic_images_per_second: rate(synthetic),
        loaded_images_per_second: rate(loaded),
        ratio: rate(loaded) / rate(synthetic),
        wait_ms_mean: milliseconds(waits.iter().sum::<Duration>()) / steps as f64,
        wait_ms_max: waits.iter().max().copied().map_or(0.0, milliseconds),
    })
}
