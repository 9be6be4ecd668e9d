//! Everything that is written for CUDA, run on stand-ins for NVIDIA's libraries (`tests/standins`): one binary, a module each.
mod contracts;
mod device;
mod lending;
mod loader;
mod program;
mod python;
mod ranks;
mod step;
