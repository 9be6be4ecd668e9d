//! Small Parquet shards made in memory, with every property that a test wants to decide.
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

/// Bytes that stand for the image in row `row`: not decodable, but all different and of different length.
pub fn fake_image(shard: u32, row: u32) -> Vec<u8> {
    let length = 300 + (row * 7919 + shard * 104_729) % 500;
    (0..length)
        .map(|i| (i.wrapping_mul(31).wrapping_add(row * 17 + shard) % 251) as u8)
        .collect()
}

/// A Hugging Face shard (`image: struct<bytes, path>`, `note`, `label`) of `row_groups` row groups of `rows` rows.
/// `note` is a column that nobody needs, between the two that are read.
pub fn hugging_face_shard(shard: u32, row_groups: u32, rows: u32) -> Vec<u8> {
    let image_fields = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    let schema = Arc::new(Schema::new(vec![
        Field::new("image", DataType::Struct(image_fields.clone()), true),
        Field::new("note", DataType::Utf8, true),
        Field::new("label", DataType::Int64, true),
    ]));
    let batches = (0..row_groups).map(|row_group| {
        let numbers: Vec<u32> = (row_group * rows..(row_group + 1) * rows).collect();
        let bytes = numbers.iter().map(|&row| Some(fake_image(shard, row)));
        let bytes: ArrayRef = Arc::new(bytes.collect::<BinaryArray>());
        let paths: ArrayRef = Arc::new(
            numbers
                .iter()
                .map(|row| Some(format!("{row}.jpg")))
                .collect::<StringArray>(),
        );
        let image: ArrayRef = Arc::new(StructArray::new(
            image_fields.clone(),
            vec![bytes, paths],
            None,
        ));
        let notes: ArrayRef = Arc::new(
            numbers
                .iter()
                .map(|row| Some(format!("{row:0>400}")))
                .collect::<StringArray>(),
        );
        let labels: ArrayRef = Arc::new(
            numbers
                .iter()
                .map(|&row| i64::from(row % 10))
                .collect::<Int64Array>(),
        );
        RecordBatch::try_new(Arc::clone(&schema), vec![image, notes, labels])
            .expect("columns that fit the schema")
    });
    write(&schema, batches)
}

/// A shard with a flat binary column `image` and an integer `label`.
pub fn flat_shard(rows: u32) -> Vec<u8> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("image", DataType::Binary, true),
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
    let properties = WriterProperties::builder()
        .set_compression(Compression::UNCOMPRESSED)
        .set_dictionary_enabled(false)
        .set_write_page_header_statistics(false)
        .build();
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
