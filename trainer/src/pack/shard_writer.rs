//! One Parquet shard, written row group by row group to an object store. The object appears when it is complete.
use std::sync::{Arc, Mutex};

use anyhow::Context;
use arrow::array::{ArrayRef, BinaryArray, Int64Array, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::TryStreamExt;
use nepa_pipeline::{IoRuntime, StoreUrl};
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

/// Requests of one upload in flight.
const MAX_UPLOADS: usize = 4;
/// Size of one part of an upload, in bytes.
const PART_BYTES: usize = 8 << 20;
/// Rows after which the writer looks at a page's size: images are large, its default of 1,024 would mean huge pages.
const ROWS_PER_PAGE_CHECK: usize = 8;

/// One image on its way into a shard.
#[derive(Debug, Clone)]
pub struct PackedImage {
    /// The encoded file, kept as it is.
    pub bytes: Bytes,
    /// Its name.
    pub path: String,
    /// Index of its class.
    pub label: Option<i64>,
}

/// Memory that the Parquet writer fills and the upload empties.
#[derive(Debug, Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().expect("no holder of this lock panics"))
    }
}

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no holder of this lock panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A shard being written.
pub struct ShardWriter {
    runtime: IoRuntime,
    url: String,
    schema: Arc<Schema>,
    writer: ArrowWriter<Sink>,
    sink: Sink,
    upload: Option<WriteMultipart>,
    row_group: Vec<PackedImage>,
    row_group_bytes: u64,
    held_bytes: u64,
    written_bytes: u64,
}

impl ShardWriter {
    /// Starts the shard `name` below `folder`. With `classes`, a column `label` holds indices into them.
    pub fn new(
        runtime: &IoRuntime,
        folder: &StoreUrl,
        name: &str,
        classes: &[String],
        row_group_bytes: u64,
    ) -> anyhow::Result<Self> {
        let classes = (!classes.is_empty()).then_some(("label", classes));
        let mut fields = vec![Field::new("image", DataType::Struct(image_fields()), true)];
        fields.extend(classes.map(|_| Field::new("label", DataType::Int64, true)));
        let features = nepa_schemas::hugging_face_metadata("image", classes);
        let schema = Arc::new(Schema::new(fields));
        let image_bytes = ColumnPath::from("image.bytes".split('.').map(str::to_owned).collect::<Vec<_>>());
        let properties = WriterProperties::builder()
            .set_created_by(format!("nepa {}", env!("CARGO_PKG_VERSION")))
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            // Encoded images do not get smaller; nobody looks for an image by its first bytes.
            .set_column_compression(image_bytes.clone(), Compression::UNCOMPRESSED)
            .set_column_dictionary_enabled(image_bytes.clone(), false)
            .set_column_statistics_enabled(image_bytes, EnabledStatistics::None)
            .set_write_batch_size(ROWS_PER_PAGE_CHECK)
            .set_max_row_group_row_count(None)
            .set_key_value_metadata(Some(vec![KeyValue::new("huggingface".to_owned(), features)]))
            .build();
        let sink = Sink::default();
        let writer = ArrowWriter::try_new(sink.clone(), Arc::clone(&schema), Some(properties))?;
        let url = format!("{}/{name}", folder.url.trim_end_matches('/'));
        let (store, path) = (Arc::clone(&folder.store), folder.path.clone().join(name));
        let upload = runtime
            .block_on(async move { store.put_multipart(&path).await })
            .with_context(|| format!("cannot write {url}"))?;
        Ok(Self {
            runtime: runtime.clone(),
            url,
            schema,
            writer,
            sink,
            upload: Some(WriteMultipart::new_with_chunk_size(upload, PART_BYTES)),
            row_group: Vec::new(),
            row_group_bytes,
            held_bytes: 0,
            written_bytes: 0,
        })
    }

    /// URL of the shard, without secrets.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Adds an image; a row group that has reached its size is written.
    pub fn push(&mut self, image: PackedImage) -> anyhow::Result<()> {
        self.held_bytes += image.bytes.len() as u64;
        self.row_group.push(image);
        if self.held_bytes >= self.row_group_bytes { self.write_row_group() } else { Ok(()) }
    }

    /// Writes the rest and the footer, and makes the object visible. Returns its size in bytes.
    pub fn finish(mut self) -> anyhow::Result<u64> {
        if !self.row_group.is_empty() {
            self.write_row_group()?;
        }
        self.writer.finish()?;
        self.send()?;
        let upload = self.upload.take().expect("an upload until the end");
        self.runtime
            .block_on(async move { upload.finish().await })
            .with_context(|| format!("cannot write {}", self.url))?;
        Ok(self.written_bytes)
    }

    fn write_row_group(&mut self) -> anyhow::Result<()> {
        let images = std::mem::take(&mut self.row_group);
        self.held_bytes = 0;
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(images.iter().map(|image| &image.bytes)));
        let paths: ArrayRef = Arc::new(StringArray::from_iter_values(images.iter().map(|image| &image.path)));
        let image: ArrayRef = Arc::new(StructArray::new(image_fields(), vec![bytes, paths], None));
        let mut columns = vec![image];
        if self.schema.fields().len() > 1 {
            columns.push(Arc::new(images.iter().map(|image| image.label).collect::<Int64Array>()));
        }
        self.writer.write(&RecordBatch::try_new(Arc::clone(&self.schema), columns)?)?;
        self.writer.flush()?;
        self.send()
    }

    fn send(&mut self) -> anyhow::Result<()> {
        let bytes = Bytes::from(self.sink.take());
        self.written_bytes += bytes.len() as u64;
        let mut upload = self.upload.take().expect("an upload until the end");
        let upload = self.runtime.block_on(async move {
            upload.wait_for_capacity(MAX_UPLOADS).await?;
            upload.put(bytes);
            Ok::<_, object_store::Error>(upload)
        });
        self.upload = Some(upload.with_context(|| format!("cannot write {}", self.url))?);
        Ok(())
    }
}

impl Drop for ShardWriter {
    /// An unfinished upload is given up, so that nothing is left in the store.
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            let result = self.runtime.block_on(async move { upload.abort().await });
            if let Err(error) = result {
                tracing::warn!("parts of the unfinished {} may be left in the store: {error}", self.url);
            }
        }
    }
}

fn image_fields() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}

/// Names of the objects right below `folder` that begin with `{split}-`.
pub fn existing_shards(runtime: &IoRuntime, folder: &StoreUrl, splits: &[String]) -> anyhow::Result<Vec<String>> {
    let (store, path) = (Arc::clone(&folder.store), folder.path.clone());
    let listed = runtime
        .block_on(async move { store.list(Some(&path)).try_collect::<Vec<_>>().await })
        .with_context(|| format!("cannot list {}", folder.url))?;
    let mut names = listed
        .iter()
        .filter_map(|object| object.location.filename())
        .filter(|name| splits.iter().any(|split| name.strip_prefix(split.as_str()).is_some_and(|r| r.starts_with('-'))))
        .map(str::to_owned)
        .collect::<Vec<_>>();
    names.sort();
    Ok(names)
}
