//! Where a run writes: a local folder, or a prefix in an object store with a local scratch folder for the live files.
//!
//! Checkpoints lie in `checkpoints/step-NNNNNNNN`. Locally a checkpoint is written beside and renamed; in a store its
//! manifest is put last. Either way it is whole or absent. Nothing is deleted that a manifest of ours does not list.
mod remote;

use std::fs::File;
use std::path::{Path, PathBuf};

use nepa_pipeline::{IoConfig, IoRuntime};
use tempfile::TempDir;

use self::remote::Remote;
use crate::checkpoint::{self, Checkpoint, CheckpointError, FILES, MANIFEST, io};

const CHECKPOINTS: &str = "checkpoints";
/// Marks an output that holds a run.
const RUN_FILE: &str = "recipe.toml";
/// One line a step.
pub(crate) const METRICS: &str = "metrics.jsonl";

/// The place where one run writes; held by one process at a time if it is local.
#[derive(Debug)]
pub struct Output {
    folder: PathBuf,
    place: String,
    remote: Option<Remote>,
    _scratch: Option<TempDir>,
    _lock: Option<File>,
}

/// A whole checkpoint in an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointName {
    /// Optimiser steps done.
    pub step: u64,
    /// Name of its folder.
    pub name: String,
}

/// Another process writes to this output.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Another process writes to this output.
    #[error("{place} is in use by another process; wait for it, or give another --out")]
    InUse {
        /// The output.
        place: String,
    },
    /// Anything that checkpoints can run into.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

fn is_local(url: &str) -> bool {
    !url.contains("://") || url.starts_with("file://")
}

fn local_path(url: &str) -> PathBuf {
    match url::Url::parse(url) {
        Ok(parsed) if parsed.scheme() == "file" => parsed
            .to_file_path()
            .unwrap_or_else(|()| PathBuf::from(url)),
        _ => PathBuf::from(url),
    }
}

fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn parse_folder_name(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?
        .parse()
        .ok()
        .filter(|step| folder_name(*step) == name)
}

impl Output {
    /// Opens a path or URL; a local folder is made and locked.
    pub fn open(url: &str, io_config: &IoConfig, runtime: &IoRuntime) -> Result<Self, OutputError> {
        if is_local(url) {
            let folder = local_path(url);
            let checkpoints = folder.join(CHECKPOINTS);
            std::fs::create_dir_all(&checkpoints).map_err(io("create", &checkpoints))?;
            let path = folder.join(".lock");
            let lock = File::create(&path).map_err(io("create", &path))?;
            let place = folder.display().to_string();
            if let Err(std::fs::TryLockError::WouldBlock) = lock.try_lock() {
                return Err(OutputError::InUse { place });
            }
            return Ok(Self {
                folder,
                place,
                remote: None,
                _scratch: None,
                _lock: Some(lock),
            });
        }
        let (remote, scratch) = (Remote::open(url, io_config, runtime)?, scratch_folder()?);
        let (folder, place) = (scratch.path().to_owned(), remote.url().to_owned());
        let checkpoints = folder.join(CHECKPOINTS);
        std::fs::create_dir_all(&checkpoints).map_err(io("create", &checkpoints))?;
        Ok(Self {
            folder,
            place,
            remote: Some(remote),
            _scratch: Some(scratch),
            _lock: None,
        })
    }

    /// The local folder of live files: the output itself, or its scratch folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The output for people, without secrets.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Whether a run was started here.
    pub fn holds_run(&self) -> Result<bool, CheckpointError> {
        match &self.remote {
            None => Ok(self.folder.join(RUN_FILE).exists() || !self.checkpoints()?.is_empty()),
            Some(remote) => Ok(remote.get_if_there(RUN_FILE)?.is_some()),
        }
    }

    /// Marks the output as holding this run.
    pub fn write_recipe(&self, text: &str) -> Result<(), CheckpointError> {
        let path = self.folder.join(RUN_FILE);
        std::fs::write(&path, text).map_err(io("write", &path))?;
        self.upload(&[RUN_FILE])
    }

    /// The recipe of the run that was started here, if it got that far.
    pub fn read_recipe(&self) -> Result<Option<String>, CheckpointError> {
        if let Some(remote) = &self.remote {
            return Ok(remote
                .get_if_there(RUN_FILE)?
                .map(|text| String::from_utf8_lossy(&text).into_owned()));
        }
        let path = self.folder.join(RUN_FILE);
        match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some).map_err(io("read", &path)),
        }
    }

    /// Copies live files to the store; nothing to do where the output is local.
    pub fn upload(&self, names: &[&str]) -> Result<(), CheckpointError> {
        let Some(remote) = &self.remote else {
            return Ok(());
        };
        for name in names {
            let path = self.folder.join(name);
            if path.exists() {
                remote.put(name, &path)?;
            }
        }
        Ok(())
    }

    /// Copies live files from the store to the scratch folder, where they are there.
    pub fn download(&self, names: &[&str]) -> Result<(), CheckpointError> {
        let Some(remote) = &self.remote else {
            return Ok(());
        };
        for name in names {
            if let Some(bytes) = remote.get_if_there(name)? {
                let path = self.folder.join(name);
                std::fs::write(&path, bytes).map_err(io("write", &path))?;
            }
        }
        Ok(())
    }

    /// All whole checkpoints, the newest last. Half ones are left out.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointName>, CheckpointError> {
        let mut found = match &self.remote {
            Some(remote) => remote.checkpoints()?,
            None => local_checkpoints(&self.folder.join(CHECKPOINTS))?,
        };
        found.sort_by_key(|checkpoint| checkpoint.step);
        Ok(found)
    }

    /// Reads and verifies one checkpoint.
    pub fn load(&self, checkpoint: &CheckpointName) -> Result<Checkpoint, CheckpointError> {
        let folder = self.folder.join(CHECKPOINTS).join(&checkpoint.name);
        if let Some(remote) = &self.remote {
            remote.fetch_checkpoint(&checkpoint.name, &folder)?;
        }
        let loaded = checkpoint::read_folder(&folder);
        if self.remote.is_some() {
            remove_checkpoint_files(&folder);
        }
        loaded
    }

    /// Saves a checkpoint whole or not at all, then removes all but the newest `keep`.
    pub fn save(&self, checkpoint: &Checkpoint, keep: usize) -> Result<(), CheckpointError> {
        let step = checkpoint.state.step;
        let folder = self.folder.join(CHECKPOINTS);
        let temporary = folder.join(format!(".saving-{}", folder_name(step)));
        let saved = self.save_through(&folder, &temporary, checkpoint);
        remove_temporary(&temporary);
        saved.map_err(|source| {
            let (place, source) = (self.place.clone(), Box::new(source));
            CheckpointError::Save {
                step,
                place,
                source,
            }
        })?;
        if let Err(error) = self.remove_all_but(keep) {
            // The new one is safe; another save may remove what is left now.
            tracing::warn!(
                "cannot remove old checkpoints: {:#}",
                anyhow::Error::from(error)
            );
        }
        Ok(())
    }

    fn remove_all_but(&self, keep: usize) -> Result<(), CheckpointError> {
        let checkpoints = self.checkpoints()?;
        for old in &checkpoints[..checkpoints.len().saturating_sub(keep)] {
            match &self.remote {
                Some(remote) => remote.delete_checkpoint(&old.name)?,
                None => remove_checkpoint_files(&self.folder.join(CHECKPOINTS).join(&old.name)),
            }
        }
        Ok(())
    }

    fn save_through(
        &self,
        folder: &Path,
        temporary: &Path,
        checkpoint: &Checkpoint,
    ) -> Result<(), CheckpointError> {
        remove_temporary(temporary);
        std::fs::create_dir_all(temporary).map_err(io("create", temporary))?;
        checkpoint::write_folder(temporary, checkpoint)?;
        let name = folder_name(checkpoint.state.step);
        if let Some(remote) = &self.remote {
            // The manifest makes the checkpoint whole, so it goes last.
            let put = FILES.into_iter().chain([MANIFEST]).try_for_each(|file| {
                let object = format!("{CHECKPOINTS}/{name}/{file}");
                remote.put(&object, &temporary.join(file))
            });
            if put.is_err()
                && let Err(error) = remote.delete_checkpoint(&name)
            {
                let error = anyhow::Error::from(error);
                tracing::warn!("the part written so far cannot be removed: {error:#}");
            }
            return put;
        }
        let target = folder.join(&name);
        if target.exists() {
            set_aside(&target)?;
        }
        std::fs::rename(temporary, &target).map_err(io("rename", temporary))?;
        File::open(folder)
            .and_then(|file| file.sync_all())
            .map_err(io("sync", folder))
    }

    /// Removes what a killed process left half written.
    pub fn clean_up(&self) {
        let Ok(entries) = std::fs::read_dir(self.folder.join(CHECKPOINTS)) else {
            return;
        };
        for entry in entries.flatten() {
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(".saving-step-")
            {
                remove_checkpoint_files(&entry.path());
            }
        }
    }
}

/// Finds a checkpoint behind a path or URL (of a checkpoint, or of a run, whose newest is taken) and brings it to a local
/// folder; the second value keeps a downloaded one alive. Used by evaluation and export.
pub fn fetch_checkpoint(
    url: &str,
    io_config: &IoConfig,
    runtime: &IoRuntime,
) -> Result<(PathBuf, Option<TempDir>), CheckpointError> {
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
    let (remote, scratch) = (Remote::open(url, io_config, runtime)?, scratch_folder()?);
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
        remote.fetch_checkpoint(&newest.name, &folder)?;
    }
    Ok((folder, Some(scratch)))
}

/// A run as far as it has come, on the local disk: for reading only, so a run that still goes on may be looked at.
#[derive(Debug)]
pub struct RunCopy {
    /// The recipe as it was run.
    pub recipe: String,
    /// Content of `metrics.jsonl`.
    pub metrics: String,
    /// Steps and folders of all whole checkpoints, the newest last.
    pub checkpoints: Vec<(u64, PathBuf)>,
    _scratch: Option<TempDir>,
}

/// Finds a run behind a path or URL and brings what a report needs to the local disk.
pub fn fetch_run(
    url: &str,
    io_config: &IoConfig,
    runtime: &IoRuntime,
) -> Result<RunCopy, CheckpointError> {
    let no_run = || CheckpointError::NoRun {
        place: url.to_owned(),
    };
    let text = |bytes: Option<Vec<u8>>| {
        let bytes = bytes.ok_or_else(no_run)?;
        Ok::<_, CheckpointError>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let mut checkpoints;
    let (recipe, metrics, folder, scratch);
    if is_local(url) {
        let run = local_path(url);
        recipe = text(std::fs::read(run.join(RUN_FILE)).ok())?;
        metrics = text(std::fs::read(run.join(METRICS)).ok())?;
        (folder, scratch) = (run.join(CHECKPOINTS), None);
        checkpoints = local_checkpoints(&folder)?;
    } else {
        let (remote, temporary) = (Remote::open(url, io_config, runtime)?, scratch_folder()?);
        recipe = text(remote.get_if_there(RUN_FILE)?)?;
        metrics = text(remote.get_if_there(METRICS)?)?;
        folder = temporary.path().to_owned();
        checkpoints = remote.checkpoints()?;
        for checkpoint in &checkpoints {
            remote.fetch_checkpoint(&checkpoint.name, &folder.join(&checkpoint.name))?;
        }
        scratch = Some(temporary);
    }
    checkpoints.sort_by_key(|checkpoint| checkpoint.step);
    let checkpoints = checkpoints
        .into_iter()
        .map(|checkpoint| (checkpoint.step, folder.join(checkpoint.name)));
    Ok(RunCopy {
        recipe,
        metrics,
        checkpoints: checkpoints.collect(),
        _scratch: scratch,
    })
}

fn scratch_folder() -> Result<TempDir, CheckpointError> {
    let parent = std::env::temp_dir();
    tempfile::Builder::new()
        .prefix("nepa-run-")
        .tempdir()
        .map_err(io("create a folder in", &parent))
}

fn local_checkpoints(folder: &Path) -> Result<Vec<CheckpointName>, CheckpointError> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(io("list", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(io("list", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(step) = parse_folder_name(&name) else {
            continue;
        };
        let is_whole = checkpoint::read_manifest(&entry.path()).is_ok_and(|manifest| {
            manifest.files.iter().all(|(file, expected)| {
                std::fs::metadata(entry.path().join(file))
                    .is_ok_and(|metadata| metadata.len() == expected.bytes)
            })
        });
        if is_whole {
            found.push(CheckpointName { step, name });
        } else {
            tracing::warn!(
                "ignoring {}: it is no whole checkpoint",
                entry.path().display()
            );
        }
    }
    Ok(found)
}

/// Removes a folder that a save made for itself, with whatever half-written files the writers left in it.
fn remove_temporary(folder: &Path) {
    if folder.exists()
        && let Err(error) = std::fs::remove_dir_all(folder)
    {
        tracing::warn!("cannot remove {}: {error}", folder.display());
    }
}

/// Removes the files that a checkpoint has, the manifest first, and the folder if nothing else is in it.
fn remove_checkpoint_files(folder: &Path) {
    for file in [MANIFEST].into_iter().chain(FILES) {
        let _ = std::fs::remove_file(folder.join(file));
    }
    if folder.exists() && std::fs::remove_dir(folder).is_err() {
        tracing::warn!(
            "{} holds other files than a checkpoint's; it stays",
            folder.display()
        );
    }
}

/// Makes room for a checkpoint where a damaged one of the same step lies, without deleting that.
fn set_aside(target: &Path) -> Result<(), CheckpointError> {
    let name = target
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let free = (1..=u32::MAX)
        .map(|n| target.with_file_name(format!("replaced-{n}-{name}")))
        .find(|path| !path.exists());
    let aside = free.expect("one of four billion names is free");
    tracing::warn!(
        "{} was there already; it is kept as {}",
        target.display(),
        aside.display()
    );
    std::fs::rename(target, aside).map_err(io("rename", target))
}
