//! Pretrains NEPA from object storage, resumably. The one place where loader and model meet; holds
//! the `nepa` program.
//!
//! Public is what tests and benchmarks use; a program has no other callers.

/// Version, the commit where it is known, and the features that this program was built with.
pub(crate) const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " ", env!("NEPA_BUILT_FROM"));

// First: its macros are those of all that follows.
#[macro_use]
mod console;

pub mod checkpoint;
mod cli;
mod commands;
#[cfg(feature = "cuda")]
pub mod cuda;
mod data;
pub mod device;
pub mod engine;
mod error;
mod eval;
mod exporter;
pub mod finetune;
pub mod golden;
mod inspect;
mod launch;
mod logs;
pub mod optimizer;
mod output;
pub mod pack;
mod page;
mod profile;
mod program;
mod ranks;
pub mod recipe;
mod report;
mod run;
mod sample_data;
pub mod schedule;
mod signals;
mod trace;
pub mod transform;
mod weights;

pub use program::main;
pub use ranks::Adding;
