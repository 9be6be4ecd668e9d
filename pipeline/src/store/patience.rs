//! How long a store that does not answer is waited for, and what is said meanwhile: one line every
//! ten seconds for each store, however many requests wait.
//!
//! [`Patience`] belongs to a store, [`Attempts`] to one request. A request is repeated until
//! nothing has come for it for `io.outage_s` seconds; what waiting cannot mend ends it at once.
//! `PatientStore` does this for every operation of a store; whoever repeats requests in its own way
//! (`store::request`) uses the two types directly.
//!
//! All times are tokio's, so that a test can pause the clock.
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::cause::{Hope, full_text, hope, plain};
use super::error::WaitedInVain;
use super::redact;

/// Nothing is said about a store that is silent for less, and the next line comes after as long
/// again.
const SAID_EVERY: Duration = Duration::from_secs(10);
/// Longest time from one attempt to the next.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Attempts at a store that has never answered, before its endpoint is taken for wrong.
const FIRST_ATTEMPTS: u32 = 3;

/// How long one store is waited for, and how it is doing, which all requests to it share. Cheap to
/// clone.
#[derive(Debug, Clone)]
pub struct Patience {
    shared: Arc<Shared>,
    limit: Duration,
}

/// The stores in use, by name and endpoint: whoever opens one twice, for data and for outputs,
/// hears of its outage once.
static STORES: LazyLock<Mutex<Stores>> = LazyLock::new(Mutex::default);

type Stores = HashMap<(String, String), Weak<Shared>>;

#[derive(Debug)]
struct Shared {
    name: String,
    state: Mutex<State>,
    answers_again: Notify,
    next: AtomicU64,
}

#[derive(Debug)]
struct State {
    /// Whether it has ever answered: until then, a refused connection is a wrong endpoint.
    begun: bool,
    heard: Instant,
    /// Since when it is silent, once that has been said, and when that was last said.
    silent: Option<(Instant, Instant)>,
    /// What the last attempt that failed says, in plain words.
    cause: Option<String>,
}

impl Patience {
    /// Waits `limit` for the store that people know as `name` (`s3://bucket`).
    pub fn new(name: &str, limit: Duration) -> Self {
        Self {
            limit,
            shared: Arc::new(Shared {
                name: name.to_owned(),
                state: Mutex::new(State {
                    begun: false,
                    heard: Instant::now(),
                    silent: None,
                    cause: None,
                }),
                answers_again: Notify::new(),
                next: AtomicU64::new(0),
            }),
        }
    }

    /// The same for all that use the store `name` at `endpoint` in this process.
    pub(super) fn shared(name: &str, endpoint: &str, limit: Duration) -> Self {
        let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
        stores.retain(|_, store| store.strong_count() > 0);
        let key = (name.to_owned(), endpoint.to_owned());
        if let Some(shared) = stores.get(&key).and_then(Weak::upgrade) {
            return Self { shared, limit };
        }
        let new = Self::new(name, limit);
        stores.insert(key, Arc::downgrade(&new.shared));
        new
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// The attempts of one request.
    pub fn attempts(&self) -> Attempts {
        Attempts {
            patience: self.clone(),
            number: self.shared.next.fetch_add(1, Relaxed),
            waited: Duration::ZERO,
            failures: 0,
        }
    }

    /// Repeats `operation` until it succeeds, cannot be mended by waiting, or nothing has come for
    /// too long.
    pub async fn repeat<T, F>(&self, mut operation: impl FnMut() -> F) -> object_store::Result<T>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut attempts = self.attempts();
        loop {
            match attempts.run(operation()).await {
                Ok(value) => {
                    attempts.progress();
                    return Ok(value);
                }
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    /// Since when the store is silent, once that has been said to the user.
    pub fn silent_for(&self) -> Option<Duration> {
        let (since, _) = self.state().silent?;
        Some(since.elapsed())
    }

    /// The store has answered or sent bytes.
    pub fn heard(&self) {
        let mut state = self.state();
        state.begun = true;
        state.heard = Instant::now();
        state.cause = None;
        if let Some((since, _)) = state.silent.take() {
            drop(state);
            let name = &self.shared.name;
            tracing::warn!("{name} answers again after {} s", since.elapsed().as_secs());
            self.shared.answers_again.notify_waiters();
        }
    }

    /// When the next line is due for a request that has waited since `since`.
    fn next_line(&self, since: Instant) -> Instant {
        let state = self.state();
        let said = state.silent.map_or(state.heard, |(_, said)| said);
        said.max(since) + SAID_EVERY
    }

    /// Says that the store is silent, if that is due. Of many requests that wait only the first
    /// says it.
    fn say(&self, since: Instant) {
        let now = Instant::now();
        let mut state = self.state();
        let begin = state.heard.max(since);
        let (silent_since, said) = state.silent.unwrap_or((begin, begin));
        if now < said.max(since) + SAID_EVERY {
            return;
        }
        state.silent = Some((silent_since, now));
        let cause = match &state.cause {
            Some(cause) => cause.clone(),
            None => "no answer yet".to_owned(),
        };
        drop(state);
        tracing::warn!(
            "{} does not answer ({cause}) for {} s; waiting up to {} s (io.outage_s)",
            self.shared.name,
            (now - silent_since).as_secs(),
            self.limit.as_secs()
        );
    }

    /// Waits for `future`; says every ten seconds if nothing comes from the store meanwhile.
    async fn watch<T>(&self, waited: Duration, future: impl Future<Output = T>) -> T {
        let now = Instant::now();
        let since = now.checked_sub(waited).unwrap_or(now);
        let mut future = std::pin::pin!(future);
        loop {
            tokio::select! {
                biased;
                value = &mut future => return value,
                () = sleep_until(self.next_line(since)) => self.say(since),
            }
        }
    }
}

/// The attempts of one request: how long it has waited, and how often it has failed in a row.
#[derive(Debug)]
pub struct Attempts {
    patience: Patience,
    number: u64,
    /// How long was waited for attempts and between them since something came; not what was spent
    /// in other queues.
    waited: Duration,
    failures: u32,
}

impl Attempts {
    /// Something has come for this request: its time and its failures are counted anew.
    pub fn progress(&mut self) {
        self.waited = Duration::ZERO;
        self.failures = 0;
        self.patience.heard();
    }

    /// Attempts that have failed since something came.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Waits for one attempt, and says what it waits for where that takes long.
    pub async fn run<T>(&mut self, attempt: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let value = self.patience.watch(self.waited, attempt).await;
        self.waited += start.elapsed();
        value
    }

    /// Notes an attempt that failed, and waits until the next may be made. An error, where no
    /// further attempt is to be made: the same, or [`WaitedInVain`] around it.
    pub async fn failed(&mut self, error: object_store::Error) -> object_store::Result<()> {
        self.failures += 1;
        match hope(&error) {
            Hope::None => {
                // The store answers, if not what was hoped for.
                self.patience.heard();
                return Err(error);
            }
            Hope::Later => {}
            Hope::LaterIfBegun => {
                let begun = self.patience.state().begun;
                if !begun && self.failures >= FIRST_ATTEMPTS {
                    return Err(error);
                }
            }
        }
        let (limit, waited) = (self.patience.limit, self.waited);
        if waited >= limit {
            return Err(object_store::Error::Generic {
                store: "object store",
                source: Box::new(WaitedInVain {
                    waited,
                    source: Box::new(error),
                }),
            });
        }
        tracing::debug!(
            "attempt {} failed, waited {waited:?}: {}",
            self.failures,
            redact(&full_text(&error))
        );
        let patience = self.patience.clone();
        patience.state().cause = Some(plain(&error));
        let pause = pause(self.failures, self.number).min(limit.saturating_sub(waited));
        // Once the store answers somebody, all others ask again at once.
        let answers_again = patience.shared.answers_again.notified();
        let _ = self.run(timeout(pause, answers_again)).await;
        Ok(())
    }
}

/// 0.1, 0.2, 0.4, ... seconds, at most 10, between half and all of it.
fn pause(failures: u32, number: u64) -> Duration {
    let full = Duration::from_millis(100) * 2u32.pow(failures.clamp(1, 10) - 1);
    // Spread by the golden ratio, so that requests which failed together do not come back together.
    let share = (number as f64 * 0.618_033_988_749 + f64::from(failures) * 0.27).fract();
    full.min(LONGEST_PAUSE).mul_f64(0.5 + 0.5 * share)
}

#[cfg(all(test, not(nepa_interleavings)))]
#[path = "patience_tests.rs"]
mod tests;
