//! What the I/O did, counted while it does it, and the budget of bytes held.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// Sum over requests of the time in flight so far, in nanoseconds; over a time, it gives how
    /// many were in flight on average.
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
    requests: Mutex<Flights>,
    bytes: AtomicU64,
    budget_wait_ns: AtomicU64,
    held_bytes: AtomicU64,
    first_byte: CountedLatencies,
}

/// How many requests began and ended, and how long they were in flight until `at`.
#[derive(Debug)]
struct Flights {
    started: u64,
    finished: u64,
    busy_ns: u64,
    at: Instant,
}

impl Default for Flights {
    fn default() -> Self {
        Self {
            started: 0,
            finished: 0,
            busy_ns: 0,
            at: Instant::now(),
        }
    }
}

impl Flights {
    /// Counts the time up to `now`, in which as many were in flight as are.
    fn until(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_nanos() as u64;
        self.busy_ns += (self.started - self.finished) * passed;
        self.at = self.at.max(now);
    }
}

impl Counting {
    /// The requests, counted until now.
    fn flights(&self) -> MutexGuard<'_, Flights> {
        let mut flights = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        flights.until(Instant::now());
        flights
    }

    /// A reading; `range_attempts` counts requests on the wire (0 for local files).
    pub(super) fn read(&self, range_attempts: u64) -> IoCounters {
        let (started, finished, busy_ns) = {
            let flights = self.flights();
            (flights.started, flights.finished, flights.busy_ns)
        };
        IoCounters {
            requests: finished,
            bytes: self.bytes.load(Relaxed),
            retries: range_attempts.saturating_sub(started),
            in_flight: started - finished,
            busy_ns,
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
        self.flights().started += 1;
        InFlight {
            counting: Arc::clone(self),
        }
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    counting: Arc<Counting>,
}

impl InFlight {
    pub(super) fn received(&self, bytes: u64) {
        self.counting.bytes.fetch_add(bytes, Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.counting.flights().finished += 1;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn requests_count_while_they_are_in_flight() {
        let counting = Arc::new(Counting::default());
        let begun = Instant::now();
        let requests = [counting.request(), counting.request()];
        std::thread::sleep(Duration::from_millis(20));
        let during = counting.read(2);
        assert_eq!((during.requests, during.in_flight), (0, 2));
        let most = 2 * begun.elapsed().as_nanos() as u64;
        assert!(
            (40_000_000..=most).contains(&during.busy_ns),
            "{} of {most}",
            during.busy_ns
        );
        drop(requests);
        let after = counting.read(2);
        assert_eq!((after.requests, after.in_flight), (2, 0));
        assert_eq!(counting.read(2).busy_ns, after.busy_ns);
    }
}
