//! One decoder for all formats: told by the first bytes, each format by its own file.
use super::{
    ImageError, ImageFormat, ImageHeader, Orientation, PixelRect, RgbImage, gif, jpeg, metadata,
    still, tiff,
};

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

    /// Decodes to RGB as the image is STORED (before orientation) into `rgb`, `[height, width, 3]`,
    /// whose memory is used again. Returns width and height.
    pub fn decode_stored(
        &mut self,
        bytes: &[u8],
        rgb: &mut Vec<u8>,
    ) -> Result<(u32, u32), ImageError> {
        let (size, _) = self.decode_part(bytes, PixelRect::whole, rgb)?;
        Ok(size)
    }

    /// Decodes at least the part that `wanted` says of the stored width and height, which it lies
    /// in. `rgb` then holds what was decoded, `[part.height, part.width, 3]`; the pixels are those
    /// of the whole image. Returns the stored width and height, and that part.
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

/// Whether an image is gray with samples wider than 8 bits: they are clipped to 0 to 255, as in
/// Pillow, so that most of such images are all white.
pub fn clips_gray(bytes: &[u8]) -> bool {
    match ImageFormat::of(bytes) {
        Some(ImageFormat::Png) => still::is_gray16_png(bytes),
        Some(ImageFormat::Tiff) => tiff::clips_gray(bytes),
        _ => false,
    }
}

fn format_of(bytes: &[u8]) -> Result<ImageFormat, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    ImageFormat::of(bytes).ok_or_else(|| ImageError::UnknownFormat {
        start: bytes[..bytes.len().min(8)].to_vec(),
    })
}
