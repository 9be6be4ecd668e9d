//! GIF to 8-bit RGB: the first frame on a canvas, as Pillow 13 gives it.
//!
//! The canvas grows where the frame reaches beyond the screen. What the frame leaves free has the
//! frame's transparent index, else index 0; the background index of the header does not count. The
//! palette is applied here, because libraries blank transparent pixels, where Pillow keeps their
//! colour.
use std::io::Cursor;
use std::num::NonZeroU64;

use super::ImageError;
use super::ImageFormat;
use super::limits::{MAX_PIXELS, checked_size};

/// A GIF read up to its first frame's pixels.
struct Opened<'a> {
    decoder: gif::Decoder<Cursor<&'a [u8]>>,
    /// Of the canvas.
    width: u32,
    height: u32,
    /// The frame, without pixels.
    frame: gif::Frame<'static>,
}

fn open(bytes: &[u8]) -> Result<Opened<'_>, ImageError> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    options.set_memory_limit(gif::MemoryLimit::Bytes(
        NonZeroU64::new(MAX_PIXELS).expect("not zero"),
    ));
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(error)?;
    let screen = (u32::from(decoder.width()), u32::from(decoder.height()));
    let frame = decoder.next_frame_info().map_err(error)?.cloned();
    let frame = frame.unwrap_or_else(|| gif::Frame {
        width: 0,
        height: 0,
        ..gif::Frame::default()
    });
    let width = screen.0.max(u32::from(frame.left) + u32::from(frame.width));
    let height = screen.1.max(u32::from(frame.top) + u32::from(frame.height));
    checked_size(ImageFormat::Gif, width.into(), height.into())?;
    if frame.width == 0 || frame.height == 0 {
        return Err(ImageError::NoPixels {
            format: ImageFormat::Gif,
            width: frame.width.into(),
            height: frame.height.into(),
        });
    }
    Ok(Opened {
        decoder,
        width,
        height,
        frame,
    })
}

/// Width and height of the canvas.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    open(bytes).map(|opened| (opened.width, opened.height))
}

/// Decodes into `rgb` (resized to fit); returns width and height.
pub(super) fn decode(bytes: &[u8], rgb: &mut Vec<u8>) -> Result<(u32, u32), ImageError> {
    let mut opened = open(bytes)?;
    let mut indices = vec![0; opened.decoder.buffer_size()];
    let read = opened.decoder.read_into_buffer(&mut indices);
    read.map_err(error)?;
    let palette = opened.decoder.palette().unwrap_or_default();
    // A palette of grays in order is none to Pillow, which then takes every index for a gray.
    let mut ramp = (0u8..=255).zip(palette.chunks(3));
    let is_ramp = ramp.all(|(index, color)| color == [index; 3]);
    let color = |index: u8| {
        let start = usize::from(index) * 3;
        match palette.get(start..start + 3) {
            _ if is_ramp => [index; 3],
            Some(color) => [color[0], color[1], color[2]],
            None => [0; 3],
        }
    };
    let (width, height) = (opened.width as usize, opened.height as usize);
    let free = color(opened.frame.transparent.unwrap_or(0));
    rgb.clear();
    rgb.extend(free.into_iter().cycle().take(width * height * 3));
    let (left, top) = (
        usize::from(opened.frame.left),
        usize::from(opened.frame.top),
    );
    let rows = indices.chunks_exact(opened.frame.width.into());
    for (row, indices) in rows.enumerate() {
        let start = ((top + row) * width + left) * 3;
        let pixels = &mut rgb[start..start + indices.len() * 3];
        for (pixel, &index) in pixels.chunks_exact_mut(3).zip(indices) {
            pixel.copy_from_slice(&color(index));
        }
    }
    Ok((opened.width, opened.height))
}

fn error(error: gif::DecodingError) -> ImageError {
    match error {
        gif::DecodingError::Io(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageError::Truncated {
                format: ImageFormat::Gif,
            }
        }
        error => ImageError::Gif(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{decode_rgb, read_header};
    use super::*;

    const PALETTE: [u8; 12] = [200, 30, 40, 20, 180, 60, 10, 70, 220, 240, 240, 20];

    fn color(index: u8) -> [u8; 3] {
        let start = usize::from(index) * 3;
        [PALETTE[start], PALETTE[start + 1], PALETTE[start + 2]]
    }

    /// Background 2; a frame of indices 1 and 3 at (`left`, `top`).
    fn gif(
        screen: (u16, u16),
        (left, top, width, height): (u16, u16, u16, u16),
        palette: &[u8],
        transparent: Option<u8>,
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = gif::Encoder::new(&mut bytes, screen.0, screen.1, palette).unwrap();
        let pixels = (0..width * height).map(|i| if i % 2 == 0 { 1 } else { 3 });
        let frame = gif::Frame {
            width,
            height,
            left,
            top,
            transparent,
            buffer: pixels.collect::<Vec<_>>().into(),
            ..gif::Frame::default()
        };
        encoder.write_frame(&frame).unwrap();
        drop(encoder);
        bytes[11] = 2;
        bytes
    }

    #[test]
    fn the_canvas_grows_with_the_frame_and_has_index_0_or_the_transparent_one() {
        for (screen, frame, size) in [
            ((6, 5), (2, 1, 3, 2), (6, 5)),
            ((3, 2), (0, 0, 6, 5), (6, 5)),
            ((4, 4), (2, 1, 5, 6), (7, 7)),
            ((3, 3), (5, 5, 2, 2), (7, 7)),
            ((0, 0), (0, 0, 2, 2), (2, 2)),
        ] {
            for transparent in [None, Some(3)] {
                let bytes = gif(screen, frame, &PALETTE, transparent);
                let what = format!("{screen:?}, {frame:?}, {transparent:?}");
                let header = read_header(&bytes).unwrap();
                assert_eq!((header.width, header.height), size, "{what}");
                let image = decode_rgb(&bytes, true).unwrap();
                assert_eq!((image.width, image.height), size, "{what}");
                let (left, top, width, height) = frame;
                let free = color(transparent.unwrap_or(0));
                for (at, pixel) in image.data.chunks(3).enumerate() {
                    let (x, y) = ((at as u32 % size.0) as u16, (at as u32 / size.0) as u16);
                    let inside =
                        (left..left + width).contains(&x) && (top..top + height).contains(&y);
                    let number = y
                        .wrapping_sub(top)
                        .wrapping_mul(width)
                        .wrapping_add(x.wrapping_sub(left));
                    let expected = if inside {
                        color(if number % 2 == 0 { 1 } else { 3 })
                    } else {
                        free
                    };
                    assert_eq!(pixel, expected, "{what}, pixel {x}, {y}");
                }
            }
        }
    }

    #[test]
    fn indices_without_colour_are_black_and_a_ramp_of_grays_goes_on() {
        let short = decode_rgb(&gif((2, 1), (0, 0, 2, 1), &PALETTE[..6], None), true).unwrap();
        assert_eq!(short.data, [20, 180, 60, 0, 0, 0]);
        let ramp = [0, 0, 0, 1, 1, 1];
        let gray = decode_rgb(&gif((2, 1), (0, 0, 2, 1), &ramp, None), true).unwrap();
        assert_eq!(gray.data, [1, 1, 1, 3, 3, 3]);
    }

    #[test]
    fn frames_far_outside_are_refused_before_anything_is_held() {
        let mut bytes = gif((2, 1), (0, 0, 2, 1), &PALETTE, None);
        let frame = bytes.iter().rposition(|byte| *byte == b',').unwrap();
        bytes[frame + 1..frame + 5].fill(0xff);
        assert!(matches!(
            read_header(&bytes).unwrap_err(),
            ImageError::TooLarge {
                width: 65_537,
                height: 65_536,
                ..
            }
        ));
    }
}
