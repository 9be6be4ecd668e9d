//! The local folder of a run whose output is a store: its live logs, and checkpoints until they are
//! sent. It outlives the process, so that what could not be sent is found by `--resume`; what holds
//! no checkpoint is removed.
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::folders::{local_checkpoints, remove_folder};
use super::names::{CHECKPOINTS, CheckpointName, folder_name};
use crate::checkpoint::{CheckpointError, io};

/// Says whose a folder is.
const ORIGIN: &str = "origin.json";
const LOCK: &str = ".lock";
/// What the folder of a best checkpoint is called, before its step.
const BEST_OF: &str = "best-";
/// Characters of the URL in a folder's name.
const SHOWN: usize = 40;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Origin {
    url: String,
    run: String,
}

/// A folder that this process holds.
#[derive(Debug)]
pub(super) struct Spool {
    pub folder: PathBuf,
    _lock: File,
}

impl Spool {
    /// The folder of a run: with what earlier processes have left for it, if they have ended.
    pub(super) fn open(
        chosen: Option<&Path>,
        url: &str,
        run: &str,
    ) -> Result<Self, CheckpointError> {
        let base = base(chosen)?;
        let words = url.split(|c: char| !c.is_ascii_alphanumeric());
        let words = words.filter(|word| !word.is_empty()).collect::<Vec<_>>();
        let shown = words.join("-");
        let shown = shown[shown.len().saturating_sub(SHOWN)..].trim_matches('-');
        let name = format!("{shown}-{}", run.get(..12).unwrap_or(run));
        let origin = Origin {
            url: url.to_owned(),
            run: run.to_owned(),
        };
        let mut spool = None;
        // A process that was taken for dead may still hold the first.
        for number in 1.. {
            let folder = match number {
                1 => base.join(&name),
                number => base.join(format!("{name}.{number}")),
            };
            if let Some(lock) = hold(&folder)? {
                let text = serde_json::to_vec(&origin).expect("two strings");
                let path = folder.join(ORIGIN);
                std::fs::write(&path, text).map_err(io("write", &path))?;
                spool = Some(Self {
                    folder,
                    _lock: lock,
                });
                break;
            }
        }
        let spool = spool.expect("one of many names is free");
        let checkpoints = spool.folder.join(CHECKPOINTS);
        std::fs::create_dir_all(&checkpoints).map_err(io("create", &checkpoints))?;
        spool.look_around(&base, &origin);
        Ok(spool)
    }

    /// Takes what else waits for this run, removes what is empty, and says what waits for others of
    /// the same place.
    fn look_around(&self, base: &Path, origin: &Origin) {
        for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
            let folder = entry.path();
            let text = std::fs::read(folder.join(ORIGIN)).unwrap_or_default();
            let Ok(theirs) = serde_json::from_slice::<Origin>(&text) else {
                continue;
            };
            if folder == self.folder {
                continue;
            }
            let Ok(Some(_lock)) = hold(&folder) else {
                continue;
            };
            let waiting = local_checkpoints(&folder.join(CHECKPOINTS)).unwrap_or_default();
            if theirs == *origin {
                for checkpoint in waiting {
                    let from = folder.join(CHECKPOINTS).join(&checkpoint.name);
                    let to = self.folder.join(CHECKPOINTS).join(&checkpoint.name);
                    let _ = std::fs::rename(from, to);
                }
                for from in all_best(&folder) {
                    let name = from.file_name().unwrap_or_default();
                    let _ = std::fs::rename(&from, self.folder.join(name));
                }
                remove_folder(&folder);
            } else if waiting.is_empty() && all_best(&folder).is_empty() {
                remove_folder(&folder);
            } else if theirs.url == origin.url {
                tracing::warn!(
                    "{} holds {} of an earlier run into {} that was never sent; remove the folder \
                     if nobody needs it",
                    folder.display(),
                    waiting
                        .first()
                        .map_or("the best checkpoint", |first| &first.name),
                    origin.url
                );
            }
        }
    }

    /// Whole checkpoints that wait, the newest last.
    pub(super) fn waiting(&self) -> Result<Vec<CheckpointName>, CheckpointError> {
        let folder = self.folder.join(CHECKPOINTS);
        let mut found = local_checkpoints(&folder)?;
        found.sort_by_key(|checkpoint| checkpoint.step);
        for checkpoint in &mut found {
            checkpoint.spooled = Some(folder.join(&checkpoint.name));
        }
        Ok(found)
    }

    /// Where the best checkpoint waits, by its step.
    pub(super) fn best(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{BEST_OF}{}", folder_name(step)))
    }

    /// The best checkpoints that wait, whole or not.
    pub(super) fn all_best(&self) -> Vec<PathBuf> {
        all_best(&self.folder)
    }
}

impl Drop for Spool {
    /// What holds no checkpoint is of no use.
    fn drop(&mut self) {
        if self.waiting().is_ok_and(|waiting| waiting.is_empty()) && self.all_best().is_empty() {
            remove_folder(&self.folder);
        }
    }
}

/// The best checkpoints in a spool's folder.
fn all_best(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let paths = entries.flatten().map(|entry| entry.path());
    let is_best = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(BEST_OF)
    };
    paths.filter(is_best).collect()
}

/// Makes a folder and takes its lock; `None` if another process holds it.
fn hold(folder: &Path) -> Result<Option<File>, CheckpointError> {
    std::fs::create_dir_all(folder).map_err(io("create", folder))?;
    let path = folder.join(LOCK);
    let lock = File::create(&path).map_err(io("create", &path))?;
    match lock.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        // Where there are no locks, nobody else is expected.
        _ => Ok(Some(lock)),
    }
}

/// Where the folders lie: as chosen, or in the user's state folder, or, if that cannot be written,
/// in the temporary one.
fn base(chosen: Option<&Path>) -> Result<PathBuf, CheckpointError> {
    let usable = |folder: &Path| {
        std::fs::create_dir_all(folder)?;
        tempfile::tempfile_in(folder).map(drop)
    };
    if let Some(folder) = chosen {
        usable(folder).map_err(io("write into checkpoint.spool_dir", folder))?;
        return Ok(folder.to_owned());
    }
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let state = variable("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(Path::new(&variable("HOME")?).join(".local/state")));
    let temporary = std::env::temp_dir().join("nepa-spool");
    let Some(state) = state.map(|state| state.join("nepa/spool")) else {
        usable(&temporary).map_err(io("write into", &temporary))?;
        return Ok(temporary);
    };
    if let Err(error) = usable(&state) {
        tracing::warn!(
            "checkpoints wait in {} until they are sent, as {} cannot be written ({error}); \
             checkpoint.spool_dir names another folder",
            temporary.display(),
            state.display()
        );
        usable(&temporary).map_err(io("write into", &temporary))?;
        return Ok(temporary);
    }
    Ok(state)
}
