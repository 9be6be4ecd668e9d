//! Why an output cannot be used, or not any more, and what to do.
use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointError;

/// An output cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    #[error("{place} is in use by another process; wait for it, or give another --out")]
    InUse { place: String },
    /// Another process writes to this output in a store.
    #[error(
        "{place} is in use by another process: {by}; its last sign of life came {age_s} s ago. \
         Wait for it, or give another --out. If it is gone for good, --resume --take-over goes on \
         without it"
    )]
    InUseBy {
        place: String,
        by: String,
        /// Seconds since it renewed its claim.
        age_s: u64,
    },
    #[error(
        "{place} was taken over by another process ({by}), as this run had given no sign of life \
         for long (checkpoint.takeover_s). This run ends; since then it has written nothing there"
    )]
    TakenOver { place: String, by: String },
    #[error(
        "{what} could not be sent to {place}{}{}",
        in_brackets(cause.as_ref()), where_it_lies(folder.as_deref())
    )]
    NotSent {
        what: String,
        place: String,
        folder: Option<PathBuf>,
        cause: Option<String>,
    },
    #[error(
        "what was saved for {place} cannot be sent: {cause}. Go on with --resume from the newest \
         checkpoint that is there"
    )]
    SpoolUnreadable { place: String, cause: String },
    /// Anything that checkpoints can run into.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

fn in_brackets(cause: Option<&String>) -> String {
    cause.map_or_else(String::new, |cause| format!(" ({cause})"))
}

fn where_it_lies(folder: Option<&Path>) -> String {
    match folder {
        Some(folder) => format!(
            ". It lies in {}: the same command with --resume on this machine sends it and goes on \
             from there",
            folder.display()
        ),
        None => ". It was kept in memory only and is lost; go on from the checkpoint before it \
                 with --resume"
            .to_owned(),
    }
}
