//! One range of an object: asked for again, twice, or for its rest only, until all its bytes have
//! come from one and the same version of the object.
//!
//! - A range is one attempt after another; each goes on where the one before it broke off. They end
//!   when nothing has come for `io.outage_s` seconds (`store::Patience`).
//! - An answer whose first byte is later than usual (95th percentile) is asked for a second time,
//!   and the first to answer wins; at most one request in twenty.
//! - Every wait has a deadline, which follows what is usual for this store.
//! - Each answer proves by ETag (or time of change), size and range that it belongs to the object.
//!
//! All times are tokio's, so that a test can pause the clock. Called by `fetch`.
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::{Either, select};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectStore};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::counters::{self, Counting};
use super::list::ListedObject;
use super::{
    Action, IoConfig, Patience, Silence, StoreCause, StoreError, UnexpectedRange, classify,
    is_throttle, seconds,
};
use crate::Place;
use crate::spans::SPANS_ACROSS_THREADS;

mod limiter;
mod pace;

use limiter::Limiter;
use pace::Pace;

/// An object, and the version of it that every answer must be of.
#[derive(Debug, Clone)]
pub(crate) struct Object {
    /// What was listed.
    pub listed: ListedObject,
    /// The version of the first answer, once there was one.
    version: Option<Version>,
}

/// Tells an object from another one of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    /// ETag, if the store gives one.
    e_tag: Option<String>,
    /// For stores without ETags.
    last_modified_ms: i64,
}

impl Object {
    /// An object that nothing was read of yet.
    pub(crate) fn new(listed: ListedObject) -> Self {
        Self {
            listed,
            version: None,
        }
    }

    /// An object of which something was read before, in that version.
    pub(crate) fn at_version(
        listed: ListedObject,
        e_tag: Option<String>,
        last_modified_ms: i64,
    ) -> Self {
        Self {
            listed,
            version: Some(Version {
                e_tag,
                last_modified_ms,
            }),
        }
    }

    /// When it was last modified, in milliseconds since 1970; once something was read of it.
    pub(crate) fn last_modified_ms(&self) -> Option<i64> {
        self.version
            .as_ref()
            .map(|version| version.last_modified_ms)
    }

    /// Its ETag, if the store gives one.
    pub(crate) fn e_tag(&self) -> Option<&str> {
        self.version.as_ref()?.e_tag.as_deref()
    }

    /// A name of the version, for the cache.
    pub(crate) fn version(&self) -> String {
        match &self.version {
            Some(Version {
                e_tag: Some(e_tag), ..
            }) => e_tag.clone(),
            version => {
                let last_modified_ms = version.as_ref().map_or(0, |known| known.last_modified_ms);
                format!("{} {last_modified_ms}", self.listed.size)
            }
        }
    }

    /// What is expected where another object lies now.
    fn expected(&self) -> String {
        match &self.version {
            Some(Version {
                e_tag: Some(e_tag), ..
            }) => format!("ETag {e_tag}"),
            Some(_) => format!(
                "{} bytes, as last modified when the data set was opened",
                self.listed.size
            ),
            None => format!("{} bytes", self.listed.size),
        }
    }
}

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Requests {
    total: Semaphore,
    counting: Arc<Counting>,
    most_at_once: usize,
    timeout: Duration,
    pace: Pace,
    limiters: Mutex<HashMap<String, Arc<Limiter>>>,
    in_flight: Mutex<BTreeMap<u64, InFlight>>,
    next: AtomicU64,
    /// Bytes received, for the watchdog: by any request.
    received: AtomicU64,
    pub(crate) hedges: AtomicU64,
    pub(crate) hedges_won: AtomicU64,
    pub(crate) resumed: AtomicU64,
    pub(crate) throttled: AtomicU64,
}

/// A range that is being asked for.
#[derive(Debug, Clone)]
struct InFlight {
    object: String,
    range: Range<u64>,
    since: Instant,
    received: u64,
    failures: usize,
}

/// Why an attempt ended early.
enum Failure {
    /// Nothing helps.
    Fatal(StoreError),
    /// Another attempt may help.
    Store(object_store::Error),
    /// Nothing came for so long.
    Silence(Duration),
}

impl Failure {
    /// For the trace, in a word.
    fn name(&self) -> &'static str {
        match self {
            Self::Fatal(_) => "fatal",
            Self::Store(error) if is_throttle(error) => "throttled",
            Self::Store(_) => "refused",
            Self::Silence(_) => "silence",
        }
    }
}

impl Requests {
    pub(super) fn new(io: &IoConfig, most_at_once: usize, counting: Arc<Counting>) -> Self {
        Self {
            total: Semaphore::new(most_at_once),
            counting,
            most_at_once,
            timeout: seconds(io.request_timeout_s).max(Duration::from_millis(1)),
            pace: Pace::default(),
            limiters: Mutex::default(),
            in_flight: Mutex::default(),
            next: AtomicU64::new(0),
            received: AtomicU64::new(0),
            hedges: AtomicU64::new(0),
            hedges_won: AtomicU64::new(0),
            resumed: AtomicU64::new(0),
            throttled: AtomicU64::new(0),
        }
    }

    /// The limiter of an object's folder: stores limit by prefix.
    fn limiter(&self, url: &str) -> Arc<Limiter> {
        let folder = url.rsplit_once('/').map_or(url, |(folder, _)| folder);
        let mut limiters = lock(&self.limiters);
        if let Some(limiter) = limiters.get(folder) {
            return Arc::clone(limiter);
        }
        let limiter = Arc::new(Limiter::new(self.most_at_once));
        limiters.insert(folder.to_owned(), Arc::clone(&limiter));
        limiter
    }

    /// The most requests in flight.
    pub(crate) fn most_at_once(&self) -> usize {
        self.most_at_once
    }

    /// All bytes of a range; all later ones are to be of the same version of the object.
    pub(crate) async fn read_first(
        &self,
        object: &mut Object,
        range: Range<u64>,
    ) -> Result<Bytes, StoreError> {
        let body = self.body(object, range).await?;
        object.version.clone_from(&body.version);
        Ok(body.join())
    }

    /// All bytes of a range, from the very object whose footer was read.
    pub(crate) async fn read(
        &self,
        object: &Object,
        range: Range<u64>,
    ) -> Result<Bytes, StoreError> {
        Ok(self.body(object, range).await?.join())
    }

    async fn body(&self, object: &Object, range: Range<u64>) -> Result<Body, StoreError> {
        let mut body = Body {
            version: object.version.clone(),
            rest: range.clone(),
            chunks: Vec::new(),
        };
        if range.is_empty() {
            return Ok(body);
        }
        let number = self.next.fetch_add(1, Relaxed);
        let _listed = self.list(number, object, &range);
        let limiter = self.limiter(&object.listed.url);
        let mut attempts = object.listed.patience.attempts();
        let mut counted = None;
        loop {
            let before = body.rest.start;
            let failure = {
                let _slot = limiter.acquire().await;
                let _total = self
                    .total
                    .acquire()
                    .await
                    .expect("the semaphore of requests is never closed");
                // Counted from when it is first sent.
                let guard = counted.get_or_insert_with(|| self.counting.request());
                let failures = attempts.failures() as usize;
                let span = tracing::trace_span!(
                    target: SPANS_ACROSS_THREADS,
                    "request",
                    object = &*object.listed.url,
                    from = body.rest.start,
                    to = body.rest.end,
                    attempt = failures + 1,
                    bytes = tracing::field::Empty,
                    failure = tracing::field::Empty,
                );
                let attempt = self.attempt(object, &mut body, failures, number, guard, &span);
                let ended = attempts.run(attempt).await;
                span.record("bytes", body.rest.start - before);
                match ended {
                    Ok(()) => {
                        limiter.went_well();
                        return Ok(body);
                    }
                    Err(failure) => {
                        span.record("failure", failure.name());
                        failure
                    }
                }
            };
            if body.rest.start > before {
                attempts.progress();
                self.resumed.fetch_add(1, Relaxed);
            }
            let error = match failure {
                Failure::Fatal(error) => return Err(error),
                Failure::Store(error) => {
                    if is_throttle(&error) {
                        self.throttled.fetch_add(1, Relaxed);
                        limiter.was_throttled();
                    }
                    error
                }
                Failure::Silence(after) => object_store::Error::Generic {
                    store: "object store",
                    source: Box::new(Silence(after)),
                },
            };
            if let Some(listed) = lock(&self.in_flight).get_mut(&number) {
                listed.failures += 1;
            }
            if let Err(error) = attempts.failed(error).await {
                let place = place(object, &range);
                let error = classify(&error, Action::Read, &object.listed.location, place);
                return Err(match error {
                    StoreError::Replaced { place, .. } => StoreError::Replaced {
                        place,
                        expected: object.expected(),
                    },
                    other => other,
                });
            }
        }
    }

    /// Asks for what is missing and adds what comes.
    async fn attempt(
        &self,
        object: &Object,
        body: &mut Body,
        failures: usize,
        number: u64,
        guard: &counters::InFlight,
        span: &tracing::Span,
    ) -> Result<(), Failure> {
        let deadline = self.pace.deadline(failures, self.timeout);
        let patience: &Patience = &object.listed.patience;
        let until_first_byte =
            tracing::trace_span!(target: SPANS_ACROSS_THREADS, parent: span, "first byte");
        let (version, mut stream) = self
            .open_hedged(object, body.version.as_ref(), body.rest.clone(), deadline)
            .await?;
        drop(until_first_byte);
        body.version = Some(version);
        while !body.rest.is_empty() {
            let chunk = match timeout(deadline, stream.next()).await {
                Err(_) => return Err(Failure::Silence(deadline)),
                Ok(None) => {
                    let got = body.rest.start;
                    return Err(Failure::Store(object_store::Error::Generic {
                        store: "object store",
                        source: Box::new(UnexpectedRange {
                            asked: body.rest.clone(),
                            got: got..got,
                        }),
                    }));
                }
                Ok(Some(Err(error))) => return Err(Failure::Store(error)),
                Ok(Some(Ok(chunk))) => chunk,
            };
            patience.heard();
            guard.received(chunk.len() as u64);
            self.received.fetch_add(chunk.len() as u64, Relaxed);
            body.push(chunk).map_err(|got| {
                let asked = body.rest.clone();
                Failure::Fatal(StoreError::WrongRange {
                    place: place(object, &asked),
                    source: StoreCause::new(&UnexpectedRange { asked, got }),
                })
            })?;
            if let Some(listed) = lock(&self.in_flight).get_mut(&number) {
                listed.received = body.rest.start - listed.range.start;
            }
        }
        Ok(())
    }

    /// The answer to one request, or to a second one where the first is later than usual.
    async fn open_hedged(
        &self,
        object: &Object,
        version: Option<&Version>,
        range: Range<u64>,
        deadline: Duration,
    ) -> Result<Answer, Failure> {
        let started = Instant::now();
        let open = || timeout(deadline, open(object, version, range.clone())).boxed();
        let mut first = open();
        let hedge_after = self.pace.hedge_after().filter(|after| *after < deadline);
        let answer = match hedge_after {
            None => first.await,
            Some(after) => match timeout(after, &mut first).await {
                Ok(answer) => answer,
                Err(_) if self.pace.take_hedge() => {
                    self.hedges.fetch_add(1, Relaxed);
                    let span = tracing::trace_span!(
                        target: SPANS_ACROSS_THREADS,
                        "second request",
                        object = &*object.listed.url,
                        from = range.start,
                        to = range.end,
                        won = tracing::field::Empty,
                    );
                    let (answer, other, second_won) = match select(first, open()).await {
                        Either::Left((answer, other)) => (answer, other, false),
                        Either::Right((answer, other)) => (answer, other, true),
                    };
                    if matches!(answer, Ok(Ok(_))) {
                        span.record("won", second_won);
                        self.hedges_won.fetch_add(u64::from(second_won), Relaxed);
                        answer
                    } else {
                        // One has failed; the other may still answer.
                        other.await
                    }
                }
                Err(_) => first.await,
            },
        };
        let answer = answer.map_err(|_| Failure::Silence(deadline))??;
        let first_byte = started.elapsed();
        self.pace.first_byte(first_byte);
        self.counting.first_byte(first_byte);
        Ok(answer)
    }

    /// Lists a range as being asked for until the result is dropped.
    fn list(&self, number: u64, object: &Object, range: &Range<u64>) -> Listed<'_> {
        let entry = InFlight {
            object: object.listed.url.clone(),
            range: range.clone(),
            since: Instant::now(),
            received: 0,
            failures: 0,
        };
        lock(&self.in_flight).insert(number, entry);
        Listed {
            requests: self,
            number,
        }
    }

    /// Bytes received so far, if any range is being asked for.
    pub(crate) fn progress(&self) -> Option<u64> {
        (!lock(&self.in_flight).is_empty()).then(|| self.received.load(Relaxed))
    }

    /// The range that has been asked for longest, for people.
    pub(crate) fn oldest(&self) -> Option<String> {
        let listed = lock(&self.in_flight);
        let oldest = listed.values().min_by_key(|listed| listed.since)?;
        Some(format!(
            "{}, bytes {} to {}: {:.0} s, {} failures",
            oldest.object,
            oldest.range.start,
            oldest.range.end,
            oldest.since.elapsed().as_secs_f64(),
            oldest.failures
        ))
    }

    /// What is in flight, in detail.
    pub(crate) fn report(&self) -> String {
        let listed: Vec<_> = lock(&self.in_flight).values().cloned().collect();
        let ranges = listed.iter().take(REPORTED).map(|listed| {
            let InFlight {
                object,
                range,
                since,
                received,
                failures,
            } = listed;
            format!(
                "{object}, bytes {} to {}: for {:.1} s, {received} bytes came, {failures} failures",
                range.start,
                range.end,
                since.elapsed().as_secs_f64()
            )
        });
        let more = listed.len().saturating_sub(REPORTED);
        let more = (more > 0).then(|| format!("... and {more} more"));
        let mut limiters: Vec<_> = lock(&self.limiters)
            .iter()
            .map(|(folder, limiter)| (folder.clone(), limiter.window()))
            .collect();
        limiters.sort();
        let windows = limiters.iter().take(REPORTED).map(|(folder, window)| {
            let (most, in_use) = window;
            format!("{folder}: {in_use} of at most {most} requests")
        });
        std::iter::once(format!("{} ranges being asked for", listed.len()))
            .chain(ranges)
            .chain(more)
            .chain(windows)
            .collect::<Vec<_>>()
            .join("\n  ")
    }
}

/// Ranges and folders that a report lists.
const REPORTED: usize = 16;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a range off the list when dropped.
struct Listed<'a> {
    requests: &'a Requests,
    number: u64,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        lock(&self.requests.in_flight).remove(&self.number);
    }
}

/// What has come of a range, and what is missing.
struct Body {
    version: Option<Version>,
    rest: Range<u64>,
    chunks: Vec<Bytes>,
}

impl Body {
    /// Adds what came; more than was asked for is refused and given back as a range.
    fn push(&mut self, chunk: Bytes) -> Result<(), Range<u64>> {
        let end = self.rest.start + chunk.len() as u64;
        if end > self.rest.end {
            return Err(self.rest.start..end);
        }
        self.rest.start = end;
        self.chunks.push(chunk);
        Ok(())
    }

    fn join(mut self) -> Bytes {
        if self.chunks.len() == 1 {
            return self.chunks.remove(0);
        }
        let mut joined = BytesMut::with_capacity(self.chunks.iter().map(Bytes::len).sum());
        for chunk in self.chunks {
            joined.extend_from_slice(&chunk);
        }
        joined.freeze()
    }
}

fn place(object: &Object, range: &Range<u64>) -> Place {
    Place {
        object: object.listed.url.clone(),
        bytes: Some(range.clone()),
        ..Place::default()
    }
}

/// The version that an answer is of, and its body.
type Answer = (Version, BoxStream<'static, object_store::Result<Bytes>>);

/// Sends one request, bound to the object, and checks the head of the answer.
async fn open(
    object: &Object,
    expected: Option<&Version>,
    range: Range<u64>,
) -> Result<Answer, Failure> {
    let options = GetOptions {
        range: Some(GetRange::Bounded(range.clone())),
        if_match: expected.and_then(|version| version.e_tag.clone()),
        ..GetOptions::default()
    };
    let listed = &object.listed;
    let answer = listed
        .single
        .get_opts(&listed.path, options)
        .await
        .map_err(Failure::Store)?;
    let version = Version {
        e_tag: answer.meta.e_tag.clone(),
        last_modified_ms: answer.meta.last_modified.timestamp_millis(),
    };
    // A server may not know If-Match, and has then told us by its headers what it sends.
    let is_same = expected.is_none_or(|expected| match (&expected.e_tag, &version.e_tag) {
        (Some(ours), Some(theirs)) => ours == theirs,
        _ => expected.last_modified_ms == version.last_modified_ms,
    });
    if !is_same || answer.meta.size != listed.size {
        return Err(Failure::Fatal(StoreError::Replaced {
            place: place(object, &range),
            expected: object.expected(),
        }));
    }
    if answer.range != range {
        let what = UnexpectedRange {
            asked: range.clone(),
            got: answer.range.clone(),
        };
        return Err(Failure::Fatal(StoreError::WrongRange {
            place: place(object, &range),
            source: StoreCause::new(&what),
        }));
    }
    let body = match answer.payload {
        GetResultPayload::Stream(stream) => stream,
        // A local file comes in one piece.
        GetResultPayload::File(..) => {
            let bytes = answer.bytes().await.map_err(Failure::Store)?;
            futures::stream::once(async { Ok(bytes) }).boxed()
        }
    };
    Ok((version, body))
}
