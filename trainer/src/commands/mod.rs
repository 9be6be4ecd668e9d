//! One file a command; each has its `Args` and a `run`.
mod args;
pub(crate) mod completions;
pub(crate) mod eval;
pub(crate) mod export;
mod help;
pub(crate) mod inspect;
pub(crate) mod man;
pub(crate) mod pack;
pub(crate) mod pretrain;
pub(crate) mod profile;
pub(crate) mod recipes;
pub(crate) mod report;
pub(crate) mod sample_data;
mod values;
pub(crate) mod verify;
