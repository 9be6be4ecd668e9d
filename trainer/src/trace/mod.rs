//! A trace of a run or of a profile: when each request, row group, image, batch and step began and
//! ended, as Chrome's JSON that <https://ui.perfetto.dev> opens. Called by `commands`, `run` and
//! `profile`.
//!
//! The spans are those of the pipeline (`nepa_pipeline::SPANS_ON_A_THREAD`) and of the training
//! loop. They are recorded between [`Trace::begin`] and [`Trace::pause`] alone; at all other times,
//! and without `--trace`, nobody subscribes to them and each costs one load.
//!
//! The crate `tracing-chrome` is not used: its queue and file have no bound, its file is well
//! formed only after a good end, and spans are all on threads or all across them.
mod file;
mod layer;
mod steps;

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::console::words::counted;
use crate::signals::{OnEnd, on_end};
use file::TraceFile;

pub(crate) use file::TraceError;
pub(crate) use layer::layer;
pub(crate) use steps::{Steps, StepsArg, TraceSteps};

/// The file that is written; one a process.
static FILE: Mutex<Option<TraceFile>> = Mutex::new(None);

/// Does something with the file, where there is one.
fn with_file<T>(act: impl FnOnce(&mut TraceFile) -> T) -> Option<T> {
    let mut file = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    file.as_mut().map(act)
}

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
        *FILE.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(Self {
            _on_end: on_end(|| {
                with_file(TraceFile::flush);
            }),
        })
    }

    /// Records what begins from now on, until the result is dropped.
    pub(crate) fn begin(&self) -> Recording {
        if with_file(|file| !file.is_full()).unwrap_or(false) {
            layer::record(true);
        }
        Recording(())
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
        layer::record(false);
        let file = FILE.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut file) = file {
            file.flush();
        }
    }
}

/// Spans that begin are recorded while it lives.
#[derive(Debug)]
pub(crate) struct Recording(());

impl Drop for Recording {
    fn drop(&mut self) {
        layer::record(false);
    }
}
