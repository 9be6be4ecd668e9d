//! Checkpoints: everything that a run needs to go on as if it had not stopped, whole or absent,
//! never half.
//!
//! A checkpoint is a folder of files; `manifest.json` lists the others with sizes and digests.
//! Where checkpoints lie, and which of them stay, is decided in `output`.
mod error;
mod files;
mod manifest;
mod read;
mod state;
mod tensors;
mod write;

pub(crate) use error::{CheckpointError, io};
pub(crate) use files::{FILES, MANIFEST, MORE_FILES, MoreFiles};
pub(crate) use manifest::{Manifest, read_manifest, verify_folder};
pub use read::read_folder;
pub(crate) use read::{read_more, read_state, read_weights};
pub(crate) use state::{BestEval, Checkpoint, EvalState, FileLengths, RunState};
pub(crate) use write::{make_files, write_folder};

#[cfg(test)]
mod tests;
