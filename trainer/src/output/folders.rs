//! Checkpoints in a local folder, be it an output or a spool. One is written beside its place and
//! renamed, so that it is whole or absent. Nothing is deleted that a checkpoint of ours does not
//! have.
use std::fs::File;
use std::path::{Path, PathBuf};

use super::contents::Loaded;
use super::names::{BEST, CHECKPOINTS, CheckpointName, folder_name, parse_folder_name};
use crate::checkpoint::{
    self, Checkpoint, CheckpointError, FILES, MANIFEST, MORE_FILES, MoreFiles, io,
};

/// What `best` is while it is written, and the one before it is removed; the names are those of what
/// [`remove_half_written`] knows.
const SAVING_BEST: &str = ".saving-step-best";
const OLD_BEST: &str = ".saving-step-best-before";

/// Reads and verifies a checkpoint in a local folder.
pub(super) fn load_folder(folder: &Path) -> Result<Loaded, CheckpointError> {
    Ok(Loaded {
        checkpoint: checkpoint::read_folder(folder)?,
        more: checkpoint::read_more(folder)?,
    })
}

/// Writes a checkpoint into a folder of live files, whole or not at all.
pub(super) fn save_in_folder(
    live: &Path,
    checkpoint: &Checkpoint,
    more: &MoreFiles,
) -> Result<PathBuf, CheckpointError> {
    let folder = live.join(CHECKPOINTS);
    let name = folder_name(checkpoint.state.step);
    let temporary = folder.join(format!(".saving-{name}"));
    let write = || {
        remove_folder(&temporary);
        std::fs::create_dir_all(&temporary).map_err(io("create", &temporary))?;
        checkpoint::write_folder(&temporary, checkpoint, more)?;
        let target = folder.join(&name);
        if target.exists() {
            set_aside(&target)?;
        }
        std::fs::rename(&temporary, &target).map_err(io("rename", &temporary))?;
        File::open(&folder)
            .and_then(|file| file.sync_all())
            .map_err(io("sync", &folder))?;
        Ok(target)
    };
    let written = write();
    remove_folder(&temporary);
    written
}

/// Writes a checkpoint into the folder `best` of an output, in place of the one that is there.
/// Between the two there is none for a moment.
pub(super) fn save_best_in_folder(
    live: &Path,
    checkpoint: &Checkpoint,
    more: &MoreFiles,
) -> Result<(), CheckpointError> {
    let (best, temporary) = (live.join(BEST), live.join(CHECKPOINTS).join(SAVING_BEST));
    let old = temporary.with_file_name(OLD_BEST);
    let write = || {
        remove_folder(&temporary);
        remove_folder(&old);
        std::fs::create_dir_all(&temporary).map_err(io("create", &temporary))?;
        checkpoint::write_folder(&temporary, checkpoint, more)?;
        if best.exists() {
            std::fs::rename(&best, &old).map_err(io("rename", &best))?;
        }
        std::fs::rename(&temporary, &best).map_err(io("rename", &temporary))?;
        File::open(live)
            .and_then(|file| file.sync_all())
            .map_err(io("sync", live))
    };
    let written = write();
    remove_folder(&temporary);
    remove_folder(&old);
    written
}

/// Removes what a killed process left half written among the live files.
pub(super) fn remove_half_written(live: &Path) {
    let Ok(entries) = std::fs::read_dir(live.join(CHECKPOINTS)) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(".saving-step-") || name.starts_with(".loading-step-") {
            remove_checkpoint_files(&entry.path());
        }
    }
}

/// Whole checkpoints in a local folder, in no order.
pub(super) fn local_checkpoints(folder: &Path) -> Result<Vec<CheckpointName>, CheckpointError> {
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
            found.push(CheckpointName::new(step));
        } else {
            tracing::warn!(
                "ignoring {}: it is no whole checkpoint",
                entry.path().display()
            );
        }
    }
    Ok(found)
}

/// Removes the files that a checkpoint has, the manifest first, and the folder if nothing else is
/// in it.
pub(super) fn remove_checkpoint_files(folder: &Path) {
    for file in [MANIFEST].into_iter().chain(FILES).chain(MORE_FILES) {
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

/// Removes a folder of ours with all that is in it.
pub(super) fn remove_folder(folder: &Path) {
    if folder.exists()
        && let Err(error) = std::fs::remove_dir_all(folder)
    {
        tracing::warn!("cannot remove {}: {error}", folder.display());
    }
}
