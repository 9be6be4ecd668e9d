//! A run, of pretraining or of fine-tuning: data in, checkpoints and metrics out, stopped and
//! continued at any step without a trace.
mod agree;
mod bad_lines;
mod batches;
mod begin;
mod company;
mod data_list;
mod draws;
mod dry_run;
mod files;
mod follow;
mod init;
mod lengthen;
mod meter;
mod options;
mod overlap;
mod phase;
mod recap;
mod resume;
mod save;
mod set_up;
mod setup;
mod shared_data;
mod spans;
mod stepper;
mod steps;
mod together;
mod train;
mod trial;
mod waiting;
mod whole;

pub(crate) use batches::{Batches, num_replaced};
pub(crate) use draws::StepDraws;
pub(crate) use options::{Finish, Init, Kind, Options, StartingPoint};
pub(crate) use overlap::measure_overlap;
pub(crate) use phase::{At, Line, Phase, passes};
pub(crate) use setup::{
    Setup, build_engine, dataset_config, is_remote, open_dataset, open_device, take_data,
};
pub(crate) use stepper::Stepper;
pub(crate) use steps::Summary;
pub(crate) use whole::run;
