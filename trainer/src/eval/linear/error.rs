//! Why a probe cannot be fitted.

/// One training image in so many is held out while the penalty is chosen.
pub(super) const HELD_OUT: usize = 10;

/// A probe cannot be fitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error(
        "{images} training images are too few for a linear probe: it needs at least {HELD_OUT}, \
         one of which is held out"
    )]
    TooFew { images: usize },
    #[error("the features are not finite; has training diverged?")]
    NotFinite,
    #[error("logistic regression failed: {0}")]
    Optimizer(String),
}
