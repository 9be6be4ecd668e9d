//! Names in an output: of its files and folders, and of the checkpoints in it.
use std::path::PathBuf;

use crate::checkpoint::{FILES, MANIFEST, MORE_FILES};

pub(super) const CHECKPOINTS: &str = "checkpoints";
/// The best checkpoint of a run that evaluates.
pub(super) const BEST: &str = "best";
/// Marks an output that holds a run.
pub(crate) const RUN_FILE: &str = "recipe.toml";
/// One line a step.
pub(crate) const METRICS: &str = "metrics.jsonl";
/// One line an evaluation.
pub(crate) const EVALS: &str = "evals.jsonl";

/// A whole checkpoint in an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckpointName {
    /// Optimiser steps done.
    pub step: u64,
    /// Name of its folder.
    pub name: String,
    /// Its folder, if it waits for being sent.
    pub(super) spooled: Option<PathBuf>,
}

impl CheckpointName {
    pub(super) fn new(step: u64) -> Self {
        Self {
            step,
            name: folder_name(step),
            spooled: None,
        }
    }
}

pub(super) fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

pub(super) fn parse_folder_name(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?
        .parse()
        .ok()
        .filter(|step| folder_name(*step) == name)
}

/// Objects of a checkpoint, the manifest first, so that a checkpoint that is deleted by half is
/// none.
pub(super) fn objects_of(checkpoint: &CheckpointName) -> impl Iterator<Item = String> {
    let files = [MANIFEST].into_iter().chain(FILES).chain(MORE_FILES);
    files.map(|file| format!("{CHECKPOINTS}/{}/{file}", checkpoint.name))
}

pub(crate) fn is_local(url: &str) -> bool {
    !url.contains("://") || url.starts_with("file://")
}

pub(crate) fn local_path(url: &str) -> PathBuf {
    match url::Url::parse(url) {
        Ok(parsed) if parsed.scheme() == "file" => parsed
            .to_file_path()
            .unwrap_or_else(|()| PathBuf::from(url)),
        _ => PathBuf::from(url),
    }
}
