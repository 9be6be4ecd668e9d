//! Steps of a dry run: computed by all ranks together as in a run, but no weight changes.
use std::time::{Duration, Instant};

use super::agree::{Agreed, Company, Ready, Turn, of_engine, rank_0_says_more};
use super::batches::Batches;
use super::phase::Phase;
use crate::engine::Engine;
use crate::error::RunError;
use crate::ranks::RanksError;
use crate::recipe::ResolvedRecipe;

/// Most steps, and the time after which no further one is begun.
const MOST_STEPS: usize = 3;
const TRIED_FOR: Duration = Duration::from_secs(5);

/// Computes the step after `step` on one to three batches; the least time that all ranks needed.
pub(super) fn try_steps(
    recipe: &ResolvedRecipe,
    phase: &dyn Phase,
    engine: &mut dyn Engine,
    loader: &mut Batches,
    company: &mut Company,
    step: u64,
) -> Result<Duration, RunError> {
    let mut times: Vec<Duration> = Vec::new();
    let mut mixed = Vec::new();
    // The first one is slower: memory is touched for the first time, kernels are chosen.
    while times.len() < MOST_STEPS && times.iter().sum::<Duration>() < TRIED_FOR {
        let turn = company.turn(loader.next_batch(), recipe, phase, step);
        let ready = all_ready(company, turn, loader, recipe.data.max_bad_fraction)?;
        let started = Instant::now();
        ready.step(engine, &mut mixed).map_err(of_engine)?;
        // All go by the slowest one, so that they compute as many.
        let all = company.ranks.gather(&started.elapsed());
        times.extend(all.map_err(RanksError::from)?.into_iter().max());
    }
    Ok(times.iter().min().copied().unwrap_or_default())
}

/// This rank's part of a batch of which all ranks have theirs.
fn all_ready(
    company: &mut Company,
    turn: Turn,
    loader: &Batches,
    max_bad_fraction: f64,
) -> Result<Box<Ready>, RunError> {
    if !company.ranks.is_alone() {
        let agreed = company.agree(&turn, Duration::ZERO, &loader.state())?;
        let too_many_bad = agreed.too_many_bad(max_bad_fraction);
        match (agreed.failure, too_many_bad) {
            (Some((rank, cause)), _) if !matches!(turn, Turn::Failed(_)) => {
                return Err(Agreed::elsewhere(rank, &cause));
            }
            (None, Some(_)) if company.ranks.rank() > 0 => {
                return Err(rank_0_says_more("too many samples are bad"));
            }
            (None, Some(error)) => return Err(error.into()),
            _ => {}
        }
    }
    match turn {
        Turn::Ready(ready) => Ok(ready),
        Turn::Failed(error) => Err(error),
        Turn::Stopped(_) => unreachable!("a signal ends a dry run at once"),
    }
}
