//! PNG, WebP and BMP to 8-bit RGB, as Pillow's `convert("RGB")`: alpha is dropped and never
//! blended, 16-bit colour keeps its high byte, and 16-bit grayscale is CLIPPED at 255 (Pillow 13
//! and all before it convert `I;16` so).
use std::io::Cursor;

use image::{ColorType, ImageDecoder, ImageReader, Limits};

use super::ImageError;
use super::ImageFormat;
use super::limits::{MAX_PIXELS, checked_size};

fn open(bytes: &[u8], format: ImageFormat) -> Result<impl ImageDecoder + '_, ImageError> {
    let library_format = match format {
        ImageFormat::Png => image::ImageFormat::Png,
        ImageFormat::WebP => image::ImageFormat::WebP,
        ImageFormat::Bmp => image::ImageFormat::Bmp,
        ImageFormat::Jpeg | ImageFormat::Gif | ImageFormat::Tiff => {
            unreachable!("each of these has a file of its own")
        }
    };
    let mut limits = Limits::no_limits();
    // Enough for the largest image allowed in its widest form (four channels of 16 bits).
    limits.max_alloc = Some(MAX_PIXELS * 8);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), library_format);
    reader.limits(limits);
    let decoder = reader
        .into_decoder()
        .map_err(|source| decode_error(format, source))?;
    let (width, height) = decoder.dimensions();
    checked_size(format, width.into(), height.into())?;
    Ok(decoder)
}

fn decode_error(format: ImageFormat, source: image::ImageError) -> ImageError {
    match source {
        image::ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageError::Truncated { format }
        }
        source => ImageError::Decode { format, source },
    }
}

/// Stored width and height.
pub(super) fn size(bytes: &[u8], format: ImageFormat) -> Result<(u32, u32), ImageError> {
    Ok(open(bytes, format)?.dimensions())
}

/// Whether a PNG is gray with 16 bits a sample.
pub(super) fn is_gray16_png(bytes: &[u8]) -> bool {
    bytes.get(24..26) == Some(&[16, 0])
}

/// Decodes into `rgb` (resized to fit) as the image is stored; returns width and height.
pub(super) fn decode(
    bytes: &[u8],
    format: ImageFormat,
    rgb: &mut Vec<u8>,
) -> Result<(u32, u32), ImageError> {
    let decoder = open(bytes, format)?;
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    let mut pixels = vec![0; decoder.total_bytes() as usize];
    decoder
        .read_image(&mut pixels)
        .map_err(|source| decode_error(format, source))?;
    rgb.clear();
    rgb.reserve(width as usize * height as usize * 3);
    // 16-bit samples come in the machine's own byte order.
    let wide = |sample: &[u8]| u16::from_ne_bytes([sample[0], sample[1]]);
    let high = |sample: &[u8]| (wide(sample) >> 8) as u8;
    match color {
        ColorType::Rgb8 => rgb.append(&mut pixels),
        ColorType::Rgba8 => rgb.extend(
            pixels
                .chunks_exact(4)
                .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]),
        ),
        ColorType::L8 => rgb.extend(pixels.iter().flat_map(|&gray| [gray; 3])),
        ColorType::La8 => rgb.extend(pixels.chunks_exact(2).flat_map(|pixel| [pixel[0]; 3])),
        ColorType::L16 => rgb.extend(
            pixels
                .chunks_exact(2)
                .flat_map(|gray| [wide(gray).min(255) as u8; 3]),
        ),
        // Gray with one transparent value comes with alpha, and is gray to Pillow.
        ColorType::La16 if format == ImageFormat::Png && is_gray16_png(bytes) => rgb.extend(
            pixels
                .chunks_exact(4)
                .flat_map(|pixel| [wide(&pixel[..2]).min(255) as u8; 3]),
        ),
        ColorType::La16 => rgb.extend(
            pixels
                .chunks_exact(4)
                .flat_map(|pixel| [high(&pixel[..2]); 3]),
        ),
        ColorType::Rgb16 => rgb.extend(pixels.chunks_exact(2).map(high)),
        ColorType::Rgba16 => rgb.extend(
            pixels
                .chunks_exact(8)
                .flat_map(|pixel| [high(&pixel[..2]), high(&pixel[2..4]), high(&pixel[4..6])]),
        ),
        color => {
            return Err(ImageError::UnsupportedColor {
                format,
                color: format!("{color:?} pixels"),
            });
        }
    }
    Ok((width, height))
}
