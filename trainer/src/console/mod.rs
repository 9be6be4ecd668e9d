//! What the program says: lines on the console, messages, and numbers as a person reads them.
// First: its macros are those of all that follows.
#[macro_use]
pub(crate) mod print;

pub(crate) mod line;
pub(crate) mod messages;
pub(crate) mod progress;
pub(crate) mod rate;
pub(crate) mod words;
