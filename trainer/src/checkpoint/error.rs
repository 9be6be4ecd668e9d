//! Why a checkpoint cannot be written, found or read, and what to do.
use std::path::{Path, PathBuf};

use nepa_model::ModelError;
use nepa_pipeline::{Action, StoreError};

use super::files::MANIFEST;
use crate::console::messages::{quoted, quoted_path};

/// A checkpoint cannot be written, found or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A local file cannot be read or written.
    #[error("cannot {action} {}", quoted_path(path))]
    Io {
        /// What was being done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An object cannot be read or written.
    #[error("cannot {action} {url}")]
    Store {
        /// What was being done.
        action: Action,
        /// With which object, without secrets.
        url: String,
        /// Why.
        source: Box<StoreError>,
    },
    /// The URL of the output cannot be opened.
    #[error("cannot open the output {url}")]
    Open {
        /// The URL.
        url: String,
        /// Why.
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
        /// Where.
        place: String,
        /// Why.
        source: Box<CheckpointError>,
    },
    /// Published weights cannot be read or written.
    #[error("cannot read or write the weights in {place}")]
    Model {
        /// The checkpoint.
        place: String,
        /// Why.
        source: ModelError,
    },
    /// A JSON file is not what it should be.
    #[error("{path} is not readable")]
    Json {
        /// The file.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A weight file is not safetensors.
    #[error("{path} is not readable")]
    SafeTensors {
        /// The file.
        path: String,
        /// Why.
        source: safetensors::SafeTensorError,
    },
    /// Another format or version.
    #[error("the checkpoint {place} has the format {found}; this program reads nepa-checkpoint 1")]
    Version {
        /// The checkpoint.
        place: String,
        /// What stands there.
        found: String,
    },
    /// No run was started here.
    #[error(
        "{} holds no run: it has no recipe.toml or no metrics.jsonl\ntip: give the --out of a \
         `nepa pretrain`",
        quoted(place)
    )]
    NoRun {
        /// The folder.
        place: String,
    },
    /// No manifest: the checkpoint was never finished, or this is none.
    #[error(
        "{} is no whole checkpoint: it has no {MANIFEST}\ntip: give a folder such as \
         OUT/checkpoints/step-00000100, or the OUT of a run",
        quoted(place)
    )]
    NoManifest {
        /// The folder.
        place: String,
    },
    /// A file that the manifest lists is not there, or has another length.
    #[error(
        "the checkpoint {place} is damaged: {file} has {} bytes, its manifest says {expected}. \
         Remove this checkpoint to go on from an earlier one",
        found.map_or("no".to_owned(), |n| n.to_string())
    )]
    WrongSize {
        /// The checkpoint.
        place: String,
        /// The file.
        file: String,
        /// Its length, if it is there.
        found: Option<u64>,
        /// The manifest's.
        expected: u64,
    },
    /// A file has other bytes than were written.
    #[error(
        "the checkpoint {place} is damaged: the SHA-256 of {file} is not the manifest's. Remove \
         this checkpoint to go on from an earlier one"
    )]
    WrongDigest {
        /// The checkpoint.
        place: String,
        /// The file.
        file: String,
    },
    /// The manifest lists other files than a checkpoint has.
    #[error("the checkpoint {place} is damaged: its manifest does not list {file}")]
    NotListed {
        /// The checkpoint.
        place: String,
        /// The file.
        file: String,
    },
    /// A tensor is missing.
    #[error("{path} lacks the tensor {name}")]
    MissingTensor {
        /// The file.
        path: String,
        /// The tensor.
        name: String,
    },
    /// A tensor that the model does not have.
    #[error("{path} holds the tensor {name}, which this model does not have")]
    SurplusTensor {
        /// The file.
        path: String,
        /// The tensor.
        name: String,
    },
    /// A tensor of another shape or type.
    #[error("{path}: the tensor {name} is {found}, the model's is F32 {expected:?}")]
    WrongTensor {
        /// The file.
        path: String,
        /// The tensor.
        name: String,
        /// Its type and shape.
        found: String,
        /// The model's shape.
        expected: Vec<usize>,
    },
    /// Nothing there.
    #[error("there is no whole checkpoint in {place}")]
    None {
        /// The output.
        place: String,
    },
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
