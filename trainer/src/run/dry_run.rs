//! `--dry-run`: all that can be checked without training.
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use nepa_pipeline::Dataset;

use super::batches::Batches;
use super::begin::{Begun, begin, warn_of_mixing};
use super::data_list::DataList;
use super::draws::micro_batches;
use super::options::Options;
use super::phase::Phase;
use super::setup::loader_config;
use crate::console::words;
use crate::error::RunError;
use crate::logs::TraceFile;
use crate::output::Output;
use crate::ranks::Ranks;
use crate::recipe::ResolvedRecipe;

/// Time of steps that `--dry-run` computes, one at least.
const TRIED_FOR: Duration = Duration::from_secs(5);

/// Checks all that can be checked without training: a batch is read, a step is computed and no
/// weight changed, and nothing is left in the output.
pub(super) fn try_run(
    output: &Output,
    options: &Options,
    (mut recipe, dataset, device): (ResolvedRecipe, Arc<Dataset>, Device),
    phase: &mut dyn Phase,
    holds_run: bool,
) -> Result<String, RunError> {
    let (alone, data_list) = (Ranks::alone(), DataList::new(&dataset));
    let Begun {
        position,
        mut engine,
        ..
    } = begin(
        output,
        options,
        &mut recipe,
        phase,
        &dataset,
        &data_list,
        &device,
        holds_run,
        &alone,
    )?;
    let position = position.as_ref();
    if let Some(path) = &options.trace_samples
        && position.is_none()
    {
        TraceFile::check_free(path)?;
    }
    let config = loader_config(&recipe, None, &alone);
    warn_of_mixing(&dataset, &config);
    let mut loader = Batches::open(
        dataset,
        config,
        position.map(|state| &state.loader),
        &device,
        recipe.train.precision,
        recipe.engines(),
    )?;
    let step = position.map_or(0, |state| state.step);
    let steps = recipe.train.steps;
    let (mut times, mut mixed) = (Vec::new(), Vec::new());
    // The first one is slower: memory is touched for the first time, kernels are chosen.
    while times.len() < 3 && times.iter().sum::<Duration>() < TRIED_FOR {
        let Some(batch) = loader.next_batch()? else {
            return Err(RunError::LoaderEnded { step, steps });
        };
        let started = Instant::now();
        let all = micro_batches(&recipe, &alone);
        let draws = phase.draws(&recipe, batch.samples(), step, all)?;
        draws.step(engine.as_mut(), &batch, &mut mixed)?;
        times.push(started.elapsed());
    }
    let least = times.iter().min().copied().unwrap_or_default();
    let rest = options.stop_at(&recipe).saturating_sub(step);
    Ok(format!(
        "all is well; nothing was trained or written. A step takes {:.0} ms, so {} take about {} \
         if loading keeps up",
        least.as_secs_f64() * 1e3,
        words::counted(rest, "step"),
        words::duration(least.mul_f64(rest as f64)),
    ))
}
