//! What can be wrong with one image: the sample is bad, and the run goes on.
use super::ImageFormat;

/// One image cannot be decoded or cropped: the sample is bad.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There are no bytes.
    #[error("the image is empty (0 bytes)")]
    Empty,
    /// The first bytes belong to no known format.
    #[error(
        "not an image in a known format (JPEG, PNG, WebP, BMP, GIF, TIFF): it begins with {start:02x?}"
    )]
    UnknownFormat {
        /// The first bytes, at most 8.
        start: Vec<u8>,
    },
    /// libjpeg-turbo refuses it.
    #[error("the JPEG cannot be decoded")]
    Jpeg(#[source] super::LibjpegError),
    /// A decoder other than the JPEG one refuses it.
    #[error("the {format} cannot be decoded")]
    Decode {
        /// Its format.
        format: ImageFormat,
        /// What the decoder says.
        #[source]
        source: image::ImageError,
    },
    /// The GIF decoder refuses it.
    #[error("the GIF cannot be decoded")]
    Gif(#[source] gif::DecodingError),
    /// The TIFF decoder refuses it.
    #[error("the TIFF cannot be decoded")]
    Tiff(#[source] tiff::TiffError),
    /// The pixels are compressed in a way that is not read.
    #[error(
        "the {format} is compressed by {compression}, which is not read; save it with LZW, Deflate, Zstandard or no compression"
    )]
    UnsupportedCompression {
        /// Its format.
        format: ImageFormat,
        /// The method.
        compression: String,
    },
    /// The file ends before the image does.
    #[error("the {format} is truncated: the file ends before the image does")]
    Truncated {
        /// Its format.
        format: ImageFormat,
    },
    /// It holds no image, or one without pixels.
    #[error("the {format} holds no pixels ({width} x {height})")]
    NoPixels {
        /// Its format.
        format: ImageFormat,
        /// Width in the header.
        width: u64,
        /// Height in the header.
        height: u64,
    },
    /// The device's decoder refused it; the CPU's has the last word.
    #[error("{reason}")]
    Device {
        /// Its answer.
        reason: String,
    },
    /// The header claims more pixels than a training image can have.
    #[error(
        "the {format} claims {width} x {height} pixels, more than the limit of {limit} (a decompression bomb?)"
    )]
    TooLarge {
        /// Its format.
        format: ImageFormat,
        /// Width in the header.
        width: u64,
        /// Height in the header.
        height: u64,
        /// Most pixels allowed.
        limit: u64,
    },
    /// The header claims more pixels than so few bytes can hold.
    #[error("the {format} claims {width} x {height} pixels, which {num_bytes} bytes cannot hold")]
    TooFewBytes {
        /// Its format.
        format: ImageFormat,
        /// Width in the header.
        width: u64,
        /// Height in the header.
        height: u64,
        /// Length of the file.
        num_bytes: usize,
    },
    /// The kind of pixels has no meaning as RGB here (colour of floating point, say).
    #[error(
        "the {format} holds {color}, which has no set conversion to 8-bit RGB; save it as 8-bit RGB or gray"
    )]
    UnsupportedColor {
        /// Its format.
        format: ImageFormat,
        /// The kind of pixels.
        color: String,
    },
    /// A crop plan was drawn for another image.
    #[error(
        "the crop {width} x {height} at ({x}, {y}) does not lie in the image of {image_width} x {image_height} pixels"
    )]
    CropOutside {
        /// Left edge of the crop.
        x: f64,
        /// Top edge of the crop.
        y: f64,
        /// Width of the crop.
        width: f64,
        /// Height of the crop.
        height: f64,
        /// Width of the upright image.
        image_width: u32,
        /// Height of the upright image.
        image_height: u32,
    },
    /// A plan's erased box does not lie in its view.
    #[error(
        "the erased box of {} x {} pixels at ({}, {}) does not lie in the view of {side} x {side}",
        rect.width, rect.height, rect.left, rect.top
    )]
    EraseOutside {
        /// The box.
        rect: crate::EraseBox,
        /// Side of the view.
        side: u32,
    },
}
