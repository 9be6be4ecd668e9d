//! Queues and threads of the loader: crossbeam's and the standard library's. `tests/interleavings`
//! builds this crate with a model of both, over which a scheduler tries many orders of events.

#[cfg(not(nepa_interleavings))]
pub(crate) use crossbeam::channel::{
    Receiver, RecvTimeoutError, Sender, bounded, never, select, select_biased, unbounded,
};
#[cfg(not(nepa_interleavings))]
pub(crate) use std::thread;

#[cfg(nepa_interleavings)]
pub(crate) mod model;
#[cfg(nepa_interleavings)]
pub(crate) use crossbeam::channel::RecvTimeoutError;
#[cfg(nepa_interleavings)]
pub(crate) use model::{Receiver, Sender, bounded, never, select, select_biased, unbounded};
#[cfg(nepa_interleavings)]
pub(crate) use shuttle::thread;
