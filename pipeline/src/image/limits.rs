//! How large an image may be, and the one conversion that several formats share.
use super::{ImageError, ImageFormat};

/// Most pixels that an image may have: Pillow's limit against decompression bombs (twice its
/// warning level, 128 MiB of RGB, is an error there).
pub const MAX_PIXELS: u64 = 178_956_970;

/// Refuses what has no pixels or too many.
pub(super) fn checked_size(format: ImageFormat, width: u64, height: u64) -> Result<(), ImageError> {
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

/// Pillow's `CMYK` to `RGB`: the rounded product of the inverted ink and the inverted black.
pub(super) fn cmyk_to_rgb([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let white = 255 - u32::from(k);
    [c, m, y].map(|ink| {
        let product = u32::from(ink) * white + 128;
        // Pillow's MULDIV255: exact division by 255 with rounding.
        (white - (((product >> 8) + product) >> 8)) as u8
    })
}
