//! Checkpoints and runs behind a path or URL, brought to the local disk for reading: for
//! evaluation, export and reports.
use std::path::PathBuf;

use nepa_pipeline::{IoConfig, IoRuntime};

use super::folders::local_checkpoints;
use super::names::{CHECKPOINTS, EVALS, METRICS, RUN_FILE, is_local, local_path};
use super::remote::Remote;
use super::scratch::Scratch;
use crate::checkpoint::{CheckpointError, MANIFEST, io};

/// Finds a checkpoint behind a path or URL (of a checkpoint, or of a run, whose newest is taken)
/// and brings it to a local folder; the second value keeps a downloaded one alive. Used by
/// evaluation and export.
pub(crate) fn fetch_checkpoint(
    url: &str,
    io_config: &IoConfig,
    runtime: &IoRuntime,
) -> Result<(PathBuf, Option<Scratch>), CheckpointError> {
    if is_local(url) {
        let folder = local_path(url);
        if folder.join(MANIFEST).exists() {
            return Ok((folder, None));
        }
        let checkpoints = folder.join(CHECKPOINTS);
        let newest = local_checkpoints(&checkpoints)?
            .into_iter()
            .max_by_key(|checkpoint| checkpoint.step);
        let newest = newest.ok_or(CheckpointError::NoManifest {
            place: url.to_owned(),
        })?;
        return Ok((checkpoints.join(newest.name), None));
    }
    let (remote, scratch) = (Remote::open(url, io_config, runtime)?, Scratch::new()?);
    let folder = scratch.path().join("checkpoint");
    if remote.get_if_there(MANIFEST)?.is_some() {
        // The checkpoint itself was named: its files lie directly under the prefix.
        remote.fetch_files("", &folder)?;
    } else {
        let newest = remote
            .checkpoints()?
            .into_iter()
            .max_by_key(|checkpoint| checkpoint.step);
        let newest = newest.ok_or_else(|| CheckpointError::NoManifest {
            place: remote.url().to_owned(),
        })?;
        remote.fetch_files(&format!("{CHECKPOINTS}/{}/", newest.name), &folder)?;
    }
    Ok((folder, Some(scratch)))
}

/// A run as far as it has come, on the local disk: for reading only, so a run that still goes on
/// may be looked at.
#[derive(Debug)]
pub(crate) struct RunCopy {
    /// The recipe as it was run.
    pub recipe: String,
    /// Content of `metrics.jsonl`; empty before the first step, and of a run in a store before its
    /// first checkpoint.
    pub metrics: String,
    /// Content of `evals.jsonl`, in the same way; empty of a run that evaluates nothing.
    pub evals: String,
    /// Steps of all whole checkpoints, the newest last.
    pub steps: Vec<u64>,
    /// Steps and folders of those that were asked for, the newest last.
    pub checkpoints: Vec<(u64, PathBuf)>,
    _scratch: Option<Scratch>,
}

/// Which checkpoints of a run are brought to the local disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bring {
    /// None: their steps are enough.
    None,
    Newest,
    All,
}

/// Finds a run behind a path or URL and brings what a report needs to the local disk.
pub(crate) fn fetch_run(
    url: &str,
    bring: Bring,
    io_config: &IoConfig,
    runtime: &IoRuntime,
) -> Result<RunCopy, CheckpointError> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let if_there = |path: PathBuf| match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(io("read", &path)),
    };
    let no_run = || CheckpointError::NoRun {
        place: url.to_owned(),
    };
    let mut checkpoints;
    let (recipe, metrics, evals, folder);
    let mut from_store = None;
    if is_local(url) {
        let run = local_path(url);
        recipe = if_there(run.join(RUN_FILE))?.ok_or_else(no_run)?;
        metrics = if_there(run.join(METRICS))?;
        evals = if_there(run.join(EVALS))?;
        folder = run.join(CHECKPOINTS);
        checkpoints = local_checkpoints(&folder)?;
    } else {
        let (remote, temporary) = (Remote::open(url, io_config, runtime)?, Scratch::new()?);
        recipe = remote.get_if_there(RUN_FILE)?.ok_or_else(no_run)?;
        metrics = remote.get_if_there(METRICS)?;
        evals = remote.get_if_there(EVALS)?;
        folder = temporary.path().to_owned();
        checkpoints = remote.checkpoints()?;
        from_store = Some((remote, temporary));
    }
    checkpoints.sort_by_key(|checkpoint| checkpoint.step);
    let steps = checkpoints.iter().map(|checkpoint| checkpoint.step);
    let steps = steps.collect();
    let brought = match bring {
        Bring::None => checkpoints.len(),
        Bring::Newest => checkpoints.len().saturating_sub(1),
        Bring::All => 0,
    };
    let brought = checkpoints.split_off(brought);
    if let Some((remote, _)) = &from_store {
        for checkpoint in &brought {
            let prefix = format!("{CHECKPOINTS}/{}/", checkpoint.name);
            remote.fetch_files(&prefix, &folder.join(&checkpoint.name))?;
        }
    }
    let brought = brought
        .into_iter()
        .map(|checkpoint| (checkpoint.step, folder.join(checkpoint.name)));
    Ok(RunCopy {
        recipe: text(recipe),
        metrics: text(metrics.unwrap_or_default()),
        evals: text(evals.unwrap_or_default()),
        steps,
        checkpoints: brought.collect(),
        _scratch: from_store.map(|(_, scratch)| scratch),
    })
}
