//! What a run writes down: `metrics.jsonl`, TensorBoard events and the sample trace.
mod error;
mod file;
mod metrics;
mod records;
mod tensorboard;
mod trace;

pub(crate) use error::LogError;
pub(crate) use file::LogFile;
pub(crate) use metrics::{MetricsFile, StepMetrics, lines_up_to};
pub(crate) use tensorboard::EventFile;
pub(crate) use trace::TraceFile;
