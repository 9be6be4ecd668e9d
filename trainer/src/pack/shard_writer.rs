//! One Parquet shard, written row group by row group to an object store. The object appears when it
//! is complete.
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use arrow::datatypes::{DataType, Field, Fields, Schema};
use bytes::Bytes;
use nepa_pipeline::{Action, IoRuntime, Location, Place, StoreUrl, classify};
use object_store::{ObjectStoreExt, WriteMultipart};
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::{ColumnWriter, get_column_writer};
use parquet::data_type::ByteArray;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;

use super::checksummed_pages::ChecksummedPages;

/// The key of a shard's id among the file's key-value metadata.
pub(super) const SHARD_ID: &str = "nepa.shard_id";
/// Requests of one upload in flight.
const MAX_UPLOADS: usize = 4;
/// Size of one part of an upload, in bytes.
const PART_BYTES: usize = 8 << 20;
/// Rows after which the writer looks at a page's size: images are large, its default of 1,024 would
/// mean huge pages.
const ROWS_PER_PAGE_CHECK: usize = 8;

/// One image on its way into a shard.
#[derive(Debug, Clone)]
pub(crate) struct PackedImage {
    /// The encoded file, kept as it is.
    pub bytes: Bytes,
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
        self.0
            .lock()
            .expect("no holder of this lock panics")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A shard being written.
pub(crate) struct ShardWriter {
    runtime: IoRuntime,
    url: String,
    writer: SerializedFileWriter<Sink>,
    sink: Sink,
    upload: Option<WriteMultipart>,
    row_group: Vec<PackedImage>,
    row_group_bytes: u64,
    held_bytes: u64,
    written_bytes: u64,
}

impl ShardWriter {
    /// Starts the shard `name` below `folder`. With `classes`, a column `label` holds indices into
    /// them. An `id` is written into the shard, for [`super::ExistingShard`].
    pub(crate) fn new(
        runtime: &IoRuntime,
        folder: &StoreUrl,
        name: &str,
        id: Option<&str>,
        classes: &[String],
        row_group_bytes: u64,
    ) -> anyhow::Result<Self> {
        let classes = (!classes.is_empty()).then_some(("label", classes));
        let mut fields = vec![Field::new("image", DataType::Struct(image_fields()), true)];
        fields.extend(classes.map(|_| Field::new("label", DataType::Int64, true)));
        let features = nepa_schemas::hugging_face_metadata("image", classes);
        // Readers by way of Arrow (pyarrow and with it `datasets`) look for metadata in the Arrow
        // schema, others beside it.
        let metadata = HashMap::from([("huggingface".to_owned(), features.clone())]);
        let schema = Schema::new_with_metadata(fields, metadata);
        let image_bytes = ColumnPath::from(
            "image.bytes"
                .split('.')
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        );
        let mut entries = vec![KeyValue::new("huggingface".to_owned(), features)];
        entries.extend(id.map(|id| KeyValue::new(SHARD_ID.to_owned(), id.to_owned())));
        let mut properties = WriterProperties::builder()
            .set_created_by(format!("nepa {}", env!("CARGO_PKG_VERSION")))
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            // Encoded images do not get smaller; nobody looks for an image by its first bytes.
            .set_column_compression(image_bytes.clone(), Compression::UNCOMPRESSED)
            .set_column_dictionary_enabled(image_bytes.clone(), false)
            .set_column_statistics_enabled(image_bytes, EnabledStatistics::None)
            .set_write_batch_size(ROWS_PER_PAGE_CHECK)
            .set_key_value_metadata(Some(entries))
            .build();
        let sink = Sink::default();
        add_encoded_arrow_schema_to_metadata(&schema, &mut properties);
        let columns = ArrowSchemaConverter::new().convert(&schema)?;
        let writer = SerializedFileWriter::new(
            sink.clone(),
            columns.root_schema_ptr(),
            Arc::new(properties),
        )?;
        let url = format!("{}/{name}", folder.url.trim_end_matches('/'));
        let (store, path) = (Arc::clone(&folder.store), folder.path.clone().join(name));
        let upload = runtime
            .block_on(async move { store.put_multipart(&path).await })
            .map_err(|error| store_error(&error, Action::Write, &url))
            .with_context(|| format!("cannot write {url}"))?;
        Ok(Self {
            runtime: runtime.clone(),
            url,
            writer,
            sink,
            upload: Some(WriteMultipart::new_with_chunk_size(upload, PART_BYTES)),
            row_group: Vec::new(),
            row_group_bytes,
            held_bytes: 0,
            written_bytes: 0,
        })
    }

    /// Adds an image; a row group that has reached its size is written.
    pub(crate) fn push(&mut self, image: PackedImage) -> anyhow::Result<()> {
        self.held_bytes += image.bytes.len() as u64;
        self.row_group.push(image);
        if self.held_bytes >= self.row_group_bytes {
            self.write_row_group()
        } else {
            Ok(())
        }
    }

    /// Writes the rest and the footer, and makes the object visible. Returns its size in bytes.
    pub(crate) fn finish(mut self) -> anyhow::Result<u64> {
        if !self.row_group.is_empty() {
            self.write_row_group()?;
        }
        self.writer.finish()?;
        self.send()?;
        let upload = self.upload.take().expect("an upload until the end");
        self.runtime
            .block_on(async move { upload.finish().await })
            .map_err(|error| store_error(&error, Action::Write, &self.url))
            .with_context(|| format!("cannot write {}", self.url))?;
        Ok(self.written_bytes)
    }

    fn write_row_group(&mut self) -> anyhow::Result<()> {
        let images = std::mem::take(&mut self.row_group);
        self.held_bytes = 0;
        let columns = self.writer.schema_descr().columns().to_vec();
        let properties = Arc::clone(self.writer.properties());
        let mut row_group = self.writer.next_row_group()?;
        for (index, column) in columns.into_iter().enumerate() {
            let all = column.max_def_level();
            let mut levels = vec![all; images.len()];
            let mut chunk = Vec::new();
            let pages = Box::new(ChecksummedPages::new(&mut chunk));
            let mut writer = get_column_writer(column, Arc::clone(&properties), pages);
            match &mut writer {
                ColumnWriter::ByteArrayColumnWriter(writer) => {
                    let value = |image: &PackedImage| match index {
                        0 => ByteArray::from(image.bytes.clone()),
                        _ => ByteArray::from(image.path.as_str()),
                    };
                    let values = images.iter().map(value).collect::<Vec<_>>();
                    writer.write_batch(&values, Some(&levels), None)?;
                }
                ColumnWriter::Int64ColumnWriter(writer) => {
                    for (level, image) in levels.iter_mut().zip(&images) {
                        *level = if image.label.is_some() { all } else { 0 };
                    }
                    let values = images
                        .iter()
                        .filter_map(|image| image.label)
                        .collect::<Vec<_>>();
                    writer.write_batch(&values, Some(&levels), None)?;
                }
                _ => unreachable!("the columns are the image's bytes, its path and its label"),
            }
            let closed = writer.close()?;
            row_group.append_column(&Bytes::from(chunk), closed)?;
        }
        row_group.close()?;
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
        let upload = upload.map_err(|error| store_error(&error, Action::Write, &self.url));
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
                tracing::warn!(
                    "parts of the unfinished {} may be left in the store: {error}",
                    self.url
                );
            }
        }
    }
}

/// What a store's error means for the user.
pub(crate) fn store_error(error: &object_store::Error, action: Action, url: &str) -> anyhow::Error {
    let place = Place {
        object: url.to_owned(),
        ..Place::default()
    };
    match Location::parse(url) {
        Ok(location) => classify(error, action, &location, place).into(),
        Err(error) => error.into(),
    }
}

fn image_fields() -> Fields {
    Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ])
}
