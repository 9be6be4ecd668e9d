//! What is said at the top of the page.

/// A sentence at the top of the page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sentence {
    /// Whether something is not as it should be.
    pub(super) caution: bool,
    pub(super) text: String,
}

impl Sentence {
    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self {
            caution: false,
            text: text.into(),
        }
    }

    pub(super) fn caution(text: impl Into<String>) -> Self {
        Self {
            caution: true,
            text: text.into(),
        }
    }
}
