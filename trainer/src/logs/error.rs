//! Why a file that a run writes cannot be written or continued.
use std::path::PathBuf;

use crate::console::messages::quoted_path;

/// A file of the run cannot be written, or is not the one that the checkpoint knew.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error(
        "cannot write {}. The last checkpoint is whole; make room and go on with --resume",
        quoted_path(path)
    )]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{} has {found} bytes, but had {expected} when the checkpoint was made: lines are missing, \
         so it cannot be continued. Give the file back, or name another one",
        quoted_path(path)
    )]
    TooShort {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
    #[error(
        "{} exists already and is not this run's; name another file or remove it",
        quoted_path(path)
    )]
    Exists { path: PathBuf },
}
