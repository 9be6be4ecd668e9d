//! What a run writes down: `metrics.jsonl`, `evals.jsonl`, TensorBoard events and the sample trace.
mod error;
mod evals;
mod file;
mod loader;
mod metrics;
mod records;
mod tensorboard;
mod trace;

pub(crate) use error::LogError;
pub(crate) use evals::{Accuracy, EvalRecord, EvalsFile};
pub(crate) use file::LogFile;
pub(crate) use loader::LoaderMetrics;
pub(crate) use metrics::{
    DecodedImages, Measured, MetricsFile, RankMetrics, StepMetrics, lines_up_to,
};
pub(crate) use tensorboard::EventFile;
pub(crate) use trace::{TraceFile, TraceLines};
