//! How a process becomes one of several ranks, or stays alone. Called where a run starts.
use std::time::Duration;

use super::error::RanksError;
use super::group::Ranks;
use super::meeting::meet;
use super::place::{PlaceArgs, place};
use super::tcp::Tcp;
use crate::console::print;
use crate::device::share_cores;
use crate::signals::received;

/// Time for all ranks to come: machines of a job start one after the other.
const MEET_WITHIN: Duration = Duration::from_mins(5);

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Finds out which rank this is and meets the others. From then on a rank other than 0 says nothing
/// but errors, with its name.
pub(crate) fn join(args: &PlaceArgs) -> Result<Ranks, RanksError> {
    let Some(place) = place(args, &variable)? else {
        return Ok(Ranks::alone());
    };
    if place.rank > 0 {
        print::only_errors_of(place.rank);
    }
    share_cores(place.sharing);
    tracing::debug!(
        "rank {} of {}, {} on this machine",
        place.rank,
        place.size,
        place.local_rank
    );
    let tell = |text: &str| print::urgent(format_args!("{text}\n"));
    let streams = meet(&place, crate::VERSION, MEET_WITHIN, &tell)?;
    let wire = Tcp::new((place.rank, place.size), streams, received);
    Ok(Ranks::of(
        Box::new(wire.map_err(RanksError::Start)?),
        place.local_rank,
    ))
}

/// Fails where this process was started as one of several ranks, for what one process does alone.
pub(crate) fn refuse(
    args: &PlaceArgs,
    what: &'static str,
    tip: &'static str,
) -> Result<(), RanksError> {
    match place(args, &variable)? {
        None => Ok(()),
        Some(_) => Err(RanksError::NotYet { what, tip }),
    }
}
