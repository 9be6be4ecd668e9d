//! When a wait for other ranks is told of.
use std::time::Duration;

/// After so long by rank 0, and by the others, which say less.
const FIRST: [Duration; 2] = [Duration::from_secs(10), Duration::from_mins(1)];

/// Of one wait: when it is told next; ever more seldom.
#[derive(Debug)]
pub(crate) struct Telling(Duration);

impl Telling {
    /// For a wait of this rank that begins now.
    pub(crate) fn by(rank: usize) -> Self {
        Self(FIRST[usize::from(rank > 0)])
    }

    /// Whether a wait that has lasted so long is to be told now.
    pub(crate) fn is_due(&mut self, waited: Duration) -> bool {
        let is_due = waited >= self.0;
        if is_due {
            self.0 *= 2;
        }
        is_due
    }
}
