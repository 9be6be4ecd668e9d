//! The promises of the project, a module each, in one test binary.
mod bad_data;
mod device;
mod engine_kernels;
mod example;
mod golden;
mod inspect;
mod kernel_step;
mod kernels;
mod layering;
mod loader;
mod pack;
mod parts;
mod pretrain;
mod profile;
mod resume;
mod store;
mod zoo;
