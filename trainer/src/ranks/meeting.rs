//! How the ranks find each other over TCP: rank 0 waits at an address that all know, the others
//! come there and are told where their neighbours wait. Called once, at the start of a run.
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::message::{self, Answer, Hello, Join, MAGIC};
use super::names::list_of;
use super::neighbours::neighbours;
use super::place::Place;

/// Time for one message of somebody who has connected.
const MESSAGE_WITHIN: Duration = Duration::from_secs(5);
/// How often somebody new is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often the address of rank 0 is tried.
const TRY_EVERY: Duration = Duration::from_millis(200);
/// A wait is told after so long, and every so often.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// The ranks do not come together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeetingError {
    #[error(
        "rank 0 cannot wait for the others at {address}\ntip: another MASTER_PORT (one more than \
         it is taken), or --meet HOST:PORT on all ranks"
    )]
    Listen {
        address: String,
        source: std::io::Error,
    },
    #[error(
        "{missing} did not come to {address} within {} s; {came} of {size} ranks are there",
        within.as_secs()
    )]
    Missing {
        missing: String,
        address: String,
        came: usize,
        size: usize,
        within: Duration,
    },
    #[error("rank 0 is not at {address} within {} s: {cause}", within.as_secs())]
    NoFirst {
        address: String,
        cause: String,
        within: Duration,
    },
    #[error("the run cannot begin: {why}")]
    Refused { why: String },
    #[error("the connection to {} broke while the ranks met", list_of(&[*rank]))]
    Broken { rank: usize, source: std::io::Error },
}

/// Connections to all neighbours of a rank.
pub(super) type Streams = BTreeMap<usize, TcpStream>;

/// Waits until all ranks are there, for at most `within`. `tell` is told of a wait that lasts.
pub(super) fn meet(
    place: &Place,
    version: &str,
    within: Duration,
    tell: &dyn Fn(&str),
) -> Result<Streams, MeetingError> {
    let meeting = place.meeting.as_ref();
    let wait = Wait {
        meeting: meeting.expect("ranks that meet know where"),
        started: Instant::now(),
        within,
        tell,
    };
    if place.rank == 0 {
        receive(place, version, &wait)
    } else {
        come(place, version, wait)
    }
}

/// A wait that is told of, for those who meet somewhere.
struct Wait<'a> {
    meeting: &'a (String, u16),
    started: Instant,
    within: Duration,
    tell: &'a dyn Fn(&str),
}

impl Wait<'_> {
    fn address(&self) -> String {
        let (host, port) = self.meeting;
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }

    fn is_over(&self) -> bool {
        self.started.elapsed() >= self.within
    }

    /// Says what is waited for, if it is time; `told` is when that was done last.
    fn tell(&self, told: &mut Instant, what: impl FnOnce() -> String) {
        if told.elapsed() >= TOLD_EVERY {
            *told = Instant::now();
            let seconds = self.started.elapsed().as_secs();
            (self.tell)(&format!("waiting for {} for {seconds} s", what()));
        }
    }
}

/// Rank 0 listens where the others look for it: on this machine alone where that is what the
/// address says, else on all its addresses, as its own name may mean another one here than there.
fn listen(wait: &Wait<'_>) -> Result<TcpListener, MeetingError> {
    let (host, port) = wait.meeting;
    let is_here = host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    let listener = match host.parse::<IpAddr>() {
        Ok(address) if is_here || address.is_ipv6() => TcpListener::bind((address, *port)),
        _ if is_here => TcpListener::bind((host.as_str(), *port)),
        _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)),
    };
    listener.map_err(|source| MeetingError::Listen {
        address: wait.address(),
        source,
    })
}

/// The next one who has connected, if somebody has, ready for messages.
fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    let Ok((stream, from)) = listener.accept() else {
        std::thread::sleep(LOOK_EVERY);
        return None;
    };
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(MESSAGE_WITHIN)).ok()?;
    Some((stream, from))
}

/// Rank 0: waits for all others and tells them of each other.
fn receive(place: &Place, version: &str, wait: &Wait<'_>) -> Result<Streams, MeetingError> {
    let listener = listen(wait)?;
    let listening = |source| MeetingError::Listen {
        address: wait.address(),
        source,
    };
    listener.set_nonblocking(true).map_err(listening)?;
    let mut guests: BTreeMap<usize, (TcpStream, SocketAddr, u16)> = BTreeMap::new();
    let mut told = wait.started;
    let missing = |guests: &BTreeMap<usize, (TcpStream, SocketAddr, u16)>| {
        let missing = (1..place.size).filter(|rank| !guests.contains_key(rank));
        list_of(&missing.collect::<Vec<_>>())
    };
    while guests.len() + 1 < place.size {
        if wait.is_over() {
            return Err(MeetingError::Missing {
                missing: missing(&guests),
                address: wait.address(),
                came: guests.len() + 1,
                size: place.size,
                within: wait.within,
            });
        }
        wait.tell(&mut told, || {
            format!("{} at {}", missing(&guests), wait.address())
        });
        let Some((mut stream, from)) = accept(&listener) else {
            continue;
        };
        // A stranger, or a rank that has ended.
        let Ok(hello) = message::read::<Hello>(&mut stream) else {
            continue;
        };
        if hello.magic != MAGIC {
            continue;
        }
        if let Some(why) = wrong(place, version, &hello, &guests) {
            let others = guests.values_mut().map(|(stream, ..)| stream);
            for stream in others.chain([&mut stream]) {
                let _ = message::write(stream, &Answer::Refused(why.clone()));
            }
            return Err(MeetingError::Refused { why });
        }
        guests.insert(hello.rank, (stream, from, hello.port));
    }
    let mut addresses = vec![(None, 0)];
    addresses.extend(guests.values().map(|(_, from, port)| {
        let ip = from.ip();
        ((!ip.is_loopback()).then_some(ip), *port)
    }));
    let token = token();
    for (rank, (stream, ..)) in &mut guests {
        let welcome = Answer::Welcome {
            token: token.clone(),
            addresses: addresses.clone(),
        };
        let sent = message::write(stream, &welcome);
        sent.map_err(|source| MeetingError::Broken {
            rank: *rank,
            source,
        })?;
    }
    let neighbours = neighbours(0, place.size);
    let mine = neighbours.filter_map(|rank| Some((rank, guests.remove(&rank)?.0)));
    Ok(mine.collect())
}

/// Why a rank of another program than rank 0's cannot be of this run.
pub(super) fn other_version(rank: usize, theirs: &str, ours: &str) -> String {
    format!("rank {rank} is nepa {theirs}, rank 0 is nepa {ours}")
}

/// Why a rank cannot be of this run.
fn wrong<T>(
    place: &Place,
    version: &str,
    hello: &Hello,
    guests: &BTreeMap<usize, T>,
) -> Option<String> {
    let Hello { rank, size, .. } = *hello;
    if hello.version != version {
        return Some(other_version(rank, &hello.version, version));
    }
    if size != place.size {
        return Some(format!(
            "rank {rank} was started as one of {size} ranks, rank 0 as one of {}",
            place.size
        ));
    }
    if rank == 0 || guests.contains_key(&rank) {
        return Some(format!("two processes were started as rank {rank}"));
    }
    None
}

/// Another rank: comes to rank 0, then to its neighbours below it, and waits for those above.
fn come(place: &Place, version: &str, wait: Wait<'_>) -> Result<Streams, MeetingError> {
    let mut first = connect_first(&wait)?;
    let broken = |rank| move |source| MeetingError::Broken { rank, source };
    let any = match first.local_addr().map_err(broken(0))?.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    };
    let listener = TcpListener::bind((any, 0)).map_err(broken(place.rank))?;
    let port = listener.local_addr().map_err(broken(place.rank))?.port();
    let hello = Hello {
        magic: MAGIC.to_owned(),
        version: version.to_owned(),
        rank: place.rank,
        size: place.size,
        port,
    };
    message::write(&mut first, &hello).map_err(broken(0))?;
    let (token, addresses) = match answer(place, &mut first, &wait)? {
        Answer::Welcome { token, addresses } => (token, addresses),
        Answer::Refused(why) => return Err(MeetingError::Refused { why }),
    };
    // Where a rank on the machine of rank 0 is to be found.
    let there = first.peer_addr().map_err(broken(0))?.ip();
    let mut streams = Streams::new();
    for rank in neighbours(place.rank, place.size).filter(|rank| *rank < place.rank) {
        if rank == 0 {
            continue;
        }
        let (ip, port) = addresses[rank];
        let to = SocketAddr::new(ip.unwrap_or(there), port);
        let mut stream = TcpStream::connect_timeout(&to, MESSAGE_WITHIN).map_err(broken(rank))?;
        let join = Join {
            magic: MAGIC.to_owned(),
            token: token.clone(),
            rank: place.rank,
        };
        message::write(&mut stream, &join).map_err(broken(rank))?;
        streams.insert(rank, stream);
    }
    if neighbours(0, place.size).any(|rank| rank == place.rank) {
        streams.insert(0, first);
    }
    listener.set_nonblocking(true).map_err(broken(place.rank))?;
    let above = neighbours(place.rank, place.size).filter(|rank| *rank > place.rank);
    let mut above = above.collect::<Vec<_>>();
    let mut told = Instant::now();
    while !above.is_empty() {
        if wait.is_over() {
            return Err(MeetingError::Missing {
                missing: list_of(&above),
                address: format!("port {port} of rank {}", place.rank),
                came: streams.len() + 1,
                size: streams.len() + 1 + above.len(),
                within: wait.within,
            });
        }
        wait.tell(&mut told, || list_of(&above));
        let Some((mut stream, _)) = accept(&listener) else {
            continue;
        };
        let Ok(join) = message::read::<Join>(&mut stream) else {
            continue;
        };
        if join.magic == MAGIC && join.token == token && above.contains(&join.rank) {
            above.retain(|rank| *rank != join.rank);
            streams.insert(join.rank, stream);
        }
    }
    Ok(streams)
}

/// A connection to rank 0, which may start later than this one.
fn connect_first(wait: &Wait<'_>) -> Result<TcpStream, MeetingError> {
    let (host, port) = wait.meeting;
    let mut told = wait.started;
    loop {
        let addresses = (host.as_str(), *port).to_socket_addrs();
        let connected = addresses.and_then(|addresses| {
            let mut last = std::io::Error::new(ErrorKind::NotFound, "the name has no address");
            for address in addresses {
                match TcpStream::connect_timeout(&address, MESSAGE_WITHIN) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        });
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) if wait.is_over() => {
                return Err(MeetingError::NoFirst {
                    address: wait.address(),
                    cause: error.to_string(),
                    within: wait.within,
                });
            }
            Err(error) => {
                wait.tell(&mut told, || {
                    format!("rank 0 at {} ({error})", wait.address())
                });
                std::thread::sleep(TRY_EVERY);
            }
        }
    }
}

/// What rank 0 says, which comes when all ranks are there.
fn answer(place: &Place, first: &mut TcpStream, wait: &Wait<'_>) -> Result<Answer, MeetingError> {
    let broken = |source| MeetingError::Broken { rank: 0, source };
    let mut told = wait.started;
    first
        .set_read_timeout(Some(Duration::from_secs(1)))
        .map_err(broken)?;
    loop {
        match first.peek(&mut [0]) {
            Ok(_) => break,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if wait.is_over() {
                    return Err(MeetingError::Missing {
                        missing: "some ranks".to_owned(),
                        address: wait.address(),
                        came: 2,
                        size: place.size,
                        within: wait.within,
                    });
                }
                wait.tell(&mut told, || "the other ranks".to_owned());
            }
            Err(error) => return Err(broken(error)),
        }
    }
    first
        .set_read_timeout(Some(MESSAGE_WITHIN))
        .map_err(broken)?;
    message::read(first).map_err(broken)
}

/// 16 hex digits. The seeds of hash tables are random, and nothing more is asked for here.
fn token() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}
