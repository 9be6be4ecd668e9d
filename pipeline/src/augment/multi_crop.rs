//! Several random crops of one image, large and small, as DINO and its followers train on (SwAV,
//! <https://arxiv.org/abs/2006.09882>, section 3.3).
//!
//! The image is decoded once; each view has a crop and a flip of its own.

use crate::random::Stream;

use super::error::MAX_VIEWS;
use super::{Augment, AugmentError, CropPlan, RandomResizedCrop};

/// Global views, then local ones.
#[derive(Debug, Clone, PartialEq)]
pub struct MultiCrop {
    global: RandomResizedCrop,
    local: RandomResizedCrop,
    num_global: u32,
    num_local: u32,
}

impl MultiCrop {
    /// `num_global` views of one kind and `num_local` of the other; see
    /// [`super::AugmentConfig::MultiCrop`].
    pub fn new(
        (global, num_global): (RandomResizedCrop, u32),
        (local, num_local): (RandomResizedCrop, u32),
    ) -> Result<Self, AugmentError> {
        let num_views = num_global.saturating_add(num_local);
        if num_global == 0 || num_views > MAX_VIEWS {
            return Err(AugmentError::Views {
                num_global,
                num_local,
            });
        }
        Ok(Self {
            global,
            local,
            num_global,
            num_local,
        })
    }

    /// What each view is drawn by.
    fn kinds(&self) -> impl Iterator<Item = &RandomResizedCrop> {
        let global = std::iter::repeat_n(&self.global, self.num_global as usize);
        global.chain(std::iter::repeat_n(&self.local, self.num_local as usize))
    }
}

impl Augment for MultiCrop {
    fn view_sides(&self) -> Vec<u32> {
        self.kinds().map(RandomResizedCrop::size).collect()
    }

    fn draw(&self, width: u32, height: u32, stream: &mut Stream) -> Vec<CropPlan> {
        let kinds = self.kinds();
        kinds.map(|kind| kind.crop(width, height, stream)).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::AugmentConfig;
    use crate::random::{Purpose, epoch_stream};

    #[test]
    fn two_global_and_eight_local_views() {
        let augment = AugmentConfig::multi_crop((2, 224), (8, 96))
            .build()
            .unwrap();
        let mut rng = epoch_stream(1, 0, 0, Purpose::Augment);
        let views = augment.draw(500, 375, &mut rng);
        let sides: Vec<u32> = views.iter().map(|plan| plan.output_size).collect();
        assert_eq!(sides, augment.view_sides());
        assert_eq!(sides, [224, 224, 96, 96, 96, 96, 96, 96, 96, 96]);
        for plan in &views {
            let share = plan.rect.width * plan.rect.height / (500.0 * 375.0);
            let range = if plan.output_size == 224 {
                0.39..=1.0
            } else {
                0.04..=0.41
            };
            assert!(range.contains(&share), "{plan:?}");
        }
        assert!(views.iter().any(|plan| plan.flip) && views.iter().any(|plan| !plan.flip));
    }
}
