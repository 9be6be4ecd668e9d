//! The trace that is being written, and when it records.
use std::path::Path;

use super::file::{TraceError, TraceFile, is_full, set_file, with_file};
use super::layer::record;
use crate::console::messages::quoted_path;
use crate::console::words::counted;
use crate::signals::{OnEnd, on_end};

/// A trace that is being written. The file is whole at every moment, and ends with this value.
#[derive(Debug)]
pub(crate) struct Trace {
    /// Its path, as a shell takes it.
    place: String,
    /// What is not written yet is written before a signal ends the program.
    _on_end: OnEnd,
}

impl Trace {
    /// Makes the file. Nothing is recorded yet.
    pub(crate) fn create(path: &Path) -> Result<Self, TraceError> {
        let place = quoted_path(path);
        match TraceFile::create(path) {
            Ok(file) => set_file(Some(file)),
            Err(source) => return Err(TraceError { place, source }),
        }
        Ok(Self {
            place,
            _on_end: on_end(|| {
                with_file(TraceFile::flush);
            }),
        })
    }

    /// Records what begins from now on, until the result is dropped.
    #[expect(clippy::unused_self, reason = "there is a file as long as it lives")]
    pub(crate) fn begin(&self) -> Recording {
        record(!is_full());
        Recording(())
    }

    /// Ends the file, and says where it is and how to look at it.
    pub(crate) fn finish(&self) -> Result<(), TraceError> {
        let place = &self.place;
        let ended = with_file(|file| file.finish().map(|()| file.spans()));
        let spans = ended.unwrap_or(Ok(0)).map_err(|source| TraceError {
            place: place.clone(),
            source,
        })?;
        if spans == 0 {
            eprintln!("trace: nothing was recorded in {place}");
        } else {
            let spans = counted(spans, "span");
            eprintln!("trace: {spans} in {place}; https://ui.perfetto.dev opens it");
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
