//! Files that make a decoder take all memory that it will need.
use crate::backend::BackendError;

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
    /// `largest`: width and height.
    pub(super) fn new(largest: [u32; 2]) -> Result<Self, BackendError> {
        let [width, height] = largest.map(|side| side as usize);
        let mut number = 1u32;
        let mut noise = |_| {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (number >> 24) as u8
        };
        let ramp = |i| (i / 3 % width * 256 / width) as u8;
        let num_bytes = 3 * width * height;
        Ok(Self {
            smooth: compress(&(0..num_bytes).map(ramp).collect::<Vec<_>>(), width)?,
            noise: compress(&(0..num_bytes).map(&mut noise).collect::<Vec<_>>(), width)?,
        })
    }
}

fn compress(pixels: &[u8], width: usize) -> Result<Vec<u8>, BackendError> {
    let image = turbojpeg::Image {
        pixels,
        width,
        pitch: 3 * width,
        height: pixels.len() / (3 * width),
        format: turbojpeg::PixelFormat::RGB,
    };
    let jpeg = turbojpeg::compress(image, 90, turbojpeg::Subsamp::None);
    jpeg.map(|jpeg| jpeg.to_vec())
        .map_err(|error| BackendError {
            doing: "making an image to warm up with",
            source: Box::new(error),
        })
}
