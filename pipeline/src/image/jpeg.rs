//! JPEG by libjpeg-turbo, with the settings and the tolerance of Pillow.
//!
//! Accurate DCT and smooth ("fancy") chroma upsampling, the library's defaults, as in Pillow.
//! Pillow goes on after the library's warnings (a damaged stretch of a scan, say) but refuses a
//! file without an end marker, so the same is done here. Only what a crop reads is decoded: columns
//! by whole blocks, rows up to the last one needed.
use super::ImageError;
use super::jpeg_markers::{has_end, is_lossless};
use super::libjpeg::{Libjpeg, OpenJpeg};
use super::limits::{checked_size, cmyk_to_rgb};
use super::{ImageFormat, PixelRect};

/// Most scans in one file. Encoders write about ten; files with thousands make a small file decode
/// for minutes (<https://libjpeg-turbo.org/pmwiki/uploads/About/TwoIssueswiththeJPEGStandard.pdf>).
const MAX_SCANS: u16 = 200;

/// Pixels that one byte of Huffman-coded data can describe at the very most: one bit for each 8 x 8
/// block.
const MAX_PIXELS_PER_BYTE: u64 = 512;

/// Columns beside a crop that are decoded with it: at the border of what is decoded, chroma is
/// upsampled without its neighbour, which is up to four pixels wide.
const CHROMA_MARGIN: u32 = 4;

/// Decodes JPEGs with the same scratch memory.
#[derive(Debug)]
pub(super) struct JpegDecoder {
    libjpeg: Libjpeg,
    cmyk: Vec<u8>,
}

impl Default for JpegDecoder {
    fn default() -> Self {
        Self {
            libjpeg: Libjpeg::new(MAX_SCANS),
            cmyk: Vec::new(),
        }
    }
}

impl JpegDecoder {
    /// Stored width and height.
    pub(super) fn size(&mut self, bytes: &[u8]) -> Result<(u32, u32), ImageError> {
        Ok(self.open(bytes)?.size())
    }

    /// Reads and checks the header.
    fn open<'a>(&'a mut self, bytes: &'a [u8]) -> Result<OpenJpeg<'a>, ImageError> {
        let image = self.libjpeg.open(bytes).map_err(ImageError::Jpeg)?;
        let (width, height) = image.size();
        let (format, width, height) = (ImageFormat::Jpeg, u64::from(width), u64::from(height));
        checked_size(format, width, height)?;
        if !image.is_arithmetic() && width * height > MAX_PIXELS_PER_BYTE * bytes.len() as u64 {
            return Err(ImageError::TooFewBytes {
                format,
                width,
                height,
                num_bytes: bytes.len(),
            });
        }
        Ok(image)
    }

    /// Decodes at least the part of the stored image that `wanted` says of its width and height,
    /// into `rgb` (resized to fit). Returns the image's size and the part that was decoded.
    pub(super) fn decode(
        &mut self,
        bytes: &[u8],
        wanted: impl FnOnce(u32, u32) -> PixelRect,
        rgb: &mut Vec<u8>,
    ) -> Result<((u32, u32), PixelRect), ImageError> {
        // Taken out, because the open image holds the decoder.
        let mut cmyk = std::mem::take(&mut self.cmyk);
        let image = self.open(bytes)?;
        let size = image.size();
        // Pillow refuses such a file even if only the marker is missing.
        if !has_end(bytes) {
            return Err(ImageError::Truncated {
                format: ImageFormat::Jpeg,
            });
        }
        let wanted = if is_lossless(bytes) {
            PixelRect::whole(size.0, size.1)
        } else {
            wanted(size.0, size.1).wider(CHROMA_MARGIN, size.0)
        };
        let is_cmyk = image.is_cmyk();
        let pixels = if is_cmyk { &mut cmyk } else { &mut *rgb };
        let part = image.decode(wanted, pixels).map_err(ImageError::Jpeg)?;
        if is_cmyk {
            rgb.resize(cmyk.len() / 4 * 3, 0);
            // Adobe writes CMYK inverted, and Pillow takes every CMYK JPEG to be Adobe's.
            for (cmyk, rgb) in cmyk.chunks_exact(4).zip(rgb.chunks_exact_mut(3)) {
                rgb.copy_from_slice(&cmyk_to_rgb([
                    255 - cmyk[0],
                    255 - cmyk[1],
                    255 - cmyk[2],
                    255 - cmyk[3],
                ]));
            }
        }
        self.cmyk = cmyk;
        Ok((size, part))
    }
}
