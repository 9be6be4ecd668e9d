//! Why a checkpoint cannot be written, found or read, and what to do.
use std::path::{Path, PathBuf};

use nepa_model::ModelError;
use nepa_pipeline::{Action, StoreError};

use super::files::MANIFEST;
use crate::console::messages::{quoted, quoted_path};

/// A checkpoint cannot be written, found or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("cannot {action} {}", quoted_path(path))]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot {action} {url}")]
    Store {
        action: Action,
        url: String,
        source: Box<StoreError>,
    },
    #[error("cannot open the output {url}")]
    Open {
        url: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Saving failed; nothing was lost.
    #[error(
        "cannot save the checkpoint of step {step} in {place}. The part written so far is removed \
         and earlier checkpoints are untouched; make room (or lower checkpoint.keep) and go on \
         with --resume"
    )]
    Save {
        /// Optimiser steps done.
        step: u64,
        place: String,
        source: Box<CheckpointError>,
    },
    #[error("cannot read or write the weights in {place}")]
    Model { place: String, source: ModelError },
    #[error("{path} is not readable")]
    Json {
        path: String,
        source: serde_json::Error,
    },
    #[error("{path} is not readable")]
    SafeTensors {
        path: String,
        source: safetensors::SafeTensorError,
    },
    #[error("the checkpoint {place} has the format {found}; this program reads nepa-checkpoint 1")]
    Version { place: String, found: String },
    #[error(
        "{} holds no run: it has no recipe.toml or no metrics.jsonl\ntip: give the --out of a \
         `nepa pretrain`",
        quoted(place)
    )]
    NoRun { place: String },
    /// No manifest: the checkpoint was never finished, or this is none.
    #[error(
        "{} is no whole checkpoint: it has no {MANIFEST}\ntip: give a folder such as \
         OUT/checkpoints/step-00000100, or the OUT of a run",
        quoted(place)
    )]
    NoManifest { place: String },
    /// A file that the manifest lists is not there, or has another length.
    #[error(
        "the checkpoint {place} is damaged: {file} has {} bytes, its manifest says {expected}. \
         Remove this checkpoint to go on from an earlier one",
        found.map_or("no".to_owned(), |n| n.to_string())
    )]
    WrongSize {
        place: String,
        file: String,
        /// Its length, if it is there.
        found: Option<u64>,
        expected: u64,
    },
    #[error(
        "the checkpoint {place} is damaged: the SHA-256 of {file} is not the manifest's. Remove \
         this checkpoint to go on from an earlier one"
    )]
    WrongDigest { place: String, file: String },
    /// The manifest lists other files than a checkpoint has.
    #[error("the checkpoint {place} is damaged: its manifest does not list {file}")]
    NotListed { place: String, file: String },
    #[error("{path} lacks the tensor {name}")]
    MissingTensor { path: String, name: String },
    #[error("{path} holds the tensor {name}, which this model does not have")]
    SurplusTensor { path: String, name: String },
    #[error("{path}: the tensor {name} is {found}, the model's is F32 {expected:?}")]
    WrongTensor {
        path: String,
        name: String,
        found: String,
        expected: Vec<usize>,
    },
    #[error("there is no whole checkpoint in {place}")]
    None { place: String },
}

/// Turns an I/O error into one that says what was being done with which file.
pub(crate) fn io<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> CheckpointError + 'a {
    move |source| CheckpointError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
