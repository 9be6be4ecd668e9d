//! `--dry-run`: all that can be checked without training. Of several ranks this is rank 0; the
//! others `follow`.
use std::sync::Arc;

use candle_core::Device;
use nepa_pipeline::Dataset;

use super::agree::Company;
use super::bad_lines::BadLines;
use super::batches::Batches;
use super::begin::{Begun, begin, warn_of_mixing};
use super::data_list::DataList;
use super::options::Options;
use super::phase::Phase;
use super::setup::loader_config;
use super::trial::try_steps;
use crate::console::words;
use crate::error::RunError;
use crate::logs::TraceFile;
use crate::output::Output;
use crate::ranks::Ranks;
use crate::recipe::ResolvedRecipe;

/// Checks all that can be checked without training: a batch is read, a step is computed and no
/// weight changed, and nothing is left in the output.
pub(super) fn try_run(
    output: &Output,
    options: &Options,
    (mut recipe, dataset, device): (ResolvedRecipe, Arc<Dataset>, Device),
    phase: &mut dyn Phase,
    holds_run: bool,
    ranks: &Ranks,
) -> Result<String, RunError> {
    let data_list = DataList::new(&dataset);
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
        ranks,
    )?;
    let position = position.as_ref();
    if let Some(path) = &options.trace_samples
        && position.is_none()
    {
        TraceFile::check_free(path)?;
    }
    let bad_lines = (!ranks.is_alone()).then(BadLines::new).transpose()?;
    let listed_in = bad_lines.as_ref().map(|lines| lines.path().to_owned());
    let config = loader_config(&recipe, listed_in, ranks);
    warn_of_mixing(&dataset, &config);
    let began = position.map(|state| &state.loader);
    let mut loader = Batches::open(
        dataset,
        config,
        began,
        &device,
        recipe.train.precision,
        recipe.engines(),
    )?;
    let step = position.map_or(0, |state| state.step);
    let mut company = Company::new(ranks, bad_lines, None, began);
    let (engine, loader) = (engine.as_mut(), &mut loader);
    let least = try_steps(&recipe, phase, engine, loader, &mut company, step)?;
    let rest = options.stop_at(&recipe).saturating_sub(step);
    Ok(format!(
        "all is well; nothing was trained or written. A step takes {:.0} ms, so {} take about {} \
         if loading keeps up",
        least.as_secs_f64() * 1e3,
        words::counted(rest, "step"),
        words::duration(least.mul_f64(rest as f64)),
    ))
}
