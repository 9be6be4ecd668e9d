//! Resizes to a square whatever the image's shape, then cuts the centre, for evaluation.
use super::center_crop::central;
use super::error::check_resize;
use super::{Augment, AugmentError, CropPlan, Filter};
use crate::random::Stream;

/// Resizes to a square without keeping the aspect ratio, then cuts the centre; draws nothing at
/// random.
#[derive(Debug, Clone, PartialEq)]
pub struct Squash {
    size: u32,
    resize: u32,
    filter: Filter,
}

impl Squash {
    /// Checks the settings; see [`super::AugmentConfig::Squash`].
    pub fn new(size: u32, resize: u32, filter: Filter) -> Result<Self, AugmentError> {
        check_resize(size, resize)?;
        Ok(Self {
            size,
            resize,
            filter,
        })
    }
}

impl Augment for Squash {
    fn view_sides(&self) -> Vec<u32> {
        vec![self.size]
    }

    fn draw(&self, width: u32, height: u32, _stream: &mut Stream) -> Vec<CropPlan> {
        let resized = f64::from(self.resize);
        let axis = |length| (length, resized);
        vec![central(axis(width), axis(height), self.size, self.filter)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CropRect, EdgeSupport};
    use rand_core::SeedableRng;

    #[test]
    fn each_axis_has_a_scale_of_its_own() {
        let mut rng = Stream::seed_from_u64(0);
        let squash = Squash::new(224, 235, Filter::Bicubic).unwrap();
        let [plan] = &squash.draw(470, 705, &mut rng)[..] else {
            panic!("one view")
        };
        // The margin of 5.5 pixels rounds to 6, the even number.
        let rect = CropRect {
            x: 12.0,
            y: 18.0,
            width: 448.0,
            height: 672.0,
        };
        assert_eq!((plan.rect, plan.edge), (rect, EdgeSupport::Image));
        // The whole image, where nothing is cut.
        let whole = Squash::new(224, 224, Filter::Bilinear).unwrap();
        let rect = CropRect {
            x: 0.0,
            y: 0.0,
            width: 500.0,
            height: 1.0,
        };
        assert_eq!(whole.draw(500, 1, &mut rng)[0].rect, rect);
    }
}
