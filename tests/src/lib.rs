//! What the tests share: an S3 server that can misbehave, small data sets, the `nepa` program.

pub mod classifiers;
pub mod data;
pub mod emulated_device;
pub mod engine_kernels;
pub mod fake_device;
pub mod kernels;
pub mod loading;
pub mod photos;
pub mod program;
pub mod proxy;
pub mod ranks;
pub mod s3;
pub mod shards;
#[cfg(feature = "cuda")]
pub mod standins;
pub mod step_variants;
pub mod stepping;
pub mod web;
