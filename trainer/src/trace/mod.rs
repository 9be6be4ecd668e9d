//! A trace of a run or of a profile: when each request, row group, image, batch and step began and
//! ended, as Chrome's JSON that <https://ui.perfetto.dev> opens. Called by `commands`, `run` and
//! `profile`.
//!
//! The spans are those of the pipeline (`nepa_pipeline::SPANS_ON_A_THREAD`) and of the training
//! loop. They are recorded between [`Trace::begin`] and the end of what it gives alone; at all
//! other times, and without `--trace`, nobody subscribes to them and each costs one load.
//!
//! The crate `tracing-chrome` is not used: its queue and file have no bound, its file is well
//! formed only after a good end, and spans are all on threads or all across them.
mod file;
mod layer;
mod recording;
mod steps;

pub(crate) use file::TraceError;
pub(crate) use layer::layer;
pub(crate) use recording::Trace;
pub(crate) use steps::{Steps, StepsArg, TraceSteps};
