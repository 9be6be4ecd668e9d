//! Small Parquet shards made in memory, with every property that a test wants to decide.
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::column::writer::ColumnCloseResult;
use parquet::file::metadata::{ColumnChunkMetaData, ColumnChunkMetaDataBuilder};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;

/// Bytes that stand for the image in row `row`: not decodable, but all different and of different length.
pub fn fake_image(shard: u32, row: u32) -> Vec<u8> {
    let length = 300 + (row * 7919 + shard * 104_729) % 500;
    (0..length)
        .map(|i| (i.wrapping_mul(31).wrapping_add(row * 17 + shard) % 251) as u8)
        .collect()
}

/// A column `image: struct<bytes, path>` as Hugging Face's `datasets` writes it.
fn image_column(
    bytes: impl IntoIterator<Item = Option<Vec<u8>>>,
    paths: impl IntoIterator<Item = Option<String>>,
) -> (Field, ArrayRef) {
    let fields = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    let bytes: ArrayRef = Arc::new(bytes.into_iter().collect::<BinaryArray>());
    let paths: ArrayRef = Arc::new(paths.into_iter().collect::<StringArray>());
    let column = StructArray::new(fields.clone(), vec![bytes, paths], None);
    (
        Field::new("image", DataType::Struct(fields), true),
        Arc::new(column),
    )
}

fn label_column(labels: impl IntoIterator<Item = i64>) -> (Field, ArrayRef) {
    let labels = labels.into_iter().collect::<Int64Array>();
    (Field::new("label", DataType::Int64, true), Arc::new(labels))
}

fn batch(columns: Vec<(Field, ArrayRef)>) -> RecordBatch {
    let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
        .expect("columns that fit the schema")
}

/// A row of [`labelled_shard`]: the image's bytes, its path, its label.
pub type LabelledRow = (Option<Vec<u8>>, Option<String>, i64);

/// A Hugging Face shard (`image: struct<bytes, path>`, `label`) of such row groups, at least one.
///
/// # Panics
///
/// If there is no row group.
pub fn labelled_shard(row_groups: impl IntoIterator<Item = Vec<LabelledRow>>) -> Vec<u8> {
    let batches = labelled_batches(row_groups);
    write(&batches[0].schema(), batches)
}

/// The same in pages of `rows_per_page` rows, with or without an index of where they lie.
///
/// # Panics
///
/// If there is no row group.
pub fn labelled_shard_in_pages(
    row_groups: impl IntoIterator<Item = Vec<LabelledRow>>,
    rows_per_page: usize,
    offset_index: bool,
) -> Vec<u8> {
    let batches = labelled_batches(row_groups);
    let properties = properties()
        .set_data_page_row_count_limit(rows_per_page)
        .set_write_batch_size(rows_per_page)
        .set_offset_index_disabled(!offset_index)
        .set_statistics_enabled(EnabledStatistics::None)
        .build();
    write_with(&batches[0].schema(), batches, properties)
}

/// The same as these properties say.
///
/// # Panics
///
/// If there is no row group.
pub fn labelled_shard_with(
    row_groups: impl IntoIterator<Item = Vec<LabelledRow>>,
    properties: WriterProperties,
) -> Vec<u8> {
    let batches = labelled_batches(row_groups);
    write_with(&batches[0].schema(), batches, properties)
}

/// A Parquet file with the same pages and another footer: other metadata of the column chunks and, where it is given, another number of rows in
/// each row group.
///
/// # Panics
///
/// If the file is none that the crate `parquet` writes.
pub fn with_other_footer(
    file: Vec<u8>,
    num_rows: Option<u64>,
    change: impl Fn(&ColumnChunkMetaData, ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder,
) -> Vec<u8> {
    let file = bytes::Bytes::from(file);
    let reader = SerializedFileReader::new(file.clone()).expect("a sound file");
    let metadata = reader.metadata();
    let of_file = metadata.file_metadata();
    let properties = WriterProperties::builder()
        .set_key_value_metadata(of_file.key_value_metadata().cloned())
        .build();
    let schema = of_file.schema_descr().root_schema_ptr();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))
        .expect("a schema that was written before");
    for row_group in metadata.row_groups() {
        let mut into = writer.next_row_group().expect("writing to memory");
        for column in row_group.columns() {
            let changed = change(column, column.clone().into_builder());
            let close = ColumnCloseResult {
                bytes_written: column.compressed_size().unsigned_abs(),
                rows_written: num_rows.unwrap_or(row_group.num_rows().unsigned_abs()),
                metadata: changed.build().expect("sound metadata"),
                bloom_filter: None,
                column_index: None,
                offset_index: None,
            };
            into.append_column(&file, close).expect("writing to memory");
        }
        into.close().expect("writing to memory");
    }
    writer.into_inner().expect("writing to memory")
}

fn labelled_batches(row_groups: impl IntoIterator<Item = Vec<LabelledRow>>) -> Vec<RecordBatch> {
    let batches = row_groups.into_iter().map(|rows| {
        let labels = rows.iter().map(|row| row.2).collect::<Vec<_>>();
        let (bytes, paths): (Vec<_>, Vec<_>) = rows
            .into_iter()
            .map(|(bytes, path, _)| (bytes, path))
            .unzip();
        batch(vec![image_column(bytes, paths), label_column(labels)])
    });
    batches.collect()
}

/// A Hugging Face shard (`image: struct<bytes, path>`, `note`, `label`) of `row_groups` row groups of `rows` rows.
/// `note` is a column that nobody needs, between the two that are read.
pub fn hugging_face_shard(shard: u32, row_groups: u32, rows: u32) -> Vec<u8> {
    let batches = (0..row_groups).map(|row_group| {
        let numbers = || row_group * rows..(row_group + 1) * rows;
        let notes = numbers().map(|row| Some(format!("{row:0>400}")));
        batch(vec![
            image_column(
                numbers().map(|row| Some(fake_image(shard, row))),
                numbers().map(|row| Some(format!("{row}.jpg"))),
            ),
            (
                Field::new("note", DataType::Utf8, true),
                Arc::new(notes.collect::<StringArray>()),
            ),
            label_column(numbers().map(|row| i64::from(row % 10))),
        ])
    });
    let batches = batches.collect::<Vec<_>>();
    write(&batches[0].schema(), batches)
}

/// A shard with a flat binary column `image` and an integer `label`.
pub fn flat_shard(rows: u32) -> Vec<u8> {
    flat_shard_of("image", rows)
}

/// The same with the images in a column of that name.
pub fn flat_shard_of(image_column: &str, rows: u32) -> Vec<u8> {
    let schema = Arc::new(Schema::new(vec![
        Field::new(image_column, DataType::Binary, true),
        Field::new("label", DataType::Int64, true),
    ]));
    let images: ArrayRef = Arc::new(
        (0..rows)
            .map(|row| Some(fake_image(0, row)))
            .collect::<BinaryArray>(),
    );
    let labels: ArrayRef = Arc::new((0..rows).map(i64::from).collect::<Int64Array>());
    let batch = RecordBatch::try_new(Arc::clone(&schema), vec![images, labels])
        .expect("columns that fit the schema");
    write(&schema, [batch])
}

/// Writes batches as one row group each, uncompressed, without page checksums.
pub fn write(schema: &Arc<Schema>, batches: impl IntoIterator<Item = RecordBatch>) -> Vec<u8> {
    write_with(schema, batches, properties().build())
}

/// Uncompressed, without dictionaries.
pub fn properties() -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false)
        .set_write_page_header_statistics(false)
}

fn write_with(
    schema: &Arc<Schema>,
    batches: impl IntoIterator<Item = RecordBatch>,
    properties: WriterProperties,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut bytes, Arc::clone(schema), Some(properties)).expect("a writer");
    for batch in batches {
        writer.write(&batch).expect("writing to memory");
        writer.flush().expect("writing to memory");
    }
    writer.close().expect("writing to memory");
    bytes
}
