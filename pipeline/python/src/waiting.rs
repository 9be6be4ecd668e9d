//! Waiting without Python's lock, and with an eye on Python's signals: Ctrl-C ends a wait within
//! [`SLICE`].
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, bounded};
use pyo3::prelude::*;

use crate::errors::{Kind, error};
use crate::logging;

/// How long signals and log lines wait.
const SLICE: Duration = Duration::from_millis(50);

/// Polls until there is something. `poll` waits for as long as it is told, at most; it runs without
/// Python's lock. Signals are looked at before, so that what was found is never lost.
pub(crate) fn until<T: Send>(
    py: Python<'_>,
    mut poll: impl FnMut(Duration) -> Option<T> + Send,
) -> PyResult<T> {
    loop {
        logging::hand_over(py)?;
        py.check_signals()?;
        if let Some(found) = py.detach(|| poll(SLICE)) {
            logging::hand_over(py)?;
            return Ok(found);
        }
    }
}

/// Runs what cannot be interrupted on a thread of its own. After a signal it goes on there until it
/// ends, and its result is dropped.
pub(crate) fn interruptible<T: Send + 'static>(
    py: Python<'_>,
    work: impl FnOnce() -> T + Send + 'static,
) -> PyResult<T> {
    logging::listen(py)?;
    let (sender, result) = bounded(1);
    std::thread::Builder::new()
        .name("nepa-call".to_owned())
        .spawn(move || sender.send(work()))?;
    let result = until(py, move |slice| match result.recv_timeout(slice) {
        Ok(result) => Some(Some(result)),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => Some(None),
    })?;
    result.ok_or_else(|| {
        let text = "a thread panicked (its message is on standard error); this is a bug, please \
                    report it";
        error(py, Kind::Device, text.to_owned(), None)
    })
}
