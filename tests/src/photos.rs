//! Small shards of real JPEGs, good and bad, for tests that run the loader itself.
use crate::shards::labelled_shard;

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
    let mut next = 0u32;
    labelled_shard(row_groups.iter().map(|rows| {
        let first = next;
        next += rows.len() as u32;
        let labelled = |(row, number): (&Row, u32)| {
            let photo = photo(shard * 1000 + number);
            let bytes = match row {
                Row::Good => Some(photo),
                Row::Null | Row::PathOnly => None,
                Row::Truncated => Some(photo[..photo.len() / 2].to_vec()),
                Row::Garbage => Some(b"these bytes are no image".to_vec()),
            };
            let path = (*row == Row::PathOnly).then(|| "n01/1.jpg".to_owned());
            (bytes, path, i64::from(number))
        };
        rows.iter().zip(first..).map(labelled).collect()
    }))
}
