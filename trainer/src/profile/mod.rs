//! Where the loader's time goes, proved by running it again with one stage removed or one setting
//! changed. Called by `nepa profile`.
//!
//! Short trials (`plan.rs`, `trial.rs`) take turns: the loader as it is; the store without
//! decoding; decoding without the store, on images kept from before (`captured.rs`). Their rates
//! are ceilings (`ladder.rs`); the lowest limits. Why it does, and what a change would give, is
//! judged from the trials and from what the kernel says (`kernel.rs`, `verdict.rs`). What other
//! hardware would give is computed (`simulate.rs`); settings are searched (`tune.rs`).
mod board;
mod captured;
mod compare;
mod histogram;
mod kernel;
mod ladder;
mod moments;
mod page;
mod plan;
mod report;
mod rungs;
mod saved;
mod simulate;
mod trial;
mod tune;
mod verdict;

pub(crate) use compare::compare;
pub(crate) use plan::{Subject, measure};
pub(crate) use report::Report;
pub(crate) use simulate::{Costs, Scenario};
pub(crate) use tune::{Tuned, tune};
