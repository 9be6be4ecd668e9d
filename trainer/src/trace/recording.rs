//! The trace that is being written, and when it records.
use std::path::Path;

use super::file::{TraceError, TraceFile, set_file, with_file};
use super::layer::record;
use crate::console::words::counted;
use crate::signals::{OnEnd, on_end};

/// A trace that is being written. The file is whole at every moment, and ends with this value.
#[derive(Debug)]
pub(crate) struct Trace {
    /// What is not written yet is written before a signal ends the program.
    _on_end: OnEnd,
}

impl Trace {
    /// Makes the file. Nothing is recorded yet.
    pub(crate) fn create(path: &Path) -> Result<Self, TraceError> {
        let file = TraceFile::create(path)?;
        set_file(Some(file));
        Ok(Self {
            _on_end: on_end(|| {
                with_file(TraceFile::flush);
            }),
        })
    }

    /// Records what begins from now on, until the result is dropped.
    pub(crate) fn begin(&self) -> Recording {
        record(!self.is_full());
        Recording(())
    }

    /// Whether the file takes no more.
    pub(super) fn is_full(&self) -> bool {
        with_file(|file| file.is_full()).unwrap_or(true)
    }

    /// Ends the file, and says where it is and how to look at it.
    pub(crate) fn finish(&self) -> Result<(), TraceError> {
        let ended = with_file(|file| {
            file.finish()?;
            let (spans, place) = (file.spans(), file.place());
            Ok(match spans {
                0 => format!("trace: nothing was recorded in {place}"),
                _ => {
                    let spans = counted(spans, "span");
                    format!("trace: {spans} in {place}; https://ui.perfetto.dev opens it")
                }
            })
        });
        if let Some(said) = ended.transpose()? {
            eprintln!("{said}");
        }
        Ok(())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        record(false);
        with_file(TraceFile::flush);
        set_file(None);
    }
}

/// Spans that begin are recorded while it lives.
#[derive(Debug)]
pub(crate) struct Recording(());

impl Drop for Recording {
    fn drop(&mut self) {
        record(false);
    }
}
