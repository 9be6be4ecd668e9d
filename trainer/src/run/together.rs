//! What one of several ranks does, or a process alone: it meets the others first, and they are told
//! how it has ended. Called by whatever ranks do together.
use super::agree::causes;
use crate::error::RunError;
use crate::ranks::{PlaceArgs, Ranks, RanksError, join};

/// Meets the others, if there are some, does `work`, and tells them whether it went well.
pub(super) fn together<T>(
    place: &PlaceArgs,
    work: impl FnOnce(&Ranks) -> Result<T, RunError>,
) -> Result<T, RunError> {
    let ranks = join(place)?;
    let ended = work(&ranks);
    let failed = ended.as_ref().err().map(|error| match error {
        RunError::Ranks(RanksError::Wire(ended)) => ended.blame(),
        error => (ranks.rank(), format!("has failed: {}", causes(error))),
    });
    let failed = failed.as_ref().map(|(rank, cause)| (*rank, cause.as_str()));
    ranks.leave(failed);
    ended
}
