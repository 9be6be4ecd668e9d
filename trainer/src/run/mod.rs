//! The pretraining run: data in, checkpoints and metrics out, stopped and continued at any step
//! without a trace.
mod batches;
mod begin;
mod data_list;
mod dry_run;
mod files;
mod lengthen;
mod options;
mod overlap;
mod pretrain;
mod recap;
mod resume;
mod setup;
mod spans;
mod steps;
mod train;

pub(crate) use batches::Batches;
pub(crate) use options::{Finish, Options};
pub(crate) use overlap::measure_overlap;
pub(crate) use pretrain::pretrain;
pub(crate) use setup::build_engine;
