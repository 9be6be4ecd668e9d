//! A store whose operations are repeated for as long as its [`Patience`] lasts.
//!
//! - A body that breaks off or falls silent is gone on with where it stopped, from the very object
//!   that it began with.
//! - A listing goes on after the last object that it gave.
//! - Whole objects are put again; what is put on a condition (`PutMode::Create`, `PutMode::Update`)
//!   is left to the caller: where an answer was lost, the condition no longer says who has written.
//! - Parts of an upload are put again one by one. An upload whose completion was answered into the
//!   void is looked at.
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, Extensions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult,
    MultipartId, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio::time::timeout;

use super::cause::Silence;
use super::patience::{Attempts, Patience};

/// A store that takes uploads in parts.
pub trait InParts: MultipartStore + std::fmt::Debug {}

impl<S: MultipartStore + std::fmt::Debug> InParts for S {}

/// See the head of the file.
#[derive(Debug)]
pub(super) struct PatientStore {
    store: Arc<dyn ObjectStore>,
    /// The same, if it takes uploads in parts.
    parts: Option<Arc<dyn InParts>>,
    patience: Patience,
    /// Longest time without a byte of a body.
    silence: Duration,
}

impl PatientStore {
    /// Around `store`, which must not repeat requests itself; `parts` is the same.
    pub(super) fn new(
        store: Arc<dyn ObjectStore>,
        parts: Option<Arc<dyn InParts>>,
        patience: Patience,
        silence: Duration,
    ) -> Self {
        Self {
            store,
            parts,
            patience,
            silence,
        }
    }
}

impl std::fmt::Display for PatientStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.store)
    }
}

#[async_trait]
impl ObjectStore for PatientStore {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        if !matches!(options.mode, PutMode::Overwrite) {
            let mut attempts = self.patience.attempts();
            let put = self.store.put_opts(path, payload, options);
            return attempts.run(put).await.inspect(|_| self.patience.heard());
        }
        let put = || self.store.put_opts(path, payload.clone(), options.clone());
        self.patience.repeat(put).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let Some(parts) = &self.parts else {
            return self.store.put_multipart_opts(path, options).await;
        };
        let begin = || parts.create_multipart_opts(path, options.clone());
        Ok(Box::new(PatientUpload {
            id: self.patience.repeat(begin).await?,
            store: Arc::clone(&self.store),
            parts: Arc::clone(parts),
            patience: self.patience.clone(),
            path: path.clone(),
            written: Arc::default(),
            num_bytes: 0,
        }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let get = || self.store.get_opts(path, options.clone());
        let mut answer = self.patience.repeat(get).await?;
        if let GetResultPayload::Stream(stream) = answer.payload {
            let object = Object {
                store: Arc::clone(&self.store),
                path: path.clone(),
                options: GetOptions {
                    if_match: answer.meta.e_tag.clone().or(options.if_match.clone()),
                    ..options
                },
                meta: answer.meta.clone(),
            };
            let body = Body {
                object,
                attempts: self.patience.attempts(),
                silence: self.silence,
                rest: answer.range.clone(),
                stream: Some(stream),
            };
            answer.payload = GetResultPayload::Stream(body.stream());
        }
        Ok(answer)
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let (store, patience) = (Arc::clone(&self.store), self.patience.clone());
        let delete = move |path: Result<Path>| {
            let (store, patience) = (Arc::clone(&store), patience.clone());
            async move {
                let path = path?;
                patience.repeat(|| store.delete(&path)).await?;
                Ok(path)
            }
        };
        paths.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listing(prefix, None)
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listing(prefix, Some(offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let list = || self.store.list_with_delimiter(prefix);
        self.patience.repeat(list).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let copy = || self.store.copy_opts(from, to, options.clone());
        self.patience.repeat(copy).await
    }
}

impl PatientStore {
    /// All below `prefix`, or what comes after `offset` there.
    fn listing(
        &self,
        prefix: Option<&Path>,
        offset: Option<&Path>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let listing = Listing {
            store: Arc::clone(&self.store),
            attempts: self.patience.attempts(),
            prefix: prefix.cloned(),
            last: offset.cloned(),
            stream: None,
        };
        futures::stream::try_unfold(listing, async |mut listing| {
            Ok(listing.next().await?.map(|meta| (meta, listing)))
        })
        .boxed()
    }
}

/// A listing in progress.
struct Listing {
    store: Arc<dyn ObjectStore>,
    attempts: Attempts,
    prefix: Option<Path>,
    /// The last object that was given.
    last: Option<Path>,
    stream: Option<BoxStream<'static, Result<ObjectMeta>>>,
}

impl Listing {
    async fn next(&mut self) -> Result<Option<ObjectMeta>> {
        loop {
            let (store, prefix, last) = (&self.store, self.prefix.as_ref(), self.last.as_ref());
            let stream = self.stream.get_or_insert_with(|| match last {
                Some(last) => store.list_with_offset(prefix, last),
                None => store.list(prefix),
            });
            match self.attempts.run(stream.try_next()).await {
                Ok(meta) => {
                    self.attempts.progress();
                    if let Some(meta) = &meta {
                        self.last = Some(meta.location.clone());
                    }
                    return Ok(meta);
                }
                Err(error) => {
                    self.stream = None;
                    self.attempts.failed(error).await?;
                }
            }
        }
    }
}

/// What a body is of.
struct Object {
    store: Arc<dyn ObjectStore>,
    path: Path,
    options: GetOptions,
    meta: ObjectMeta,
}

impl Object {
    /// A part of the same object.
    async fn from(&self, range: Range<u64>) -> Result<BoxStream<'static, Result<Bytes>>> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            ..self.options.clone()
        };
        let answer = self.store.get_opts(&self.path, options).await?;
        // A server may not know If-Match.
        let same = match (&self.meta.e_tag, &answer.meta.e_tag) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => answer.meta.last_modified == self.meta.last_modified,
        };
        if !same || answer.meta.size != self.meta.size {
            return Err(Error::Precondition {
                path: self.path.to_string(),
                source: "the object was replaced while it was read".into(),
            });
        }
        Ok(answer.into_stream())
    }
}

/// The body of an answer.
struct Body {
    object: Object,
    attempts: Attempts,
    silence: Duration,
    rest: Range<u64>,
    stream: Option<BoxStream<'static, Result<Bytes>>>,
}

impl Body {
    fn stream(self) -> BoxStream<'static, Result<Bytes>> {
        futures::stream::try_unfold(self, async |mut body| {
            Ok(body.next().await?.map(|bytes| (bytes, body)))
        })
        .boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        while !self.rest.is_empty() {
            let piece = match self.stream.take() {
                Some(stream) => self.piece(stream).await,
                None => match self.attempts.run(self.object.from(self.rest.clone())).await {
                    Ok(stream) => {
                        self.stream = Some(stream);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match piece {
                Ok(bytes) => {
                    self.rest.start += bytes.len() as u64;
                    self.attempts.progress();
                    return Ok(Some(bytes));
                }
                Err(error) => self.attempts.failed(error).await?,
            }
        }
        Ok(None)
    }

    /// The next bytes of the answer, which is kept if there are any.
    async fn piece(&mut self, mut stream: BoxStream<'static, Result<Bytes>>) -> Result<Bytes> {
        let next = timeout(self.silence, stream.next());
        let bytes = match self.attempts.run(next).await {
            Ok(Some(bytes)) => bytes?,
            Ok(None) => return Err(broken_off()),
            Err(_) => {
                return Err(Error::Generic {
                    store: "object store",
                    source: Box::new(Silence(self.silence)),
                });
            }
        };
        self.stream = Some(stream);
        Ok(bytes)
    }
}

fn broken_off() -> Error {
    #[derive(Debug, thiserror::Error)]
    #[error("the answer ends before its bytes do")]
    struct BrokenOff;
    Error::Generic {
        store: "object store",
        source: Box::new(HttpError::new(HttpErrorKind::Decode, BrokenOff)),
    }
}

/// An upload in parts.
#[derive(Debug)]
struct PatientUpload {
    store: Arc<dyn ObjectStore>,
    parts: Arc<dyn InParts>,
    patience: Patience,
    path: Path,
    id: MultipartId,
    /// What was written of each part.
    written: Arc<Mutex<Vec<Option<PartId>>>>,
    num_bytes: u64,
}

impl PatientUpload {
    fn written(&self) -> MutexGuard<'_, Vec<Option<PartId>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl MultipartUpload for PatientUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.num_bytes += data.content_length() as u64;
        let index = self.written().len();
        self.written().push(None);
        let (parts, patience) = (Arc::clone(&self.parts), self.patience.clone());
        let (path, id, written) = (
            self.path.clone(),
            self.id.clone(),
            Arc::clone(&self.written),
        );
        Box::pin(async move {
            let put = || parts.put_part(&path, &id, index, data.clone());
            let part = patience.repeat(put).await?;
            written.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(part);
            Ok(())
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let written: Option<Vec<_>> = self.written().iter().cloned().collect();
        let written = written.ok_or_else(|| Error::Generic {
            store: "object store",
            source: Box::new(MissingPart),
        })?;
        let mut attempts = self.patience.attempts();
        loop {
            let complete = self
                .parts
                .complete_multipart(&self.path, &self.id, written.clone());
            match attempts.run(complete).await {
                Ok(put) => {
                    attempts.progress();
                    return Ok(put);
                }
                // The upload is gone: an attempt before has completed it, and its answer was lost.
                Err(error @ Error::NotFound { .. }) if attempts.failures() > 0 => {
                    let meta = self.patience.repeat(|| self.store.head(&self.path)).await;
                    return match meta {
                        Ok(meta) if meta.size == self.num_bytes => Ok(PutResult {
                            e_tag: meta.e_tag,
                            version: meta.version,
                            extensions: Extensions::default(),
                        }),
                        _ => Err(error),
                    };
                }
                Err(error) => attempts.failed(error).await?,
            }
        }
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.abort_multipart(&self.path, &self.id).await
    }
}

/// An upload was to be completed before all its parts were there.
#[derive(Debug, thiserror::Error)]
#[error("a part of the upload has not been written")]
struct MissingPart;
