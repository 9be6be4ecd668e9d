//! One Parquet shard, written row group by row group to an object store. The object appears when it
//! is complete.
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use arrow::datatypes::{DataType, Field, Fields, Schema};
use bytes::Bytes;
use nepa_pipeline::{Action, IoRuntime, Location, Place, StoreError, StoreUrl, classify};
use object_store::{ObjectStoreExt, WriteMultipart};
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::{ColumnWriter, get_column_writer};
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;

use super::PackError;
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
    /// What it is called; a null where it has no name.
    pub path: Option<String>,
    /// Index of its class, or a number of its own.
    pub label: Option<i64>,
}

/// What the column `label` of a shard holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Labels<'a> {
    /// There is no such column.
    Absent,
    /// Numbers.
    Numbers,
    /// Indices into these names.
    Classes(&'a [String]),
}

impl<'a> Labels<'a> {
    /// Those of folders, which have no labels where there are no classes.
    pub(crate) fn of_classes(classes: &'a [String]) -> Self {
        match classes {
            [] => Self::Absent,
            classes => Self::Classes(classes),
        }
    }
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
    /// Starts the shard `name` below `folder`. An `id` is written into the shard, for
    /// [`super::ExistingShard`].
    pub(crate) fn new(
        runtime: &IoRuntime,
        folder: &StoreUrl,
        name: &str,
        id: Option<&str>,
        labels: Labels<'_>,
        row_group_bytes: u64,
    ) -> Result<Self, PackError> {
        let label = match labels {
            Labels::Absent => None,
            Labels::Numbers => Some(("label", None)),
            Labels::Classes(names) => Some(("label", Some(names))),
        };
        let mut fields = vec![Field::new("image", DataType::Struct(image_fields()), true)];
        fields.extend(label.map(|(name, _)| Field::new(name, DataType::Int64, true)));
        let features = nepa_schemas::hugging_face_metadata("image", label);
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
        let url = format!("{}/{name}", folder.url.trim_end_matches('/'));
        let writer = ArrowSchemaConverter::new()
            .convert(&schema)
            .and_then(|columns| {
                let properties = Arc::new(properties);
                SerializedFileWriter::new(sink.clone(), columns.root_schema_ptr(), properties)
            })
            .map_err(|error| unwritable(&url, error))?;
        let (store, path) = (Arc::clone(&folder.store), folder.path.clone().join(name));
        let upload = runtime
            .block_on(async move { store.put_multipart(&path).await })
            .map_err(|error| unsent(&url, &error))?;
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
    pub(crate) fn push(&mut self, image: PackedImage) -> Result<(), PackError> {
        self.held_bytes += image.bytes.len() as u64;
        self.row_group.push(image);
        if self.held_bytes >= self.row_group_bytes {
            self.write_row_group()
        } else {
            Ok(())
        }
    }

    /// Writes these images as a row group of its own.
    pub(crate) fn write(&mut self, images: Vec<PackedImage>) -> Result<(), PackError> {
        self.row_group = images;
        self.write_row_group()
    }

    /// Bytes of the row groups that are written.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Writes the rest and the footer, and makes the object visible. Returns its size in bytes.
    pub(crate) fn finish(mut self) -> Result<u64, PackError> {
        if !self.row_group.is_empty() {
            self.write_row_group()?;
        }
        let finished = self.writer.finish();
        finished.map_err(|error| unwritable(&self.url, error))?;
        self.send()?;
        let upload = self.upload.take().expect("an upload until the end");
        self.runtime
            .block_on(async move { upload.finish().await })
            .map_err(|error| unsent(&self.url, &error))?;
        Ok(self.written_bytes)
    }

    fn write_row_group(&mut self) -> Result<(), PackError> {
        let encoded = self.encode_row_group();
        encoded.map_err(|error| unwritable(&self.url, error))?;
        self.send()
    }

    fn encode_row_group(&mut self) -> Result<(), ParquetError> {
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
                ColumnWriter::ByteArrayColumnWriter(writer) if index == 0 => {
                    let value = |image: &PackedImage| ByteArray::from(image.bytes.clone());
                    let values = images.iter().map(value).collect::<Vec<_>>();
                    writer.write_batch(&values, Some(&levels), None)?;
                }
                ColumnWriter::ByteArrayColumnWriter(writer) => {
                    // The level below says that the image is there and its path is not.
                    for (level, image) in levels.iter_mut().zip(&images) {
                        *level -= i16::from(image.path.is_none());
                    }
                    let paths = images.iter().filter_map(|image| image.path.as_deref());
                    let values = paths.map(ByteArray::from).collect::<Vec<_>>();
                    writer.write_batch(&values, Some(&levels), None)?;
                }
                ColumnWriter::Int64ColumnWriter(writer) => {
                    for (level, image) in levels.iter_mut().zip(&images) {
                        *level -= i16::from(image.label.is_none());
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
        Ok(())
    }

    fn send(&mut self) -> Result<(), PackError> {
        let bytes = Bytes::from(self.sink.take());
        self.written_bytes += bytes.len() as u64;
        let mut upload = self.upload.take().expect("an upload until the end");
        // Given back whatever happens: what has failed is given up by `drop`.
        let (upload, sent) = self.runtime.block_on(async move {
            let sent = upload.wait_for_capacity(MAX_UPLOADS).await;
            if sent.is_ok() {
                upload.put(bytes);
            }
            (upload, sent)
        });
        self.upload = Some(upload);
        sent.map_err(|error| unsent(&self.url, &error))
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

fn unwritable(url: &str, source: ParquetError) -> PackError {
    let url = url.to_owned();
    PackError::Parquet { url, source }
}

fn unsent(url: &str, error: &object_store::Error) -> PackError {
    PackError::Store {
        url: url.to_owned(),
        source: store_error(error, Action::Write, url),
    }
}

/// What a store's error means for the user.
pub(crate) fn store_error(error: &object_store::Error, action: Action, url: &str) -> StoreError {
    let place = Place {
        object: url.to_owned(),
        ..Place::default()
    };
    match Location::parse(url) {
        Ok(location) => classify(error, action, &location, place),
        Err(error) => error,
    }
}

fn image_fields() -> Fields {
    Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ])
}
