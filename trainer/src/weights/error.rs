//! Why weights cannot be opened, and what to do.
use nepa_model::{ModelError, pickle_conversion};
use nepa_pipeline::StoreError;

use crate::checkpoint::CheckpointError;
use crate::console::messages::quoted;

use super::names::{INDEX, PICKLED_AVERAGE, WEIGHTS};

/// Weights cannot be found, fetched or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WeightsError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("cannot read the weights in {}", quoted(place))]
    Model { place: String, source: ModelError },
    #[error("cannot open {url}")]
    Open {
        url: String,
        source: Box<StoreError>,
    },
    #[error("cannot read {url}")]
    Store {
        url: String,
        source: Box<StoreError>,
    },
    /// Nothing is there that could hold weights.
    #[error(
        "{} holds no weights: {looked_for}; {there}\ntip: {tip}",
        quoted(place)
    )]
    Neither {
        place: String,
        /// What was looked for, and not found.
        looked_for: &'static str,
        /// What is there instead.
        there: String,
        tip: String,
    },
    /// Weights as PyTorch pickles them: reading one runs whatever code is in it.
    #[error(
        "{} holds its weights as {file}, a Python pickle, which is not read, as that would run \
         whatever code is in it\ntip: make a safetensors file of it, once:\n  {}",
        quoted(place),
        convert(place, file, WEIGHTS)
    )]
    Pickle { place: String, file: &'static str },
    /// The published fine-tuning writes its average so, beside `model.safetensors`.
    #[error(
        "the moving average in {} is {PICKLED_AVERAGE}, a Python pickle, which is not read, as that \
         would run whatever code is in it\ntip: make a folder ema with a copy of config.json, and \
         this in it:\n  {}",
        quoted(place),
        convert(place, PICKLED_AVERAGE, "ema/model.safetensors")
    )]
    PickledAverage { place: String },
    #[error(
        "{} holds no moving average: {why}\ntip: take the raw weights",
        quoted(place)
    )]
    NoAverage { place: String, why: &'static str },
    #[error(
        "{} lacks {shard}, which its {INDEX} names\ntip: copy all files of the model there",
        quoted(place)
    )]
    NoShard { place: String, shard: String },
    #[error("{}: {problem}", quoted(file))]
    Preprocessor { file: String, problem: String },
    #[error(
        "{} holds a run that has saved no checkpoint yet\ntip: wait for the first one, or let it go \
         on with --resume",
        quoted(place)
    )]
    Unsaved { place: String },
    /// A run where nothing can be listed, as on a web server.
    #[error(
        "{} holds a run, but cannot be listed, and no checkpoint has one of the names that its \
         recipe and metrics lead to\ntip: name one, as in {}/checkpoints/step-00000100",
        quoted(place),
        place.trim_end_matches('/')
    )]
    Unlisted { place: String },
}

/// The command that makes a pickle of weights a safetensors file.
fn convert(place: &str, from: &str, to: &str) -> String {
    // What lies in a store is converted where it was copied to.
    let folder = if place.contains("://") {
        String::new()
    } else {
        format!("{}/", place.trim_end_matches('/'))
    };
    let path = |name: &str| format!("{folder}{name}");
    pickle_conversion(&[path(from)], &path(to))
}
