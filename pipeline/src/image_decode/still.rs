//! PNG, WebP, BMP, GIF and TIFF to 8-bit RGB, as Pillow's `convert("RGB")`: alpha is dropped and never blended, 16-bit colour keeps its high byte,
//! and 16-bit grayscale is CLIPPED at 255 (Pillow 13 and all before it convert `I;16` so).
use std::io::Cursor;
use std::num::NonZeroU64;

use image::{ColorType, ImageDecoder, ImageReader, Limits};

use super::{ImageFormat, MAX_PIXELS, Orientation};
use crate::ImageError;

fn library_format(format: ImageFormat) -> image::ImageFormat {
    match format {
        ImageFormat::Jpeg => image::ImageFormat::Jpeg,
        ImageFormat::Png => image::ImageFormat::Png,
        ImageFormat::WebP => image::ImageFormat::WebP,
        ImageFormat::Bmp => image::ImageFormat::Bmp,
        ImageFormat::Gif => image::ImageFormat::Gif,
        ImageFormat::Tiff => image::ImageFormat::Tiff,
    }
}

fn open(bytes: &[u8], format: ImageFormat) -> Result<impl ImageDecoder + '_, ImageError> {
    let mut limits = Limits::no_limits();
    // Enough for the largest image allowed in its widest form (four channels of 16 bits).
    limits.max_alloc = Some(MAX_PIXELS * 8);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), library_format(format));
    reader.limits(limits);
    let decoder = reader
        .into_decoder()
        .map_err(|source| decode_error(format, source))?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (u64::from(width), u64::from(height));
    if width == 0 || height == 0 {
        return Err(ImageError::NoPixels {
            format,
            width,
            height,
        });
    }
    if width * height > MAX_PIXELS {
        return Err(ImageError::TooLarge {
            format,
            width,
            height,
            limit: MAX_PIXELS,
        });
    }
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

/// Stored width and height, and the orientation.
pub(super) fn header(
    bytes: &[u8],
    format: ImageFormat,
) -> Result<((u32, u32), Orientation), ImageError> {
    let mut decoder = open(bytes, format)?;
    let orientation = if format == ImageFormat::Tiff {
        decoder.orientation().map_or(Orientation::UPRIGHT, |value| {
            Orientation::from_exif(value.to_exif().into())
        })
    } else {
        let exif = decoder.exif_metadata().ok().flatten();
        let xmp = decoder.xmp_metadata().ok().flatten();
        Orientation::from_metadata(exif.as_deref(), xmp.as_deref())
    };
    Ok((decoder.dimensions(), orientation))
}

/// Decodes into `rgb` (resized to fit) as the image is stored; returns width and height.
pub(super) fn decode(
    bytes: &[u8],
    format: ImageFormat,
    rgb: &mut Vec<u8>,
) -> Result<(u32, u32), ImageError> {
    if format == ImageFormat::Gif {
        return decode_gif(bytes, rgb);
    }
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
                color: format!("{color:?}"),
            });
        }
    }
    Ok((width, height))
}

/// The first frame on the canvas. The palette is read here because the library blanks transparent pixels, where Pillow keeps their colour.
fn decode_gif(bytes: &[u8], rgb: &mut Vec<u8>) -> Result<(u32, u32), ImageError> {
    let format = ImageFormat::Gif;
    // Checks sizes before anything is allocated.
    let (width, height) = open(bytes, format)?.dimensions();
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    options.set_memory_limit(gif::MemoryLimit::Bytes(
        NonZeroU64::new(MAX_PIXELS).expect("not zero"),
    ));
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(gif_error)?;
    let background = decoder.bg_color().unwrap_or(0);
    let global_palette = decoder.global_palette().map(<[u8]>::to_vec);
    let Some(frame) = decoder.read_next_frame().map_err(gif_error)? else {
        return Err(ImageError::NoPixels {
            format,
            width: width.into(),
            height: height.into(),
        });
    };
    let palette = frame
        .palette
        .as_deref()
        .or(global_palette.as_deref())
        .unwrap_or_default();
    let color = |index: usize| {
        palette
            .get(index * 3..index * 3 + 3)
            .map_or([0; 3], |rgb| [rgb[0], rgb[1], rgb[2]])
    };
    let (width, height) = (width as usize, height as usize);
    rgb.clear();
    rgb.extend(
        color(frame.transparent.map_or(background, usize::from))
            .into_iter()
            .cycle()
            .take(width * height * 3),
    );
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (frame_width, frame_height) = (usize::from(frame.width), usize::from(frame.height));
    for y in 0..frame_height.min(height.saturating_sub(top)) {
        for x in 0..frame_width.min(width.saturating_sub(left)) {
            let Some(&index) = frame.buffer.get(y * frame_width + x) else {
                return Err(ImageError::Truncated { format });
            };
            let start = ((top + y) * width + left + x) * 3;
            rgb[start..start + 3].copy_from_slice(&color(index.into()));
        }
    }
    Ok((width as u32, height as u32))
}

fn gif_error(error: gif::DecodingError) -> ImageError {
    match error {
        gif::DecodingError::Io(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageError::Truncated {
                format: ImageFormat::Gif,
            }
        }
        error => ImageError::Gif(error),
    }
}
