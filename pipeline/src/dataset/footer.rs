//! A shard's footer: read in one request as a rule, and every way it can be wrong told apart. Which
//! parts its row groups are read in is `parts`.
use std::ops::Range;
use std::sync::Arc;

use arrow::array::AsArray;
use bytes::Bytes;
use nepa_schemas::{ColumnPath, SchemaError};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::Encoding;
use parquet::errors::ParquetError;
use parquet::file::metadata::{
    ColumnChunkMask, ColumnChunkMetaData, FooterTail, PageIndexPolicy, ParquetMetaData,
    ParquetMetaDataReader, RowGroupMetaData,
};
use parquet::file::statistics::Statistics;

use super::pieces::Pieces;
use super::reading::{Reading, Readings, Unreadable, with_views};
use super::reduced::{Columns, Selection};
use super::shard::ROW_BYTES;
use super::{Beginning, LeaveOut, Part, Shard, beginning, parts};
use crate::store::list::ListedObject;
use crate::store::{Io, Object, Requests};
use crate::{DatasetError, Place, StoreError};

/// Read at the end of each object; most footers fit, and it is less than one round trip's worth.
const TAIL_BYTES: u64 = 64 << 10;
/// The footer's length and its magic.
const FOOTER_TAIL_BYTES: usize = 8;

/// What is read at most of a column, to see one of its values.
const VALUE_BYTES: u64 = 1 << 20;
/// Rows in which a value is looked for.
const VALUE_ROWS: usize = 16;

/// Reads an object's footer and resolves its schema; `None` of an object without rows, whose schema
/// says nothing.
pub(super) async fn read_shard(
    object: ListedObject,
    readings: &Readings,
    io: &Io,
) -> Result<Option<Shard>, DatasetError> {
    let mut reader = FooterReader {
        object: Object::new(object),
        requests: &io.footers,
        pages: None,
    };
    let file = reader.metadata().await?;
    if file.row_groups().iter().all(|group| group.num_rows() == 0) {
        return Ok(None);
    }
    let schema = readings.schema(&file);
    let reading = match readings.reading(&schema, &schema, &reader.object.listed.path) {
        Ok(reading) => reading,
        Err(Unreadable::Schema(source)) => {
            let source = Box::new(reader.with_value(source, &file, &schema.columns).await);
            return Err(DatasetError::Schema {
                place: reader.place(),
                source,
                leave_out: LeaveOut::Nothing,
            });
        }
        Err(Unreadable::Parquet(source)) => return Err(bad_footer(source, reader.place())),
        Err(Unreadable::Missing(_)) => unreachable!("this footer has all columns of its schema"),
    };
    reader
        .shard(reading, file, io.config.part_bytes)
        .await
        .map(Some)
}

/// The shard of a footer that is at hand, with `pages`, where its page indexes begin and their
/// bytes, as far as these are. The object is asked for what is missing.
pub(super) async fn known_shard(
    object: Object,
    reading: Arc<Reading>,
    file: ParquetMetaData,
    pages: Option<(u64, Bytes)>,
    io: &Io,
) -> Result<Shard, DatasetError> {
    let reader = FooterReader {
        object,
        requests: &io.footers,
        pages,
    };
    reader.shard(reading, file, io.config.part_bytes).await
}

/// Tells what is not supported from what is damaged.
fn bad_footer(source: ParquetError, place: Place) -> DatasetError {
    match unsupported(&source) {
        Some(feature) => DatasetError::Unsupported { place, feature },
        None => DatasetError::BadFooter { place, source },
    }
}

/// The feature that the reader lacks, if that is what its error says.
pub(super) fn unsupported(error: &dyn std::error::Error) -> Option<String> {
    let text = error.to_string();
    // Errors of pages come as text inside of others; a value that an enumeration does not have is
    // that of a newer format.
    let lacks = |mark: &str| {
        text.find(mark)
            .map(|start| text[start + mark.len()..].to_owned())
    };
    lacks("NYI: ")
        .or_else(|| lacks("Unexpected Encoding ").map(|code| format!("encoding {code}")))
        .or_else(|| lacks("Unexpected CompressionCodec ").map(|code| format!("codec {code}")))
        .or_else(|| lacks("Unexpected Type ").map(|code| format!("physical type {code}")))
        .or_else(|| lacks("Unexpected ConvertedType ").map(|code| format!("converted type {code}")))
}

/// Rows of a row group without an image in any of these columns; `None` where the footer does not
/// tell.
fn num_absent(row_group: &RowGroupMetaData, images: &[usize]) -> Option<u64> {
    let num_rows = u64::try_from(row_group.num_rows()).ok()?;
    let nulls = images.iter().map(|&leaf| num_nulls(row_group.column(leaf)));
    let nulls = nulls.collect::<Option<Vec<_>>>()?;
    if nulls.contains(&0) {
        return Some(0);
    }
    // Which rows of two columns are null together is not known.
    let mut filled = nulls.into_iter().filter(|&nulls| nulls != num_rows);
    match (filled.next(), filled.next()) {
        (None, _) => Some(num_rows),
        (Some(nulls), None) => Some(nulls),
        (Some(_), Some(_)) => None,
    }
}

/// Rows of a column chunk that are null, it or what it lies in; `None` where the footer does not
/// count them.
fn num_nulls(column: &ColumnChunkMetaData) -> Option<u64> {
    let most = column.column_descr().max_def_level();
    if most == 0 {
        return Some(0);
    }
    if column.column_descr().max_rep_level() > 0 {
        // Of lists, these are elements and lists without any.
        return None;
    }
    let statistics = column.statistics();
    statistics.and_then(Statistics::null_count_opt).or_else(|| {
        let levels = column.definition_level_histogram()?.values();
        let nulls: i64 = levels.get(..usize::try_from(most).ok()?)?.iter().sum();
        u64::try_from(nulls).ok()
    })
}

/// Rows that are read of a part without a question.
const MOST_ROWS: u32 = 1 << 20;

/// Refuses parts with more rows than can be images: each takes memory, however little of it is
/// stored.
fn check_rows(parts: &[Part], reader: &FooterReader<'_>) -> Result<(), DatasetError> {
    let too_many = |info: &&Part| {
        info.num_samples() > 0
            && info.num_rows > MOST_ROWS
            && u64::from(info.num_rows) > info.fetch_bytes
    };
    match parts.iter().find(too_many) {
        None => Ok(()),
        Some(info) => Err(DatasetError::TooManyRows {
            place: Place {
                row_group: Some(info.row_group as usize),
                ..reader.place()
            },
            num_rows: u64::from(info.num_rows),
            num_bytes: info.fetch_bytes,
            most: u64::from(MOST_ROWS),
        }),
    }
}

/// Sizes and byte ranges of the projected columns, checked against the object's size.
fn row_groups(
    metadata: &ParquetMetaData,
    projection: &ProjectionMask,
    absent: impl Fn(&RowGroupMetaData) -> Option<u64>,
    reader: &FooterReader<'_>,
) -> Result<Vec<Part>, DatasetError> {
    let mut parts = Vec::with_capacity(metadata.num_row_groups());
    for (index, row_group) in metadata.row_groups().iter().enumerate() {
        let bad = |problem| DatasetError::BadMetadata {
            place: Place {
                row_group: Some(index),
                ..reader.place()
            },
            problem,
        };
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let (mut unpacked_bytes, mut memory_bytes) = (0u64, 0u64);
        for (leaf, column) in row_group.columns().iter().enumerate() {
            if !projection.leaf_included(leaf) {
                continue;
            }
            let start = column
                .dictionary_page_offset()
                .unwrap_or_else(|| column.data_page_offset());
            let start =
                u64::try_from(start).map_err(|_| bad("a column chunk begins before the file"))?;
            let length = u64::try_from(column.compressed_size())
                .map_err(|_| bad("a column chunk has a negative size"))?;
            let end = start
                .checked_add(length)
                .ok_or_else(|| bad("a column chunk has an impossible size"))?;
            if end > reader.object.listed.size {
                return Err(DatasetError::Truncated {
                    place: reader.place(),
                    what: "its footer places data beyond its end",
                    size: reader.object.listed.size,
                });
            }
            let unpacked = u64::try_from(column.uncompressed_size())
                .map_err(|_| bad("a column chunk has a negative size"))?;
            unpacked_bytes = unpacked_bytes.saturating_add(unpacked);
            memory_bytes = memory_bytes.saturating_add(held_bytes(column));
            ranges.push(start..end);
        }
        let num_rows = u32::try_from(row_group.num_rows())
            .map_err(|_| bad("the number of rows is negative or above 4 billion"))?;
        let num_absent = u32::try_from(absent(row_group).unwrap_or(0))
            .ok()
            .filter(|&absent| absent <= num_rows)
            .ok_or_else(|| bad("its statistics count more nulls than there are rows"))?;
        memory_bytes = memory_bytes.max(u64::from(num_rows) * ROW_BYTES);
        ranges.sort_by_key(|range| range.start);
        parts.push(Part {
            row_group: index as u32,
            first_row: 0,
            num_rows,
            num_absent,
            fetch_bytes: ranges.iter().map(|range| range.end - range.start).sum(),
            memory_bytes,
            counted_by_values: memory_bytes > unpacked_bytes,
            ranges,
        });
    }
    Ok(parts)
}

/// Bytes that an unpacked column chunk holds: its pages, or its values where its encoding leaves
/// out what they share and the footer counts them.
pub(super) fn held_bytes(column: &ColumnChunkMetaData) -> u64 {
    let pages = column.uncompressed_size().unsigned_abs();
    let shares = column
        .encodings()
        .any(|encoding| encoding == Encoding::DELTA_BYTE_ARRAY);
    let values = column.unencoded_byte_array_data_bytes().unwrap_or(0);
    if shares {
        pages.max(values.unsigned_abs())
    } else {
        pages
    }
}

struct FooterReader<'a> {
    object: Object,
    requests: &'a Requests,
    /// Where its page indexes begin, and their bytes.
    pages: Option<(u64, Bytes)>,
}

impl FooterReader<'_> {
    /// The shard of this footer.
    async fn shard(
        mut self,
        reading: Arc<Reading>,
        file: ParquetMetaData,
        part_bytes: u64,
    ) -> Result<Shard, DatasetError> {
        let place = self.place();
        let metadata = reading.metadata(&file);
        let metadata = metadata.map_err(|source| bad_footer(source, place))?;
        drop(file);
        let (projection, images) = (&reading.projection, &reading.images);
        let absent = |row_group: &RowGroupMetaData| num_absent(row_group, images);
        let whole = row_groups(metadata.metadata(), projection, absent, &self)?;
        let large = |part: &&Part| parts::is_large(part, part_bytes);
        let (metadata, parts) = if whole.iter().any(|part| large(&part)) {
            // Only where rows without an image are to be counted by pages; those of several columns
            // are not.
            let image = images.first().copied().filter(|_| images.len() == 1);
            let mut larger = whole.iter().filter(large);
            let image = image.filter(|_| larger.any(|part| part.num_absent > 0));
            let metadata = self.with_page_indexes(metadata, projection, image).await?;
            let parts = parts::split(whole, metadata.metadata(), projection, image, part_bytes);
            (metadata, parts)
        } else {
            (metadata, whole)
        };
        check_rows(&parts, &self)?;
        let Self { object, pages, .. } = self;
        Ok(Shard {
            url: object.listed.url.clone(),
            size: object.listed.size,
            e_tag: object.e_tag().map(str::to_owned),
            parts,
            mapping: Arc::clone(&reading.mapping),
            object,
            metadata,
            reading,
            pages,
        })
    }

    fn place(&self) -> Place {
        Place {
            object: self.object.listed.url.clone(),
            ..Place::default()
        }
    }

    async fn metadata(&mut self) -> Result<ParquetMetaData, DatasetError> {
        let size = self.object.listed.size;
        if size < FOOTER_TAIL_BYTES as u64 + 4 {
            let start = if size == 0 {
                Bytes::new()
            } else {
                self.read(0..size).await?
            };
            return Err(DatasetError::NotParquet {
                place: self.place(),
                start: Beginning::new(&start),
            });
        }
        let tail = self.read(size.saturating_sub(TAIL_BYTES)..size).await?;
        let end: &[u8; FOOTER_TAIL_BYTES] = tail
            .last_chunk()
            .expect("the tail was asked for with at least this length");
        let Ok(footer) = FooterTail::try_new(end) else {
            let start = self.read(0..size.min(beginning::LENGTH)).await?;
            return Err(if start.starts_with(b"PAR1") {
                let what = "it begins as a Parquet file and does not end as one";
                DatasetError::Truncated {
                    place: self.place(),
                    what,
                    size,
                }
            } else {
                DatasetError::NotParquet {
                    place: self.place(),
                    start: Beginning::new(&start),
                }
            });
        };
        if footer.is_encrypted_footer() {
            return Err(DatasetError::Encrypted {
                place: self.place(),
            });
        }
        let length = footer.metadata_length() as u64 + FOOTER_TAIL_BYTES as u64;
        if length > size {
            let what = "its footer claims to be longer than the file";
            return Err(DatasetError::Truncated {
                place: self.place(),
                what,
                size,
            });
        }
        let bytes = if length <= tail.len() as u64 {
            tail.slice(tail.len() - length as usize..)
        } else {
            self.read(size - length..size).await?
        };
        let thrift = &bytes[..bytes.len() - FOOTER_TAIL_BYTES];
        ParquetMetaDataReader::decode_metadata(thrift).map_err(|source| {
            // Columns may be encrypted under a plain footer; then their metadata is missing.
            if matches!(&source, ParquetError::General(text) if text.contains("ncrypt")) {
                DatasetError::Encrypted {
                    place: self.place(),
                }
            } else {
                bad_footer(source, self.place())
            }
        })
    }

    /// A schema's error with a value of the string column that it is about, where that can be had
    /// cheaply: it tells what to do.
    async fn with_value(
        &mut self,
        error: SchemaError,
        file: &ParquetMetaData,
        columns: &Columns,
    ) -> SchemaError {
        let SchemaError::TextColumn {
            column,
            value: None,
        } = error
        else {
            return error;
        };
        let path = [ColumnPath::new(&column)];
        // Whatever goes wrong here, the error itself is known.
        let parquet = file.file_metadata().schema_descr();
        let selection = Selection::new(parquet, columns, &path, &path);
        let value = match selection.and_then(|selection| selection.of(file)) {
            Ok(file) => self.first_value(file).await,
            Err(_) => None,
        };
        SchemaError::TextColumn { column, value }
    }

    /// The first value of a file with one binary column that is not null, if it lies near the
    /// column's start.
    async fn first_value(&mut self, file: ParquetMetaData) -> Option<Vec<u8>> {
        let filled = |group: &RowGroupMetaData| group.num_rows() > 0;
        let group = file.row_groups().iter().position(filled)?;
        let chunk = file.row_group(group).column(0);
        let first = chunk.dictionary_page_offset();
        let start = u64::try_from(first.unwrap_or_else(|| chunk.data_page_offset())).ok()?;
        let length = u64::try_from(chunk.compressed_size()).ok()?;
        let end = start.checked_add(length.min(VALUE_BYTES))?;
        let end = end.min(self.object.listed.size);
        let bytes = if start < end {
            self.read(start..end).await.ok()?
        } else {
            return None;
        };
        let metadata = with_views(Arc::new(file), &[]).ok()?;
        let pieces = Pieces::new(vec![(start, bytes)], self.object.listed.size);
        let rows = ParquetRecordBatchReaderBuilder::new_with_metadata(pieces, metadata)
            .with_row_groups(vec![group])
            .with_batch_size(1)
            .build()
            .ok()?;
        let mut rows = rows.map_while(Result::ok).take(VALUE_ROWS);
        rows.find_map(|row| {
            let column = row.column(0).as_binary_view_opt()?;
            column.iter().flatten().next().map(<[u8]>::to_vec)
        })
    }

    /// The metadata with the places of the projected columns' pages, and the nulls in those of the
    /// column `counted`, as far as the file has them.
    async fn with_page_indexes(
        &mut self,
        metadata: ArrowReaderMetadata,
        projection: &ProjectionMask,
        counted: Option<usize>,
    ) -> Result<ArrowReaderMetadata, DatasetError> {
        let file = metadata.metadata();
        let ranges = file.row_groups().iter().flat_map(|row_group| {
            let nulls = counted.and_then(|leaf| row_group.column(leaf).column_index_range());
            let columns = row_group.columns().iter().enumerate();
            columns
                .filter(|(leaf, _)| projection.leaf_included(*leaf))
                .filter_map(|(_, column)| column.offset_index_range())
                .chain(nulls)
        });
        let Some(range) =
            ranges.reduce(|all, range| all.start.min(range.start)..all.end.max(range.end))
        else {
            return Ok(metadata);
        };
        if range.end > self.object.listed.size || range.is_empty() {
            return Err(DatasetError::Truncated {
                place: self.place(),
                what: "its footer places an index beyond its end",
                size: self.object.listed.size,
            });
        }
        let bytes = if let Some(bytes) = self.pages_at_hand(&range) {
            bytes
        } else {
            let bytes = self.read(range.clone()).await?;
            self.pages = Some((range.start, bytes.clone()));
            bytes
        };
        let place = self.place();
        let bad = |source| bad_footer(source, place);
        let columns = (0..metadata.parquet_schema().num_columns())
            .filter(|&leaf| projection.leaf_included(leaf));
        let mut reader = ParquetMetaDataReader::new_with_metadata(file.as_ref().clone())
            .with_offset_index_policy(PageIndexPolicy::Optional)
            .with_offset_index_mask(ColumnChunkMask::columns(columns));
        if let Some(leaf) = counted {
            reader = reader
                .with_column_index_policy(PageIndexPolicy::Optional)
                .with_column_index_mask(ColumnChunkMask::columns([leaf]));
        }
        let pieces = Pieces::new(vec![(range.start, bytes)], self.object.listed.size);
        reader
            .read_page_indexes(&pieces)
            .and_then(|()| {
                let options = ArrowReaderOptions::new().with_schema(metadata.schema().clone());
                ArrowReaderMetadata::try_new(Arc::new(reader.finish()?), options)
            })
            .map_err(bad)
    }

    /// The bytes of a range that the page indexes at hand hold.
    fn pages_at_hand(&self, range: &Range<u64>) -> Option<Bytes> {
        let (start, bytes) = self.pages.as_ref()?;
        let from = usize::try_from(range.start.checked_sub(*start)?).ok()?;
        let to = usize::try_from(range.end.checked_sub(*start)?).ok()?;
        (from <= to && to <= bytes.len()).then(|| bytes.slice(from..to))
    }

    async fn read(&mut self, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.requests.read_first(&mut self.object, range).await
    }
}
