//! torchvision's `Resize(shorter side)` and `CenterCrop`, for evaluation, as one rectangle of the
//! source.

use crate::random::Stream;

use super::error::check_resize;
use super::{Augment, AugmentError, CropPlan, CropRect, EdgeSupport, Filter};

/// Resizes the shorter side and cuts the centre; draws nothing at random.
#[derive(Debug, Clone, PartialEq)]
pub struct CenterCrop {
    size: u32,
    resize: u32,
    filter: Filter,
}

impl CenterCrop {
    /// Checks the settings; see [`super::AugmentConfig::CenterCrop`].
    pub fn new(size: u32, resize: u32, filter: Filter) -> Result<Self, AugmentError> {
        check_resize(size, resize)?;
        Ok(Self {
            size,
            resize,
            filter,
        })
    }
}

impl CenterCrop {
    /// Side of the output in pixels.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// Draws one crop of an upright image.
    pub(super) fn crop(&self, width: u32, height: u32, _rng: &mut Stream) -> CropPlan {
        // The longer side is truncated to whole pixels, so the two axes may differ in scale by a
        // little, as in torchvision.
        let shorter = width.min(height);
        let resized = |length: u32| {
            if length == shorter {
                u64::from(self.resize)
            } else {
                u64::from(self.resize) * u64::from(length) / u64::from(shorter)
            }
        };
        central(
            (width, resized(width) as f64),
            (height, resized(height) as f64),
            self.size,
            self.filter,
        )
    }
}

/// The central `size` x `size` pixels of an image whose axes, (length, resized length) in pixels
/// of the image and of the result, were resized.
pub(super) fn central(across: (u32, f64), down: (u32, f64), size: u32, filter: Filter) -> CropPlan {
    let axis = |(length, resized): (u32, f64)| {
        // torchvision's `center_crop` rounds halves to the even number.
        let offset = ((resized - f64::from(size)) / 2.0).round_ties_even();
        let scale = f64::from(length) / resized;
        (offset * scale, f64::from(size) * scale)
    };
    let ((x, width), (y, height)) = (axis(across), axis(down));
    CropPlan {
        rect: CropRect {
            x,
            y,
            width,
            height,
        },
        flip: false,
        output_size: size,
        filter,
        edge: EdgeSupport::Image,
        operations: Vec::new(),
        erase: None,
    }
}

impl Augment for CenterCrop {
    fn view_sides(&self) -> Vec<u32> {
        vec![self.size()]
    }

    fn draw(&self, width: u32, height: u32, stream: &mut Stream) -> Vec<CropPlan> {
        vec![self.crop(width, height, stream)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;

    #[test]
    fn the_rectangle_is_the_centre_of_the_resized_image() {
        let mut rng = Stream::seed_from_u64(0);
        let crop = CenterCrop::new(224, 256, Filter::Bicubic).unwrap();
        // 500 x 375 becomes int(256 * 500 / 375) = 341 x 256; offsets are round(58.5) = 58 and 16.
        let plan = crop.crop(500, 375, &mut rng);
        assert_eq!(plan.rect.x.to_bits(), (58.0f64 * (500.0 / 341.0)).to_bits());
        assert_eq!(
            plan.rect.width.to_bits(),
            (224.0f64 * (500.0 / 341.0)).to_bits()
        );
        assert_eq!(plan.rect.y.to_bits(), (16.0f64 * (375.0 / 256.0)).to_bits());
        assert_eq!((plan.flip, plan.edge), (false, EdgeSupport::Image));
        // An image of the right size stays as it is.
        let plan = CenterCrop::new(224, 224, Filter::Bilinear)
            .unwrap()
            .crop(224, 224, &mut rng);
        assert_eq!(
            plan.rect,
            CropRect {
                x: 0.0,
                y: 0.0,
                width: 224.0,
                height: 224.0
            }
        );
    }
}
