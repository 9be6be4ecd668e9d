//! What can go wrong with a model.

/// A configuration, a weight file or a computation is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A tensor operation failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}
