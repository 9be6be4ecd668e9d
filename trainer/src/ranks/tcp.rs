//! The wire over TCP: a connection to each neighbour. A thread a connection reads what comes, so
//! that two ranks can send to each other at once and a neighbour that dies is seen at once; one
//! more thread gives signs of life and tells of a signal to stop.
//!
//! What goes over a connection is frames: a kind, a length, so many bytes.
use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::meeting::Streams;
use super::telling::Telling;
use super::wire::{Wire, WireError};

/// Most bytes of a frame: while one side sends many, it takes what has come between two of them.
const CHUNK: usize = 1 << 20;
/// A frame of fewer bytes is sent in one piece with its head.
const SMALL: usize = 1 << 16;
/// Signs of life, and after how long without one a rank counts as gone.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
const SILENT_AFTER: Duration = Duration::from_mins(1);
/// How often a signal is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often a write that the other side does not take is thought about.
const STUCK: Duration = Duration::from_secs(1);
/// Time for a last word, and for reading it.
const LAST_WORD: Duration = Duration::from_secs(1);

const DATA: u8 = 0;
const ALIVE: u8 = 1;
const STOP: u8 = 2;
const LEAVE: u8 = 3;

/// What a reader has found.
enum Event {
    Data(Vec<u8>),
    End(WireError),
}

/// What all threads share.
#[derive(Debug)]
struct Shared {
    rank: usize,
    started: Instant,
    /// The signal by which some rank was asked to stop, 0 if none was.
    stop: AtomicI32,
    ends: AtomicBool,
}

#[derive(Debug)]
struct Peer {
    writer: Arc<Mutex<TcpStream>>,
    events: Receiver<Event>,
    /// What has come and was not asked for yet.
    early: VecDeque<Vec<u8>>,
    /// Milliseconds from the start to its last sign of life.
    heard_ms: Arc<AtomicU64>,
    ended: Option<WireError>,
    reader: Option<JoinHandle<()>>,
}

/// The connections of one rank.
#[derive(Debug)]
pub(super) struct Tcp {
    size: usize,
    shared: Arc<Shared>,
    peers: BTreeMap<usize, Peer>,
    alive: Option<JoinHandle<()>>,
    left: bool,
}

impl Tcp {
    /// Over connections to all neighbours. `asked` gives the signal that asks this process to stop.
    pub(super) fn new(
        (rank, size): (usize, usize),
        streams: Streams,
        asked: fn() -> Option<i32>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            rank,
            started: Instant::now(),
            stop: AtomicI32::new(0),
            ends: AtomicBool::new(false),
        });
        let mut wire = Self {
            size,
            shared: Arc::clone(&shared),
            peers: BTreeMap::new(),
            alive: None,
            left: false,
        };
        for (peer, stream) in streams {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(None)?;
            stream.set_write_timeout(Some(STUCK))?;
            let reading = stream.try_clone()?;
            let (to, events) = channel();
            let heard_ms = Arc::new(AtomicU64::new(0));
            let (shared, heard) = (Arc::clone(&shared), Arc::clone(&heard_ms));
            let reader = std::thread::Builder::new()
                .name(format!("nepa-rank-{peer}"))
                .spawn(move || {
                    let end = read_frames(reading, peer, &to, &shared, &heard);
                    let _ = to.send(Event::End(end));
                })?;
            wire.peers.insert(
                peer,
                Peer {
                    writer: Arc::new(Mutex::new(stream)),
                    events,
                    early: VecDeque::new(),
                    heard_ms,
                    ended: None,
                    reader: Some(reader),
                },
            );
        }
        let writers = wire.peers.values().map(|peer| Arc::clone(&peer.writer));
        let writers = writers.collect::<Vec<_>>();
        wire.alive = Some(
            std::thread::Builder::new()
                .name("nepa-ranks".to_owned())
                .spawn(move || show_life(&shared, &writers, asked))?,
        );
        Ok(wire)
    }

    /// Closes all connections without a word, as the system does for a process that is killed.
    #[cfg(test)]
    pub(super) fn cut(&mut self) {
        self.left = true;
        for peer in self.peers.values() {
            let writer = peer.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writer.shutdown(Shutdown::Both);
        }
    }
}

impl Wire for Tcp {
    fn rank(&self) -> usize {
        self.shared.rank
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
        let shared = Arc::clone(&self.shared);
        let to = self.peers.get_mut(&peer).expect("a neighbour");
        let mut filled = 0;
        let mut telling = Telling::by(shared.rank);
        let mut goes_on = |stuck: Duration| {
            if telling.is_due(stuck) {
                let seconds = stuck.as_secs();
                tracing::warn!("waiting for rank {peer}, which has taken nothing for {seconds} s");
            }
            stuck < SILENT_AFTER
        };
        for chunk in send.chunks(CHUNK) {
            let sent = {
                let writer = to.writer.lock();
                let mut writer = writer.unwrap_or_else(PoisonError::into_inner);
                write_frame(&mut writer, DATA, chunk, &mut goes_on)
            };
            if let Err(error) = sent {
                return Err(to.why(peer, &error));
            }
            while filled < receive.len()
                && let Some(bytes) = to.next(peer, Duration::ZERO)?
            {
                filled = take(peer, receive, filled, &bytes)?;
            }
        }
        let waiting = Instant::now();
        let mut telling = Telling::by(shared.rank);
        while filled < receive.len() {
            if let Some(bytes) = to.next(peer, LOOK_EVERY)? {
                filled = take(peer, receive, filled, &bytes)?;
                continue;
            }
            let silent = to.silent_for(&shared);
            if silent >= SILENT_AFTER {
                return Err(to.end(gone(peer, silent)));
            }
            let waited = waiting.elapsed();
            if telling.is_due(waited) {
                tracing::warn!(
                    "waiting for rank {peer} for {} s; its last sign of life came {} s ago",
                    waited.as_secs(),
                    silent.as_secs()
                );
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), WireError> {
        let shared = Arc::clone(&self.shared);
        for (rank, peer) in &mut self.peers {
            peer.look(*rank, &shared)?;
        }
        Ok(())
    }

    fn stop_heard(&self) -> Option<i32> {
        Some(self.shared.stop.load(SeqCst)).filter(|signal| *signal != 0)
    }

    fn leave(&mut self, failed: Option<(usize, &str)>) {
        if std::mem::replace(&mut self.left, true) {
            return;
        }
        // A sign of life that nobody takes holds the last word up no longer.
        self.shared.ends.store(true, SeqCst);
        let word = serde_json::to_vec(&failed).expect("a number and text");
        for peer in self.peers.values() {
            let writer = peer.writer.lock();
            let mut writer = writer.unwrap_or_else(PoisonError::into_inner);
            let _ = writer.set_write_timeout(Some(LAST_WORD));
            let _ = write_frame(&mut writer, LEAVE, &word, &mut |_| false);
            let _ = writer.shutdown(Shutdown::Write);
        }
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        if !self.left {
            self.leave(Some((self.shared.rank, "has ended early")));
        }
        self.shared.ends.store(true, SeqCst);
        // What is read to its end is not thrown away with the last word in it.
        let until = Instant::now() + LAST_WORD;
        let reads = |peer: &Peer| peer.reader.as_ref().is_some_and(|it| !it.is_finished());
        while self.peers.values().any(reads) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        for peer in self.peers.values_mut() {
            let writer = peer.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writer.shutdown(Shutdown::Both);
            drop(writer);
            if let Some(reader) = peer.reader.take() {
                let _ = reader.join();
            }
        }
        if let Some(alive) = self.alive.take() {
            let _ = alive.join();
        }
    }
}

impl Peer {
    /// What comes next, if it comes in time.
    fn next(&mut self, peer: usize, within: Duration) -> Result<Option<Vec<u8>>, WireError> {
        match self.early.pop_front() {
            Some(bytes) => Ok(Some(bytes)),
            None => self.arrive(peer, within),
        }
    }

    /// Takes what has come, for later, and sees whether it still lives.
    fn look(&mut self, peer: usize, shared: &Shared) -> Result<(), WireError> {
        while let Some(bytes) = self.arrive(peer, Duration::ZERO)? {
            self.early.push_back(bytes);
        }
        let silent = self.silent_for(shared);
        if silent >= SILENT_AFTER {
            return Err(self.end(gone(peer, silent)));
        }
        Ok(())
    }

    fn arrive(&mut self, peer: usize, within: Duration) -> Result<Option<Vec<u8>>, WireError> {
        if let Some(end) = &self.ended {
            return Err(end.clone());
        }
        match self.events.recv_timeout(within) {
            Ok(Event::Data(bytes)) => Ok(Some(bytes)),
            Ok(Event::End(end)) => Err(self.end(end)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(self.end(lost(peer))),
        }
    }

    fn end(&mut self, end: WireError) -> WireError {
        self.ended.get_or_insert(end).clone()
    }

    /// Why nothing can be sent any more: its last word says more than the error.
    fn why(&mut self, peer: usize, error: &std::io::Error) -> WireError {
        let until = Instant::now() + LAST_WORD;
        while Instant::now() < until {
            if let Err(end) = self.next(peer, LOOK_EVERY) {
                return end;
            }
        }
        let cause = if is_stuck(error) {
            let seconds = SILENT_AFTER.as_secs();
            format!(
                "has taken nothing for {seconds} s: it was stopped, or its machine or the network \
                 is gone"
            )
        } else {
            format!("cannot be reached any more ({error})")
        };
        self.end(WireError::Ended { rank: peer, cause })
    }

    fn silent_for(&self, shared: &Shared) -> Duration {
        let heard = Duration::from_millis(self.heard_ms.load(SeqCst));
        shared.started.elapsed().saturating_sub(heard)
    }
}

fn lost(rank: usize) -> WireError {
    WireError::Ended {
        rank,
        cause: "has ended without a word: it was killed, or has crashed".to_owned(),
    }
}

fn gone(rank: usize, silent: Duration) -> WireError {
    WireError::Ended {
        rank,
        cause: format!(
            "gave no sign of life for {} s: it was stopped, or its machine or the network is gone",
            silent.as_secs()
        ),
    }
}

/// Puts what has come behind what is there; how much that is then.
fn take(rank: usize, receive: &mut [u8], filled: usize, bytes: &[u8]) -> Result<usize, WireError> {
    let end = filled + bytes.len();
    let Some(place) = receive.get_mut(filled..end) else {
        return Err(WireError::OutOfStep {
            rank,
            got: end,
            expected: receive.len(),
        });
    };
    place.copy_from_slice(bytes);
    Ok(end)
}

/// Whether a write came back because the other side takes nothing.
fn is_stuck(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error.kind(), TimedOut | WouldBlock)
}

/// Writes a frame, as [`write_whole`] does.
fn write_frame(
    stream: &mut TcpStream,
    kind: u8,
    bytes: &[u8],
    goes_on: &mut dyn FnMut(Duration) -> bool,
) -> std::io::Result<()> {
    let mut head = vec![kind];
    head.extend((bytes.len() as u32).to_le_bytes());
    if bytes.len() <= SMALL {
        head.extend_from_slice(bytes);
        return write_whole(stream, &head, goes_on);
    }
    write_whole(stream, &head, goes_on)?;
    write_whole(stream, bytes, goes_on)
}

/// Writes all bytes. Each time that the stream's timeout passes and nothing was taken, `goes_on` is
/// told for how long that has been so, and says whether to go on.
pub(super) fn write_whole(
    stream: &mut TcpStream,
    mut bytes: &[u8],
    goes_on: &mut dyn FnMut(Duration) -> bool,
) -> std::io::Result<()> {
    let mut taken = Instant::now();
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(written) => (bytes, taken) = (&bytes[written..], Instant::now()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if is_stuck(&error) && goes_on(taken.elapsed()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads until the other side ends; why it did.
fn read_frames(
    mut stream: TcpStream,
    peer: usize,
    events: &Sender<Event>,
    shared: &Shared,
    heard_ms: &AtomicU64,
) -> WireError {
    loop {
        let mut head = [0; 5];
        if stream.read_exact(&mut head).is_err() {
            return lost(peer);
        }
        heard_ms.store(shared.started.elapsed().as_millis() as u64, SeqCst);
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length) as usize;
        if length > CHUNK {
            return WireError::OutOfStep {
                rank: peer,
                got: length,
                expected: CHUNK,
            };
        }
        let mut bytes = vec![0; length];
        if stream.read_exact(&mut bytes).is_err() {
            return lost(peer);
        }
        heard_ms.store(shared.started.elapsed().as_millis() as u64, SeqCst);
        match kind {
            DATA => {
                let Ok(()) = events.send(Event::Data(bytes)) else {
                    return lost(peer);
                };
            }
            STOP => {
                let signal = bytes.first().map_or(0, |signal| i32::from(*signal));
                let _ = shared.stop.compare_exchange(0, signal, SeqCst, SeqCst);
            }
            LEAVE => {
                let failed = serde_json::from_slice::<Option<(usize, String)>>(&bytes);
                return match failed {
                    Ok(Some((rank, cause))) => WireError::Ended { rank, cause },
                    _ => WireError::Ended {
                        rank: peer,
                        cause: "has ended before the others".to_owned(),
                    },
                };
            }
            _ => {}
        }
    }
}

/// Gives signs of life and spreads a signal, once, until the wire ends.
fn show_life(shared: &Shared, writers: &[Arc<Mutex<TcpStream>>], asked: fn() -> Option<i32>) {
    let mut shown = Instant::now();
    let mut untold = writers.iter().collect::<Vec<_>>();
    let mut has_time = |stuck: Duration| stuck < SILENT_AFTER && !shared.ends.load(SeqCst);
    while !shared.ends.load(SeqCst) {
        std::thread::sleep(LOOK_EVERY);
        if let Some(signal) = asked() {
            let _ = shared.stop.compare_exchange(0, signal, SeqCst, SeqCst);
        }
        let stop = shared.stop.load(SeqCst);
        if stop != 0 {
            // One that is being written to has its turn next time.
            untold.retain(|writer| match writer.try_lock() {
                Ok(mut stream) => {
                    write_frame(&mut stream, STOP, &[stop as u8], &mut has_time).is_err()
                }
                Err(_) => true,
            });
        }
        if shown.elapsed() >= ALIVE_EVERY {
            shown = Instant::now();
            for writer in writers {
                if let Ok(mut stream) = writer.try_lock() {
                    let _ = write_frame(&mut stream, ALIVE, &[], &mut has_time);
                }
            }
        }
    }
}
