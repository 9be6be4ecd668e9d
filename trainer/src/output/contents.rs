//! What goes into an output and comes out of it beside the checkpoint itself.
use std::path::PathBuf;

use super::upload::Body;
use crate::checkpoint::{Checkpoint, MoreFiles};

/// A checkpoint that was read, with the files that go with it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub checkpoint: Checkpoint,
    /// Files that only some have.
    pub more: MoreFiles,
}

/// A log as it is when a checkpoint is made.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    /// Its name in the output.
    pub name: &'static str,
    /// Its name in a checkpoint, compressed.
    pub kept_as: &'static str,
    /// What it holds now.
    pub content: Vec<u8>,
    /// A file that begins with that, and goes on doing so.
    pub path: Option<PathBuf>,
}

impl Log {
    pub(super) fn into_body(self) -> Body {
        match self.path {
            Some(path) => Body::File(path, self.content.len() as u64),
            None => Body::Bytes(self.content.into()),
        }
    }
}
