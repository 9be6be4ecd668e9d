//! Images in device memory: the largest that is decoded there, and files that make a decoder take
//! all memory that it will need.
use crate::backend::BackendError;

/// Width and height of the largest image that is decoded on the device; larger ones are rare, and
/// memory for them would lie idle.
pub(super) const MAX_SIZE: (usize, usize) = (2560, 1920);
/// Its pixels, in whatever shape.
pub(super) const MAX_PIXELS: u64 = (MAX_SIZE.0 * MAX_SIZE.1) as u64;
/// Bytes that an engine may write past the pixels: it works in blocks.
const SLACK_BYTES: usize = 1 << 16;

/// Bytes of device memory for one image.
pub(super) fn image_bytes() -> usize {
    3 * MAX_PIXELS as usize + SLACK_BYTES
}

/// JPEGs of the largest size, without subsampling.
#[derive(Debug)]
pub(super) struct WarmUp {
    /// A ramp: a file as any other. A decoder that refuses it is of no use.
    pub smooth: Vec<u8>,
    /// Noise, which codes badly: once a decoder has met it, its buffers are large enough for the
    /// run. A decoder may refuse a file of 10 MB, and is none the worse for it.
    pub noise: Vec<u8>,
}

impl WarmUp {
    pub(super) fn new() -> Result<Self, BackendError> {
        let (width, height) = MAX_SIZE;
        let mut number = 1u32;
        let mut noise = |_| {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (number >> 24) as u8
        };
        let ramp = |i| (i / 3 % width * 256 / width) as u8;
        let num_bytes = 3 * width * height;
        Ok(Self {
            smooth: compress(&(0..num_bytes).map(ramp).collect::<Vec<_>>())?,
            noise: compress(&(0..num_bytes).map(&mut noise).collect::<Vec<_>>())?,
        })
    }
}

fn compress(pixels: &[u8]) -> Result<Vec<u8>, BackendError> {
    let (width, height) = MAX_SIZE;
    let image = turbojpeg::Image {
        pixels,
        width,
        pitch: 3 * width,
        height,
        format: turbojpeg::PixelFormat::RGB,
    };
    let jpeg = turbojpeg::compress(image, 90, turbojpeg::Subsamp::None);
    jpeg.map(|jpeg| jpeg.to_vec())
        .map_err(|error| BackendError {
            doing: "making an image to warm up with",
            source: Box::new(error),
        })
}
