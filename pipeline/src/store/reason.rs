//! What a store says of a failure.

/// The store's account of a failure in plain words: without user names, passwords, query strings
/// and markup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StoreCause {
    pub(super) message: String,
}
