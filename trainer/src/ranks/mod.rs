//! Several processes that train one model: which rank this one is, how it reaches the others, and
//! what all of them do together (sums, gathered records, copies of what rank 0 has).
//!
//! A sum over ranks has the bits that one rank computes alone. Called by a run; knows none of its
//! parts.
#[cfg(test)]
mod channels;
mod error;
mod gather;
mod group;
mod halving;
mod join;
mod measured;
mod meeting;
mod message;
#[cfg(feature = "mpi")]
mod mpi;
mod names;
mod neighbours;
mod place;
mod sum;
mod tcp;
mod telling;
#[cfg(test)]
mod tests;
mod wire;

pub(crate) use error::RanksError;
pub(crate) use group::Ranks;
#[cfg(feature = "cuda")]
pub(crate) use halving::{Halving, halvings, larger_half};
pub(crate) use join::{join, part};
pub use measured::Adding;
pub(crate) use names::list_of;
pub(crate) use place::PlaceArgs;
#[cfg(feature = "cuda")]
pub(crate) use telling::Telling;
pub(crate) use wire::WireError;
