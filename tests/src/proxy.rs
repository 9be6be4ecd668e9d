//! A proxy before a store whose lines can be cut, frozen, slowed and answered for, by bucket and while it runs.
//!
//! It forwards HTTP/1.1 as it comes: of requests it reads the head, to know their bucket, and the length of the body;
//! of answers it reads nothing. It listens on 127.0.0.1 and knows no store in particular.
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// What happens to the traffic of a bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Line {
    /// It passes.
    #[default]
    Open,
    /// Connections end without an answer.
    Cut,
    /// Nothing moves; connections stay open.
    Frozen,
    /// Every request is answered with this status and no body; the store does not see it.
    Status(u16),
    /// Each answer ends with its connection after so many bytes, its head counted.
    CutAfter(usize),
}

/// How a bucket's traffic goes.
#[derive(Debug, Clone, Default)]
struct Link {
    line: Line,
    latency: Duration,
    up: Rate,
    down: Rate,
}

/// A rate that all connections share; without a number as fast as can be.
#[derive(Debug, Clone, Default)]
struct Rate {
    bytes_per_s: Option<f64>,
    free_at: Option<Instant>,
}

impl Rate {
    /// When these bytes have passed.
    fn reserve(&mut self, num_bytes: usize) -> Option<Instant> {
        let now = Instant::now();
        let from = self.free_at.map_or(now, |free_at| free_at.max(now));
        let took = Duration::from_secs_f64(num_bytes as f64 / self.bytes_per_s?);
        self.free_at = Some(from + took);
        self.free_at
    }
}

/// A change at the first request that fits.
#[derive(Debug)]
struct Trip {
    method: String,
    part: String,
    buckets: Vec<String>,
    line: Line,
}

#[derive(Debug, Default)]
struct State {
    links: BTreeMap<String, Link>,
    trips: Vec<Trip>,
    /// `METHOD TARGET` of each request.
    log: Vec<String>,
    /// No connection is taken.
    refuses: bool,
}

#[derive(Debug)]
struct Shared {
    store: SocketAddr,
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

/// A running proxy; stops when dropped, and ends its connections.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Proxy {
    /// Starts a proxy before the store at `endpoint`, `http://ADDRESS:PORT`, for these buckets; what concerns none of them passes.
    ///
    /// # Panics
    ///
    /// If the endpoint is none, or no port is free.
    pub fn before(endpoint: &str, buckets: &[&str]) -> Self {
        let store = endpoint.strip_prefix("http://").unwrap_or(endpoint);
        let store = store.parse().expect("http://ADDRESS:PORT");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("test-proxy")
            .enable_all()
            .build()
            .expect("threads");
        let links = buckets
            .iter()
            .map(|bucket| ((*bucket).to_owned(), Link::default()));
        let shared = Arc::new(Shared {
            store,
            state: Mutex::new(State {
                links: links.collect(),
                ..State::default()
            }),
            changed: watch::Sender::new(()),
        });
        let listener = {
            let _inside = runtime.enter();
            listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port")
        };
        let address = listener.local_addr().expect("a bound socket");
        runtime.spawn(accept(listener, address, Arc::clone(&shared)));
        Self {
            shared,
            address,
            runtime: Some(runtime),
        }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What happens to the traffic of these buckets from now on.
    pub fn set(&self, buckets: &[&str], line: Line) {
        let mut state = lock(&self.shared.state);
        for bucket in buckets {
            state.link(bucket).line = line;
        }
        drop(state);
        self.shared.changed.send_replace(());
    }

    /// Takes no connection and ends those that are, as a host that is down; or goes on.
    pub fn refuse(&self, refuses: bool) {
        lock(&self.shared.state).refuses = refuses;
        self.shared.changed.send_replace(());
    }

    /// The same as [`Proxy::set`] just before the first request of this method whose target holds `part`.
    pub fn set_at(&self, method: &str, part: &str, buckets: &[&str], line: Line) {
        lock(&self.shared.state).trips.push(Trip {
            method: method.to_owned(),
            part: part.to_owned(),
            buckets: buckets.iter().map(|bucket| (*bucket).to_owned()).collect(),
            line,
        });
    }

    /// What happens to the traffic of a bucket now.
    pub fn line(&self, bucket: &str) -> Line {
        lock(&self.shared.state).link(bucket).line
    }

    /// Most bytes a second of all requests to, and of all answers for, a bucket together.
    pub fn throttle(&self, bucket: &str, up: Option<f64>, down: Option<f64>) {
        let mut state = lock(&self.shared.state);
        let link = state.link(bucket);
        (link.up.bytes_per_s, link.down.bytes_per_s) = (up, down);
    }

    /// Each request to this bucket is this late.
    pub fn delay(&self, bucket: &str, latency: Duration) {
        lock(&self.shared.state).link(bucket).latency = latency;
    }

    /// `METHOD TARGET` of each request so far.
    pub fn log(&self) -> Vec<String> {
        lock(&self.shared.state).log.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl State {
    fn link(&mut self, bucket: &str) -> &mut Link {
        self.links
            .get_mut(bucket)
            .unwrap_or_else(|| panic!("the proxy was not told of bucket {bucket}"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Buffers of the kernel are small, so that a slow line is felt by the client and not hidden in them.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_recv_buffer_size(64 << 10)?;
    socket.bind(address)?;
    socket.listen(1024)
}

async fn accept(listener: TcpListener, address: SocketAddr, shared: Arc<Shared>) {
    let mut changed = shared.changed.subscribe();
    let mut listener = Some(listener);
    loop {
        let refuses = lock(&shared.state).refuses;
        match &listener {
            Some(_) if refuses => listener = None,
            None if !refuses => match listen(address) {
                Ok(again) => listener = Some(again),
                Err(_) => sleep(Duration::from_millis(20)).await,
            },
            None => drop(changed.changed().await),
            Some(taking) => tokio::select! {
                taken = taking.accept() => if let Ok((client, _)) = taken {
                    tokio::spawn(forward(client, Arc::clone(&shared)));
                },
                _ = changed.changed() => {}
            },
        }
    }
}

/// Forwards one connection to its end. Errors are clients and stores that went away, and lines that were cut.
async fn forward(client: TcpStream, shared: Arc<Shared>) {
    let Ok(store) = TcpStream::connect(shared.store).await else {
        return;
    };
    let (Ok(()), Ok(())) = (client.set_nodelay(true), store.set_nodelay(true)) else {
        return;
    };
    let ((from_client, to_client), (from_store, to_store)) =
        (client.into_split(), store.into_split());
    let (current, number) = (Mutex::new(None), AtomicUsize::new(0));
    let to_client = tokio::sync::Mutex::new(to_client);
    let connection = Connection {
        shared: &shared,
        bucket: &current,
        number: &number,
        to_client: &to_client,
    };
    tokio::select! {
        _ = connection.requests(from_client, to_store) => {}
        _ = connection.answers(from_store) => {}
        () = connection.refused() => {}
    }
}

/// A connection ends early.
type Ended = std::io::Error;

fn ended(why: &'static str) -> Ended {
    std::io::Error::new(std::io::ErrorKind::ConnectionAborted, why)
}

#[derive(Clone, Copy)]
struct Connection<'a> {
    shared: &'a Shared,
    /// Bucket of the request that was sent last: requests follow each other's answers.
    bucket: &'a Mutex<Option<String>>,
    /// Its number on this connection.
    number: &'a AtomicUsize,
    to_client: &'a tokio::sync::Mutex<OwnedWriteHalf>,
}

impl Connection<'_> {
    async fn refused(self) {
        let mut changed = self.shared.changed.subscribe();
        while !lock(&self.shared.state).refuses {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    async fn requests(
        self,
        mut client: OwnedReadHalf,
        mut store: OwnedWriteHalf,
    ) -> Result<(), Ended> {
        let mut buffer = Vec::new();
        loop {
            let head_length = loop {
                let end = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
                if let Some(end) = end {
                    break end + 4;
                }
                if client.read_buf(&mut buffer).await? == 0 {
                    return Ok(());
                }
            };
            let head = Head::parse(&buffer[..head_length])?;
            self.note(&head);
            let line = self.passable().await?;
            let mut left = head_length + head.content_length;
            if let Line::Status(status) = line {
                left -= buffer.len().min(left);
                while left > 0 {
                    left -= take(&mut client, left).await?.len();
                }
                buffer.clear();
                let answer = format!("HTTP/1.1 {status} By the proxy\r\ncontent-length: 0\r\n\r\n");
                self.to_client
                    .lock()
                    .await
                    .write_all(answer.as_bytes())
                    .await?;
                continue;
            }
            sleep(self.of_link(|link| link.latency).unwrap_or_default()).await;
            let mut rest = buffer.split_off(left.min(buffer.len()));
            std::mem::swap(&mut buffer, &mut rest);
            let mut piece = rest;
            while left > 0 {
                if piece.is_empty() {
                    piece = take(&mut client, left).await?;
                }
                self.passable().await?;
                let passed = self.of_link(|link| link.up.reserve(piece.len())).flatten();
                if let Some(passed) = passed {
                    sleep_until(passed).await;
                }
                store.write_all(&piece).await?;
                left -= piece.len();
                piece.clear();
            }
        }
    }

    async fn answers(self, mut store: OwnedReadHalf) -> Result<(), Ended> {
        let (mut sent, mut of) = (0, 0);
        loop {
            let mut piece = take(&mut store, usize::MAX).await?;
            let line = self.passable().await?;
            let request = self.number.load(Relaxed);
            if request != of {
                (sent, of) = (0, request);
            }
            if let Line::CutAfter(most) = line {
                piece.truncate(most.saturating_sub(sent));
            }
            let passed = self
                .of_link(|link| link.down.reserve(piece.len()))
                .flatten();
            if let Some(passed) = passed {
                sleep_until(passed).await;
            }
            self.to_client.lock().await.write_all(&piece).await?;
            sent += piece.len();
            if matches!(line, Line::CutAfter(most) if sent >= most) {
                return Err(ended("cut"));
            }
        }
    }

    /// Writes a request into the log and pulls what it trips.
    fn note(self, head: &Head) {
        let mut state = lock(&self.shared.state);
        state.log.push(format!("{} {}", head.method, head.target));
        let fits = |trip: &mut Trip| trip.method == head.method && head.target.contains(&trip.part);
        let tripped = state.trips.extract_if(.., fits).collect::<Vec<_>>();
        for trip in &tripped {
            for bucket in &trip.buckets {
                state.link(bucket).line = trip.line;
            }
        }
        self.number.fetch_add(1, Relaxed);
        *lock(self.bucket) = head.bucket(|name| state.links.contains_key(name));
        drop(state);
        if !tripped.is_empty() {
            self.shared.changed.send_replace(());
        }
    }

    fn of_link<T>(self, read: impl FnOnce(&mut Link) -> T) -> Option<T> {
        let bucket = lock(self.bucket).clone()?;
        Some(read(lock(&self.shared.state).link(&bucket)))
    }

    /// Waits while the line is frozen; an error where it is cut.
    async fn passable(self) -> Result<Line, Ended> {
        let mut changed = self.shared.changed.subscribe();
        loop {
            match self.of_link(|link| link.line).unwrap_or_default() {
                Line::Cut => return Err(ended("cut")),
                Line::Frozen => changed.changed().await.map_err(|_| ended("stopped"))?,
                line => return Ok(line),
            }
        }
    }
}

/// Bytes that are forwarded at once: small, so that a slow line flows evenly.
const PIECE: usize = 8 << 10;

/// Some bytes, at most `most`; none left is an error.
async fn take(from: &mut OwnedReadHalf, most: usize) -> Result<Vec<u8>, Ended> {
    let mut piece = vec![0; PIECE.min(most)];
    let length = from.read(&mut piece).await?;
    piece.truncate(length);
    if piece.is_empty() {
        return Err(ended("closed by the other side"));
    }
    Ok(piece)
}

/// What matters of a request's head.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    method: String,
    target: String,
    content_length: usize,
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Self, Ended> {
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.lines();
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Err(ended("no HTTP"));
        };
        let header = |name: &str| {
            text.lines().skip(1).find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim())
            })
        };
        assert!(
            header("transfer-encoding").is_none(),
            "the proxy wants requests of a stated length: {text}"
        );
        let content_length = header("content-length").map_or(Ok(0), str::parse);
        Ok(Self {
            method: method.to_owned(),
            target: target.to_owned(),
            content_length: content_length.map_err(|_| ended("no HTTP"))?,
        })
    }

    /// The bucket: the first part of the path, or the second behind an account of Azure.
    fn bucket(&self, is_known: impl Fn(&str) -> bool) -> Option<String> {
        let path = self.target.split('?').next().unwrap_or_default();
        let mut parts = path.split('/').skip(1).take(2);
        parts.find(|part| is_known(part)).map(str::to_owned)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::s3::S3Server;

    fn ask(proxy: &Proxy, bucket: &str) -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(proxy.address)?;
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        write!(
            stream,
            "GET /{bucket}/key HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    #[test]
    fn each_bucket_has_its_own_line() {
        let server = S3Server::start();
        let proxy = Proxy::before(&server.endpoint(), &["aaa", "bbb"]);
        // Unsigned, so refused; but by the server.
        let passes =
            |bucket| ask(&proxy, bucket).is_ok_and(|answer| answer.starts_with("HTTP/1.1 403"));
        assert!(passes("aaa") && passes("bbb") && passes("ccc"));
        proxy.set(&["aaa"], Line::Cut);
        assert_eq!(ask(&proxy, "aaa").unwrap_or_default(), "");
        assert!(passes("bbb"));
        proxy.set(&["aaa"], Line::Frozen);
        assert!(ask(&proxy, "aaa").is_err() && passes("bbb"));
        proxy.set(&["aaa"], Line::Status(503));
        assert!(ask(&proxy, "aaa").is_err() && passes("bbb"));
        proxy.set(&["aaa"], Line::CutAfter(12));
        assert_eq!(ask(&proxy, "aaa").unwrap(), "HTTP/1.1 403");
        proxy.set(&["aaa"], Line::Open);
        assert!(passes("aaa"));
        proxy.set_at("GET", "bbb/k", &["aaa", "bbb"], Line::Cut);
        assert!(passes("aaa") && !passes("bbb") && !passes("aaa"));
        proxy.set(&["aaa", "bbb"], Line::Open);
        proxy.refuse(true);
        std::thread::sleep(Duration::from_millis(50));
        let refused = ask(&proxy, "aaa").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        proxy.refuse(false);
        std::thread::sleep(Duration::from_millis(50));
        assert!(passes("aaa"));
        assert_eq!(proxy.log()[0], "GET /aaa/key");
    }

    #[test]
    fn a_slow_line_is_slow_both_ways() {
        let server = S3Server::start();
        server.put("aaa", "key", vec![0; 40_000]);
        let proxy = Proxy::before(&server.endpoint(), &["aaa"]);
        proxy.throttle("aaa", Some(200e3), Some(100e3));
        let options = server.env().into_iter().map(|(name, value)| match name {
            "AWS_ENDPOINT_URL" => (name, proxy.endpoint()),
            _ => (name, value),
        });
        let io = nepa_pipeline::IoConfig {
            store_options: nepa_pipeline::StoreOptions::new(options),
            ..nepa_pipeline::IoConfig::default()
        };
        let place = nepa_pipeline::open_url("s3://aaa/key", &io).unwrap();
        let runtime = nepa_pipeline::IoRuntime::new(1).unwrap();
        let timed = |put: bool| {
            let (store, path, since) = (place.store.clone(), place.path.clone(), Instant::now());
            runtime.block_on(async move {
                use object_store::ObjectStoreExt;
                if put {
                    store.put(&path, vec![1; 100_000].into()).await.unwrap();
                } else {
                    store.get(&path).await.unwrap().bytes().await.unwrap();
                }
            });
            since.elapsed().as_secs_f64()
        };
        assert!(timed(false) > 0.35);
        assert!(timed(true) > 0.45);
        assert_eq!(server.get("aaa", "key").unwrap().len(), 100_000);
    }
}
