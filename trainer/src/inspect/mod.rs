//! What `nepa inspect` finds out: a seeded sample of row groups and images, warnings, a picture of
//! crops, and all of it as plain data. `commands/inspect.rs` prints it.
mod grid;
mod report;
mod sample;
mod warnings;

pub(crate) use grid::draw_grid;
pub(crate) use report::{Findings, Layout, Report, VERSION, Written};
pub(crate) use sample::{Sample, SampledImage, SampledRowGroup, take_sample};
pub(crate) use warnings::warnings;
