//! Writing one object, at once or in parts, over a line of any speed: how many parts are in flight
//! and how long one may take follow what was measured. A failed request is repeated for as long as
//! its [`Persistence`] wants; an upload that is dropped in the middle goes on where it was. Used
//! for checkpoints and by `nepa pack`.
use crate::console::messages::quoted_path;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use nepa_pipeline::{InParts, StoreUrl};
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::{MultipartId, ObjectStoreExt};

/// Size of a part: the least that S3 takes, so that a part passes over a slow line in a reasonable
/// time.
const PART_BYTES: u64 = 5 << 20;
/// Most parts of one object (S3 takes 10,000); larger objects have larger parts.
const MOST_PARTS: u64 = 9_000;
/// Most parts in flight.
const MOST_IN_FLIGHT: usize = 4;
/// A part that takes less makes room for another beside it; one that takes longer than `SLOW_PART`
/// is sent alone.
const FAST_PART: Duration = Duration::from_secs(5);
const SLOW_PART: Duration = Duration::from_secs(30);
/// Least time that a request is given.
const LEAST_LIMIT: Duration = Duration::from_secs(30);
/// Bytes a second of the slowest line that uploads work on.
const SLOWEST_LINE: f64 = 20e3;

/// Decides after a failed request whether it is repeated.
pub(crate) trait Persistence: Send + Sync {
    /// Waits until the next attempt may be made, or gives the error back.
    fn failed(&self, error: object_store::Error) -> BoxFuture<'_, object_store::Result<()>>;

    /// A request has succeeded; so many bytes of an object have arrived with it.
    fn succeeded(&self, bytes: u64);
}

/// Repeats an operation for as long as `persistence` wants, each attempt within the time for so
/// many bytes.
pub(crate) async fn repeat<T, F>(
    persistence: &dyn Persistence,
    limit: Duration,
    bytes: u64,
    mut operation: impl FnMut() -> F,
) -> object_store::Result<T>
where
    F: Future<Output = object_store::Result<T>>,
{
    loop {
        match within(limit, operation()).await {
            Ok(value) => {
                persistence.succeeded(bytes);
                return Ok(value);
            }
            // Nothing there is an answer.
            Err(error @ object_store::Error::NotFound { .. }) => return Err(error),
            Err(error) => persistence.failed(error).await?,
        }
    }
}

/// An operation that has to be done in time.
pub(crate) async fn within<T>(
    limit: Duration,
    operation: impl Future<Output = object_store::Result<T>>,
) -> object_store::Result<T> {
    match tokio::time::timeout(limit, operation).await {
        Ok(result) => result,
        Err(_) => Err(object_store::Error::Generic {
            store: "object store",
            source: Box::new(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("no answer within {} s", limit.as_secs()),
            )),
        }),
    }
}

/// How fast a store takes parts; shared by all uploads to it.
#[derive(Debug)]
pub(crate) struct Pace {
    in_flight: AtomicUsize,
    /// Milliseconds that the last part took for each MiB; 0 before the first.
    ms_per_mib: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            in_flight: AtomicUsize::new(1),
            ms_per_mib: AtomicU64::new(0),
        }
    }
}

impl Pace {
    /// Most time for a request with so many bytes: ten times what it should take by what was
    /// measured, and what it takes on the slowest line where nothing was.
    pub(crate) fn limit(&self, bytes: u64) -> Duration {
        let slowest = LEAST_LIMIT + Duration::from_secs_f64(bytes as f64 / SLOWEST_LINE);
        match self.ms_per_mib.load(Relaxed) {
            0 => slowest,
            measured => {
                let expected = measured as f64 * bytes as f64 / f64::from(1 << 20);
                Duration::from_secs_f64(expected / 100.0).clamp(LEAST_LIMIT, slowest)
            }
        }
    }

    fn part_took(&self, bytes: u64, took: Duration) {
        let mib = (bytes as f64 / f64::from(1 << 20)).max(0.1);
        let ms_per_mib = (took.as_secs_f64() * 1e3 / mib).max(1.0);
        self.ms_per_mib.store(ms_per_mib as u64, Relaxed);
        let in_flight = self.in_flight.load(Relaxed);
        if took > SLOW_PART {
            self.in_flight.store(1, Relaxed);
        } else if took < FAST_PART && in_flight < MOST_IN_FLIGHT {
            self.in_flight.store(in_flight + 1, Relaxed);
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }
}

/// What is written.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    /// A file of this length, which does not change.
    File(PathBuf, u64),
    /// Bytes in memory.
    Bytes(Bytes),
}

impl Body {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::File(_, length) => *length,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }

    fn read(&self, start: u64, length: u64) -> object_store::Result<Bytes> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.slice(start as usize..(start + length) as usize)),
            Self::File(path, _) => {
                let read = || {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(start))?;
                    let mut bytes = vec![0; length as usize];
                    file.read_exact(&mut bytes)?;
                    Ok::<_, std::io::Error>(bytes.into())
                };
                read().map_err(|source| object_store::Error::Generic {
                    store: "local file",
                    source: Box::new(LocalFile {
                        path: path.clone(),
                        source,
                    }),
                })
            }
        }
    }
}

/// A file that is to be sent cannot be read, which no waiting mends.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", quoted_path(path))]
pub(crate) struct LocalFile {
    path: PathBuf,
    source: std::io::Error,
}

/// Whether a file that was to be sent cannot be read.
pub(crate) fn is_local(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::Generic { source, .. } if source.is::<LocalFile>())
}

/// The parts of an object that have arrived.
struct Parts {
    store: Arc<dyn InParts>,
    id: MultipartId,
    arrived: Vec<Option<PartId>>,
}

/// One object on its way.
pub(crate) struct Upload {
    place: StoreUrl,
    path: Path,
    body: Body,
    part_bytes: u64,
    pace: Arc<Pace>,
    parts: Option<Parts>,
}

impl Upload {
    pub(crate) fn new(place: &StoreUrl, path: Path, body: Body, pace: &Arc<Pace>) -> Self {
        Self {
            place: place.clone(),
            path,
            part_bytes: PART_BYTES.max(body.len().div_ceil(MOST_PARTS)),
            body,
            pace: Arc::clone(pace),
            parts: None,
        }
    }

    /// Sends the parts of a large object, those that have not arrived yet. Nobody sees it before
    /// [`Self::finish`].
    pub(crate) async fn send_parts(
        &mut self,
        persistence: &dyn Persistence,
    ) -> object_store::Result<()> {
        let (Some(store), true) = (&self.place.parts, self.body.len() > self.part_bytes) else {
            return Ok(());
        };
        if self.parts.is_none() {
            let limit = self.pace.limit(0);
            let begin = || store.create_multipart(&self.path);
            let count = self.body.len().div_ceil(self.part_bytes) as usize;
            self.parts = Some(Parts {
                store: Arc::clone(store),
                id: repeat(persistence, limit, 0, begin).await?,
                arrived: vec![None; count],
            });
        }
        let Some(Parts { store, id, arrived }) = &mut self.parts else {
            return Ok(());
        };
        let (body, pace, path, part_bytes) = (&self.body, &self.pace, &self.path, self.part_bytes);
        let (store, id) = (&*store, &*id);
        let send = async |index: usize| {
            let start = index as u64 * part_bytes;
            let bytes = body.read(start, part_bytes.min(body.len() - start))?;
            let started = Instant::now();
            let length = bytes.len() as u64;
            let attempt = || store.put_part(path, id, index, bytes.clone().into());
            let part = repeat(persistence, pace.limit(length), length, attempt).await?;
            pace.part_took(length, started.elapsed());
            Ok::<_, object_store::Error>((index, part))
        };
        let missing = arrived
            .iter()
            .enumerate()
            .filter(|(_, part)| part.is_none());
        let mut missing = missing
            .map(|(index, _)| index)
            .collect::<Vec<_>>()
            .into_iter();
        let mut in_flight = FuturesUnordered::new();
        loop {
            while in_flight.len() < pace.in_flight()
                && let Some(index) = missing.next()
            {
                in_flight.push(send(index));
            }
            match in_flight.next().await {
                None => return Ok(()),
                Some(Ok((index, part))) => arrived[index] = Some(part),
                Some(Err(error @ object_store::Error::NotFound { .. })) => {
                    drop(in_flight);
                    // The store knows nothing of this upload any more; the next attempt begins
                    // anew.
                    self.parts = None;
                    return Err(error);
                }
                Some(Err(error)) => return Err(error),
            }
        }
    }

    /// Makes the object visible.
    pub(crate) async fn finish(
        &mut self,
        persistence: &dyn Persistence,
    ) -> object_store::Result<()> {
        let length = self.body.len();
        let store = &self.place.single;
        let Some(Parts {
            store: parts,
            id,
            arrived,
        }) = &self.parts
        else {
            let bytes = self.body.read(0, length)?;
            let put = || store.put(&self.path, bytes.clone().into());
            return repeat(persistence, self.pace.limit(length), length, put)
                .await
                .map(drop);
        };
        let arrived = arrived.iter().flatten().cloned().collect::<Vec<_>>();
        let limit = self.pace.limit(self.part_bytes);
        let complete = || parts.complete_multipart(&self.path, id, arrived.clone());
        match repeat(persistence, limit, 0, complete).await {
            Ok(_) => {}
            Err(error @ object_store::Error::NotFound { .. }) => {
                // Perhaps the answer to an attempt was lost that had succeeded.
                let there = within(limit, store.head(&self.path)).await;
                if !there.is_ok_and(|object| object.size == length) {
                    self.parts = None;
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        self.parts = None;
        Ok(())
    }

    /// Gives the parts up that have arrived, so that nobody pays for them.
    pub(crate) async fn abort(&mut self) -> object_store::Result<()> {
        match self.parts.take() {
            Some(parts) => parts.store.abort_multipart(&self.path, &parts.id).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_over_the_slowest_line_has_time_and_a_frozen_store_is_seen_soon() {
        let pace = Pace::default();
        assert!(pace.limit(PART_BYTES).as_secs_f64() > PART_BYTES as f64 / SLOWEST_LINE);
        assert_eq!(pace.limit(0), LEAST_LIMIT);
        // 300 kB/s.
        pace.part_took(PART_BYTES, Duration::from_secs(17));
        assert!((150..200).contains(&pace.limit(PART_BYTES).as_secs()));
        assert_eq!(pace.in_flight(), 1);
        // A fast line again: more at once, and less patience.
        for _ in 0..9 {
            pace.part_took(PART_BYTES, Duration::from_millis(50));
        }
        assert_eq!(pace.in_flight(), MOST_IN_FLIGHT);
        assert_eq!(pace.limit(PART_BYTES), LEAST_LIMIT);
        pace.part_took(PART_BYTES, Duration::from_secs(31));
        assert_eq!(pace.in_flight(), 1);
    }
}
