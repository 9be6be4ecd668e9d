//! JPEG by libjpeg-turbo, with the settings and the tolerance of Pillow.
//!
//! Accurate DCT and smooth ("fancy") chroma upsampling, the library's defaults, as in Pillow. Pillow goes on after the library's warnings (a damaged
//! stretch of a scan, say) but refuses a file that ends early, so the same is done here; see [`JpegDecoder::decode`].
use std::borrow::Cow;

use turbojpeg::{Colorspace, DecompressHeader, Decompressor, Image, PixelFormat};

use super::{ImageFormat, MAX_PIXELS, Orientation, cmyk_to_rgb};
use crate::ImageError;

/// Most scans in one file. Encoders write about ten; files with thousands make a small file decode for minutes
/// (<https://libjpeg-turbo.org/pmwiki/uploads/About/TwoIssueswiththeJPEGStandard.pdf>).
const MAX_SCANS: u32 = 200;

/// Pixels that one byte of Huffman-coded data can describe at the very most: one bit for each 8 x 8 block.
const MAX_PIXELS_PER_BYTE: u64 = 512;

/// How libjpeg's warnings begin; all other messages are errors. A premature end of the file is told apart by [`ends_early`].
const WARNINGS: [&str; 11] = [
    "Unknown Adobe color transform code",
    "Corrupt JPEG data: bad arithmetic code",
    "Inconsistent progression sequence",
    "Corrupt JPEG data: bad Huffman code",
    "Corrupt JPEG data: premature end of data segment",
    "Corrupt JPEG data: bad ICC marker",
    "Corrupt JPEG data: found marker",
    "Warning: unknown JFIF revision number",
    "Premature end of JPEG file",
    "Invalid SOS parameters for sequential JPEG",
    "Application transferred too many scanlines",
];

/// Whether a message of the library is a warning: the image is there, if perhaps damaged.
fn is_warning(error: &turbojpeg::Error) -> bool {
    let turbojpeg::Error::TurboJpegError(message) = error else {
        return false;
    };
    WARNINGS.iter().any(|warning| message.starts_with(warning))
        || (message.starts_with("Corrupt JPEG data: ")
            && message.contains("extraneous bytes before marker"))
}

/// A header that was checked, and what is needed to decode the rest.
///
/// Each image gets a handle of its own: a used one still holds the tables of the image before, and would decode with them a file that leaves its own out
/// (frames of Motion JPEG do).
struct Prepared<'a> {
    header: DecompressHeader,
    /// The file itself, or a copy with a header that the library does not warn of.
    bytes: Cow<'a, [u8]>,
    decompressor: Decompressor,
}

fn prepare(bytes: &[u8]) -> Result<Prepared<'_>, ImageError> {
    let mut decompressor = Decompressor::new().map_err(ImageError::Jpeg)?;
    decompressor
        .set_scan_limit(MAX_SCANS)
        .map_err(ImageError::Jpeg)?;
    let (header, bytes) = match decompressor.read_header(bytes) {
        Ok(header) => (header, Cow::Borrowed(bytes)),
        // The crate takes a warning in the header for an error, in `decompress` too.
        Err(error) if is_warning(&error) => {
            let bytes = mend_header(bytes);
            let header = decompressor.read_header(&bytes).map_err(ImageError::Jpeg)?;
            (header, Cow::Owned(bytes))
        }
        Err(error) => return Err(ImageError::Jpeg(error)),
    };
    let (format, width, height) = (ImageFormat::Jpeg, header.width as u64, header.height as u64);
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
    if !header.is_arithmetic && width * height > MAX_PIXELS_PER_BYTE * bytes.len() as u64 {
        return Err(ImageError::TooFewBytes {
            format,
            width,
            height,
            num_bytes: bytes.len(),
        });
    }
    Ok(Prepared {
        header,
        bytes,
        decompressor,
    })
}

/// Stored width and height.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), ImageError> {
    let Prepared { header, .. } = prepare(bytes)?;
    Ok((header.width as u32, header.height as u32))
}

/// Decodes JPEGs; keeps the scratch memory of CMYK ones.
#[derive(Debug, Default)]
pub(super) struct JpegDecoder {
    cmyk: Vec<u8>,
}

impl JpegDecoder {
    /// Decodes into `rgb` (resized to fit) as the image is stored; returns width and height.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        rgb: &mut Vec<u8>,
    ) -> Result<(u32, u32), ImageError> {
        let Prepared {
            header,
            bytes,
            mut decompressor,
        } = prepare(bytes)?;
        let (width, height) = (header.width, header.height);
        let is_cmyk = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
        rgb.resize(width * height * 3, 0);
        let (format, pixels) = if is_cmyk {
            self.cmyk.resize(width * height * 4, 0);
            (PixelFormat::CMYK, &mut self.cmyk)
        } else {
            (PixelFormat::RGB, &mut *rgb)
        };
        let image = Image {
            pixels: pixels.as_mut_slice(),
            width,
            pitch: width * format.size(),
            height,
            format,
        };
        match decompressor.decompress(&bytes, image) {
            Ok(()) => {}
            Err(error) if is_warning(&error) => {
                if ends_early(&bytes) {
                    return Err(ImageError::Truncated {
                        format: ImageFormat::Jpeg,
                    });
                }
            }
            Err(error) => return Err(ImageError::Jpeg(error)),
        }
        if is_cmyk {
            // Adobe writes CMYK inverted, and Pillow takes every CMYK JPEG to be Adobe's.
            for (cmyk, rgb) in self.cmyk.chunks_exact(4).zip(rgb.chunks_exact_mut(3)) {
                rgb.copy_from_slice(&cmyk_to_rgb([
                    255 - cmyk[0],
                    255 - cmyk[1],
                    255 - cmyk[2],
                    255 - cmyk[3],
                ]));
            }
        }
        Ok((width as u32, height as u32))
    }
}

/// The orientation in the EXIF or XMP segment before the first scan.
pub(super) fn orientation(bytes: &[u8]) -> Orientation {
    let (mut exif, mut xmp) = (None, None);
    for segment in segments(bytes).filter(|segment| segment.marker == APP1) {
        if segment.payload.starts_with(b"Exif\0\0") {
            exif = exif.or(Some(segment.payload));
        } else if let Some(packet) = segment
            .payload
            .strip_prefix(b"http://ns.adobe.com/xap/1.0/\0")
        {
            xmp = xmp.or(Some(packet));
        }
    }
    Orientation::from_metadata(exif, xmp)
}

const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const APP0: u8 = 0xe0;
const APP1: u8 = 0xe1;
const APP14: u8 = 0xee;

/// A marker segment of the header.
struct Segment<'a> {
    marker: u8,
    /// Where its 0xff lies.
    start: usize,
    /// What follows its length.
    payload: &'a [u8],
}

/// The segments up to and including the first SOS, found as libjpeg finds them: garbage between them is skipped.
fn segments(bytes: &[u8]) -> impl Iterator<Item = Segment<'_>> {
    let mut position = 2;
    let mut ended = false;
    std::iter::from_fn(move || {
        while !ended {
            let start = position
                + bytes
                    .get(position..)?
                    .windows(2)
                    .position(|pair| pair[0] == 0xff && !matches!(pair[1], 0 | 0xff))?;
            let marker = bytes[start + 1];
            if matches!(marker, 0x01 | 0xd0..=0xd7) {
                position = start + 2;
                continue;
            }
            if matches!(marker, SOI | EOI) {
                return None;
            }
            let length = usize::from(u16::from_be_bytes([
                *bytes.get(start + 2)?,
                *bytes.get(start + 3)?,
            ]));
            let payload = bytes.get(start + 4..start + 2 + length)?;
            position = start + 2 + length;
            ended = marker == SOS;
            return Some(Segment {
                marker,
                start,
                payload,
            });
        }
        None
    })
}

/// Whether no end-of-image marker follows the first scan's header. Pillow refuses such a file even if only the marker is missing.
fn ends_early(bytes: &[u8]) -> bool {
    let scan = segments(bytes)
        .find(|segment| segment.marker == SOS)
        .map_or(bytes.len(), |segment| segment.start);
    !bytes[scan..].windows(2).any(|pair| pair == [0xff, EOI])
}

/// A copy without what the library warns of in a header: garbage between segments, unknown revisions of JFIF and unknown Adobe transforms. They are set to
/// what the library assumes after its warning.
fn mend_header(bytes: &[u8]) -> Vec<u8> {
    let is_frame =
        |marker: u8| matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc);
    let num_components = segments(bytes)
        .find(|segment| is_frame(segment.marker))
        .and_then(|frame| frame.payload.get(5).copied());
    let mut mended = vec![0xff, SOI];
    for segment in segments(bytes) {
        if segment.marker == SOS {
            mended.extend_from_slice(&bytes[segment.start..]);
            break;
        }
        mended.extend([0xff, segment.marker]);
        mended.extend((segment.payload.len() as u16 + 2).to_be_bytes());
        let payload_start = mended.len();
        mended.extend_from_slice(segment.payload);
        let payload = &mut mended[payload_start..];
        if segment.marker == APP0 && payload.starts_with(b"JFIF\0") && payload.len() >= 7 {
            payload[5] = 1;
        }
        if segment.marker == APP14 && payload.starts_with(b"Adobe") && payload.len() >= 12 {
            payload[11] = match (num_components, payload[11]) {
                (Some(3), transform @ 0..=1) | (Some(4), transform @ (0 | 2)) => transform,
                (Some(4), _) => 2,
                _ => 1,
            };
        }
    }
    mended
}
