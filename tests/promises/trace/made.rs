//! The data that is made for the trace: images of many kinds, rows with flaws, shards.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use image::{ExtendedColorType, ImageFormat};
use nepa_tests::shards::{LabelledRow, labelled_shard, labelled_shard_in_pages};
use tempfile::TempDir;
use turbojpeg::{PixelFormat, Subsamp};

/// Smooth shades with some noise, different for every number.
fn picture(number: u32, (width, height): (usize, usize), channels: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(2_654_435_761) | 1;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 27) as usize
    };
    let mut values = Vec::with_capacity(width * height * channels);
    for y in 0..height {
        for x in 0..width {
            for channel in 0..channels {
                let slope = [3, 2, 5, 1][channel];
                let shade = x * slope + y * (6 - slope) + number as usize * (channel + 11);
                values.push((shade % 500).abs_diff(250) as u8 / 2 + 60 + noise() as u8);
            }
        }
    }
    values
}

fn size_of(number: u32) -> (usize, usize) {
    (24 + number as usize % 37, 20 + number as usize % 29)
}

fn jpeg(number: u32, format: PixelFormat, subsamp: Subsamp, progressive: bool) -> Result<Vec<u8>> {
    let (width, height) = size_of(number);
    let pixels = picture(number, (width, height), format.size());
    let mut compressor = turbojpeg::Compressor::new()?;
    compressor.set_quality(70 + number as i32 % 30)?;
    compressor.set_subsamp(subsamp)?;
    compressor.set_progressive(progressive)?;
    let image = turbojpeg::Image {
        pixels: &pixels[..],
        width,
        pitch: width * format.size(),
        height,
        format,
    };
    Ok(compressor.compress_to_vec(image)?)
}

/// The same JPEG with an EXIF block that says how it is turned, 1 to 8.
fn turned(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    // One directory of one entry: tag 0x0112, a short.
    let directory = [
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0",
        &[orientation, 0, 0, 0][..],
        &[0; 4],
    ]
    .concat();
    let payload = [b"Exif\0\0", &directory[..]].concat();
    let length = (payload.len() as u16 + 2).to_be_bytes();
    let (start, rest) = jpeg.split_at(2);
    [start, &[0xff, 0xe1], &length, &payload, rest].concat()
}

fn still(number: u32, format: ImageFormat, color: ExtendedColorType) -> Result<Vec<u8>> {
    let (width, height) = size_of(number);
    let channels = usize::from(color.channel_count());
    // Two bytes a value where they are wide.
    let bytes_per_value = usize::from(color.bits_per_pixel()) / 8 / channels;
    let pixels = picture(number, (width * bytes_per_value, height), channels);
    let mut bytes = std::io::Cursor::new(Vec::new());
    let (width, height) = (width as u32, height as u32);
    image::write_buffer_with_format(&mut bytes, &pixels, width, height, color, format)?;
    Ok(bytes.into_inner())
}

/// Kinds of encoded images, one after the other.
const KINDS: u32 = 17;

/// An image whose kind and look depend on its number.
fn encoded(number: u32) -> Result<Vec<u8>> {
    use PixelFormat::{CMYK, GRAY, RGB};
    let image = match number % KINDS {
        0 | 7 => jpeg(number, RGB, Subsamp::Sub2x2, false),
        1 => jpeg(number, RGB, Subsamp::None, false),
        2 => jpeg(number, RGB, Subsamp::Sub2x1, false),
        3 => jpeg(number, RGB, Subsamp::Sub1x2, false),
        4 => jpeg(number, GRAY, Subsamp::Gray, false),
        5 => jpeg(number, RGB, Subsamp::Sub2x2, true),
        6 => jpeg(number, GRAY, Subsamp::Gray, true),
        8 => jpeg(number, CMYK, Subsamp::None, false),
        9 | 10 => {
            let upright = jpeg(number, RGB, Subsamp::Sub2x2, number.is_multiple_of(2));
            upright.map(|jpeg| turned(&jpeg, 1 + (number / KINDS % 8) as u8))
        }
        11 => still(number, ImageFormat::Png, ExtendedColorType::Rgb8),
        12 => still(number, ImageFormat::Png, ExtendedColorType::Rgba8),
        13 => still(number, ImageFormat::Png, ExtendedColorType::L8),
        14 => still(number, ImageFormat::WebP, ExtendedColorType::Rgb8),
        15 => still(number, ImageFormat::Bmp, ExtendedColorType::Rgb8),
        _ => still(number, ImageFormat::Png, ExtendedColorType::Rgb16),
    };
    image.with_context(|| format!("image {number} cannot be encoded"))
}

/// What is wrong with a row.
#[derive(Clone, Copy)]
pub(super) enum Flaw {
    Garbage,
    Truncated,
    Empty,
    Null,
    PathOnly,
}

/// A row whose label is its number; `path` is as `datasets` writes it.
pub(super) fn row(number: u32, flaw: Option<Flaw>) -> Result<LabelledRow> {
    let path = Some(format!("{number}.jpg"));
    let label = i64::from(number % 10);
    let bytes = encoded(number)?;
    Ok(match flaw {
        None => (Some(bytes), path, label),
        Some(Flaw::Garbage) => (Some(b"these bytes are no image".to_vec()), path, label),
        Some(Flaw::Truncated) => (Some(bytes[..bytes.len() / 2].to_vec()), path, label),
        Some(Flaw::Empty) => (Some(Vec::new()), path, label),
        Some(Flaw::Null) => (None, None, label),
        Some(Flaw::PathOnly) => (None, path, label),
    })
}

/// Rows of each of a shard's row groups: sizes that fit neither each other nor any batch.
const ROW_GROUPS: [u32; 6] = [7, 5, 2, 8, 17, 20];

/// Three shards in a new folder, with flaws by the number of the row.
pub(super) fn folder_of(first: u32, flaw: impl Fn(u32) -> Option<Flaw>) -> Result<TempDir> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let mut number = first;
    for shard in 0..3 {
        let mut row_groups = Vec::new();
        for num_rows in ROW_GROUPS {
            let rows = (number..number + num_rows).map(|number| row(number, flaw(number)));
            row_groups.push(rows.collect::<Result<Vec<_>>>()?);
            number += num_rows;
        }
        let path = folder.path().join(format!("train-{shard}.parquet"));
        std::fs::write(path, labelled_shard(row_groups)).context("a shard cannot be written")?;
    }
    Ok(folder)
}

/// Rows that are there and are no images.
pub(super) fn bad(number: u32) -> Option<Flaw> {
    match number % 23 {
        3 => Some(Flaw::Garbage),
        9 => Some(Flaw::Truncated),
        16 => Some(Flaw::Empty),
        _ => None,
    }
}

/// Two shards of one row group each, in small pages.
pub(super) fn large_row_groups() -> Result<TempDir> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    for shard in 0..2 {
        let rows = (shard * 160..shard * 160 + 160).map(|number| row(number, None));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let path = folder.path().join(format!("train-{shard}.parquet"));
        let bytes = labelled_shard_in_pages([rows], 7, true);
        std::fs::write(path, bytes).context("a shard cannot be written")?;
    }
    Ok(folder)
}

/// Largest of the odd JPEGs that are taken, in bytes.
const MAX_ODD_BYTES: u64 = 60_000;

/// Some of the odd and broken JPEGs, mixed, as those that are all bad are neighbours.
pub(super) fn some_of_the_zoo(data: &Path) -> Result<TempDir> {
    let path = data.join("jpeg-zoo/zoo.tar.zst");
    let file = File::open(&path).with_context(|| format!("{} does not open", path.display()))?;
    let mut archive = tar::Archive::new(zstd::Decoder::new(file)?);
    let mut files = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.to_string_lossy().into_owned();
        let is_jpeg = Path::new(&name).extension().is_some_and(|end| end == "jpg");
        if is_jpeg && entry.size() <= MAX_ODD_BYTES {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            files.insert(name, bytes);
        }
    }
    let mut files = files.into_iter().collect::<Vec<_>>();
    let mut number = 0u32;
    files.retain(|(name, _)| {
        number += 1;
        let one_in = match name.trim_start_matches("./").split_once('/') {
            Some(("valid", _)) => 1,
            Some(("fuzz_decodes", _)) => 4,
            _ => 16,
        };
        number.is_multiple_of(one_in)
    });
    files.sort_by_cached_key(|(name, _)| crc32fast::hash(name.as_bytes()));
    let rows = files.into_iter().zip(0..);
    let rows = rows.map(|((name, bytes), label)| (Some(bytes), Some(name), label));
    let rows = rows.collect::<Vec<LabelledRow>>();
    let folder = tempfile::tempdir().context("no temporary folder")?;
    let bytes = labelled_shard(rows.chunks(64).map(<[_]>::to_vec));
    std::fs::write(folder.path().join("zoo.parquet"), bytes).context("the shard of odd JPEGs")?;
    Ok(folder)
}
