//! What the loader says, for Python's `logging`. Lines wait here until a call from Python hands
//! them over, on the caller's thread: a thread of ours that waited for Python's lock could stop a
//! loader from ending.
use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use nepa_pipeline::redact;
use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// Python's logger.
const LOGGER: &str = "nepa";
/// Lines that wait at most; the oldest ones go.
const MOST: usize = 1000;
/// Python's levels.
const DEBUG: u8 = 10;
const INFO: u8 = 20;
const WARNING: u8 = 30;
const ERROR: u8 = 40;

static LINES: Mutex<VecDeque<(u8, String)>> = Mutex::new(VecDeque::new());
/// The logger's level, as it was seen last.
static LEVEL: AtomicU8 = AtomicU8::new(WARNING);

struct ForPython;

fn level_of(metadata: &Metadata<'_>) -> u8 {
    match *metadata.level() {
        Level::ERROR => ERROR,
        Level::WARN => WARNING,
        Level::INFO => INFO,
        // Of each request and image: more than Python's lock is to be taken for.
        Level::DEBUG | Level::TRACE => DEBUG,
    }
}

fn is_ours(metadata: &Metadata<'_>) -> bool {
    metadata.is_event()
        && metadata.target().starts_with("nepa")
        && *metadata.level() <= Level::DEBUG
}

impl<S: Subscriber> Layer<S> for ForPython {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // Python's level may change at any time.
        if is_ours(metadata) {
            Interest::sometimes()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        is_ours(metadata) && level_of(metadata) >= LEVEL.load(Ordering::Relaxed)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let line = redact(&text.0);
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == MOST {
            lines.pop_front();
        }
        lines.push_back((level_of(event.metadata()), line));
    }
}

/// The message, then the other fields.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string does not fail.
        let _ = if field.name() == "message" {
            write!(self.0, "{value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}

/// Listens from now on; takes the logger's level.
pub(crate) fn listen(py: Python<'_>) -> PyResult<()> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Another subscriber would be of somebody who has linked this module into a program.
        let _ =
            tracing::subscriber::set_global_default(tracing_subscriber::registry().with(ForPython));
    });
    let level = logger(py)?.call_method0("getEffectiveLevel")?;
    let level = level.extract::<u32>()?.min(u32::from(u8::MAX));
    LEVEL.store(level as u8, Ordering::Relaxed);
    Ok(())
}

/// Hands over what has been said.
pub(crate) fn hand_over(py: Python<'_>) -> PyResult<()> {
    let lines = std::mem::take(&mut *LINES.lock().unwrap_or_else(PoisonError::into_inner));
    if lines.is_empty() {
        return Ok(());
    }
    let logger = logger(py)?;
    for (level, line) in lines {
        logger.call_method1("log", (level, "%s", line))?;
    }
    Ok(())
}

fn logger(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    py.import("logging")?.call_method1("getLogger", (LOGGER,))
}
