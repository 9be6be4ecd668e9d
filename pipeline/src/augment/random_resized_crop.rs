//! torchvision's `RandomResizedCrop` and a horizontal flip, the augmentation of NEPA's pretraining.
//!
//! Ten tries of a random area and aspect ratio; if none fits, a central crop with the ratio
//! clamped.

use crate::random::Stream;

use super::error::check_side;
use super::{
    Augment, AugmentError, CropPlan, CropRect, EdgeSupport, Filter, RandAugment, RandomErasing,
};
use crate::random::{below, uniform, unit};

/// Tries before the central crop, as in torchvision.
const NUM_TRIES: usize = 10;

/// A random crop, resized to a square, and a random horizontal flip.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomResizedCrop {
    size: u32,
    scale: [f64; 2],
    ratio: [f64; 2],
    log_ratio: [f64; 2],
    flip: f64,
    filter: Filter,
    rand_augment: Option<RandAugment>,
    erase: Option<RandomErasing>,
}

impl RandomResizedCrop {
    /// Checks the settings; see [`super::AugmentConfig::RandomResizedCrop`].
    pub fn new(
        size: u32,
        scale: [f64; 2],
        ratio: [f64; 2],
        flip: f64,
        filter: Filter,
    ) -> Result<Self, AugmentError> {
        check_side("size", size)?;
        let [min, max] = scale;
        if !(min > 0.0 && min <= max && max <= 1.0) {
            return Err(AugmentError::Scale {
                field: "scale",
                min,
                max,
            });
        }
        let [min, max] = ratio;
        if !(min > 0.0 && min <= max && max.is_finite()) {
            return Err(AugmentError::Ratio {
                field: "ratio",
                what: "width over height",
                min,
                max,
            });
        }
        if !(0.0..=1.0).contains(&flip) {
            return Err(AugmentError::Flip { value: flip });
        }
        // libm and not the platform's library: the same seed must give the same crops on every
        // machine.
        let log_ratio = ratio.map(libm::log);
        Ok(Self {
            size,
            scale,
            ratio,
            log_ratio,
            flip,
            filter,
            rand_augment: None,
            erase: None,
        })
    }

    /// Changes the pixels of each view by RandAugment, too.
    pub fn with_rand_augment(self, rand_augment: RandAugment) -> Result<Self, AugmentError> {
        rand_augment.check()?;
        Ok(Self {
            rand_augment: Some(rand_augment),
            ..self
        })
    }

    /// Erases a box of some views, too.
    pub fn with_erasing(self, erase: RandomErasing) -> Result<Self, AugmentError> {
        erase.check()?;
        Ok(Self {
            erase: Some(erase),
            ..self
        })
    }

    /// Left, top, width and height of the crop.
    fn rect(&self, width: u32, height: u32, rng: &mut Stream) -> [u32; 4] {
        let area = f64::from(width) * f64::from(height);
        for _ in 0..NUM_TRIES {
            let target_area = area * uniform(rng, self.scale[0], self.scale[1]);
            let aspect = libm::exp(uniform(rng, self.log_ratio[0], self.log_ratio[1]));
            // Python's `round` takes halves to the even number.
            let crop_width = (target_area * aspect).sqrt().round_ties_even();
            let crop_height = (target_area / aspect).sqrt().round_ties_even();
            let fits = |length: f64, limit: u32| length > 0.0 && length <= f64::from(limit);
            if fits(crop_width, width) && fits(crop_height, height) {
                let (crop_width, crop_height) = (crop_width as u32, crop_height as u32);
                let top = below(rng, u64::from(height - crop_height) + 1) as u32;
                let left = below(rng, u64::from(width - crop_width) + 1) as u32;
                return [left, top, crop_width, crop_height];
            }
        }
        let image_ratio = f64::from(width) / f64::from(height);
        let (crop_width, crop_height) = if image_ratio < self.ratio[0] {
            (
                width,
                (f64::from(width) / self.ratio[0]).round_ties_even() as u32,
            )
        } else if image_ratio > self.ratio[1] {
            (
                (f64::from(height) * self.ratio[1]).round_ties_even() as u32,
                height,
            )
        } else {
            (width, height)
        };
        // Ratios far from 1 may round a side to zero.
        let (crop_width, crop_height) = (crop_width.clamp(1, width), crop_height.clamp(1, height));
        [
            (width - crop_width) / 2,
            (height - crop_height) / 2,
            crop_width,
            crop_height,
        ]
    }
}

impl RandomResizedCrop {
    /// Side of the output in pixels.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// Draws one view of an upright image.
    pub(super) fn crop(&self, width: u32, height: u32, rng: &mut Stream) -> CropPlan {
        let [x, y, width, height] = self.rect(width, height, rng).map(f64::from);
        CropPlan {
            rect: CropRect {
                x,
                y,
                width,
                height,
            },
            flip: unit(rng) < self.flip,
            output_size: self.size,
            filter: self.filter,
            edge: EdgeSupport::Rect,
            // After the crop and the flip, which are the same without these.
            operations: self
                .rand_augment
                .map_or_else(Vec::new, |rand_augment| rand_augment.draw(rng)),
            erase: self.erase.and_then(|erase| erase.draw(self.size, rng)),
        }
    }
}

impl Augment for RandomResizedCrop {
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
    use crate::SampleId;
    use crate::augment::Operation;
    use crate::random::{Purpose, sample_stream};

    fn default_crop() -> RandomResizedCrop {
        RandomResizedCrop::new(
            224,
            [0.08, 1.0],
            [3.0 / 4.0, 4.0 / 3.0],
            0.5,
            Filter::Bilinear,
        )
        .unwrap()
    }

    fn stream(row: u32) -> Stream {
        sample_stream(
            1337,
            0,
            SampleId {
                shard: 0,
                row_group: 0,
                row,
            },
            Purpose::Augment,
        )
    }

    #[test]
    fn crops_lie_inside_and_follow_the_distribution() {
        let crop = default_crop();
        let (width, height) = (500u32, 375u32);
        let num_samples = 20_000;
        let (mut area_sum, mut num_flips, mut log_ratio_sum) = (0.0, 0, 0.0);
        for row in 0..num_samples {
            let plan = crop.crop(width, height, &mut stream(row));
            let CropRect {
                x,
                y,
                width: w,
                height: h,
            } = plan.rect;
            assert!(x >= 0.0 && y >= 0.0 && w >= 1.0 && h >= 1.0);
            assert!(x + w <= f64::from(width) && y + h <= f64::from(height));
            assert!([x, y, w, h].iter().all(|value| value.fract() == 0.0));
            assert_eq!(plan.edge, EdgeSupport::Rect);
            area_sum += w * h / f64::from(width * height);
            log_ratio_sum += (w / h).ln();
            num_flips += u32::from(plan.flip);
        }
        let n = f64::from(num_samples);
        // Large areas fit less often, so the mean lies below (0.08 + 1) / 2. The numbers come from
        // torchvision's published code, retyped in Python and run 400,000 times on this size:
        // 0.4327 and 0.0307.
        assert!(
            (area_sum / n - 0.4327).abs() < 0.01,
            "mean area {}",
            area_sum / n
        );
        assert!(
            (log_ratio_sum / n - 0.0307).abs() < 0.01,
            "mean log ratio {}",
            log_ratio_sum / n
        );
        assert!(
            (f64::from(num_flips) / n - 0.5).abs() < 0.02,
            "flips {num_flips}"
        );
    }

    #[test]
    fn the_same_stream_gives_the_same_plan() {
        let crop = default_crop();
        assert_eq!(
            crop.crop(640, 480, &mut stream(7)),
            crop.crop(640, 480, &mut stream(7))
        );
        assert_ne!(
            crop.crop(640, 480, &mut stream(7)),
            crop.crop(640, 480, &mut stream(8))
        );
    }

    /// What is drawn beyond a crop and a flip changes neither of them, and is drawn for each sample.
    #[test]
    fn crops_and_flips_are_the_same_with_operations_and_erasing() {
        let plain = default_crop();
        let all = default_crop()
            .with_rand_augment(RandAugment::default())
            .and_then(|crop| crop.with_erasing(RandomErasing::default()))
            .unwrap();
        let mut changed = 0;
        for row in 0..500 {
            let expected = plain.crop(500, 375, &mut stream(row));
            let found = all.crop(500, 375, &mut stream(row));
            changed += usize::from(found.changes_pixels());
            assert!(!expected.changes_pixels());
            assert_eq!(found, all.crop(500, 375, &mut stream(row)));
            let crop = CropPlan {
                operations: Vec::new(),
                erase: None,
                ..found
            };
            assert_eq!(crop, expected);
        }
        assert!((350..480).contains(&changed), "{changed}");
    }

    /// A plan that changes no pixel is written as it was before there were such plans.
    #[test]
    fn plans_are_written_with_what_they_have() {
        let plan = default_crop().crop(500, 375, &mut stream(0));
        let text = serde_json::to_string(&plan).unwrap();
        assert!(
            !text.contains("operations") && !text.contains("erase"),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<CropPlan>(&text).unwrap(), plan);
        let plan = CropPlan {
            operations: vec![Operation::Equalize, Operation::Rotate(-27.5)],
            erase: RandomErasing {
                probability: 1.0,
                ..RandomErasing::default()
            }
            .draw(224, &mut stream(1)),
            ..plan
        };
        let text = serde_json::to_string(&plan).unwrap();
        assert!(
            text.contains(r#""operations":["equalize",{"rotate":-27.5}]"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<CropPlan>(&text).unwrap(), plan);
    }

    #[test]
    fn extreme_shapes_fall_back_to_a_clamped_central_crop() {
        let crop = RandomResizedCrop::new(8, [1.0, 1.0], [0.75, 4.0 / 3.0], 0.0, Filter::Bilinear)
            .unwrap();
        assert_eq!(crop.rect(1000, 10, &mut stream(0)), [493, 0, 13, 10]);
        assert_eq!(crop.rect(9, 1000, &mut stream(0)), [0, 494, 9, 12]);
        assert_eq!(crop.rect(1, 1, &mut stream(0)), [0, 0, 1, 1]);
        let extreme =
            RandomResizedCrop::new(8, [1.0, 1.0], [1e9, 1e9], 0.0, Filter::Bilinear).unwrap();
        assert_eq!(extreme.rect(5, 7, &mut stream(0)), [0, 3, 5, 1]);
    }
}
