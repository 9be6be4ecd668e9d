//! What the ranks of a run tell each other before each step: whether each has its part of the batch,
//! whether one was asked to stop, and what became of its samples. So all of them do the same.
use std::time::Duration;

use nepa_pipeline::{BadSampleList, LoaderError, LoaderState};
use serde::{Deserialize, Serialize};

use super::bad_lines::{BadLines, first_of};
use super::batches::{TrainBatch, num_replaced};
use super::draws::{StepDraws, micro_batches};
use super::phase::Phase;
use crate::checkpoint::CheckpointError;
use crate::engine::{Engine, EngineError, Spread, StepReport};
use crate::error::RunError;
use crate::logs::TraceLines;
use crate::ranks::{Ranks, RanksError, WireError};
use crate::recipe::ResolvedRecipe;
use crate::signals::received;

/// What a rank has for the next step.
#[derive(Debug)]
pub(super) enum Turn {
    /// Its part of the batch.
    Ready(Box<Ready>),
    /// It was asked to stop, and has not waited any longer.
    Stopped(i32),
    /// It cannot go on.
    Failed(RunError),
}

/// A rank's part of a step.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) batch: TrainBatch,
    pub(super) draws: StepDraws,
    /// Lines of the sample trace; empty where none is written.
    pub(super) trace: String,
}

impl Ready {
    /// Computes it. `scratch` is memory for mixed images, kept from step to step.
    pub(super) fn step(
        &self,
        engine: &mut dyn Engine,
        scratch: &mut Vec<f32>,
    ) -> Result<StepReport, EngineError> {
        self.draws.step(engine, &self.batch, scratch)
    }
}

/// What a rank says before a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Word {
    /// The signal that asks it to stop.
    stop: Option<i32>,
    /// Why it cannot go on.
    failure: Option<String>,
    /// Time that it waited for its part of the batch.
    waited_ms: f64,
    /// Samples that its loader has tried since this process began, and bad ones.
    tried: u64,
    bad: u64,
    /// Samples of this batch that stand for others.
    replaced: u64,
    /// New lines of bad samples.
    bad_lines: String,
    /// Lines of the sample trace.
    trace: String,
}

/// What all ranks have said.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Agreed {
    /// The signal by which some rank was asked to stop.
    pub(super) stop: Option<i32>,
    /// The first rank that cannot go on, and why.
    pub(super) failure: Option<(usize, String)>,
    /// Samples tried and bad ones, over the whole run.
    pub(super) totals: (u64, u64),
    /// Of this batch.
    pub(super) replaced: u64,
    pub(super) bad_lines: String,
    /// Lines of the sample trace, in the order of the batch.
    pub(super) trace: String,
    pub(super) waited_ms: Spread,
}

/// The ranks as the loop of a run sees them; rank 0 is among them, or alone.
#[derive(Debug)]
pub(super) struct Company {
    pub(super) ranks: Ranks,
    /// Of this rank's loader, where there are others.
    bad_lines: Option<BadLines>,
    /// Where samples are traced.
    trace: Option<TraceLines>,
    /// Samples tried and bad ones, where this process began.
    began: (u64, u64),
}

impl Company {
    /// For a run that begins or goes on with this position.
    pub(super) fn new(
        ranks: &Ranks,
        bad_lines: Option<BadLines>,
        trace: Option<TraceLines>,
        position: Option<&LoaderState>,
    ) -> Self {
        Self {
            ranks: ranks.clone(),
            bad_lines,
            trace,
            began: position.map_or((0, 0), |state| (state.samples_tried, state.samples_bad)),
        }
    }

    /// The signal that asks this rank, or another one as far as that is heard, to stop.
    pub(super) fn stop(&self) -> Option<i32> {
        received().or_else(|| self.ranks.stop_heard())
    }

    /// What this rank has for the step after `step`, of what its loader gave.
    pub(super) fn turn(
        &self,
        batch: Result<Option<TrainBatch>, LoaderError>,
        recipe: &ResolvedRecipe,
        phase: &dyn Phase,
        step: u64,
    ) -> Turn {
        let batch = match batch {
            Ok(Some(batch)) => batch,
            Ok(None) => {
                let steps = recipe.train.steps;
                return Turn::Failed(RunError::LoaderEnded { step, steps });
            }
            Err(error) => return Turn::Failed(error.into()),
        };
        let own = micro_batches(recipe, &self.ranks);
        let draws = match phase.draws(recipe, batch.samples(), step, own) {
            Ok(draws) => draws,
            Err(error) => return Turn::Failed(error),
        };
        let lines = |lines: &TraceLines| lines.of_step(step + 1, batch.samples(), &draws.mixes);
        let trace = self.trace.as_ref().map(lines).unwrap_or_default();
        Turn::Ready(Box::new(Ready {
            batch,
            draws,
            trace,
        }))
    }

    /// Tells the others and hears them, where there are some.
    pub(super) fn agree(
        &mut self,
        turn: &Turn,
        waited: Duration,
        loader: &LoaderState,
    ) -> Result<Agreed, RunError> {
        let own = self.word(turn, waited, loader)?;
        let all = self.ranks.gather(&own);
        let all: Vec<Word> = all.map_err(|error| RunError::Ranks(error.into()))?;
        Ok(self.agreed(all))
    }

    fn word(
        &mut self,
        turn: &Turn,
        waited: Duration,
        loader: &LoaderState,
    ) -> Result<Word, CheckpointError> {
        let (replaced, trace) = match turn {
            Turn::Ready(ready) => (num_replaced(ready.batch.samples()), ready.trace.clone()),
            _ => (0, String::new()),
        };
        let failure = match turn {
            Turn::Failed(error) => Some(causes(error)),
            _ => None,
        };
        let bad_lines = self.bad_lines.as_mut().map(BadLines::take).transpose()?;
        Ok(Word {
            stop: match turn {
                Turn::Stopped(signal) => Some(*signal),
                _ => self.stop(),
            },
            failure,
            waited_ms: 1e3 * waited.as_secs_f64(),
            tried: loader.samples_tried - self.began.0,
            bad: loader.samples_bad - self.began.1,
            replaced: replaced as u64,
            bad_lines: bad_lines.unwrap_or_default(),
            trace,
        })
    }

    fn agreed(&self, all: Vec<Word>) -> Agreed {
        let sum = |of: fn(&Word) -> u64| all.iter().map(of).sum::<u64>();
        let failed = |(rank, word): (usize, &Word)| Some((rank, word.failure.clone()?));
        Agreed {
            stop: all.iter().find_map(|word| word.stop),
            failure: all.iter().enumerate().find_map(failed),
            totals: (
                self.began.0 + sum(|word| word.tried),
                self.began.1 + sum(|word| word.bad),
            ),
            replaced: sum(|word| word.replaced),
            bad_lines: all.iter().map(|word| word.bad_lines.as_str()).collect(),
            trace: all.iter().map(|word| word.trace.as_str()).collect(),
            waited_ms: Spread::of(all.iter().map(|word| word.waited_ms)),
        }
    }
}

impl Agreed {
    /// The error of a budget of bad samples that is used up, by the rule of the loader.
    pub(super) fn too_many_bad(&self, max_fraction: f64) -> Option<LoaderError> {
        let (tried, bad) = self.totals;
        BadSampleList::is_too_long(bad, tried, max_fraction).then(|| LoaderError::TooManyBad {
            bad,
            tried,
            max_fraction,
            first: first_of(&self.bad_lines),
            list: None,
        })
    }

    /// The error of a rank that has to end because another one does.
    pub(super) fn elsewhere(rank: usize, cause: &str) -> RunError {
        let cause = format!("has failed: {cause}");
        RunError::Ranks(WireError::Ended { rank, cause }.into())
    }
}

/// What an engine could not do; where another rank is the reason, its end.
pub(super) fn of_engine(error: EngineError) -> RunError {
    match error {
        EngineError::Ranks(source) => match source.downcast::<WireError>() {
            Ok(ended) => RunError::Ranks((*ended).into()),
            Err(source) => RunError::Engine(EngineError::Ranks(source)),
        },
        error => RunError::Engine(error),
    }
}

/// The error of a rank other than 0 that ends with all others, for a reason that rank 0 tells.
pub(super) fn rank_0_says_more(what: &str) -> RunError {
    let what = what.to_owned();
    RunError::Ranks(RanksError::Elsewhere { what })
}

/// An error with its causes.
pub(super) fn causes(error: &RunError) -> String {
    crate::console::messages::all_causes(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_rank_says_holds_for_all() {
        let company = Company {
            ranks: Ranks::alone(),
            bad_lines: None,
            trace: None,
            began: (100, 3),
        };
        let word = |number: u64| Word {
            waited_ms: number as f64,
            tried: 4,
            bad: number % 2,
            replaced: number % 2,
            bad_lines: format!("{number}\n"),
            trace: format!("{}\n", 10 * number),
            ..Word::default()
        };
        let mut words = (0..4).map(word).collect::<Vec<_>>();
        let agreed = company.agreed(words.clone());
        assert_eq!((agreed.stop, agreed.failure), (None, None));
        assert_eq!((agreed.totals, agreed.replaced), ((116, 5), 2));
        assert_eq!(agreed.bad_lines, "0\n1\n2\n3\n");
        assert_eq!(agreed.trace, "0\n10\n20\n30\n");
        assert_eq!((agreed.waited_ms.max, agreed.waited_ms.slowest), (3.0, 3));
        words[1].stop = Some(15);
        words[2].failure = Some("no shard".to_owned());
        let agreed = company.agreed(words);
        assert_eq!(agreed.stop, Some(15));
        assert_eq!(agreed.failure, Some((2, "no shard".to_owned())));
    }
}
