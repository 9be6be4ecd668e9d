//! The promises of the project, a module each, in one test binary.
mod layering;
mod pretrain;
mod resume;
mod store;
mod zoo;
