//! An output in a local folder, which this process has locked.
use std::fs::File;
use std::path::{Path, PathBuf};

use super::contents::Loaded;
use super::error::OutputError;
use super::folders::{
    load_folder, local_checkpoints, remove_checkpoint_files, save_best_in_folder, save_in_folder,
};
use super::names::{CHECKPOINTS, CheckpointName, RUN_FILE, folder_name};
use super::retention::Retention;
use crate::checkpoint::{Checkpoint, CheckpointError, MoreFiles, io};

/// Held by the process that writes into a local output.
const LOCK: &str = ".lock";

/// The folder of one run, locked by this process.
#[derive(Debug)]
pub(super) struct LocalOutput {
    pub(super) folder: PathBuf,
    /// The topmost folder that was made for it.
    made: Option<PathBuf>,
    _lock: File,
}

impl LocalOutput {
    /// Makes and locks the folder.
    pub(super) fn open(folder: PathBuf) -> Result<Self, OutputError> {
        let checkpoints = folder.join(CHECKPOINTS);
        let is_new = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let made = folder.ancestors().take_while(is_new).last();
        let made = made.map(Path::to_owned);
        std::fs::create_dir_all(&checkpoints).map_err(io("create", &checkpoints))?;
        let path = folder.join(LOCK);
        let lock = File::create(&path).map_err(io("create", &path))?;
        if let Err(std::fs::TryLockError::WouldBlock) = lock.try_lock() {
            let place = folder.display().to_string();
            return Err(OutputError::InUse { place });
        }
        Ok(Self {
            folder,
            made,
            _lock: lock,
        })
    }

    /// Removes what [`Self::open`] has made, if it is still empty.
    pub(super) fn remove_if_empty(&self) {
        let folder = &self.folder;
        let _ = std::fs::remove_dir(folder.join(CHECKPOINTS));
        if let Some(made) = &self.made {
            let _ = std::fs::remove_file(folder.join(LOCK));
            for folder in folder.ancestors() {
                if std::fs::remove_dir(folder).is_err() || folder == made {
                    break;
                }
            }
        }
    }

    pub(super) fn holds_run(&self) -> Result<bool, CheckpointError> {
        Ok(self.folder.join(RUN_FILE).exists() || !self.checkpoints()?.is_empty())
    }

    pub(super) fn read_recipe(&self) -> Result<Option<String>, CheckpointError> {
        let path = self.folder.join(RUN_FILE);
        match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some).map_err(io("read", &path)),
        }
    }

    pub(super) fn write(&self, name: &str, content: &[u8]) -> Result<(), CheckpointError> {
        let path = self.folder.join(name);
        std::fs::write(&path, content).map_err(io("write", &path))
    }

    /// All whole checkpoints, the newest last.
    pub(super) fn checkpoints(&self) -> Result<Vec<CheckpointName>, CheckpointError> {
        let mut found = local_checkpoints(&self.folder.join(CHECKPOINTS))?;
        found.sort_by_key(|checkpoint| checkpoint.step);
        Ok(found)
    }

    pub(super) fn load(&self, checkpoint: &CheckpointName) -> Result<Loaded, CheckpointError> {
        load_folder(&self.folder.join(CHECKPOINTS).join(&checkpoint.name))
    }

    /// Saves a checkpoint whole or not at all, and then removes those that `retention` lets go.
    pub(super) fn save(
        &self,
        checkpoint: &Checkpoint,
        more: &MoreFiles,
        retention: Retention,
    ) -> Result<(), CheckpointError> {
        let saved = save_in_folder(&self.folder, checkpoint, more);
        saved.map_err(|source| CheckpointError::Save {
            step: checkpoint.state.step,
            place: self.folder.display().to_string(),
            source: Box::new(source),
        })?;
        self.remove_old(retention);
        Ok(())
    }

    /// Keeps a checkpoint as the best, whole or not at all.
    pub(super) fn save_best(
        &self,
        checkpoint: &Checkpoint,
        more: &MoreFiles,
    ) -> Result<(), CheckpointError> {
        let saved = save_best_in_folder(&self.folder, checkpoint, more);
        saved.map_err(|source| CheckpointError::Save {
            step: checkpoint.state.step,
            place: self.folder.display().to_string(),
            source: Box::new(source),
        })
    }

    fn remove_old(&self, retention: Retention) {
        let checkpoints = match self.checkpoints() {
            Ok(checkpoints) => checkpoints,
            Err(error) => {
                // The new one is safe; another save may remove what is left now.
                let error = anyhow::Error::from(error);
                return tracing::warn!("cannot remove old checkpoints: {error:#}");
            }
        };
        let steps = checkpoints.iter().map(|checkpoint| checkpoint.step);
        for old in retention.old(steps) {
            remove_checkpoint_files(&self.folder.join(CHECKPOINTS).join(folder_name(old)));
        }
    }
}
