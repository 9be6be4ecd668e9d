//! Arguments of the kernels in `cuda/kernels/crop.cu`, mirrors of its structs. Plain numbers, here
//! and not behind the feature `cuda`, so that the tests that run the kernels on the CPU launch them
//! with the very values that a GPU gets.
use crate::image::Normalize;
use crate::image::{Orientation, PixelRect};
use crate::{CropPlan, EdgeSupport, Filter};

/// Mirror of `CropJob`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct CropJob {
    image: u64,
    pitch_bytes: u64,
    slot: u64,
    rect_x: f64,
    rect_y: f64,
    rect_width: f64,
    rect_height: f64,
    image_width: u32,
    image_height: u32,
    orientation: u32,
    flip: u32,
    filter: u32,
    edge: u32,
}
const _: () = assert!(size_of::<CropJob>() == 80);

/// A decoded image as stored: interleaved 8-bit RGB.
#[derive(Debug, Clone, Copy)]
pub struct StoredPixels {
    /// Address, in the memory that the kernel reads.
    pub address: u64,
    /// From the start of a row to that of the next.
    pub pitch_bytes: u64,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl StoredPixels {
    /// An image of this size of which only `part` is in memory, from address `start` on, rows
    /// without padding: the address is that where its first pixel would lie. Nothing outside of the
    /// part may be read.
    pub fn of_part(start: u64, part: PixelRect, (width, height): (u32, u32)) -> Self {
        let pitch_bytes = 3 * u64::from(part.width);
        let offset = u64::from(part.top) * pitch_bytes + 3 * u64::from(part.left);
        Self {
            address: start.wrapping_sub(offset),
            pitch_bytes,
            width,
            height,
        }
    }
}

impl CropJob {
    /// The crop of a plan from an image that is turned, to the slot at address `slot`. The plan
    /// lies inside of the image.
    pub fn new(image: StoredPixels, orientation: Orientation, plan: &CropPlan, slot: u64) -> Self {
        Self {
            image: image.address,
            pitch_bytes: image.pitch_bytes,
            slot,
            rect_x: plan.rect.x,
            rect_y: plan.rect.y,
            rect_width: plan.rect.width,
            rect_height: plan.rect.height,
            image_width: image.width,
            image_height: image.height,
            orientation: u32::from(orientation.swaps_axes())
                | u32::from(orientation.mirrors_x()) << 1
                | u32::from(orientation.mirrors_y()) << 2,
            flip: plan.flip.into(),
            filter: match plan.filter {
                Filter::Bilinear => 0,
                Filter::Bicubic => 1,
            },
            edge: match plan.edge {
                EdgeSupport::Rect => 0,
                EdgeSupport::Image => 1,
            },
        }
    }
}

/// Mirror of `Normalization`: what makes a normalised value of an 8-bit one, by one fused
/// multiplication and addition.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct Normalization {
    /// By channel, `1 / (255 * std)`.
    pub factor: [f32; 3],
    /// By channel, `-mean / std`.
    pub offset: [f32; 3],
}
const _: () = assert!(size_of::<Normalization>() == 24);

impl From<Normalize> for Normalization {
    fn from(normalize: Normalize) -> Self {
        let Normalize { mean, std } = normalize;
        Self {
            factor: std.map(|std| (1.0 / (255.0 * f64::from(std))) as f32),
            offset: std::array::from_fn(|channel| {
                (-f64::from(mean[channel]) / f64::from(std[channel])) as f32
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_of_a_part_lie_where_the_kernel_looks_for_them() {
        let part = PixelRect {
            left: 7,
            top: 5,
            width: 4,
            height: 3,
        };
        for start in [1 << 40, 16] {
            let pixels = StoredPixels::of_part(start, part, (100, 50));
            for (x, y) in [(7, 5), (10, 5), (7, 6), (10, 7)] {
                let looked_for = pixels.address.wrapping_add(y * pixels.pitch_bytes + 3 * x);
                assert_eq!(looked_for, start + (y - 5) * 12 + 3 * (x - 7));
            }
            assert_eq!((pixels.width, pixels.height), (100, 50));
        }
    }
}
