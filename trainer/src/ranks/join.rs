//! How a process becomes one of several ranks, or stays alone. Called where a run starts.
use std::time::Duration;

use super::error::RanksError;
use super::group::Ranks;
use super::meeting::meet;
use super::place::{Place, PlaceArgs, place};
use super::tcp::Tcp;
use super::wire::Wire;
use crate::console::print;
use crate::device::share_cores;
use crate::signals::received;

/// Whether this program can connect ranks over MPI.
const HAS_MPI: bool = cfg!(feature = "mpi");
/// Time for all ranks to come: machines of a job start one after the other.
const MEET_WITHIN: Duration = Duration::from_mins(5);

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Finds out which rank this is and meets the others. From then on a rank other than 0 says nothing
/// but errors, with its name.
pub(crate) fn join(args: &PlaceArgs) -> Result<Ranks, RanksError> {
    let Some(place) = place(args, &variable, HAS_MPI)? else {
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
    let wire = if place.meeting.is_some() {
        over_tcp(&place)?
    } else {
        over_mpi(&place)?
    };
    Ok(Ranks::of(wire, place.local_rank))
}

fn over_tcp(place: &Place) -> Result<Box<dyn Wire>, RanksError> {
    let tell = |text: &str| print::urgent(format_args!("{text}\n"));
    let streams = meet(place, crate::VERSION, MEET_WITHIN, &tell)?;
    let wire = Tcp::new((place.rank, place.size), streams, received);
    Ok(Box::new(wire.map_err(RanksError::Start)?))
}

#[cfg(feature = "mpi")]
fn over_mpi(place: &Place) -> Result<Box<dyn Wire>, RanksError> {
    use super::meeting::{MeetingError, other_version};
    use super::mpi::Mpi;

    let mut wire = Mpi::join(place, received).map_err(RanksError::Start)?;
    let versions = super::gather::all_gather(&mut wire, crate::VERSION.as_bytes())?;
    if let Some(rank) = versions.iter().position(|version| *version != versions[0]) {
        let [theirs, ours] = [rank, 0].map(|rank| String::from_utf8_lossy(&versions[rank]));
        let why = other_version(rank, &theirs, &ours);
        return Err(MeetingError::Refused { why }.into());
    }
    tracing::info!("the ranks are connected over MPI ({})", Mpi::library());
    Ok(Box::new(wire))
}

#[cfg(not(feature = "mpi"))]
fn over_mpi(_: &Place) -> Result<Box<dyn Wire>, RanksError> {
    unreachable!("a program without MPI gives its ranks a place to meet")
}

/// Ends what still connects this process with other ranks. Called once it has said its last word.
pub(crate) fn part() {
    #[cfg(feature = "mpi")]
    super::mpi::part();
}
