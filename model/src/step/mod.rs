//! The training step, described once and executed over a [`device::Device`]: the encoder forward and
//! backward (`encoder.rs`), where each weight lies (`places.rs`), all memory (`memory.rs`), the rule
//! of the update (`adamw.rs`), the order in which micro-batches are added (`tree.rs`) and all that an
//! update changes (`state.rs`). What the encoder's output is for is a
//! [`crate::objective::Objective`].
pub mod adamw;
mod classifier;
pub mod device;
mod encoder;
mod memory;
mod options;
mod places;
mod plan;
mod state;
#[expect(clippy::module_inception, reason = "the folder's main type")]
mod step;
mod tree;

pub(crate) use options::Shape;
pub use options::{Kept, Pass, StepOptions, tokens_of_patches};
pub(crate) use places::HeadPlaces;
pub use places::Layout;
pub use plan::MemoryPlan;
pub use state::FlatState;
pub use step::Step;
pub use tree::SumTree;

#[cfg(test)]
mod tests;
