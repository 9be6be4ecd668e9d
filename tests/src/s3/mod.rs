//! An S3 server in memory that can misbehave: for tests in one process, and as `nepa-test-s3` for scripts.
//!
//! It speaks S3 through the crate `s3s` (signatures are checked), listens on 127.0.0.1, logs every request, and follows
//! a plan of faults. It is no storage: everything is gone with the process.

mod bucket;
mod faults;
mod serve;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

pub use bucket::{Buckets, StoredObject};
use faults::Plan;
pub use faults::{Fault, Rule};

/// How the server behaves towards everybody.
#[derive(Debug, Clone)]
pub struct Options {
    /// Port, 0 for any free one.
    pub port: u16,
    /// Time from each request to the first byte of its answer.
    pub latency: Duration,
    /// Most requests served at once; others wait, as for a free connection.
    pub max_connections: Option<usize>,
    /// Most bytes a second of one answer.
    pub bytes_per_s: Option<f64>,
    /// Most bytes a second of all answers together, as of a slow line.
    pub line_bytes_per_s: Option<f64>,
    /// Access key id.
    pub access_key: String,
    /// Secret access key.
    pub secret_key: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: 0,
            latency: Duration::ZERO,
            max_connections: None,
            bytes_per_s: None,
            line_bytes_per_s: None,
            access_key: "test-key".to_owned(),
            secret_key: "test-secret".to_owned(),
        }
    }
}

/// One request, as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedRequest {
    /// HTTP method.
    pub method: String,
    /// Bucket.
    pub bucket: String,
    /// Key, percent-decoded; empty for requests to the bucket, such as a listing.
    pub key: String,
    /// The byte range asked for, end exclusive.
    pub range: Option<std::ops::Range<u64>>,
    /// The ETag that the answer was made conditional on.
    pub if_match: Option<String>,
    /// Status of the answer; 0 if the connection was cut instead.
    pub status: u16,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    /// Access key and its secret, the one in force last. Those before have expired.
    keys: Mutex<Vec<(String, String)>>,
    buckets: Buckets,
    plan: Mutex<Plan>,
    log: Mutex<Vec<LoggedRequest>>,
    gate: watch::Sender<Gate>,
    /// When the line that all answers share is free.
    line_free: Mutex<tokio::time::Instant>,
    connections: AtomicU64,
    begun: AtomicU64,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
}

/// Whether anybody comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// Connections are taken, and nothing is answered.
    Frozen,
    /// Connections are refused; those that were open are gone.
    Closed,
}

/// A running server; stops when dropped.
#[derive(Debug)]
pub struct S3Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl S3Server {
    /// Starts a server with default options.
    pub fn start() -> Self {
        Self::start_with(Options::default()).expect("a server on a free port of 127.0.0.1")
    }

    /// Starts a server.
    pub fn start_with(options: Options) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("test-s3")
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind(("127.0.0.1", options.port))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let key = (options.access_key.clone(), options.secret_key.clone());
        let shared = Arc::new(Shared {
            options,
            keys: Mutex::new(vec![key]),
            buckets: Buckets::default(),
            plan: Mutex::default(),
            log: Mutex::default(),
            gate: watch::Sender::new(Gate::Open),
            line_free: Mutex::new(tokio::time::Instant::now()),
            connections: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
        });
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(serve::accept(listener, Arc::clone(&shared)));
        Ok(Self {
            shared,
            address,
            runtime: Some(runtime),
        })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The environment variables that lead a client here.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ACCESS_KEY_ID", self.shared.options.access_key.clone()),
            (
                "AWS_SECRET_ACCESS_KEY",
                self.shared.options.secret_key.clone(),
            ),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
    }

    /// The same for use in this process.
    pub fn store_options(&self) -> nepa_pipeline::StoreOptions {
        nepa_pipeline::StoreOptions::new(self.env())
    }

    /// Takes this key from now on; the one before has expired, and requests with it are told so.
    pub fn change_key(&self, access_key: &str, secret_key: &str) {
        lock(&self.shared.keys).push((access_key.to_owned(), secret_key.to_owned()));
    }

    /// Makes a bucket.
    pub fn create_bucket(&self, bucket: &str) {
        self.shared.buckets.create(bucket);
    }

    /// Stores an object, and its bucket if there is none.
    pub fn put(&self, bucket: &str, key: &str, bytes: impl Into<Bytes>) {
        self.shared.buckets.create(bucket);
        self.shared.buckets.put(bucket, key, bytes.into());
    }

    /// Takes an object away.
    pub fn remove(&self, bucket: &str, key: &str) {
        self.shared.buckets.remove(bucket, key);
    }

    /// An object's bytes.
    pub fn get(&self, bucket: &str, key: &str) -> Option<Bytes> {
        self.shared
            .buckets
            .get(bucket, key)
            .map(|object| object.bytes)
    }

    /// All keys of a bucket, sorted.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        self.shared.buckets.keys(bucket)
    }

    /// Multipart uploads that were begun, and neither completed nor given up.
    pub fn num_unfinished_uploads(&self) -> usize {
        self.shared.buckets.num_unfinished_uploads()
    }

    /// Stores all files below `folder` under `prefix` (empty, or ending in `/`).
    pub fn load_folder(&self, bucket: &str, prefix: &str, folder: &Path) -> std::io::Result<usize> {
        self.create_bucket(bucket);
        let mut count = 0;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if path.is_dir() {
                count += self.load_folder(bucket, &format!("{prefix}{name}/"), &path)?;
            } else {
                self.put(bucket, &format!("{prefix}{name}"), std::fs::read(path)?);
                count += 1;
            }
        }
        Ok(count)
    }

    /// Adds a fault to the plan; its requests are counted from now.
    pub fn add_fault(&self, rule: Rule) {
        lock(&self.shared.plan).add(rule);
    }

    /// Takes all faults back.
    pub fn clear_faults(&self) {
        *lock(&self.shared.plan) = Plan::default();
    }

    /// From now on connections are refused, and those that are open are cut.
    pub fn close(&self) {
        self.shared.gate.send_replace(Gate::Closed);
    }

    /// From now on nothing is answered; connections stay.
    pub fn freeze(&self) {
        self.shared.gate.send_replace(Gate::Frozen);
    }

    /// All is well again.
    pub fn reopen(&self) {
        self.shared.gate.send_replace(Gate::Open);
    }

    /// Connections that were opened so far.
    pub fn num_connections(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }

    /// Requests that came so far, answered or not.
    pub fn num_begun(&self) -> u64 {
        self.shared.begun.load(SeqCst)
    }

    /// The most requests that were under way at the same time.
    pub fn most_in_flight(&self) -> usize {
        self.shared.most_in_flight.load(SeqCst)
    }

    /// All requests so far, in the order of their answers.
    pub fn log(&self) -> Vec<LoggedRequest> {
        lock(&self.shared.log).clone()
    }

    /// The requests so far, which are then forgotten.
    pub fn take_log(&self) -> Vec<LoggedRequest> {
        std::mem::take(&mut lock(&self.shared.log))
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A test that panicked elsewhere shall not hide its message behind a poisoned lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
