//! What `nepa inspect` finds out: a seeded sample of row groups and images, warnings, and a picture
//! of crops. `commands/inspect.rs` prints it.
mod grid;
mod sample;
mod warnings;

pub use grid::draw_grid;
pub use sample::{Sample, SampledImage, SampledRowGroup, take_sample};
pub use warnings::warnings;
