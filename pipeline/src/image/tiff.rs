//! TIFF to 8-bit RGB: the first page, as Pillow 13 gives it.
//!
//! The library finds and unpacks strips and tiles. What their samples mean is decided here, because
//! it refuses palettes, Lab and others: it is told that every image is gray, of however many
//! samples, and so gives them all as they are.
use std::io::Cursor;

use tiff::decoder::{Decoder, DecodingResult, Limits};
use tiff::tags::Tag;
use tiff::{TiffError, TiffFormatError};

use super::ImageError;
use super::ImageFormat;
use super::limits::{MAX_PIXELS, checked_size, cmyk_to_rgb};
use super::tiff_directory::Directory;

const UNCOMPRESSED: u64 = 1;
const JPEG: u64 = 7;

/// What the samples of a pixel mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Color {
    /// `inverted`: the greater the darker.
    Gray {
        inverted: bool,
    },
    Palette,
    Rgb,
    /// With an alpha channel that was multiplied into the others.
    PremultipliedRgb,
    Cmyk,
    YCbCr,
    Lab,
}

impl Color {
    /// Samples of a pixel that count; others come behind them.
    fn num_channels(self) -> usize {
        match self {
            Self::Gray { .. } | Self::Palette => 1,
            Self::Rgb | Self::YCbCr | Self::Lab => 3,
            Self::PremultipliedRgb | Self::Cmyk => 4,
        }
    }
}

/// How the samples are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Unsigned,
    Signed,
    Float,
}

/// What the first page's directory says.
#[derive(Debug)]
struct Page {
    width: u32,
    height: u32,
    color: Color,
    bits: u64,
    /// Samples of a pixel in one chunk: all, or one where each has chunks of its own.
    samples_in_chunk: usize,
    is_planar: bool,
}

impl Page {
    fn read(directory: &Directory) -> Result<Self, ImageError> {
        let format = ImageFormat::Tiff;
        let first = |tag| directory.integers(tag).next();
        let required = |tag: Tag| {
            first(tag).ok_or_else(|| error(TiffFormatError::RequiredTagNotFound(tag).into()))
        };
        let (width, height) = (required(Tag::ImageWidth)?, required(Tag::ImageLength)?);
        checked_size(format, width, height)?;
        let compression = first(Tag::Compression).unwrap_or(UNCOMPRESSED);
        if let Some(name) = unread_compression(compression) {
            return Err(ImageError::UnsupportedCompression {
                format,
                compression: name,
            });
        }
        let photometric = required(Tag::PhotometricInterpretation)?;
        let num_samples = first(Tag::SamplesPerPixel).unwrap_or(1);
        let bits = first(Tag::BitsPerSample).unwrap_or(1);
        let number = match first(Tag::SampleFormat).unwrap_or(1) {
            1 => Some(Number::Unsigned),
            2 => Some(Number::Signed),
            3 => Some(Number::Float),
            _ => None,
        };
        let unsupported = |what: &str| ImageError::UnsupportedColor {
            format,
            color: format!("{what} of {bits} bits a sample"),
        };
        let (Some(number), false) = (
            number,
            directory.integers(Tag::BitsPerSample).any(|b| b != bits),
        ) else {
            return Err(unsupported("samples of mixed or unknown kinds"));
        };
        let bytes = matches!((number, bits), (Number::Unsigned, 8));
        let bytes_or_words = matches!((number, bits), (Number::Unsigned, 8 | 16));
        let color = match (photometric, num_samples) {
            // Of YCbCr the brightness alone.
            (0 | 1, 1..) | (6, 1) => match (number, bits) {
                (Number::Unsigned, 1 | 2 | 4 | 8) => Color::Gray {
                    inverted: photometric == 0,
                },
                // Pillow does not invert these.
                (Number::Unsigned | Number::Signed, 16 | 32)
                | (Number::Signed, 8)
                | (Number::Float, 32) => Color::Gray { inverted: false },
                (Number::Float, _) => return Err(unsupported("gray of floating point")),
                _ => return Err(unsupported("gray")),
            },
            (2, 3..) if bytes_or_words => match first(Tag::ExtraSamples) {
                Some(1) if num_samples > 3 => Color::PremultipliedRgb,
                _ => Color::Rgb,
            },
            (2, _) if number == Number::Float => return Err(unsupported("RGB of floating point")),
            (2, _) => return Err(unsupported("RGB")),
            (3, 1..) if number == Number::Unsigned && matches!(bits, 1 | 2 | 4 | 8) => {
                Color::Palette
            }
            (3, _) => return Err(unsupported("a palette")),
            (5, 4..) if bytes_or_words => Color::Cmyk,
            (5, _) => return Err(unsupported("ink (CMYK or others)")),
            (6, 3..) if bytes => {
                let whole = [1, 1];
                let sampling = directory.integers(Tag::ChromaSubsampling).take(2);
                let sampling = sampling.collect::<Vec<_>>();
                let is_whole = match compression {
                    JPEG => true,
                    // Pillow takes what it reads itself to be whole.
                    UNCOMPRESSED => sampling.is_empty() || sampling == whole,
                    _ => sampling == whole,
                };
                if !is_whole {
                    return Err(unsupported("YCbCr with coarser colour outside of JPEG"));
                }
                Color::YCbCr
            }
            (6, _) => return Err(unsupported("YCbCr")),
            (8, 3..) if bytes => Color::Lab,
            (8..=10, _) => return Err(unsupported("a kind of Lab")),
            _ => return Err(unsupported("an unknown kind of colour")),
        };
        let is_planar = first(Tag::PlanarConfiguration) == Some(2) && num_samples > 1;
        let in_chunk = if is_planar { 1 } else { num_samples };
        Ok(Self {
            width: width as u32,
            height: height as u32,
            color,
            bits,
            samples_in_chunk: in_chunk as usize,
            is_planar,
        })
    }

    /// The samples of one chunk that is `width` pixels wide, each as one byte as Pillow's
    /// conversion narrows it; palette indices and small grays stay as they are. `None` where the
    /// library read the directory otherwise (a tag that comes twice).
    fn narrowed(&self, chunk: DecodingResult, width: usize) -> Option<Vec<u8>> {
        let is_gray = matches!(self.color, Color::Gray { .. });
        Some(match (self.bits, chunk) {
            (8, DecodingResult::U8(bytes)) => bytes,
            (bits @ (1 | 2 | 4), DecodingResult::U8(bytes)) => {
                let (bits, highest) = (bits as usize, (1u8 << bits) - 1);
                let row_samples = width * self.samples_in_chunk;
                let rows = bytes.chunks_exact((row_samples * bits).div_ceil(8).max(1));
                let unpacked = rows.flat_map(|row| {
                    (0..row_samples).map(move |sample| {
                        let shift = 8 - bits - sample * bits % 8;
                        (row[sample * bits / 8] >> shift) & highest
                    })
                });
                unpacked.collect()
            }
            (8, DecodingResult::I8(values)) => values.into_iter().map(i8::cast_unsigned).collect(),
            (16, DecodingResult::U16(values)) if is_gray => clipped(values),
            (16, DecodingResult::U16(values)) => {
                values.into_iter().map(|value| (value >> 8) as u8).collect()
            }
            (16, DecodingResult::I16(values)) => clipped(values),
            // Pillow has no unsigned ones.
            (32, DecodingResult::U32(values)) => clipped(values.into_iter().map(u32::cast_signed)),
            (32, DecodingResult::I32(values)) => clipped(values),
            // Cut off and clipped; what is no number becomes 0.
            (32, DecodingResult::F32(values)) => {
                values.into_iter().map(|value| value as u8).collect()
            }
            _ => return None,
        })
    }
}

fn clipped<T: Into<i64>>(values: impl IntoIterator<Item = T>) -> Vec<u8> {
    let values = values.into_iter();
    values
        .map(|value| value.into().clamp(0, 255) as u8)
        .collect()
}

/// The name of a compression that is not read.
fn unread_compression(compression: u64) -> Option<String> {
    Some(match compression {
        // None, CCITT group 4, LZW, JPEG, Deflate (two numbers), PackBits, Zstandard.
        1 | 4 | 5 | 7 | 8 | 32_946 | 32_773 | 50_000 => return None,
        2 => "CCITT run lengths (modified Huffman)".to_owned(),
        3 => "CCITT group 3".to_owned(),
        6 => "JPEG of the old style".to_owned(),
        34_925 => "LZMA".to_owned(),
        50_001 => "WebP".to_owned(),
        33_003 | 33_005 | 34_712 => "JPEG 2000".to_owned(),
        34_887 => "LERC".to_owned(),
        other => format!("method {other}"),
    })
}

fn error(source: TiffError) -> ImageError {
    match source {
        TiffError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageError::Truncated {
                format: ImageFormat::Tiff,
            }
        }
        source => ImageError::Tiff(source),
    }
}

fn directory(bytes: &[u8]) -> Result<Directory<'_>, ImageError> {
    let missing = || error(TiffFormatError::ImageFileDirectoryNotFound.into());
    Directory::read(bytes).ok_or_else(missing)
}

/// Stored width and height.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    let page = Page::read(&directory(bytes)?)?;
    Ok((page.width, page.height))
}

/// See [`super::clips_gray`].
pub(super) fn clips_gray(bytes: &[u8]) -> bool {
    let page = directory(bytes).and_then(|directory| Page::read(&directory));
    page.is_ok_and(|page| matches!(page.color, Color::Gray { .. }) && page.bits > 8)
}

/// Decodes into `rgb` (resized to fit) as the image is stored; returns width and height.
pub(super) fn decode(bytes: &[u8], rgb: &mut Vec<u8>) -> Result<(u32, u32), ImageError> {
    let directory = directory(bytes)?;
    let page = Page::read(&directory)?;
    let palette = palette(&directory, &page)?;
    let channels = channels(bytes, &directory, &page)?;
    rgb.clear();
    rgb.reserve(page.width as usize * page.height as usize * 3);
    match page.color {
        Color::Gray { inverted } => {
            let highest = if page.bits < 8 {
                (1 << page.bits) - 1
            } else {
                255u8
            };
            let gray =
                |value: u8| (if inverted { highest - value } else { value }) * (255 / highest);
            rgb.extend(channels.iter().flat_map(|&value| [gray(value); 3]));
        }
        Color::Palette => rgb.extend(
            channels
                .iter()
                .flat_map(|&index| palette[usize::from(index)]),
        ),
        Color::Rgb => *rgb = channels,
        Color::PremultipliedRgb => rgb.extend(channels.chunks_exact(4).flat_map(|pixel| {
            let alpha = u32::from(pixel[3]);
            let plain = |value: u8| (u32::from(value) * 255).checked_div(alpha);
            [pixel[0], pixel[1], pixel[2]].map(|value| plain(value).unwrap_or(0).min(255) as u8)
        })),
        Color::Cmyk => rgb.extend(
            channels
                .chunks_exact(4)
                .flat_map(|pixel| cmyk_to_rgb([pixel[0], pixel[1], pixel[2], pixel[3]])),
        ),
        Color::YCbCr => rgb.extend(channels.chunks_exact(3).flat_map(ycbcr_to_rgb)),
        Color::Lab => rgb.extend(channels.chunks_exact(3).flat_map(lab_to_rgb)),
    }
    Ok((page.width, page.height))
}

/// The colours of all indices; none where there is no palette.
fn palette(directory: &Directory, page: &Page) -> Result<Vec<[u8; 3]>, ImageError> {
    if page.color != Color::Palette {
        return Ok(Vec::new());
    }
    // All reds, all greens, all blues, of 16 bits.
    let values = directory.integers(Tag::ColorMap);
    let values = values.map(|value| (value >> 8) as u8).collect::<Vec<_>>();
    let count = 1 << page.bits;
    if values.len() != 3 * count {
        return Err(ImageError::UnsupportedColor {
            format: ImageFormat::Tiff,
            color: format!(
                "a palette with {} values instead of {}",
                values.len(),
                3 * count
            ),
        });
    }
    let color = |index| {
        [
            values[index],
            values[count + index],
            values[2 * count + index],
        ]
    };
    Ok((0..count).map(color).collect())
}

/// The samples that count, as bytes: `[height, width, num_channels]`.
fn channels(bytes: &[u8], directory: &Directory, page: &Page) -> Result<Vec<u8>, ImageError> {
    let mut limits = Limits::default();
    // A chunk may be as large as the largest image in its widest form (four channels of 16 bits).
    limits.decoding_buffer_size = MAX_PIXELS as usize * 8;
    limits.intermediate_buffer_size = limits.decoding_buffer_size;
    let prepared = Cursor::new(prepared(bytes, directory)?);
    let mut decoder = Decoder::new(prepared).map_err(error)?.with_limits(limits);
    let inconsistent = || error(TiffFormatError::InconsistentSizesEncountered.into());
    if decoder.dimensions().map_err(error)? != (page.width, page.height) {
        return Err(inconsistent());
    }
    let (width, height) = (page.width as usize, page.height as usize);
    let (chunk_width, chunk_height) = decoder.chunk_dimensions();
    let across = page.width.div_ceil(chunk_width);
    let per_plane = across * page.height.div_ceil(chunk_height);
    let num_channels = page.color.num_channels();
    let num_planes = if page.is_planar {
        num_channels as u32
    } else {
        1
    };
    let mut channels = vec![0; width * height * num_channels];
    for (plane, place) in
        (0..num_planes).flat_map(|plane| (0..per_plane).map(move |at| (plane, at)))
    {
        let left = (place % across * chunk_width) as usize;
        let top = (place / across * chunk_height) as usize;
        let index = plane * per_plane + place;
        let chunk = decoder.read_chunk(index).map_err(error)?;
        let columns = decoder.chunk_data_dimensions(index).0 as usize;
        let samples = page.narrowed(chunk, columns).ok_or_else(inconsistent)?;
        let rows = samples.chunks_exact(columns * page.samples_in_chunk);
        for (row, samples) in (top..height).zip(rows) {
            let start = (row * width + left) * num_channels;
            let pixels =
                channels[start..start + columns * num_channels].chunks_exact_mut(num_channels);
            for (pixel, samples) in pixels.zip(samples.chunks_exact(page.samples_in_chunk)) {
                if page.is_planar {
                    pixel[plane as usize] = samples[0];
                } else {
                    pixel.copy_from_slice(&samples[..num_channels]);
                }
            }
        }
    }
    Ok(channels)
}

/// The file for the library: it says that it is gray, and has its bits in the usual order.
fn prepared(bytes: &[u8], directory: &Directory) -> Result<Vec<u8>, ImageError> {
    let mut copy = bytes.to_vec();
    let entry = directory
        .place_of(Tag::PhotometricInterpretation)
        .expect("`Page::read` needs it");
    let is_big_tiff = copy[2] == 43 || copy[3] == 43;
    // Type short, one value, 1: black is zero.
    let (short, count, value) = if is_big_tiff {
        (2..4, 4..12, 12..20)
    } else {
        (2..4, 4..8, 8..12)
    };
    for (range, number, num_bytes) in [
        (short, 3, 2),
        (count.clone(), 1, count.len()),
        (value, 1, 2),
    ] {
        let field = &mut copy[entry + range.start..entry + range.end];
        field.fill(0);
        field[if directory.is_big_endian() {
            num_bytes - 1
        } else {
            0
        }] = number;
    }
    let first = |tag| directory.integers(tag).next();
    if first(Tag::FillOrder) == Some(2) && first(Tag::Compression) != Some(JPEG) {
        let is_tiled = directory.has(Tag::TileOffsets);
        let (offsets, lengths) = if is_tiled {
            (Tag::TileOffsets, Tag::TileByteCounts)
        } else {
            (Tag::StripOffsets, Tag::StripByteCounts)
        };
        let mut left = copy.len();
        for (offset, length) in directory.integers(offsets).zip(directory.integers(lengths)) {
            let chunk = (offset as usize).checked_add(length as usize);
            let chunk = chunk.and_then(|end| copy.get_mut(offset as usize..end));
            // Together no more than there is, so that overlapping chunks cannot take for ever.
            match (chunk, left.checked_sub(length as usize)) {
                (Some(chunk), Some(rest)) => {
                    left = rest;
                    for byte in chunk {
                        *byte = byte.reverse_bits();
                    }
                }
                _ => return Err(error(TiffFormatError::InconsistentSizesEncountered.into())),
            }
        }
    }
    Ok(copy)
}

/// JFIF's formula (ITU-T T.871, 7), rounded.
fn ycbcr_to_rgb(pixel: &[u8]) -> [u8; 3] {
    let [y, cb, cr] = [pixel[0], pixel[1], pixel[2]].map(f32::from);
    let (cb, cr) = (cb - 128.0, cr - 128.0);
    [
        y + 1.402 * cr,
        y - 0.344_136 * cb - 0.714_136 * cr,
        y + 1.772 * cb,
    ]
    .map(|value| (value + 0.5) as u8)
}

/// CIE L*a*b* under D50 to sRGB, the white points matched by Bradford's method: what Pillow's
/// colour management does.
fn lab_to_rgb(pixel: &[u8]) -> [u8; 3] {
    /// D50, as ICC profiles have it.
    const WHITE: [f32; 3] = [0.9642, 1.0, 0.8249];
    /// XYZ under D50 to linear sRGB.
    const TO_RGB: [[f32; 3]; 3] = [
        [3.134_136, -1.617_386, -0.490_662],
        [-0.978_795, 1.916_254, 0.033_443],
        [0.071_956, -0.228_977, 1.405_387],
    ];
    let lightness = f32::from(pixel[0]) * 100.0 / 255.0;
    let [a, b] = [pixel[1], pixel[2]].map(|value| f32::from(value.cast_signed()));
    let y = (lightness + 16.0) / 116.0;
    let inverse = |value: f32| {
        if value > 6.0 / 29.0 {
            value * value * value
        } else {
            (value - 4.0 / 29.0) * 108.0 / 841.0
        }
    };
    let [f_x, f_y, f_z] = [y + a / 500.0, y, y - b / 200.0].map(inverse);
    let xyz = [f_x * WHITE[0], f_y * WHITE[1], f_z * WHITE[2]];
    TO_RGB.map(|row| {
        let linear = row[0] * xyz[0] + row[1] * xyz[1] + row[2] * xyz[2];
        let encoded = if linear <= 0.003_130_8 {
            linear * 12.92
        } else {
            1.055 * libm::powf(linear, 1.0 / 2.4) - 0.055
        };
        (encoded * 255.0 + 0.5) as u8
    })
}

#[cfg(test)]
#[path = "tiff_tests.rs"]
pub(super) mod tests;
