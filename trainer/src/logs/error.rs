//! Why a file that a run writes cannot be written or continued.
use std::path::PathBuf;

use crate::console::messages::quoted_path;

/// A file of the run cannot be written, or is not the one that the checkpoint knew.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// Reading or writing failed.
    #[error(
        "cannot write {}. The last checkpoint is whole; make room and go on with --resume",
        quoted_path(path)
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Shorter than it was when the checkpoint was made.
    #[error(
        "{} has {found} bytes, but had {expected} when the checkpoint was made: lines are missing, \
         so it cannot be continued. Give the file back, or name another one",
        quoted_path(path)
    )]
    TooShort {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// Its length at the checkpoint.
        expected: u64,
    },
    /// A trace of something else.
    #[error(
        "{} exists already and is not this run's; name another file or remove it",
        quoted_path(path)
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
}
