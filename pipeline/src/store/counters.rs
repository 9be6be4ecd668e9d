//! What the I/O did, counted while it does it, and the budget of bytes held.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::latencies::{CountedLatencies, Latencies};

/// What the I/O did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Range requests finished, failed ones included.
    pub requests: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Requests above one for each range, whatever they were sent for.
    pub retries: u64,
    /// Second requests that were sent because the first was late.
    pub hedges: u64,
    /// Those of them that answered first.
    pub hedges_won: u64,
    /// Answers that broke off and were gone on with in the middle.
    pub resumed: u64,
    /// Answers by which the store asked to be asked less (503, 429).
    pub throttled: u64,
    /// Parts that came from the local cache.
    pub cache_hits: u64,
    /// Their bytes.
    pub cache_hit_bytes: u64,
    /// Entries of the cache that were damaged, and fetched again.
    pub cache_damaged: u64,
    /// Times from a request to its answer's first byte, of all that were answered.
    pub first_byte: Latencies,
    /// Requests in flight now.
    pub in_flight: u64,
    /// Sum over requests of the time in flight, in nanoseconds.
    pub busy_ns: u64,
    /// Time row groups waited for the byte budget, in nanoseconds.
    pub budget_wait_ns: u64,
    /// Bytes held now: in flight, fetched and not yet dropped.
    pub held_bytes: u64,
}

impl IoCounters {
    /// What was done since `earlier` was read; what is in flight and held stays that of now.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let since = |of: fn(&Self) -> u64| of(self).saturating_sub(of(earlier));
        Self {
            requests: since(|io| io.requests),
            bytes: since(|io| io.bytes),
            retries: since(|io| io.retries),
            hedges: since(|io| io.hedges),
            hedges_won: since(|io| io.hedges_won),
            resumed: since(|io| io.resumed),
            throttled: since(|io| io.throttled),
            cache_hits: since(|io| io.cache_hits),
            cache_hit_bytes: since(|io| io.cache_hit_bytes),
            cache_damaged: since(|io| io.cache_damaged),
            first_byte: self.first_byte.since(&earlier.first_byte),
            in_flight: self.in_flight,
            busy_ns: since(|io| io.busy_ns),
            budget_wait_ns: since(|io| io.budget_wait_ns),
            held_bytes: self.held_bytes,
        }
    }
}

/// The counters behind [`IoCounters`].
#[derive(Debug, Default)]
pub(super) struct Counting {
    started: AtomicU64,
    finished: AtomicU64,
    bytes: AtomicU64,
    busy_ns: AtomicU64,
    budget_wait_ns: AtomicU64,
    held_bytes: AtomicU64,
    first_byte: CountedLatencies,
}

impl Counting {
    /// A reading; `range_attempts` counts requests on the wire (0 for local files).
    pub(super) fn read(&self, range_attempts: u64) -> IoCounters {
        let finished = self.finished.load(Relaxed);
        let started = self.started.load(Relaxed);
        IoCounters {
            requests: finished,
            bytes: self.bytes.load(Relaxed),
            retries: range_attempts.saturating_sub(started),
            in_flight: started.saturating_sub(finished),
            busy_ns: self.busy_ns.load(Relaxed),
            budget_wait_ns: self.budget_wait_ns.load(Relaxed),
            held_bytes: self.held_bytes.load(Relaxed),
            first_byte: self.first_byte.read(),
            ..IoCounters::default()
        }
    }

    /// Counts the time from a request to its answer's first byte.
    pub(super) fn first_byte(&self, after: std::time::Duration) {
        self.first_byte.add(after);
    }

    /// Counts a request until the guard is dropped, however it ends.
    pub(super) fn request(self: &Arc<Self>) -> InFlight {
        self.started.fetch_add(1, Relaxed);
        InFlight {
            counting: Arc::clone(self),
            since: Instant::now(),
        }
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    counting: Arc<Counting>,
    since: Instant,
}

impl InFlight {
    pub(super) fn received(&self, bytes: u64) {
        self.counting.bytes.fetch_add(bytes, Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.counting
            .busy_ns
            .fetch_add(self.since.elapsed().as_nanos() as u64, Relaxed);
        self.counting.finished.fetch_add(1, Relaxed);
    }
}

/// The bytes that may be held at once.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    semaphore: Arc<Semaphore>,
    permits: u32,
    counting: Arc<Counting>,
}

/// One permit stands for so many bytes, so that budgets above 4 GiB fit the semaphore's `u32`.
const BYTES_PER_PERMIT: u64 = 4096;

impl ByteBudget {
    pub(super) fn new(max_bytes: u64, counting: Arc<Counting>) -> Self {
        let permits = (max_bytes / BYTES_PER_PERMIT).clamp(1, u64::from(u32::MAX)) as u32;
        Self {
            semaphore: Arc::new(Semaphore::new(permits as usize)),
            permits,
            counting,
        }
    }

    /// Waits until `bytes` may be held. First come, first served, so a large one is not starved by
    /// small ones; one larger than the budget waits for the whole of it and then goes alone.
    pub(crate) async fn take(&self, bytes: u64) -> Arc<HeldBytes> {
        let wanted = bytes
            .div_ceil(BYTES_PER_PERMIT)
            .min(u64::from(self.permits)) as u32;
        let since = Instant::now();
        let permit = Arc::clone(&self.semaphore).acquire_many_owned(wanted).await;
        let permit = permit.expect("the budget's semaphore is never closed");
        self.counting
            .budget_wait_ns
            .fetch_add(since.elapsed().as_nanos() as u64, Relaxed);
        self.counting.held_bytes.fetch_add(bytes, Relaxed);
        Arc::new(HeldBytes {
            _permit: permit,
            bytes,
            counting: Arc::clone(&self.counting),
        })
    }
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
pub(crate) struct HeldBytes {
    _permit: OwnedSemaphorePermit,
    bytes: u64,
    counting: Arc<Counting>,
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.counting.held_bytes.fetch_sub(self.bytes, Relaxed);
    }
}
