//! Encoded bytes to 8-bit RGB, as Pillow's `exif_transpose` and `convert("RGB")` give it.
//!
//! The format is told by its first bytes, never by a name. Nothing here panics or allocates without bound, whatever the bytes. [`CpuRenderer`]
//! uses [`Decoder`], which leaves the image as it is stored; [`read_header`] and [`decode_rgb`] are for looking at single images.

mod error;
mod gif;
mod jpeg;
mod jpeg_markers;
mod libjpeg;
mod metadata;
mod orientation;
mod render;
mod resample;
mod still;
#[cfg(test)]
mod tests;
mod tiff;
mod tiff_directory;

pub use error::ImageError;
pub use jpeg_markers::{JpegFacts, JpegProcess};
pub use libjpeg::LibjpegError;
pub use orientation::Orientation;
pub use render::{CpuRenderer, Normalize, Pixel};

/// Most pixels that an image may have: Pillow's limit against decompression bombs (twice its warning level, 128 MiB of RGB, is an error there).
pub const MAX_PIXELS: u64 = 178_956_970;

/// A format that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ImageFormat {
    /// JPEG, decoded by libjpeg-turbo.
    Jpeg,
    /// PNG.
    Png,
    /// WebP.
    WebP,
    /// Windows bitmap.
    Bmp,
    /// GIF; the first frame counts.
    Gif,
    /// TIFF; the first page counts.
    Tiff,
}

impl ImageFormat {
    /// The format that `bytes` begin like.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ] => Some(Self::WebP),
            [b'B', b'M', ..] => Some(Self::Bmp),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Self::Tiff),
            _ => None,
        }
    }
}

impl std::fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Gif => "GIF",
            Self::Tiff => "TIFF",
        })
    }
}

/// What an image's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    /// Its format.
    pub format: ImageFormat,
    /// Width in pixels after orientation.
    pub width: u32,
    /// Height in pixels after orientation.
    pub height: u32,
    /// How the stored image is turned; [`Orientation::UPRIGHT`] where orientation is not asked for.
    pub orientation: Orientation,
}

/// Whole pixels of a stored image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PixelRect {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Number of columns.
    pub width: u32,
    /// Number of rows.
    pub height: u32,
}

impl PixelRect {
    /// All of an image.
    pub fn whole(width: u32, height: u32) -> Self {
        Self {
            left: 0,
            top: 0,
            width,
            height,
        }
    }

    /// The smallest one that holds both.
    pub(crate) fn around(self, other: Self) -> Self {
        let (left, top) = (self.left.min(other.left), self.top.min(other.top));
        let right = (self.left + self.width).max(other.left + other.width);
        let bottom = (self.top + self.height).max(other.top + other.height);
        Self {
            left,
            top,
            width: right - left,
            height: bottom - top,
        }
    }

    /// With `margin` more columns on both sides, as far as an image of `width` columns has them.
    fn wider(self, margin: u32, width: u32) -> Self {
        let left = self.left.saturating_sub(margin);
        let end = (self.left + self.width).saturating_add(margin).min(width);
        Self {
            left,
            width: end - left,
            ..self
        }
    }
}

/// 8-bit RGB pixels, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// `[height, width, 3]`.
    pub data: Vec<u8>,
}

/// Reads the header only, EXIF orientation included; the pixels may still turn out to be broken.
pub fn read_header(bytes: &[u8]) -> Result<ImageHeader, ImageError> {
    Decoder::default().header(bytes, true)
}

/// Decodes to upright RGB; `exif_orientation` says whether the EXIF orientation is applied.
pub fn decode_rgb(bytes: &[u8], exif_orientation: bool) -> Result<RgbImage, ImageError> {
    let mut decoder = Decoder::default();
    let header = decoder.header(bytes, exif_orientation)?;
    let mut stored = Vec::new();
    let (width, height) = decoder.decode_stored(bytes, &mut stored)?;
    if header.orientation == Orientation::UPRIGHT {
        return Ok(RgbImage {
            width,
            height,
            data: stored,
        });
    }
    let (stored_width, stored_height) = (width as usize, height as usize);
    let mut data = Vec::with_capacity(stored.len());
    for y in 0..header.height as usize {
        for x in 0..header.width as usize {
            let (x, y) = header
                .orientation
                .stored_pixel(x, y, stored_width, stored_height);
            let start = (y * stored_width + x) * 3;
            data.extend_from_slice(&stored[start..start + 3]);
        }
    }
    Ok(RgbImage {
        width: header.width,
        height: header.height,
        data,
    })
}

/// Decodes image after image with the same scratch memory.
#[derive(Debug, Default)]
pub struct Decoder {
    jpeg: jpeg::JpegDecoder,
}

impl Decoder {
    /// Reads the header; `exif_orientation` says whether the EXIF orientation counts.
    pub fn header(
        &mut self,
        bytes: &[u8],
        exif_orientation: bool,
    ) -> Result<ImageHeader, ImageError> {
        let format = format_of(bytes)?;
        let (width, height) = match format {
            ImageFormat::Jpeg => self.jpeg.size(bytes)?,
            ImageFormat::Gif => gif::size(bytes)?,
            ImageFormat::Tiff => tiff::size(bytes)?,
            ImageFormat::Png | ImageFormat::WebP | ImageFormat::Bmp => still::size(bytes, format)?,
        };
        let orientation = if exif_orientation {
            metadata::orientation(bytes, format)
        } else {
            Orientation::UPRIGHT
        };
        let (width, height) = orientation.upright_size(width, height);
        Ok(ImageHeader {
            format,
            width,
            height,
            orientation,
        })
    }

    /// Decodes to RGB as the image is STORED (before orientation) into `rgb`, `[height, width, 3]`, whose memory is used again. Returns width and height.
    pub fn decode_stored(
        &mut self,
        bytes: &[u8],
        rgb: &mut Vec<u8>,
    ) -> Result<(u32, u32), ImageError> {
        let (size, _) = self.decode_part(bytes, PixelRect::whole, rgb)?;
        Ok(size)
    }

    /// Decodes at least the part that `wanted` says of the stored width and height, which it lies in. `rgb` then holds what was decoded,
    /// `[part.height, part.width, 3]`; the pixels are those of the whole image. Returns the stored width and height, and that part.
    pub fn decode_part(
        &mut self,
        bytes: &[u8],
        wanted: impl FnOnce(u32, u32) -> PixelRect,
        rgb: &mut Vec<u8>,
    ) -> Result<((u32, u32), PixelRect), ImageError> {
        let format = format_of(bytes)?;
        let (width, height) = match format {
            ImageFormat::Jpeg => return self.jpeg.decode(bytes, wanted, rgb),
            ImageFormat::Gif => gif::decode(bytes, rgb)?,
            ImageFormat::Tiff => tiff::decode(bytes, rgb)?,
            ImageFormat::Png | ImageFormat::WebP | ImageFormat::Bmp => {
                still::decode(bytes, format, rgb)?
            }
        };
        Ok(((width, height), PixelRect::whole(width, height)))
    }
}

/// Whether an image is gray with samples wider than 8 bits: they are clipped to 0 to 255, as in Pillow, so that most of such images are all white.
pub fn clips_gray(bytes: &[u8]) -> bool {
    match ImageFormat::of(bytes) {
        Some(ImageFormat::Png) => still::is_gray16_png(bytes),
        Some(ImageFormat::Tiff) => tiff::clips_gray(bytes),
        _ => false,
    }
}

/// Refuses what has no pixels or too many.
fn checked_size(format: ImageFormat, width: u64, height: u64) -> Result<(), ImageError> {
    if width == 0 || height == 0 {
        return Err(ImageError::NoPixels {
            format,
            width,
            height,
        });
    }
    if width.saturating_mul(height) > MAX_PIXELS {
        return Err(ImageError::TooLarge {
            format,
            width,
            height,
            limit: MAX_PIXELS,
        });
    }
    Ok(())
}

fn format_of(bytes: &[u8]) -> Result<ImageFormat, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    ImageFormat::of(bytes).ok_or_else(|| ImageError::UnknownFormat {
        start: bytes[..bytes.len().min(8)].to_vec(),
    })
}

/// Pillow's `CMYK` to `RGB`: the rounded product of the inverted ink and the inverted black.
fn cmyk_to_rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let white = 255 - u32::from(k);
    [c, m, y].map(|ink| {
        let product = u32::from(ink) * white + 128;
        // Pillow's MULDIV255: exact division by 255 with rounding.
        (white - (((product >> 8) + product) >> 8)) as u8
    })
}
