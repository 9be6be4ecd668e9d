//! What is traced: spans of the `tracing` crate, at its level `TRACE`. Whoever subscribes to the
//! two targets here sees when each request, row group, image and batch began and ended; where
//! nobody does, a span costs one load. Used by every stage.
//!
//! | span | target | fields |
//! |---|---|---|
//! | `request` | across | `object`, `from`, `to`, `attempt`, `bytes`, `failure` |
//! | `first byte` (its parent is the request) | across | |
//! | `second request` | across | `object`, `from`, `to`, `won` |
//! | `batch`: begun, decoded, waited for | across | `epoch`, `batch`, `images` |
//! | `unpack` | one thread | `object`, `row_group`, `bytes` |
//! | `decode` | one thread | `object`, `row_group`, `row`, `format`, `width`, `height`, `bytes`, `bad` |
//! | `decode together` (a GPU's call) | one thread | `images` |
//! | `wait for batch` | one thread | |
//! | `assemble` | one thread | `epoch`, `batch` |

/// Target of spans that begin and end on one thread, and lie within each other there.
pub const SPANS_ON_A_THREAD: &str = "nepa::thread";
/// Target of spans that overlap each other, and may end on another thread than they began on.
pub const SPANS_ACROSS_THREADS: &str = "nepa::across";
