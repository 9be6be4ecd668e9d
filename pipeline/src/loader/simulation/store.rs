//! A store in memory whose answers are late, broken off, refused or lost, as its seed says. All its
//! times are simulated.
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
};
use rand_chacha::ChaCha8Rng;

use crate::random::{below, unit};

/// How the store misbehaves: probabilities for each answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults {
    /// Shortest and longest time to the first byte, in milliseconds.
    pub latency_ms: (u64, u64),
    /// Longest time between two pieces of a body, in milliseconds.
    pub piece_ms: u64,
    /// 503 `SlowDown`.
    pub throttled: f64,
    /// 500, and connections that are reset.
    pub refused: f64,
    /// No answer at all.
    pub lost: f64,
    /// A body that ends early, with an error or without one.
    pub cut: f64,
    /// A body in which nothing comes any more.
    pub stuck: f64,
    /// From this answer on, counted over all: another object lies there, or none.
    pub changed: Option<(u64, Change)>,
}

/// What happens to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Replaced,
    Deleted,
    /// Each request to it is refused for good.
    Refused,
}

#[derive(Debug)]
struct State {
    rng: ChaCha8Rng,
    answers: u64,
    log: Vec<String>,
}

/// The store; clones share it.
#[derive(Debug, Clone)]
pub(super) struct FaultyStore {
    objects: Arc<InMemory>,
    faults: Faults,
    /// The object that [`Faults::changed`] is about.
    victim: Path,
    state: Arc<Mutex<State>>,
}

/// What one answer will be.
#[derive(Debug)]
struct Fate {
    latency: Duration,
    fault: Option<Fault>,
    /// Length of the body's pieces, and the time before each.
    pieces: Vec<(u64, Duration)>,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Throttled,
    Refused,
    Lost,
    /// After so many bytes; with an error or without one.
    Cut(u64, bool),
    /// After so many bytes.
    Stuck(u64),
}

fn refused(text: &str) -> Error {
    Error::Generic {
        store: "simulated",
        source: text.into(),
    }
}

impl FaultyStore {
    pub(super) fn new(
        objects: Arc<InMemory>,
        faults: Faults,
        victim: Path,
        rng: ChaCha8Rng,
    ) -> Self {
        let state = State {
            rng,
            answers: 0,
            log: Vec::new(),
        };
        Self {
            objects,
            faults,
            victim,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// Each request with its fate, in order: the same for the same seed.
    pub(super) fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    fn fate(&self, length: u64) -> Fate {
        let mut state = self.state.lock().unwrap();
        let rng = &mut state.rng;
        let (least, most) = self.faults.latency_ms;
        let latency = Duration::from_millis(least + below(rng, most - least + 1));
        let Faults {
            throttled,
            refused,
            lost,
            cut,
            stuck,
            ..
        } = self.faults;
        let mut chance = unit(rng);
        let place = below(rng, length.max(1));
        let with_error = unit(rng) < 0.5;
        let faults = [
            (throttled, Fault::Throttled),
            (refused, Fault::Refused),
            (lost, Fault::Lost),
            (cut, Fault::Cut(place, with_error)),
            (stuck, Fault::Stuck(place)),
        ];
        let mut fault = None;
        for (probability, kind) in faults {
            if chance < probability {
                fault = Some(kind);
                break;
            }
            chance -= probability;
        }
        let mut pieces = Vec::new();
        let mut rest = length;
        while rest > 0 {
            let piece = 1 + below(rng, rest);
            let after = Duration::from_millis(below(rng, self.faults.piece_ms + 1));
            pieces.push((piece, after));
            rest -= piece;
        }
        Fate {
            latency,
            fault,
            pieces,
        }
    }

    /// Changes the victim when its time has come; whether requests to it are refused for good.
    async fn change(&self, path: &Path) -> Result<bool> {
        let number = {
            let mut state = self.state.lock().unwrap();
            state.answers += 1;
            state.answers
        };
        let Some((at, change)) = self.faults.changed else {
            return Ok(false);
        };
        if number == at {
            match change {
                Change::Replaced => {
                    let old = self.objects.get(&self.victim).await?.bytes().await?;
                    let new: Vec<u8> = old.iter().map(|byte| !byte).collect();
                    self.objects.put(&self.victim, new.into()).await?;
                }
                Change::Deleted => self.objects.delete(&self.victim).await?,
                Change::Refused => {}
            }
        }
        Ok(change == Change::Refused && number >= at && *path == self.victim)
    }
}

impl std::fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("simulated")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let refused_for_good = self.change(path).await?;
        let answer = self.objects.get_opts(path, options).await;
        let range = answer.as_ref().map_or(0..0, |answer| answer.range.clone());
        let fate = self.fate(range.end - range.start);
        self.state
            .lock()
            .unwrap()
            .log
            .push(format!("{path} {range:?} {fate:?}"));
        tokio::time::sleep(fate.latency).await;
        let mut answer = answer?;
        if refused_for_good {
            return Err(refused("500 Internal Server Error"));
        }
        let stops_at = match fate.fault {
            Some(Fault::Throttled) => return Err(refused("503 Service Unavailable: SlowDown")),
            Some(Fault::Refused) => return Err(refused("connection reset by peer")),
            Some(Fault::Lost) => return std::future::pending().await,
            Some(Fault::Cut(at, _) | Fault::Stuck(at)) => at,
            None => u64::MAX,
        };
        let bytes = match answer.payload {
            GetResultPayload::Stream(stream) => {
                let pieces: Vec<_> = stream.collect().await;
                pieces.into_iter().collect::<Result<Vec<_>>>()?.concat()
            }
            GetResultPayload::File(..) => unreachable!("the objects lie in memory"),
        };
        let bytes = Bytes::from(bytes);
        let mut at = 0;
        let mut pieces: Vec<(Duration, Result<Bytes>)> = Vec::new();
        for (length, after) in fate.pieces {
            let end = (at + length).min(stops_at);
            if end > at {
                pieces.push((after, Ok(bytes.slice(at as usize..end as usize))));
            }
            at = end;
        }
        if matches!(fate.fault, Some(Fault::Cut(_, true))) {
            pieces.push((Duration::ZERO, Err(refused("connection closed"))));
        }
        let body = stream::iter(pieces).then(|(after, piece)| async move {
            tokio::time::sleep(after).await;
            piece
        });
        answer.payload = GetResultPayload::Stream(match fate.fault {
            Some(Fault::Stuck(_)) => body.chain(stream::pending()).boxed(),
            _ => body.boxed(),
        });
        Ok(answer)
    }

    async fn put_opts(&self, path: &Path, data: PutPayload, how: PutOptions) -> Result<PutResult> {
        self.objects.put_opts(path, data, how).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(path, how).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, how).await
    }
}
