//! Pretrains NEPA from object storage, resumably. The one place where loader and model meet; holds the `nepa` program.

pub mod commands;
pub mod optimizer;
pub mod schedule;
