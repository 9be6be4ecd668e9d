//! Small shards of real JPEGs, good and bad, for tests that run the loader itself.
use tempfile::TempDir;

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

/// RGB pixels, row by row, as a JPEG of quality 90.
///
/// # Panics
///
/// If the pixels are not `width * height`.
pub fn encode_jpeg(
    pixels: &[u8],
    width: usize,
    height: usize,
    chroma: turbojpeg::Subsamp,
) -> Vec<u8> {
    let image = turbojpeg::Image {
        pixels,
        width,
        pitch: 3 * width,
        height,
        format: turbojpeg::PixelFormat::RGB,
    };
    let encoded = turbojpeg::compress(image, 90, chroma);
    encoded.expect("encoding to memory").to_vec()
}

/// A small JPEG, different for every number.
pub fn photo(number: u32) -> Vec<u8> {
    let (width, height) = (24 + number as usize % 7, 20 + number as usize % 5);
    let value = |x: usize, y: usize, step: usize| (x * 9 + y * 5 + number as usize * step) as u8;
    let pixels: Vec<u8> = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .flat_map(|(x, y)| [37, 11, 71].map(|step| value(x, y, step)))
        .collect();
    encode_jpeg(&pixels, width, height, turbojpeg::Subsamp::Sub2x2)
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

/// Shards of [`all_good`] and [`some_bad`].
pub const SHARDS: u32 = 3;
/// Rows of each of a shard's row groups: sizes that fit neither each other nor any batch.
pub const ROW_GROUPS: [u32; 4] = [7, 5, 2, 8];
/// Rows of all shards.
pub const SAMPLES: u64 = 66;
/// Rows of [`some_bad`] that hold an image, be it bad.
pub const PRESENT: u64 = 59;

/// The row groups of a shard without a fault.
pub fn good_rows() -> Vec<Vec<Row>> {
    let row_group = |&rows| vec![Row::Good; rows as usize];
    ROW_GROUPS.iter().map(row_group).collect()
}

/// Shards in a new folder, `train-N.parquet`; `shape` may spoil some rows.
///
/// # Panics
///
/// If the folder cannot be written.
pub fn photo_folder(shape: impl Fn(u32, &mut Vec<Vec<Row>>)) -> TempDir {
    let folder = tempfile::tempdir().expect("a writable folder");
    for shard in 0..SHARDS {
        let mut row_groups = good_rows();
        shape(shard, &mut row_groups);
        let path = folder.path().join(format!("train-{shard}.parquet"));
        std::fs::write(path, photo_shard(shard, &row_groups)).expect("a writable folder");
    }
    folder
}

/// A folder of shards without a fault.
pub fn all_good() -> TempDir {
    photo_folder(|_, _| {})
}

/// Two kinds of rows without an image and two of bad ones, one row group with a single good row.
pub fn some_bad() -> TempDir {
    photo_folder(|shard, row_groups| {
        row_groups[0][(shard * 2) as usize] = Row::Null;
        row_groups[1][1] = Row::PathOnly;
        row_groups[2][0] = Row::Truncated;
        row_groups[3][4] = Row::Garbage;
        if shard == 1 {
            row_groups[1] = vec![
                Row::Garbage,
                Row::Truncated,
                Row::Good,
                Row::Null,
                Row::PathOnly,
            ];
        }
    })
}

/// The photo of row `row` of row group `row_group` in these folders, where it is good.
pub fn photo_at(shard: u32, row_group: u32, row: u32) -> Vec<u8> {
    let before: u32 = ROW_GROUPS[..row_group as usize].iter().sum();
    photo(shard * 1000 + before + row)
}
