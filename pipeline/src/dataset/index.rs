//! The index of a data set: all that opening needs of its shards, in one file, so that no listing
//! and no footer is asked for. Written from an opened data set.
//!
//! It is a Parquet file with a row for each shard, in their order, and a [`Head`] in its key-value
//! metadata. `url` is the number of the URL in the head that names the shard, `key` its path in the
//! store; `size`, `e_tag` and `modified_ms` tell which version of it was read. `footer` is its
//! footer, with the columns that are read alone, and `schema` one without row groups and with all
//! columns, which decide what is read: null where it is that of the row before. Both are encoded as
//! at the end of a Parquet file. `pages` are the bytes of its page indexes, as far as they were
//! needed, from `pages_start` on.
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, LargeBinaryArray, RecordBatch, StringArray, UInt32Array,
    UInt64Array,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, UInt32Type, UInt64Type};
use bytes::Bytes;
use crc32fast::Hasher;
use futures::{StreamExt, TryStreamExt};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    KeyValue, ParquetMetaData, ParquetMetaDataReader, ParquetMetaDataWriter,
};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::config::Origin;
use super::footer::known_shard;
use super::reading::{FileSchema, Readings, Unreadable};
use super::{IndexProblem, LeaveOut, Shard};
use crate::store::list::known_object;
use crate::store::places::UrlPlace;
use crate::store::{Io, Object};
use crate::{DatasetError, Place};

/// The key of the head.
const HEAD: &str = "nepa.index";
/// Of the format; another one is refused.
const VERSION: u32 = 1;
/// Rows that are encoded and decoded together.
const ROWS: usize = 1024;
/// Threads that decode, at most. Below the runtime's own limit, as each may wait for a local file.
const MOST_THREADS: usize = 8;
/// The length of a footer and its magic, behind it.
const TAIL_BYTES: usize = 8;

/// What an index is of.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    version: u32,
    /// Without secrets.
    urls: Vec<String>,
    split: Option<String>,
    shards: u64,
    /// Of all that the rows hold, but for what is there for people.
    crc32: u32,
}

/// What is read of a head of any version.
#[derive(Debug, Deserialize)]
struct AnyHead {
    version: u32,
}

/// The index of shards that were opened from one place.
pub(super) fn encode(origin: &Origin, shards: &[Shard]) -> Result<Bytes, ParquetError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_dictionary_enabled(false)
        .build();
    let schema = schema();
    let mut writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties))?;
    let mut checksum = Hasher::new();
    let mut last = None;
    let urls = origin.urls.iter().map(String::as_str).zip(0..);
    let urls = urls.collect::<HashMap<_, _>>();
    for shards in shards.chunks(ROWS) {
        let batch = batch(&urls, shards, &schema, &mut last)?;
        let rows = Rows::of(&batch).expect("the columns that were just made");
        rows.add_to(&mut checksum);
        writer.write(&batch)?;
    }
    let head = Head {
        version: VERSION,
        urls: origin.urls.clone(),
        split: origin.split.clone(),
        shards: shards.len() as u64,
        crc32: checksum.finalize(),
    };
    let head = serde_json::to_string(&head).expect("a head is plain data");
    writer.append_key_value_metadata(KeyValue::new(HEAD.to_owned(), head));
    Ok(writer.into_inner()?.into())
}

fn schema() -> SchemaRef {
    let field = |name: &str, data_type| Field::new(name, data_type, false);
    let optional = |name: &str, data_type| Field::new(name, data_type, true);
    Arc::new(Schema::new(vec![
        field("url", DataType::UInt32),
        field("key", DataType::Utf8),
        field("size", DataType::UInt64),
        optional("e_tag", DataType::Utf8),
        field("modified_ms", DataType::Int64),
        field("rows", DataType::UInt64),
        field("row_groups", DataType::UInt32),
        optional("schema", DataType::LargeBinary),
        field("footer", DataType::LargeBinary),
        optional("pages_start", DataType::UInt64),
        optional("pages", DataType::LargeBinary),
    ]))
}

/// Rows of the index; `urls` has their numbers, `last` is the schema of the row before.
fn batch<'a>(
    urls: &HashMap<&str, u32>,
    shards: &'a [Shard],
    schema: &SchemaRef,
    last: &mut Option<&'a Arc<FileSchema>>,
) -> Result<RecordBatch, ParquetError> {
    let (mut footers, mut schemas) = (Vec::new(), Vec::new());
    for shard in shards {
        let metadata = shard.metadata.metadata();
        // Its page indexes go beside it, in the bytes of the file.
        let about = metadata.file_metadata().clone();
        let row_groups = metadata.row_groups().to_vec();
        footers.push(encoded(&ParquetMetaData::new(about, row_groups))?);
        let file = &shard.reading.file;
        let is_known = last.is_some_and(|last| Arc::ptr_eq(last, file));
        schemas.push(if is_known {
            None
        } else {
            Some(encoded(&file.footer)?)
        });
        *last = Some(file);
    }
    let object = |shard: &'a Shard| &shard.object;
    let url = |shard: &Shard| {
        let url = shard.object.listed.location.display();
        let number = urls.get(url.as_str()).copied();
        number.expect("a shard comes from one of the URLs")
    };
    let rows = |shard: &Shard| -> u64 {
        let rows = shard.parts.iter().map(|part| u64::from(part.num_rows));
        rows.sum()
    };
    let row_groups = |shard: &Shard| shard.metadata.metadata().num_row_groups() as u32;
    let key = |shard: &'a Shard| -> &'a str { object(shard).listed.path.as_ref() };
    let keys = shards.iter().map(key);
    let e_tags = shards.iter().map(|shard| object(shard).e_tag());
    let modified = |shard| object(shard).last_modified_ms().unwrap_or_default();
    let pages = |shard: &'a Shard| shard.pages.as_ref();
    let starts = shards.iter().map(|shard| Some(pages(shard)?.0));
    let bytes = shards.iter().map(|shard| Some(&pages(shard)?.1[..]));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(shards.iter().map(url))),
        Arc::new(StringArray::from_iter_values(keys)),
        Arc::new(UInt64Array::from_iter_values(
            shards.iter().map(|shard| shard.size),
        )),
        Arc::new(e_tags.collect::<StringArray>()),
        Arc::new(Int64Array::from_iter_values(shards.iter().map(modified))),
        Arc::new(UInt64Array::from_iter_values(shards.iter().map(rows))),
        Arc::new(UInt32Array::from_iter_values(shards.iter().map(row_groups))),
        Arc::new(
            schemas
                .iter()
                .map(Option::as_deref)
                .collect::<LargeBinaryArray>(),
        ),
        Arc::new(LargeBinaryArray::from_iter_values(&footers)),
        Arc::new(starts.collect::<UInt64Array>()),
        Arc::new(bytes.collect::<LargeBinaryArray>()),
    ];
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// A footer as at the end of a file.
fn encoded(footer: &ParquetMetaData) -> Result<Vec<u8>, ParquetError> {
    let mut bytes = Vec::new();
    ParquetMetaDataWriter::new(&mut bytes, footer).finish()?;
    Ok(bytes)
}

fn decoded(bytes: &[u8]) -> Result<ParquetMetaData, ParquetError> {
    let end = bytes.len().saturating_sub(TAIL_BYTES);
    ParquetMetaDataReader::decode_metadata(&bytes[..end])
}

/// Rows as they are read.
#[derive(Debug)]
struct Rows {
    url: UInt32Array,
    key: StringArray,
    size: UInt64Array,
    e_tag: StringArray,
    modified_ms: Int64Array,
    schema: LargeBinaryArray,
    footer: LargeBinaryArray,
    pages_start: UInt64Array,
    pages: LargeBinaryArray,
}

impl Rows {
    /// Those of a batch; `None` where its columns are others.
    fn of(batch: &RecordBatch) -> Option<Self> {
        let text = |name| Some(batch.column_by_name(name)?.as_string_opt::<i32>()?.clone());
        let bytes = |name| Some(batch.column_by_name(name)?.as_binary_opt::<i64>()?.clone());
        let number = |name| {
            let column = batch.column_by_name(name)?;
            Some(column.as_primitive_opt::<UInt64Type>()?.clone())
        };
        let url = batch.column_by_name("url")?;
        let modified_ms = batch.column_by_name("modified_ms")?;
        Some(Self {
            url: url.as_primitive_opt::<UInt32Type>()?.clone(),
            key: text("key")?,
            size: number("size")?,
            e_tag: text("e_tag")?,
            modified_ms: modified_ms.as_primitive_opt::<Int64Type>()?.clone(),
            schema: bytes("schema")?,
            footer: bytes("footer")?,
            pages_start: number("pages_start")?,
            pages: bytes("pages")?,
        })
    }

    fn len(&self) -> usize {
        self.key.len()
    }

    fn add_to(&self, checksum: &mut Hasher) {
        for row in 0..self.len() {
            let pages = self.pages(row);
            let numbers = [
                u64::from(self.url.value(row)),
                self.size.value(row),
                self.modified_ms.value(row) as u64,
                pages.map_or(0, |(start, _)| start),
            ];
            for number in numbers {
                checksum.update(&number.to_le_bytes());
            }
            let texts = [
                Some(self.key.value(row).as_bytes()),
                self.e_tag(row).map(str::as_bytes),
                self.schema(row),
                Some(self.footer.value(row)),
                pages.map(|(_, bytes)| bytes),
            ];
            for text in texts {
                // No bytes are told apart from none.
                let length = text.map_or(0, |text| text.len() as u64 + 1);
                checksum.update(&length.to_le_bytes());
                checksum.update(text.unwrap_or_default());
            }
        }
    }

    fn e_tag(&self, row: usize) -> Option<&str> {
        self.e_tag.is_valid(row).then(|| self.e_tag.value(row))
    }

    fn schema(&self, row: usize) -> Option<&[u8]> {
        self.schema.is_valid(row).then(|| self.schema.value(row))
    }

    fn pages(&self, row: usize) -> Option<(u64, &[u8])> {
        let is_there = self.pages.is_valid(row) && self.pages_start.is_valid(row);
        is_there.then(|| (self.pages_start.value(row), self.pages.value(row)))
    }
}

/// Rows with the schema of each.
struct Chunk {
    rows: Rows,
    schemas: Vec<Arc<FileSchema>>,
}

/// What all chunks are opened with.
struct Means {
    io: Arc<Io>,
    places: Vec<UrlPlace>,
    readings: Readings,
    /// The index, without secrets; none where it came from another process.
    index: Option<String>,
}

/// The shards that an index describes, as opening what it is of would give them. The store is asked
/// for nothing, but for page indexes that opening did not need when it was written.
pub(super) async fn open(
    bytes: Bytes,
    origin: &Origin,
    places: Vec<UrlPlace>,
    readings: Readings,
    io: &Arc<Io>,
) -> Result<Vec<Shard>, DatasetError> {
    let means = Arc::new(Means {
        io: Arc::clone(io),
        places,
        readings,
        index: origin.index.clone(),
    });
    let rows = read(bytes, origin).map_err(|problem| means.error(problem))?;
    let chunks = chunks(rows, &means.readings).map_err(|problem| means.error(problem))?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let opened = futures::stream::iter(chunks).map(|chunk| {
        let means = Arc::clone(&means);
        let shards = move || Handle::current().block_on(chunk.shards(&means));
        tokio::task::spawn_blocking(shards)
    });
    opened
        .buffered(threads.min(MOST_THREADS))
        .map(|shards| shards.expect("decoding an index does not panic"))
        .try_concat()
        .await
}

/// All rows of an index, if it is whole and of this data set.
fn read(bytes: Bytes, origin: &Origin) -> Result<Vec<Rows>, IndexProblem> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(IndexProblem::damaged)?;
    let about = reader.metadata().file_metadata().key_value_metadata();
    let mut heads = about.into_iter().flatten().filter(|pair| pair.key == HEAD);
    let head = heads.find_map(|pair| pair.value.as_deref());
    let head = head.ok_or(IndexProblem::NoIndex)?;
    let Ok(AnyHead { version }) = serde_json::from_str(head) else {
        return Err(IndexProblem::NoIndex);
    };
    if version != VERSION {
        return Err(IndexProblem::Version {
            found: version,
            known: VERSION,
        });
    }
    let head: Head = serde_json::from_str(head).map_err(|_| IndexProblem::NoIndex)?;
    let indexed = Origin {
        urls: head.urls,
        split: head.split,
        index: None,
    };
    if (&indexed.urls, &indexed.split) != (&origin.urls, &origin.split) {
        return Err(IndexProblem::OtherData {
            indexed: indexed.to_string(),
            asked: origin.to_string(),
        });
    }
    let batches = reader.with_batch_size(ROWS).build();
    let batches = batches.map_err(IndexProblem::damaged)?;
    let (mut all, mut checksum) = (Vec::new(), Hasher::new());
    let mut shards = 0;
    for batch in batches {
        let batch = batch.map_err(|error| IndexProblem::damaged(error.into()))?;
        let rows = Rows::of(&batch).ok_or(IndexProblem::NoIndex)?;
        rows.add_to(&mut checksum);
        shards += rows.len() as u64;
        all.push(rows);
    }
    if shards != head.shards || shards == 0 || checksum.finalize() != head.crc32 {
        return Err(IndexProblem::Checksum);
    }
    Ok(all)
}

/// Rows with the schema of each, which may stand in one before.
fn chunks(all: Vec<Rows>, readings: &Readings) -> Result<Vec<Chunk>, IndexProblem> {
    let mut last = None;
    let mut chunks = Vec::with_capacity(all.len());
    for rows in all {
        let mut schemas = Vec::with_capacity(rows.len());
        for row in 0..rows.len() {
            if let Some(schema) = rows.schema(row) {
                let schema = decoded(schema).map_err(IndexProblem::damaged)?;
                last = Some(readings.schema(&schema));
            }
            schemas.push(last.clone().ok_or(IndexProblem::NoIndex)?);
        }
        chunks.push(Chunk { rows, schemas });
    }
    Ok(chunks)
}

impl Means {
    fn error(&self, source: IndexProblem) -> DatasetError {
        let index = self.index.as_deref().unwrap_or("of another process");
        DatasetError::Index {
            index: index.to_owned(),
            source,
        }
    }

    /// What it means that page indexes cannot be read.
    fn read_error(&self, error: DatasetError) -> DatasetError {
        match (error, &self.index) {
            (DatasetError::Store(error), Some(index)) => DatasetError::by_index(error, index),
            (error, _) => error,
        }
    }

    fn unreadable(&self, why: Unreadable, object: &Object) -> DatasetError {
        match why {
            Unreadable::Schema(source) => DatasetError::Schema {
                place: Place {
                    object: object.listed.url.clone(),
                    ..Place::default()
                },
                source: Box::new(source),
                leave_out: LeaveOut::Nothing,
            },
            Unreadable::Parquet(source) => self.error(IndexProblem::damaged(source)),
            Unreadable::Missing(column) => self.error(IndexProblem::Column {
                column: column.to_string(),
            }),
        }
    }
}

impl Chunk {
    async fn shards(self, means: &Means) -> Result<Vec<Shard>, DatasetError> {
        let Self { rows, schemas } = self;
        let mut shards = Vec::with_capacity(schemas.len());
        for (row, file) in schemas.iter().enumerate() {
            let place = means.places.get(rows.url.value(row) as usize);
            let place = place.ok_or_else(|| means.error(IndexProblem::NoIndex))?;
            let listed = known_object(place, rows.key.value(row), rows.size.value(row))?;
            let (e_tag, modified_ms) = (rows.e_tag(row), rows.modified_ms.value(row));
            let object = Object::at_version(listed, e_tag.map(str::to_owned), modified_ms);
            let damaged = |source| means.error(IndexProblem::damaged(source));
            let footer = decoded(rows.footer.value(row)).map_err(damaged)?;
            let stored = means.readings.schema(&footer);
            let reading = means
                .readings
                .reading(file, &stored, &object.listed.path)
                .map_err(|why| means.unreadable(why, &object))?;
            let pages = rows.pages(row);
            let pages = pages.map(|(start, bytes)| (start, Bytes::copy_from_slice(bytes)));
            let shard = known_shard(object, reading, footer, pages, &means.io).await;
            shards.push(shard.map_err(|error| means.read_error(error))?);
        }
        Ok(shards)
    }
}

#[cfg(all(test, not(nepa_interleavings)))]
#[path = "index_tests.rs"]
mod tests;
