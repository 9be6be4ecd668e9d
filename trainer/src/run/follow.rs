//! The ranks of a run other than rank 0: each computes its part of every step and writes nothing.
//! What it trains comes from rank 0, and what it does before each step all ranks agree on.
use std::time::{Duration, Instant};

use nepa_pipeline::SampleId;

use super::agree::{Agreed, Company, Turn, of_engine};
use super::bad_lines::BadLines;
use super::batches::Batches;
use super::company::{check, compare, receive};
use super::options::{Finish, Options};
use super::phase::Phase;
use super::set_up::set_up;
use super::setup::{Setup, engine, loader_config};
use crate::engine::Engine;
use crate::error::RunError;
use crate::ranks::{Ranks, RanksError};
use crate::recipe::ResolvedRecipe;
use crate::signals::SaveFirst;

/// How often a rank that waits for a batch looks for a signal.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Trains with the others until they end.
pub(super) fn follow(options: &Options, ranks: &Ranks) -> Result<Finish, RunError> {
    check(options, ranks)?;
    let Setup {
        recipe: own,
        phase,
        dataset,
        device,
        runtime: _runtime,
    } = set_up(options, ranks)?;
    compare(ranks, &own, options)?;
    let (recipe, position, training) = receive(ranks, &own)?;
    let mut engine = engine(&recipe, phase.as_ref(), training, &device, ranks)?;
    if let Some(choices) = position.as_ref().and_then(|state| state.engine.as_ref()) {
        // Rank 0 says where they do not hold.
        engine.take_choices(choices);
    }
    let bad_lines = BadLines::new()?;
    let loader = Batches::open(
        dataset,
        loader_config(&recipe, Some(bad_lines.path().to_owned()), ranks),
        position.as_ref().map(|state| &state.loader),
        &device,
        recipe.train.precision,
        recipe.engines(),
    )?;
    let began = position.as_ref().map(|state| &state.loader);
    let mut follower = Follower {
        company: Company::new(ranks, Some(bad_lines), began),
        step: position.as_ref().map_or(0, |state| state.step),
        stop_at: options.stop_at(&recipe),
        recipe,
        phase,
        engine,
        loader,
        mixed: Vec::new(),
    };
    let _saving = SaveFirst {
        says: "rank 0 saves after this step",
        most: None,
    }
    .begin();
    Ok(match follower.train()? {
        None => Finish::Done,
        Some(signal) => Finish::Signal(signal),
    })
}

struct Follower {
    recipe: ResolvedRecipe,
    phase: Box<dyn Phase>,
    engine: Box<dyn Engine>,
    loader: Batches,
    company: Company,
    step: u64,
    /// The last step of this process.
    stop_at: u64,
    /// Memory for mixed images.
    mixed: Vec<f32>,
}

impl Follower {
    /// The loop; gives the signal that ended it, if one did.
    fn train(&mut self) -> Result<Option<i32>, RunError> {
        while self.step < self.stop_at {
            let (turn, waited) = self.turn();
            let agreed = self.company.agree(&turn, waited, &self.loader.state())?;
            if let Some((rank, cause)) = agreed.failure {
                return Err(match turn {
                    Turn::Failed(error) => error,
                    _ => Agreed::elsewhere(rank, &cause),
                });
            }
            if let Some(signal) = agreed.stop {
                return self.end(Some(signal));
            }
            if agreed.has_too_many_bad(self.recipe.data.max_bad_fraction) {
                return Err(elsewhere("too many samples are bad"));
            }
            let Turn::Ready(batch, draws) = turn else {
                unreachable!("this rank has told of it")
            };
            let report = draws.step(self.engine.as_mut(), &batch, &mut self.mixed);
            let report = report.map_err(of_engine)?;
            if !(report.loss.is_finite() && report.grad_norm.is_finite()) {
                let ids = batch.samples().iter().map(|sample| sample.id);
                let ids = ids.collect::<Vec<SampleId>>();
                self.company.ranks.gather(&ids).map_err(RanksError::from)?;
                return Err(elsewhere("the loss or the gradient is not finite"));
            }
            let rates = self.phase.rates(&self.recipe, self.step);
            self.engine.update(&rates)?;
            self.step += 1;
        }
        self.end(None)
    }

    /// Waits for this rank's part of the next batch; also how long that took.
    fn turn(&mut self) -> (Turn, Duration) {
        let started = Instant::now();
        while !self.loader.wait(LOOK_EVERY) {
            if let Some(signal) = self.company.stop() {
                return (Turn::Stopped(signal), started.elapsed());
            }
        }
        let batch = self.loader.next_batch();
        let waited = started.elapsed();
        let turn = self
            .company
            .turn(batch, &self.recipe, self.phase.as_ref(), self.step);
        (turn, waited)
    }

    /// Waits until rank 0 has saved; the signal that ended the run.
    fn end(&mut self, signal: Option<i32>) -> Result<Option<i32>, RunError> {
        let own = signal.or_else(|| self.company.stop());
        let all = self.company.ranks.gather(&own).map_err(RanksError::from)?;
        Ok(signal.or(all.into_iter().flatten().next()))
    }
}

fn elsewhere(what: &str) -> RunError {
    RunError::Ranks(RanksError::Elsewhere {
        what: what.to_owned(),
    })
}
