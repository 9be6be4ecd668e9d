//! What threads of this process belong to. After a fork the child has it without the threads, with
//! whatever locks they held: it must neither be used nor dropped there.
use std::ops::Deref;

use pyo3::prelude::*;

use crate::errors::{Kind, error};

/// A value that is used and dropped by the process that made it, and by no child of it.
#[derive(Debug)]
pub(crate) struct OfProcess<T> {
    /// Taken by `drop`, and only then.
    value: Option<T>,
    process: u32,
}

impl<T> OfProcess<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: Some(value),
            process: std::process::id(),
        }
    }

    fn is_here(&self) -> bool {
        self.process == std::process::id()
    }

    /// The value; an error in a child of its process.
    pub(crate) fn get(&self, py: Python<'_>) -> PyResult<&T> {
        if self.is_here() {
            return Ok(self);
        }
        let text = "a loader, its batches and a packer cannot be used after a fork: their threads \
                    are in the parent. Open one in the child, or start processes by \
                    multiprocessing's \"spawn\" (with torch's DataLoader: num_workers=0, as the \
                    loader has threads of its own)";
        Err(error(py, Kind::Fork, text.to_owned(), None))
    }
}

/// For what touches no lock: the caller knows that this is the process.
impl<T> Deref for OfProcess<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let value = self.value.as_ref();
        value.expect("there is a value until it is dropped")
    }
}

impl<T> Drop for OfProcess<T> {
    fn drop(&mut self) {
        if !self.is_here() {
            std::mem::forget(self.value.take());
        }
    }
}
