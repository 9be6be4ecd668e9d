//! Encoded bytes to pixels: first to 8-bit RGB, as Pillow's `exif_transpose` and `convert("RGB")`
//! give it, then to crops, resized and normalised. Knows no data set.
//!
//! The format is told by its first bytes, never by a name. Nothing here panics or allocates without
//! bound, whatever the bytes. [`CpuRenderer`] uses [`Decoder`], which leaves the image as it is
//! stored; [`read_header`] and [`decode_rgb`] are for looking at single images.

mod decoder;
mod erase;
mod error;
mod format;
mod gif;
mod jpeg;
mod jpeg_markers;
mod libjpeg;
mod limits;
mod metadata;
mod normalize;
mod operations;
mod orientation;
mod render;
mod resample;
mod still;
#[cfg(test)]
mod tests;
mod tiff;
mod tiff_directory;

pub use decoder::{Decoder, clips_gray, decode_rgb, read_header};
pub use error::ImageError;
pub use format::{ImageFormat, ImageHeader, PixelRect, RgbImage};
pub use jpeg_markers::{JpegFacts, JpegProcess};
pub use libjpeg::LibjpegError;
pub use limits::MAX_PIXELS;
pub use normalize::{Normalize, Pixel};
pub use operations::PixelOperations;
pub use orientation::Orientation;
pub use render::CpuRenderer;
