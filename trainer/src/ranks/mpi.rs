//! The wire over MPI, for ranks that `mpirun` or `srun` has started, on machines whose network an
//! MPI library knows better than TCP does. MPI moves the bytes; what is added, and in which order,
//! is ours, but for the sum of the library.
//!
//! Before two ranks exchange something, each sends the other a head: how many bytes it sends and
//! how many it expects. So nothing large is under way to a rank that has ended, and a rank that
//! fails says so in place of a head. A rank that dies without a word ends the others, too: whoever
//! started them does that. While it waits for a head, a rank leaves the processor to others.
use std::cell::Cell;
use std::io::Error;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mpi::environment::{Universe, library_version};
use mpi::topology::Process;
use mpi::traits::{Communicator, CommunicatorCollectives, Destination, Equivalence, Source};
use mpi::{Rank, Tag, Threading};

use super::neighbours::{distances, neighbours};
use super::place::Place;
use super::telling::Telling;
use super::wire::{Wire, WireError};
use crate::signals::SaveFirst;

/// Most bytes of a message: MPI counts them in 31 bits.
const CHUNK: usize = 1 << 30;
/// Values that the library adds at once: their copy takes 64 MiB.
const PART: usize = 1 << 24;
/// Looks for a head before a rank sleeps between two of them, and how long it does.
const BUSY_LOOKS: u32 = 1_000;
const LOOK_EVERY: Duration = Duration::from_micros(50);
/// Time for the others to leave, after a failure.
const LEAVES_WITHIN: Duration = Duration::from_mins(1);
/// How often it is looked whether they have.
const LEFT_EVERY: Duration = Duration::from_millis(5);
/// Most bytes of a cause: MPI sends so few without waiting for who receives them.
const LONGEST_CAUSE: usize = 1_000;

/// The tag of a head is the number of the signal by which a rank was asked to stop, 0 if none was.
const LAST_SIGNAL: Tag = 64;
const DATA: Tag = 100;
const LEAVE: Tag = 101;

/// All ranks that were started together.
pub(super) struct Mpi {
    /// None once this rank has left.
    universe: Option<Universe>,
    rank: usize,
    size: usize,
    /// Gives the signal that asks this process to stop.
    asked: fn() -> Option<i32>,
    /// The one by which some rank was asked.
    stop: Cell<Option<i32>>,
    /// Why the ranks cannot go on.
    ended: Option<WireError>,
    /// Neighbours that have said so.
    gone: Vec<usize>,
    /// A copy of what the library adds.
    own: Vec<f32>,
}

impl Mpi {
    /// Joins the ranks; fails where MPI does not know them as the place says. `asked` gives the
    /// signal that asks this process to stop.
    pub(super) fn join(place: &Place, asked: fn() -> Option<i32>) -> std::io::Result<Self> {
        let (rank, size) = (place.rank, place.size);
        // Calls come from several threads, one at a time.
        let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)
            .ok_or_else(|| Error::other("this process has begun with MPI before"))?;
        if threading < Threading::Serialized {
            return Err(Error::other(
                "this MPI library lets the first thread of a program alone call it",
            ));
        }
        let world = universe.world();
        let (found, of) = (world.rank() as usize, world.size() as usize);
        if (found, of) != (rank, size) {
            return Err(Error::other(format!(
                "MPI knows this process as rank {found} of {of}, and it was started as rank {rank} \
                 of {size}: it may be linked with another MPI library than that of whoever \
                 started it. --meet HOST:PORT connects the ranks without MPI"
            )));
        }
        Ok(Self {
            universe: Some(universe),
            rank,
            size,
            asked,
            stop: Cell::new(None),
            ended: None,
            gone: Vec::new(),
            own: Vec::new(),
        })
    }

    /// The library, as in `Open MPI v4.1.4`.
    pub(super) fn library() -> String {
        let version = library_version().unwrap_or_default();
        let first = version.split([',', '\n', '\0']).next().unwrap_or_default();
        first.to_owned()
    }

    fn exchange(&mut self, peer: usize, send: &[u8], receive: &mut [u8]) -> Result<(), WireError> {
        let stop = (self.asked)().or_else(|| self.stop_heard());
        let Some(universe) = &self.universe else {
            let cause = "has left already".to_owned();
            let rank = self.rank;
            return Err(WireError::Ended { rank, cause });
        };
        let world = universe.world();
        let other = world.process_at_rank(peer as Rank);
        let mut wait = Wait::new(self.rank, peer);

        let mut head = [0; 16];
        head[..8].copy_from_slice(&(send.len() as u64).to_le_bytes());
        head[8..].copy_from_slice(&(receive.len() as u64).to_le_bytes());
        other.send_with_tag(&head[..], stop.unwrap_or(0));
        let (tag, bytes) = loop {
            if let Some(found) = message(&other) {
                break found;
            }
            wait.pause();
        };
        if tag == LEAVE {
            self.gone.push(peer);
            return Err(last_word(peer, &bytes));
        }
        if (1..=LAST_SIGNAL).contains(&tag) {
            self.stop.set(Some(tag));
        }
        check_lengths((self.rank, send.len(), receive.len()), peer, &bytes)?;

        // Both are here, and do not leave before all has come.
        let (mut sent, mut received) = (send.chunks(CHUNK), receive.chunks_mut(CHUNK));
        loop {
            let (out, into) = (sent.next(), received.next());
            if out.is_none() && into.is_none() {
                return Ok(());
            }
            mpi::request::scope(|scope| {
                let sending = out.map(|out| other.immediate_send_with_tag(scope, out, DATA));
                let receiving =
                    into.map(|into| other.immediate_receive_into_with_tag(scope, into, DATA));
                let mut open = [sending, receiving]
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>();
                loop {
                    let still = open.into_iter().filter_map(|request| request.test().err());
                    open = still.collect();
                    if open.is_empty() {
                        break;
                    }
                    wait.tell();
                    std::thread::yield_now();
                }
            });
        }
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), WireError> {
        // Within it nobody can be told anything, so first all have to be there.
        for distance in distances(self.size) {
            self.send_receive(self.rank ^ distance, &[], &mut [])?;
        }
        let Some(universe) = &self.universe else {
            unreachable!("this rank has just exchanged something")
        };
        let world = universe.world();
        for part in values.chunks_mut(PART) {
            self.own.clear();
            self.own.extend_from_slice(part);
            let sum = mpi::collective::SystemOperation::sum();
            world.all_reduce_into(&self.own[..], part, sum);
        }
        Ok(())
    }
}

impl Wire for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn send_receive(
        &mut self,
        peer: usize,
        send: &[u8],
        receive: &mut [u8],
    ) -> Result<(), WireError> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        let exchanged = self.exchange(peer, send, receive);
        self.ended = exchanged.as_ref().err().cloned();
        exchanged
    }

    fn library_sum(&mut self, values: &mut [f32]) -> Option<Result<(), WireError>> {
        if values.is_empty() {
            return Some(Ok(()));
        }
        Some(self.all_reduce(values))
    }

    /// Hears the last word of a neighbour. One that dies without a word ends all, this one too.
    fn check(&mut self) -> Result<(), WireError> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        let Some(universe) = &self.universe else {
            return Ok(());
        };
        let world = universe.world();
        for peer in neighbours(self.rank, self.size) {
            let other = world.process_at_rank(peer as Rank);
            let first = other.immediate_probe().map(|status| status.tag());
            if first == Some(LEAVE)
                && let Some((_, word)) = message(&other)
            {
                self.gone.push(peer);
                let ended = last_word(peer, &word);
                self.ended = Some(ended.clone());
                return Err(ended);
            }
        }
        Ok(())
    }

    /// By the heads of neighbours that wait for this rank.
    fn stop_heard(&self) -> Option<i32> {
        if self.stop.get().is_none()
            && let Some(universe) = &self.universe
        {
            let world = universe.world();
            let tag_of = |peer: usize| {
                let first = world.process_at_rank(peer as Rank).immediate_probe();
                first.map(|status| status.tag())
            };
            let heard = neighbours(self.rank, self.size)
                .filter_map(tag_of)
                .find(|tag| (1..=LAST_SIGNAL).contains(tag));
            self.stop.set(heard);
        }
        self.stop.get()
    }

    /// What is left to do is done by [`part`].
    fn leave(&mut self, failed: Option<(usize, &str)>) {
        let Some(universe) = self.universe.take() else {
            return;
        };
        let world = universe.world();
        let failed = failed.map(|(rank, cause)| (rank, shortened(cause)));
        let word = serde_json::to_vec(&failed).expect("a number and text");
        for peer in neighbours(self.rank, self.size) {
            let peer = world.process_at_rank(peer as Rank);
            peer.send_with_tag(&word[..], LEAVE);
        }
        let here = neighbours(self.rank, self.size).filter(|peer| !self.gone.contains(peer));
        *leaving() = Some(Leaving {
            here: here.collect(),
            until: failed.map(|_| Instant::now() + LEAVES_WITHIN),
            universe,
        });
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        self.leave(Some((self.rank, "has ended early")));
    }
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mpi")
            .field("rank", &self.rank)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// A rank that has told its neighbours that it leaves.
struct Leaving {
    universe: Universe,
    /// Neighbours that have not told it so yet.
    here: Vec<usize>,
    /// It waits for them no longer.
    until: Option<Instant>,
}

static LEAVING: Mutex<Option<Leaving>> = Mutex::new(None);

fn leaving() -> MutexGuard<'static, Option<Leaving>> {
    LEAVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the others leave, too, and ends MPI. mpirun kills all as soon as one ends with
/// another code than 0, or without having ended MPI: so this comes behind the last word of a
/// program. After a failure it takes a minute at most.
pub(super) fn part() {
    let left = leaving().take();
    let Some(Leaving {
        universe,
        mut here,
        until,
    }) = left
    else {
        return;
    };
    // An end at once would end rank 0, too, which may still send the last checkpoint.
    let _waits = SaveFirst {
        says: "ends with the other ranks",
        most: None,
    }
    .begin();
    let world = universe.world();
    while !here.is_empty() {
        here.retain(|peer| {
            let found = message(&world.process_at_rank(*peer as Rank));
            found.is_none_or(|(tag, _)| tag != LEAVE)
        });
        if until.is_some_and(|until| Instant::now() >= until) {
            // To end without MPI_Finalize ends the others.
            std::mem::forget(universe);
            return;
        }
        std::thread::sleep(LEFT_EVERY);
    }
    // MPI_Finalize, which waits for all.
    drop(universe);
}

/// What waits to be received next from a rank, if something does, and its tag. Of two messages it
/// is the one that was sent first.
fn message(from: &Process<'_>) -> Option<(Tag, Vec<u8>)> {
    let (message, status) = from.immediate_matched_probe()?;
    let mut bytes = vec![0u8; status.count(u8::equivalent_datatype()) as usize];
    message.matched_receive_into(&mut bytes[..]);
    Some((status.tag(), bytes))
}

/// Fails unless two ranks expect what they send each other.
fn check_lengths(
    (rank, sends, expects): (usize, usize, usize),
    peer: usize,
    head: &[u8],
) -> Result<(), WireError> {
    let theirs = head.as_chunks::<8>().0;
    let length = |at: usize| {
        theirs
            .get(at)
            .map_or(0, |bytes| u64::from_le_bytes(*bytes) as usize)
    };
    let (sent, expected) = (length(0), length(1));
    if sent != expects {
        return Err(WireError::OutOfStep {
            rank: peer,
            got: sent,
            expected: expects,
        });
    }
    if expected != sends {
        return Err(WireError::OutOfStep {
            rank,
            got: sends,
            expected,
        });
    }
    Ok(())
}

/// What a rank has said at its end.
fn last_word(peer: usize, word: &[u8]) -> WireError {
    match serde_json::from_slice::<Option<(usize, String)>>(word) {
        Ok(Some((rank, cause))) => WireError::Ended { rank, cause },
        _ => WireError::Ended {
            rank: peer,
            cause: "has ended before the others".to_owned(),
        },
    }
}

fn shortened(cause: &str) -> &str {
    &cause[..cause.floor_char_boundary(LONGEST_CAUSE)]
}

/// A wait for another rank, which is told if it lasts.
struct Wait {
    peer: usize,
    since: Instant,
    telling: Telling,
    looks: u32,
}

impl Wait {
    fn new(rank: usize, peer: usize) -> Self {
        Self {
            peer,
            since: Instant::now(),
            telling: Telling::by(rank),
            looks: 0,
        }
    }

    fn tell(&mut self) {
        let waited = self.since.elapsed();
        if self.telling.is_due(waited) {
            let (peer, seconds) = (self.peer, waited.as_secs());
            tracing::warn!("waiting for rank {peer} for {seconds} s");
        }
    }

    /// Between two looks.
    fn pause(&mut self) {
        self.tell();
        if self.looks < BUSY_LOOKS {
            self.looks += 1;
            std::thread::yield_now();
        } else {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_ranks_send_what_the_other_one_expects() {
        let head = |sends: u64, expects: u64| [sends.to_le_bytes(), expects.to_le_bytes()].concat();
        assert_eq!(check_lengths((0, 3, 5), 1, &head(5, 3)), Ok(()));
        let error = check_lengths((0, 3, 5), 1, &head(4, 3)).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("rank 1 sent 4 bytes where 5 were"),
            "{error}"
        );
        let error = check_lengths((0, 3, 5), 1, &head(5, 2)).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("rank 0 sent 3 bytes where 2 were"),
            "{error}"
        );
    }

    #[test]
    fn a_last_word_is_short_and_whole() {
        let long = "ü".repeat(LONGEST_CAUSE);
        let cause = shortened(&long);
        assert_eq!(cause.len(), LONGEST_CAUSE);
        let word = serde_json::to_vec(&Some((2, cause))).expect("plain data");
        let WireError::Ended { rank, cause: found } = last_word(1, &word) else {
            unreachable!("a rank has ended")
        };
        assert_eq!((rank, found.as_str()), (2, cause));
        assert_eq!(last_word(1, b"null").blame().0, 1);
    }
}
