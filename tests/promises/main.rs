//! The promises of the project, a module each, in one test binary.
mod golden;
mod layering;
mod loader;
mod pretrain;
mod resume;
mod bad_data;
mod store;
mod zoo;
