//! Pretrains NEPA from object storage, resumably. The one place where loader and model meet; holds
//! the `nepa` program.

/// Version, the commit where it is known, and the features that this program was built with.
pub const VERSION: &str = if device::HAS_CUDA {
    concat!(
        env!("CARGO_PKG_VERSION"),
        " ",
        env!("NEPA_BUILT_FROM"),
        " cuda)"
    )
} else {
    concat!(
        env!("CARGO_PKG_VERSION"),
        " ",
        env!("NEPA_BUILT_FROM"),
        " none)"
    )
};

// First: its macros are those of all that follows.
#[macro_use]
pub mod print;

pub mod batches;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod cpu_engine;
#[cfg(feature = "cuda")]
pub mod cuda;
mod data_list;
pub mod device;
pub mod device_engine;
pub mod engine;
pub mod eval;
mod events;
pub mod golden;
pub mod inspect;
mod labels;
pub mod lengthen;
pub mod messages;
pub mod metrics;
mod open_data;
pub mod optimizer;
pub mod output;
pub mod overlap;
pub mod pack;
pub mod progress;
mod recap;
pub mod recipe;
pub mod report;
pub mod run;
pub mod sample_data;
pub mod schedule;
mod setup;
pub mod signals;
mod steps;
pub mod tape_engine;
pub mod words;
