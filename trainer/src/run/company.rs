//! What the ranks of a run agree on before its first step: that they were started alike, and from
//! where they train. Rank 0 finds that, and tells the others; they need nothing of its output.
use candle_core::Device;
use nepa_model::{ParamSpec, Weights};
use serde::{Deserialize, Serialize};

use super::options::Options;
use super::resume::{first_difference, numbers};
use crate::checkpoint::RunState;
use crate::device::gpu;
use crate::engine::TrainingState;
use crate::error::RunError;
use crate::optimizer::OptimizerState;
use crate::ranks::{Ranks, RanksError, WireError, list_of};
use crate::recipe::{ResolvedRecipe, SumChoice};

/// Fails where ranks were not started alike, or cannot add as their recipe asks for; on all of them
/// with the same words.
pub(super) fn compare(
    ranks: &Ranks,
    recipe: &ResolvedRecipe,
    options: &Options,
    device: &Device,
) -> Result<(), RunError> {
    if ranks.is_alone() {
        return Ok(());
    }
    let gpu = gpu(recipe.device, device)?;
    let mut own = numbers(recipe, false);
    own["device"] = serde_json::json!(recipe.device);
    own["train"]["engine"] = serde_json::json!(recipe.train.engine);
    own["train"]["sum"] = serde_json::json!(recipe.train.sum);
    own["train"]["wire"] = serde_json::json!(recipe.train.wire);
    own["train"]["steps"] = serde_json::json!(recipe.train.steps);
    own["--max-steps"] = serde_json::json!(options.max_steps);
    own["--dry-run"] = serde_json::json!(options.dry_run);
    own["--synthetic"] = serde_json::json!(options.synthetic);
    own["--trace-samples"] = serde_json::json!(options.trace_samples.is_some());
    own["kind of GPU"] = serde_json::json!(gpu.as_ref().map(|gpu| &gpu.name));
    let all = ranks.gather(&own).map_err(RanksError::from)?;
    let differences = all
        .iter()
        .map(|theirs| first_difference("", theirs, &all[0]))
        .collect::<Vec<_>>();
    let Some((what, theirs, ours)) = differences.iter().flatten().next().cloned() else {
        if let Some(gpu) = gpu {
            compare_gpus(ranks, recipe, &gpu.uuid)?;
        }
        let has_library = recipe.sums_by_nccl() || ranks.has_library();
        return if recipe.train.sum == SumChoice::Library && !has_library {
            Err(RanksError::NoLibrary.into())
        } else {
            Ok(())
        };
    };
    let alike = |found: &Option<(String, String, String)>| {
        found
            .as_ref()
            .is_some_and(|(key, value, _)| (key, value) == (&what, &theirs))
    };
    let which = (0..all.len()).filter(|rank| alike(&differences[*rank]));
    let which = which.collect::<Vec<_>>();
    Err(RunError::Ranks(RanksError::Differ {
        ranks: list_of(&which),
        several: which.len() > 1,
        what,
        theirs,
        ours,
    }))
}

/// Several ranks may share a GPU only where they do not sum from one to the other.
fn compare_gpus(ranks: &Ranks, recipe: &ResolvedRecipe, uuid: &str) -> Result<(), RanksError> {
    let all: Vec<String> = ranks.gather(&uuid.to_owned())?;
    let sharing = |first: usize| {
        let same = (0..all.len()).filter(|rank| all[*rank] == all[first]);
        same.collect::<Vec<_>>()
    };
    let shared = (0..all.len()).map(sharing).find(|ranks| ranks.len() > 1);
    match shared {
        Some(same) if recipe.sums_by_nccl() => Err(RanksError::SharedGpu {
            ranks: list_of(&same),
        }),
        Some(same) if ranks.rank() == 0 => {
            tracing::warn!("{} share one GPU", list_of(&same));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Where a run begins or goes on, as rank 0 tells it; the weights follow.
#[derive(Debug, Serialize, Deserialize)]
struct Beginning {
    recipe: ResolvedRecipe,
    position: Option<RunState>,
    updates: u64,
    has_average: bool,
}

/// Rank 0: tells the others where the run begins or goes on, and what is trained.
pub(super) fn hand_out(
    ranks: &Ranks,
    recipe: &ResolvedRecipe,
    position: Option<&RunState>,
    training: &mut TrainingState,
) -> Result<(), RanksError> {
    if ranks.is_alone() {
        return Ok(());
    }
    let beginning = Beginning {
        recipe: recipe.clone(),
        position: position.cloned(),
        updates: training.optimizer.step,
        has_average: !training.optimizer.ema.is_empty(),
    };
    ranks.gather(&Some(beginning))?;
    Ok(broadcast(ranks, training)?)
}

/// Another rank: what rank 0 tells.
pub(super) fn receive(
    ranks: &Ranks,
    own: &ResolvedRecipe,
) -> Result<(ResolvedRecipe, Option<RunState>, TrainingState), RunError> {
    let told = ranks.gather(&None::<Beginning>).map_err(RanksError::from)?;
    let Some(Beginning {
        recipe,
        position,
        updates,
        has_average,
    }) = told.into_iter().next().flatten()
    else {
        return Err(RunError::Ranks(RanksError::Wire(WireError::Ended {
            rank: 0,
            cause: "has told of no beginning; this is a bug".to_owned(),
        })));
    };
    let specs = ParamSpec::all(&recipe.model);
    let len = specs.iter().map(ParamSpec::len).sum();
    let zeros = || vec![0.0; len];
    let mut training = TrainingState {
        weights: Weights {
            specs,
            flat: zeros(),
        },
        optimizer: OptimizerState {
            step: updates,
            m: zeros(),
            v: zeros(),
            ema: if has_average { zeros() } else { Vec::new() },
        },
    };
    broadcast(ranks, &mut training).map_err(RanksError::from)?;
    let recipe = ResolvedRecipe {
        // Speed is each rank's own.
        decode_threads: own.decode_threads,
        prefetch_batches: own.prefetch_batches,
        ..recipe
    };
    Ok((recipe, position, training))
}

fn broadcast(ranks: &Ranks, training: &mut TrainingState) -> Result<(), WireError> {
    let TrainingState { weights, optimizer } = training;
    for values in [
        &mut weights.flat,
        &mut optimizer.m,
        &mut optimizer.v,
        &mut optimizer.ema,
    ] {
        ranks.broadcast(values)?;
    }
    Ok(())
}
