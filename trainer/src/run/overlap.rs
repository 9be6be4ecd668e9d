//! How well loading hides behind training: the same steps on batches that are there already, then
//! with the loader.
//!
//! Nothing is written. Called by `nepa pretrain --synthetic`.
use std::time::{Duration, Instant};

use serde::Serialize;

use super::batches::Batches;
use super::options::Options;
use super::set_up::set_up;
use super::setup::{Setup, loader_config};
use super::stepper::Stepper;
use crate::error::RunError;
use crate::ranks::{Ranks, refuse};

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
    refuse(&options.place, "--synthetic", "measure with one process")?;
    let alone = Ranks::alone();
    let Setup {
        recipe,
        phase,
        dataset,
        device,
        runtime: _runtime,
    } = set_up(options, &alone)?;
    let config = loader_config(&recipe, None, &alone);
    let precision = recipe.train.precision;
    let mut batches = Batches::open(dataset, config, None, &device, precision, recipe.engines())?;
    let (batch, of) = (recipe.train.batch, recipe.train.steps);
    let mut stepper = Stepper::new(recipe, phase, &device)?;
    let mut next = || {
        let batch = batches.next_batch()?;
        batch.ok_or(RunError::LoaderEnded { step: 0, steps: of })
    };

    let first = next()?;
    for _ in 0..WARM_UP {
        stepper.step(&first)?;
    }
    // The loader's queues are full by now, or fill up during the first of these.
    let started = Instant::now();
    for _ in 0..steps {
        stepper.step(&first)?;
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
        stepper.step(&batch)?;
    }
    let loaded = started.elapsed();

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
