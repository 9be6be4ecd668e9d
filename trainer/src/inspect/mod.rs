//! What `nepa inspect` finds out: a seeded sample of row groups and images, warnings, and a picture
//! of crops. `commands/inspect.rs` prints it.
mod grid;
mod sample;
mod warnings;

pub(crate) use grid::draw_grid;
pub(crate) use sample::{Sample, SampledImage, SampledRowGroup, take_sample};
pub(crate) use warnings::warnings;
