//! Small shards of real JPEGs, good and bad, for tests that run the loader itself.
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::record_batch::RecordBatch;

use crate::shards::write;

/// What lies in one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Row {
    /// A JPEG whose look and size depend on the row's number.
    Good,
    /// No image at all.
    Null,
    /// A path beside no bytes.
    PathOnly,
    /// A JPEG that ends in the middle.
    Truncated,
    /// Bytes that are no image.
    Garbage,
}

/// A small JPEG, different for every number.
///
/// # Panics
///
/// If the encoder refuses, which it has no reason to.
pub fn photo(number: u32) -> Vec<u8> {
    let (width, height) = (24 + number as usize % 7, 20 + number as usize % 5);
    let value = |x: usize, y: usize, step: usize| (x * 9 + y * 5 + number as usize * step) as u8;
    let pixels: Vec<u8> = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .flat_map(|(x, y)| [37, 11, 71].map(|step| value(x, y, step)))
        .collect();
    let image = turbojpeg::Image {
        pixels: &pixels[..],
        width,
        pitch: width * 3,
        height,
        format: turbojpeg::PixelFormat::RGB,
    };
    turbojpeg::compress(image, 90, turbojpeg::Subsamp::Sub2x2)
        .expect("encoding to memory")
        .to_vec()
}

/// A Hugging Face shard of row groups of such rows; the label is the row's number in the shard.
///
/// # Panics
///
/// If the columns do not fit together, which would be a mistake here.
pub fn photo_shard(shard: u32, row_groups: &[Vec<Row>]) -> Vec<u8> {
    let image_fields = Fields::from(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ]);
    let schema = Arc::new(Schema::new(vec![
        Field::new("image", DataType::Struct(image_fields.clone()), true),
        Field::new("label", DataType::Int64, true),
    ]));
    let mut number = 0u32;
    let batches = row_groups.iter().map(|rows| {
        let numbers: Vec<u32> = (number..number + rows.len() as u32).collect();
        number += rows.len() as u32;
        let bytes = rows.iter().zip(&numbers).map(|(row, &number)| {
            let photo = photo(shard * 1000 + number);
            match row {
                Row::Good => Some(photo),
                Row::Null | Row::PathOnly => None,
                Row::Truncated => Some(photo[..photo.len() / 2].to_vec()),
                Row::Garbage => Some(b"these bytes are no image".to_vec()),
            }
        });
        let bytes: ArrayRef = Arc::new(bytes.collect::<BinaryArray>());
        let paths = rows
            .iter()
            .map(|row| (*row == Row::PathOnly).then_some("n01/1.jpg"));
        let paths: ArrayRef = Arc::new(paths.collect::<StringArray>());
        let image: ArrayRef = Arc::new(StructArray::new(
            image_fields.clone(),
            vec![bytes, paths],
            None,
        ));
        let labels: ArrayRef = Arc::new(
            numbers
                .iter()
                .map(|&number| i64::from(number))
                .collect::<Int64Array>(),
        );
        RecordBatch::try_new(Arc::clone(&schema), vec![image, labels])
            .expect("columns that fit the schema")
    });
    write(&schema, batches)
}
