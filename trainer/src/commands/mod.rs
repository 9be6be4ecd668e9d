//! One file a command; each has its `Args` and a `run`.
pub mod eval;
pub mod export;
pub mod inspect;
pub mod pack;
pub mod pretrain;
pub mod profile;
pub mod report;
pub mod sample_data;
pub mod verify;
