//! What all reading of one data set shares: settings, threads, requests, the budget of bytes, the
//! cache, and what they count.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::config::OLD_MAX_RETRIES;
use super::counters::{ByteBudget, Counting};
use super::{Cache, CountingConnector, IoConfig, IoCounters, IoRuntime, Requests, StoreError};

/// Requests for footers in flight, for each that may be in flight later: they are small, and
/// nothing starts before the last of them.
const FOOTERS_AT_ONCE: usize = 8;

/// The means of reading.
#[derive(Debug)]
pub(crate) struct Io {
    pub config: IoConfig,
    pub runtime: IoRuntime,
    pub connector: CountingConnector,
    pub budget: ByteBudget,
    /// For the columns of parts.
    pub requests: Requests,
    /// For footers.
    pub footers: Requests,
    pub cache: Option<Arc<Cache>>,
    counting: Arc<Counting>,
}

impl Io {
    /// Opens the cache, if one is asked for; sends nothing yet.
    pub(crate) fn open(config: &IoConfig, runtime: &IoRuntime) -> Result<Self, StoreError> {
        if config.max_retries.is_some_and(|set| set != OLD_MAX_RETRIES) {
            tracing::warn!(
                "io.max_retries has no effect any more: requests are repeated for io.outage_s \
                 ({} s)",
                config.outage_s
            );
        }
        let cache = match &config.cache_dir {
            Some(folder) => Some(Arc::new(Cache::open(folder, config.cache_bytes)?)),
            None => None,
        };
        let counting = Arc::new(Counting::default());
        let at_once = config.max_requests.max(1);
        let footers_at_once = at_once.saturating_mul(FOOTERS_AT_ONCE);
        Ok(Self {
            config: config.clone(),
            runtime: runtime.clone(),
            connector: CountingConnector::default(),
            budget: ByteBudget::new(config.max_bytes, Arc::clone(&counting)),
            requests: Requests::new(config, at_once, Arc::clone(&counting)),
            footers: Requests::new(config, footers_at_once, Arc::clone(&counting)),
            cache,
            counting,
        })
    }

    /// What was done so far.
    pub(crate) fn counters(&self) -> IoCounters {
        let both = |of: fn(&Requests) -> &AtomicU64| {
            of(&self.requests).load(Relaxed) + of(&self.footers).load(Relaxed)
        };
        let cached = |of: fn(&Cache) -> &AtomicU64| {
            let cache = self.cache.as_ref();
            cache.map_or(0, |cache| of(cache).load(Relaxed))
        };
        let attempts = self.connector.counters.range_attempts.load(Relaxed);
        IoCounters {
            hedges: both(|requests| &requests.hedges),
            hedges_won: both(|requests| &requests.hedges_won),
            resumed: both(|requests| &requests.resumed),
            throttled: both(|requests| &requests.throttled),
            cache_hits: cached(|cache| &cache.hits),
            cache_hit_bytes: cached(|cache| &cache.hit_bytes),
            cache_damaged: cached(|cache| &cache.damaged),
            ..self.counting.read(attempts)
        }
    }

    /// What is in flight now, in detail: ranges with their age and failures, windows of requests,
    /// bytes held.
    pub(crate) fn report(&self) -> String {
        let counters = self.counters();
        format!(
            "{}\n  {} bytes held of at most {}; {} requests done, {} bytes received",
            self.requests.report(),
            counters.held_bytes,
            self.config.max_bytes,
            counters.requests,
            counters.bytes
        )
    }
}
