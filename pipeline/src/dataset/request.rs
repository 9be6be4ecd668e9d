//! One range of an object: asked for again, twice, or for its rest only, until all its bytes have come from the very object whose footer was read.
//!
//! - A range is one attempt after another; each goes on where the one before it broke off. They end when nothing has come for `io.outage_s` seconds (`store::Patience`).
//! - An answer whose first byte is later than usual (95th percentile) is asked for a second time, and the first to answer wins; at most one request in twenty.
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

use super::IoConfig;
use super::counters;
use super::footer::ShardReader;
use crate::DatasetError;
use crate::error::{Action, Place, StoreCause, UnexpectedRange};
use crate::store::{Patience, Silence, classify, is_throttle, seconds};

mod limiter;
mod pace;

use limiter::Limiter;
use pace::Pace;

/// What all requests share.
#[derive(Debug)]
pub(super) struct Requests {
    total: Semaphore,
    most_at_once: usize,
    timeout: Duration,
    pace: Pace,
    limiters: Mutex<HashMap<String, Arc<Limiter>>>,
    in_flight: Mutex<BTreeMap<u64, InFlight>>,
    next: AtomicU64,
    /// Bytes received, for the watchdog: by any request.
    received: AtomicU64,
    pub(super) hedges: AtomicU64,
    pub(super) hedges_won: AtomicU64,
    pub(super) resumed: AtomicU64,
    pub(super) throttled: AtomicU64,
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
    Fatal(DatasetError),
    /// Another attempt may help.
    Store(object_store::Error),
    /// Nothing came for so long.
    Silence(Duration),
}

impl Requests {
    pub(super) fn new(io: &IoConfig) -> Self {
        let most_at_once = io.max_requests.max(1);
        Self {
            total: Semaphore::new(most_at_once),
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

    /// All bytes of a range, from the very object whose footer was read.
    pub(super) async fn read(
        &self,
        reader: &ShardReader,
        range: Range<u64>,
    ) -> Result<Bytes, DatasetError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let number = self.next.fetch_add(1, Relaxed);
        let _listed = self.list(number, reader, &range);
        let limiter = self.limiter(&reader.object.url);
        let mut body = Body {
            rest: range.clone(),
            chunks: Vec::new(),
        };
        let mut attempts = reader.object.patience.attempts();
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
                let guard = counted.get_or_insert_with(|| reader.counting.request());
                let failures = attempts.failures() as usize;
                let attempt = self.attempt(reader, &mut body, failures, number, guard);
                match attempts.run(attempt).await {
                    Ok(()) => {
                        limiter.went_well();
                        return Ok(body.join(&range));
                    }
                    Err(failure) => failure,
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
                let place = place(reader, &range);
                let error = classify(&error, Action::Read, &reader.object.location, place);
                return Err(name_the_object(error, reader));
            }
        }
    }

    /// Asks for what is missing and adds what comes.
    async fn attempt(
        &self,
        reader: &ShardReader,
        body: &mut Body,
        failures: usize,
        number: u64,
        guard: &counters::InFlight,
    ) -> Result<(), Failure> {
        let deadline = self.pace.deadline(failures, self.timeout);
        let patience: &Patience = &reader.object.patience;
        let mut stream = self
            .open_hedged(reader, body.rest.clone(), deadline)
            .await?;
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
                Failure::Fatal(DatasetError::WrongRange {
                    place: place(reader, &asked),
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
        reader: &ShardReader,
        range: Range<u64>,
        deadline: Duration,
    ) -> Result<BoxStream<'static, object_store::Result<Bytes>>, Failure> {
        let started = Instant::now();
        let open = || timeout(deadline, open(reader, range.clone())).boxed();
        let mut first = open();
        let hedge_after = self.pace.hedge_after().filter(|after| *after < deadline);
        let answer = match hedge_after {
            None => first.await,
            Some(after) => match timeout(after, &mut first).await {
                Ok(answer) => answer,
                Err(_) if self.pace.take_hedge() => {
                    self.hedges.fetch_add(1, Relaxed);
                    let (answer, other, second_won) = match select(first, open()).await {
                        Either::Left((answer, other)) => (answer, other, false),
                        Either::Right((answer, other)) => (answer, other, true),
                    };
                    if matches!(answer, Ok(Ok(_))) {
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
        let stream = answer.map_err(|_| Failure::Silence(deadline))??;
        self.pace.first_byte(started.elapsed());
        Ok(stream)
    }

    /// Lists a range as being asked for until the result is dropped.
    fn list(&self, number: u64, reader: &ShardReader, range: &Range<u64>) -> Listed<'_> {
        let entry = InFlight {
            object: reader.object.url.clone(),
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
    pub(super) fn progress(&self) -> Option<u64> {
        (!lock(&self.in_flight).is_empty()).then(|| self.received.load(Relaxed))
    }

    /// The range that has been asked for longest, for people.
    pub(super) fn oldest(&self) -> Option<String> {
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
    pub(super) fn report(&self) -> String {
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

    fn join(mut self, range: &Range<u64>) -> Bytes {
        if self.chunks.len() == 1 {
            return self.chunks.remove(0);
        }
        let mut joined = BytesMut::with_capacity((range.end - range.start) as usize);
        for chunk in self.chunks {
            joined.extend_from_slice(&chunk);
        }
        joined.freeze()
    }
}

fn place(reader: &ShardReader, range: &Range<u64>) -> Place {
    Place {
        object: reader.object.url.clone(),
        bytes: Some(range.clone()),
        ..Place::default()
    }
}

/// Says which object was expected where another one lies now.
fn name_the_object(error: DatasetError, reader: &ShardReader) -> DatasetError {
    match error {
        DatasetError::Replaced { place, .. } => DatasetError::Replaced {
            place,
            expected: match &reader.e_tag {
                Some(e_tag) => format!("ETag {e_tag}"),
                None => format!(
                    "{} bytes, as last modified when the data set was opened",
                    reader.object.size
                ),
            },
        },
        other => other,
    }
}

/// Sends one request, bound to the object, and checks the head of the answer.
async fn open(
    reader: &ShardReader,
    range: Range<u64>,
) -> Result<BoxStream<'static, object_store::Result<Bytes>>, Failure> {
    let object = &reader.object;
    let options = GetOptions {
        range: Some(GetRange::Bounded(range.clone())),
        if_match: reader.e_tag.clone(),
        ..GetOptions::default()
    };
    let answer = object
        .single
        .get_opts(&object.path, options)
        .await
        .map_err(Failure::Store)?;
    // A server may not know If-Match, and has then told us by its headers what it sends.
    let same_version = match (&reader.e_tag, &answer.meta.e_tag) {
        (Some(ours), Some(theirs)) => ours == theirs,
        _ => answer.meta.last_modified.timestamp_millis() == reader.last_modified_ms,
    };
    if !same_version || answer.meta.size != object.size {
        let replaced = DatasetError::Replaced {
            place: place(reader, &range),
            expected: String::new(),
        };
        return Err(Failure::Fatal(name_the_object(replaced, reader)));
    }
    if answer.range != range {
        let what = UnexpectedRange {
            asked: range.clone(),
            got: answer.range.clone(),
        };
        return Err(Failure::Fatal(DatasetError::WrongRange {
            place: place(reader, &range),
            source: StoreCause::new(&what),
        }));
    }
    Ok(match answer.payload {
        GetResultPayload::Stream(stream) => stream,
        // A local file comes in one piece.
        GetResultPayload::File(..) => {
            let bytes = answer.bytes().await.map_err(Failure::Store)?;
            futures::stream::once(async { Ok(bytes) }).boxed()
        }
    })
}
