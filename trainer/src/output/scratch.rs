//! Folders in the system's temporary folder, for what is downloaded or on its way. A folder goes
//! with the process, after a signal too; what a killed process has left is removed by the next one.
use std::fs::File;
use std::path::Path;

use tempfile::TempDir;

use crate::checkpoint::{CheckpointError, io};
use crate::signals::{OnEnd, on_end};

const PREFIX: &str = "nepa-run-";
/// Held by the process that the folder belongs to.
pub(super) const LOCK: &str = ".lock";

/// A folder that is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    folder: TempDir,
    _lock: File,
    _on_end: OnEnd,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self, CheckpointError> {
        Self::new_in(&std::env::temp_dir())
    }

    fn new_in(parent: &Path) -> Result<Self, CheckpointError> {
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(parent)
            .map_err(io("create a folder in", parent))?;
        let path = folder.path().to_owned();
        // Locked before it has its name: another process would take one that is not for a leftover.
        let unnamed = path.join(".lock.new");
        let lock = File::create(&unnamed).map_err(io("create a file in", &path))?;
        // Where there are no locks nothing is taken for a leftover either.
        let _ = lock.try_lock();
        std::fs::rename(&unnamed, path.join(LOCK)).map_err(io("rename a file in", &path))?;
        let on_end = on_end(move || drop(std::fs::remove_dir_all(path)));
        Ok(Self {
            folder,
            _lock: lock,
            _on_end: on_end,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes the folders of processes that have ended without removing them, as a killed one does.
pub(crate) fn remove_leftovers() {
    remove_leftovers_in(&std::env::temp_dir());
}

fn remove_leftovers_in(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_ours && is_left(&entry.path()) {
            // Another user's stays.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether the process that made a folder with a lock in it has ended.
fn is_left(folder: &Path) -> bool {
    let lock = File::options().write(true).open(folder.join(LOCK));
    lock.is_ok_and(|lock| lock.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use super::*;

    #[test]
    fn a_folder_that_is_being_made_is_no_leftover() {
        let parent = tempfile::tempdir().unwrap();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_done.load(SeqCst) {
                        remove_leftovers_in(parent.path());
                    }
                });
            }
            let made = (0..500).map(|_| Scratch::new_in(parent.path()).unwrap());
            let made = made.collect::<Vec<_>>();
            is_done.store(true, SeqCst);
            let left = made.iter().filter(|made| made.path().join(LOCK).exists());
            assert_eq!(left.count(), made.len());
        });
    }

    #[test]
    fn only_folders_of_ended_processes_are_leftovers() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let folder = parent.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            (File::create(folder.join(LOCK)).unwrap(), folder)
        };
        let (dead, left) = make("nepa-run-a");
        drop(dead);
        let (alive, used) = make("nepa-run-b");
        alive.try_lock().unwrap();
        let (_, foreign) = make("other-c");
        let unknown = parent.path().join("nepa-run-d");
        std::fs::create_dir(&unknown).unwrap();
        remove_leftovers_in(parent.path());
        assert!(!left.exists());
        assert!(used.exists() && foreign.exists() && unknown.exists());
    }
}
