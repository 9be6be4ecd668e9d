//! Buckets in memory, and the S3 operations on them.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
// The lint is silent about test builds, where an expectation would be unfulfilled.
#[cfg_attr(
    not(test),
    expect(
        clippy::wildcard_imports,
        reason = "the trait names some dozens of these types"
    )
)]
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::faults::BodyFaults;
use super::lock;

/// One object.
#[derive(Debug, Clone)]
pub struct StoredObject {
    /// Content.
    pub bytes: Bytes,
    /// ETag without quotes; a digest of the content.
    pub e_tag: String,
    /// When it was stored.
    pub modified: SystemTime,
}

impl StoredObject {
    fn new(bytes: Bytes) -> Self {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let e_tag = format!("{:016x}{:016x}", hasher.finish(), bytes.len());
        Self {
            bytes,
            e_tag,
            modified: SystemTime::now(),
        }
    }
}

type Objects = BTreeMap<String, StoredObject>;

#[derive(Debug, Default)]
struct State {
    buckets: HashMap<String, Objects>,
    uploads: HashMap<String, BTreeMap<i32, Bytes>>,
    num_uploads: u64,
}

/// All buckets; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Buckets {
    state: Arc<Mutex<State>>,
}

impl Buckets {
    /// Makes a bucket, if it does not exist.
    pub fn create(&self, bucket: &str) {
        lock(&self.state)
            .buckets
            .entry(bucket.to_owned())
            .or_default();
    }

    /// Stores an object; nothing happens without its bucket.
    pub fn put(&self, bucket: &str, key: &str, bytes: Bytes) {
        if let Some(objects) = lock(&self.state).buckets.get_mut(bucket) {
            objects.insert(key.to_owned(), StoredObject::new(bytes));
        }
    }

    /// Takes an object away, if it is there.
    pub fn remove(&self, bucket: &str, key: &str) {
        if let Some(objects) = lock(&self.state).buckets.get_mut(bucket) {
            objects.remove(key);
        }
    }

    /// An object.
    pub fn get(&self, bucket: &str, key: &str) -> Option<StoredObject> {
        lock(&self.state).buckets.get(bucket)?.get(key).cloned()
    }

    /// Multipart uploads that were begun, and neither completed nor given up.
    pub fn num_unfinished_uploads(&self) -> usize {
        lock(&self.state).uploads.len()
    }

    /// All keys, sorted.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        lock(&self.state)
            .buckets
            .get(bucket)
            .map(|objects| objects.keys().cloned().collect())
            .unwrap_or_default()
    }

    fn find(&self, bucket: &str, key: &str) -> S3Result<StoredObject> {
        let state = lock(&self.state);
        let objects = state
            .buckets
            .get(bucket)
            .ok_or_else(|| s3_error!(NoSuchBucket))?;
        objects
            .get(key)
            .cloned()
            .ok_or_else(|| s3_error!(NoSuchKey))
    }

    /// Stores an object if the conditions hold; all in one step, as S3 promises.
    fn store(
        &self,
        bucket: &str,
        key: &str,
        bytes: Bytes,
        if_match: Option<&IfMatch>,
        if_none_match: Option<&IfNoneMatch>,
    ) -> S3Result<ETag> {
        let mut state = lock(&self.state);
        let objects = state
            .buckets
            .get_mut(bucket)
            .ok_or_else(|| s3_error!(NoSuchBucket))?;
        let existing = objects.get(key);
        let holds = |condition: &ETagCondition| {
            existing.is_some_and(|object| match condition {
                ETagCondition::Any => true,
                ETagCondition::ETag(e_tag) => e_tag.value() == object.e_tag,
            })
        };
        if if_none_match.is_some_and(holds) || if_match.is_some_and(|condition| !holds(condition)) {
            return Err(s3_error!(PreconditionFailed));
        }
        let object = StoredObject::new(bytes);
        let e_tag = ETag::Strong(object.e_tag.clone());
        objects.insert(key.to_owned(), object);
        Ok(e_tag)
    }
}

async fn collect(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(body) = body else {
        return Ok(Bytes::new());
    };
    let collected = body.try_fold(BytesMut::new(), |mut all, part| async move {
        all.extend_from_slice(&part);
        Ok(all)
    });
    collected
        .await
        .map(BytesMut::freeze)
        .map_err(|_| s3_error!(IncompleteBody))
}

/// The body, as far as the faults let it come.
fn body(bytes: Bytes, faults: &BodyFaults) -> StreamingBlob {
    let cut = faults
        .truncate
        .or(faults.stall)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let first = stream::once(std::future::ready(Ok::<_, std::io::Error>(
        bytes.slice(..cut),
    )));
    if faults.truncate.is_some() {
        let end = stream::once(async {
            // Time for what was written to leave before the connection is closed.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            Err(std::io::Error::other("the plan truncates this body"))
        });
        StreamingBlob::wrap(first.chain(end))
    } else if faults.stall.is_some() {
        StreamingBlob::wrap(first.chain(stream::pending()))
    } else {
        StreamingBlob::wrap(first)
    }
}

#[async_trait::async_trait]
impl S3 for Buckets {
    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        self.create(&req.input.bucket);
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn head_object(
        &self,
        req: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.find(&req.input.bucket, &req.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(object.bytes.len() as i64),
            e_tag: Some(ETag::Strong(object.e_tag)),
            last_modified: Some(object.modified.into()),
            accept_ranges: Some("bytes".to_owned()),
            ..HeadObjectOutput::default()
        }))
    }

    async fn get_object(
        &self,
        req: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let faults = req
            .extensions
            .get::<BodyFaults>()
            .cloned()
            .unwrap_or_default();
        let object = self.find(&input.bucket, &input.key)?;
        if let Some(ETagCondition::ETag(expected)) = &input.if_match
            && expected.value() != object.e_tag
        {
            return Err(s3_error!(PreconditionFailed));
        }
        let size = object.bytes.len() as u64;
        // `check` clamps a suffix that is longer than the object.
        let range = match input.range {
            Some(range) if !faults.whole_object => {
                Some(range.check(size).map_err(|_| s3_error!(InvalidRange))?)
            }
            _ => None,
        };
        let bytes = match &range {
            Some(range) => object.bytes.slice(range.start as usize..range.end as usize),
            None => object.bytes,
        };
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(bytes.len() as i64),
            content_range: range
                .map(|range| format!("bytes {}-{}/{size}", range.start, range.end - 1)),
            e_tag: Some(ETag::Strong(object.e_tag)),
            last_modified: Some(object.modified.into()),
            accept_ranges: Some("bytes".to_owned()),
            body: Some(body(bytes, &faults)),
            ..GetObjectOutput::default()
        }))
    }

    async fn put_object(
        &self,
        req: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let mut input = req.input;
        let bytes = collect(input.body.take()).await?;
        let e_tag = self.store(
            &input.bucket,
            &input.key,
            bytes,
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
        )?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(e_tag),
            ..PutObjectOutput::default()
        }))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let mut state = lock(&self.state);
        let objects = state
            .buckets
            .get_mut(&req.input.bucket)
            .ok_or_else(|| s3_error!(NoSuchBucket))?;
        objects.remove(&req.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let mut state = lock(&self.state);
        let objects = state
            .buckets
            .get_mut(&req.input.bucket)
            .ok_or_else(|| s3_error!(NoSuchBucket))?;
        let mut deleted = Vec::new();
        for object in req.input.delete.objects {
            objects.remove(&object.key);
            deleted.push(DeletedObject {
                key: Some(object.key),
                ..DeletedObject::default()
            });
        }
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: Some(deleted),
            ..DeleteObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let state = lock(&self.state);
        let objects = state
            .buckets
            .get(&input.bucket)
            .ok_or_else(|| s3_error!(NoSuchBucket))?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let after = input
            .continuation_token
            .clone()
            .or(input.start_after)
            .unwrap_or_default();
        let max_keys = input.max_keys.unwrap_or(1000).clamp(1, 1000) as usize;
        let mut contents = Vec::new();
        let mut folders = BTreeSet::new();
        let mut last = None;
        let mut truncated = false;
        for (key, object) in objects.range(prefix.clone()..) {
            if !key.starts_with(&prefix) {
                break;
            }
            let folder = input.delimiter.as_deref().and_then(|delimiter| {
                let rest = &key[prefix.len()..];
                rest.find(delimiter)
                    .map(|at| key[..prefix.len() + at + delimiter.len()].to_owned())
            });
            let name = folder.as_ref().unwrap_or(key);
            if *name <= after
                || folder
                    .as_ref()
                    .is_some_and(|folder| folders.contains(folder))
            {
                continue;
            }
            if contents.len() + folders.len() == max_keys {
                truncated = true;
                break;
            }
            last = Some(name.clone());
            match folder {
                Some(folder) => drop(folders.insert(folder)),
                None => contents.push(Object {
                    key: Some(key.clone()),
                    size: Some(object.bytes.len() as i64),
                    e_tag: Some(ETag::Strong(object.e_tag.clone())),
                    last_modified: Some(object.modified.into()),
                    ..Object::default()
                }),
            }
        }
        let key_count = (contents.len() + folders.len()) as i32;
        let folders = folders
            .into_iter()
            .map(|prefix| CommonPrefix {
                prefix: Some(prefix),
            })
            .collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(prefix),
            delimiter: input.delimiter,
            max_keys: Some(max_keys as i32),
            key_count: Some(key_count),
            is_truncated: Some(truncated),
            next_continuation_token: last.filter(|_| truncated),
            contents: Some(contents),
            common_prefixes: Some(folders),
            ..ListObjectsV2Output::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let mut state = lock(&self.state);
        if !state.buckets.contains_key(&req.input.bucket) {
            return Err(s3_error!(NoSuchBucket));
        }
        state.num_uploads += 1;
        let upload_id = format!("upload-{}", state.num_uploads);
        state.uploads.insert(upload_id.clone(), BTreeMap::new());
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(req.input.bucket),
            key: Some(req.input.key),
            upload_id: Some(upload_id),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(
        &self,
        req: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let mut input = req.input;
        let bytes = collect(input.body.take()).await?;
        let e_tag = StoredObject::new(bytes.clone()).e_tag;
        let mut state = lock(&self.state);
        let parts = state
            .uploads
            .get_mut(&input.upload_id)
            .ok_or_else(|| s3_error!(NoSuchUpload))?;
        parts.insert(input.part_number, bytes);
        Ok(S3Response::new(UploadPartOutput {
            e_tag: Some(ETag::Strong(e_tag)),
            ..UploadPartOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let named = input
            .multipart_upload
            .and_then(|upload| upload.parts)
            .unwrap_or_default();
        let mut whole = BytesMut::new();
        {
            let state = lock(&self.state);
            let parts = state
                .uploads
                .get(&input.upload_id)
                .ok_or_else(|| s3_error!(NoSuchUpload))?;
            for part in named {
                let bytes = part.part_number.and_then(|number| parts.get(&number));
                whole.extend_from_slice(bytes.ok_or_else(|| s3_error!(InvalidPart))?);
            }
        }
        let e_tag = self.store(
            &input.bucket,
            &input.key,
            whole.freeze(),
            input.if_match.as_ref(),
            input.if_none_match.as_ref(),
        )?;
        lock(&self.state).uploads.remove(&input.upload_id);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(e_tag),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        lock(&self.state).uploads.remove(&req.input.upload_id);
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}
