//! Where a run begins or goes on: its engine is made, and the recap is shown. Nothing is trained
//! here, and nothing written, so that a dry run does the same.
use candle_core::Device;
use nepa_model::MemoryPlan;
use nepa_pipeline::{Dataset, LoaderConfig, MixingForecast};

use super::agree::of_engine;
use super::company::hand_out;
use super::data_list::DataList;
use super::options::Options;
use super::phase::Phase;
use super::recap;
use super::resume::continue_from;
use super::setup::engine;
use crate::checkpoint::{Checkpoint, RunState};
use crate::console::words;
use crate::engine::{Engine, TrainingState};
use crate::error::RunError;
use crate::output::{CheckpointName, Output};
use crate::ranks::Ranks;
use crate::recipe::ResolvedRecipe;

/// A warning is given where batches of sorted rows are this much less even than random ones.
const BADLY_MIXED: f64 = 2.0;

/// Where a run begins or goes on, before anything is written.
pub(super) struct Begun {
    /// The checkpoint that it goes on from.
    pub(super) newest: Option<CheckpointName>,
    pub(super) position: Option<RunState>,
    pub(super) engine: Box<dyn Engine>,
    /// Whether the recipe lengthens the run.
    pub(super) is_longer: bool,
}

/// Finds where the run stands, tells the other ranks, makes its engine and shows the recap. Where
/// the memory does not suffice, the output stays as it was.
#[expect(
    clippy::too_many_arguments,
    reason = "all that a run begins with, once"
)]
pub(super) fn begin(
    output: &Output,
    options: &Options,
    recipe: &mut ResolvedRecipe,
    phase: &mut dyn Phase,
    dataset: &Dataset,
    data_list: &DataList,
    device: &Device,
    holds_run: bool,
    ranks: &Ranks,
) -> Result<Begun, RunError> {
    let (saved, longer) = if holds_run {
        continue_from(output, recipe, data_list, options)?
    } else {
        (None, None)
    };
    let (position, mut training, newest) =
        if let Some((newest, Checkpoint { state, training })) = saved {
            (Some(state), training, Some(newest))
        } else {
            let weights = phase.weights(recipe)?;
            (None, TrainingState::new(weights), None)
        };
    if let Some(state) = &position {
        phase.set_eval_state(state.evaluated);
    }
    hand_out(ranks, recipe, position.as_ref(), &mut training)?;
    let parameters = training.weights.flat.len();
    let engine = engine(recipe, phase, training, device, ranks);
    let mut engine = engine.map_err(of_engine)?;
    let choices = position.as_ref().and_then(|state| state.engine.as_ref());
    if choices.is_some_and(|choices| !engine.take_choices(choices)) {
        tracing::warn!(
            "the saved run computed its products by algorithms of another device or another \
             version of cuBLASLt; they are chosen anew, so the run goes on, but not bit for bit as \
             it would have there"
        );
    }
    show_recap(
        recipe,
        phase,
        dataset,
        (parameters, engine.memory()),
        output,
        position.as_ref(),
        holds_run,
        ranks.size(),
    );
    if let Some(longer) = &longer {
        println!("{longer}");
    }
    Ok(Begun {
        newest,
        position,
        engine,
        is_longer: longer.is_some(),
    })
}

#[expect(clippy::too_many_arguments, reason = "all that is told first, once")]
fn show_recap(
    recipe: &ResolvedRecipe,
    phase: &dyn Phase,
    dataset: &Dataset,
    (parameters, memory): (usize, Option<&MemoryPlan>),
    output: &Output,
    position: Option<&RunState>,
    holds_run: bool,
    ranks: usize,
) {
    let checkpoint = &recipe.checkpoint;
    let run = match position {
        Some(state) => format!("goes on after step {}", words::count(state.step)),
        None if holds_run => "begun, but not saved yet: starts at step 0".to_owned(),
        None => "a new run".to_owned(),
    };
    let often = [
        checkpoint
            .every_steps
            .map(|steps| format!("{} steps", words::count(steps))),
        checkpoint
            .every_minutes
            .map(|minutes| format!("{minutes} min")),
    ];
    let milestones = checkpoint
        .milestone_steps
        .map(|steps| format!(" and one every {} steps for good", words::count(steps)));
    let often = often.into_iter().flatten().collect::<Vec<_>>();
    let saved = match &often[..] {
        [] => "saved at the end".to_owned(),
        _ => format!("saved every {}", often.join(" and ")),
    };
    recap::show(
        recipe,
        phase,
        dataset,
        parameters,
        memory.map(MemoryPlan::total_bytes),
        ranks,
        output.place(),
        &format!(
            "{run}; {saved}, the newest {} kept{}",
            checkpoint.keep,
            milestones.unwrap_or_default()
        ),
    );
}

/// Warns where the rows would mix badly if they were sorted by shard, and says what helps.
pub(super) fn warn_of_mixing(dataset: &Dataset, config: &LoaderConfig) {
    let Some(forecast) = MixingForecast::new(dataset, config) else {
        return;
    };
    tracing::debug!("{forecast}");
    if forecast.ratio() < BADLY_MIXED {
        return;
    }
    let window = words::bytes(forecast.windows[0].0);
    let enough = forecast.windows.iter().skip(1);
    let better = enough.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(bytes, _)| {
        format!(
            "--set data.shuffle_window_bytes={bytes} ({}) mixes them better, and ",
            words::bytes(*bytes)
        )
    });
    tracing::warn!(
        "if the rows of these shards are sorted, by class for example, a shuffle window of \
         {window} mixes them little. {}`nepa pack` writes shuffled rows",
        better.unwrap_or_default()
    );
}
