//! Several random crops of one image, large and small, as DINO and its followers train on (SwAV, <https://arxiv.org/abs/2006.09882>, section 3.3).
//!
//! The image is decoded once; each view has a crop and a flip of its own.
use rand_chacha::ChaCha8Rng;

use super::{Augment, AugmentError, CropPlan, RandomResizedCrop};

/// Global views, then local ones.
#[derive(Debug, Clone, PartialEq)]
pub struct MultiCrop {
    global: RandomResizedCrop,
    local: RandomResizedCrop,
    num_global: u32,
    /// Sides of all views but the first.
    more: Vec<u32>,
}

impl MultiCrop {
    /// `num_global` views of one kind and `num_local` of the other; see [`super::AugmentConfig::MultiCrop`].
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
        let sides = std::iter::repeat_n(global.output_size(), num_global as usize - 1)
            .chain(std::iter::repeat_n(local.output_size(), num_local as usize));
        Ok(Self {
            more: sides.collect(),
            global,
            local,
            num_global,
        })
    }
}

/// Most views of one image; more are surely mistaken.
pub const MAX_VIEWS: u32 = 64;

impl Augment for MultiCrop {
    fn draw(&self, width: u32, height: u32, rng: &mut ChaCha8Rng) -> CropPlan {
        self.global.draw(width, height, rng)
    }

    fn output_size(&self) -> u32 {
        self.global.output_size()
    }

    fn more_views(&self) -> &[u32] {
        &self.more
    }

    fn draw_more(&self, width: u32, height: u32, rng: &mut ChaCha8Rng) -> Vec<CropPlan> {
        (1..=self.more.len() as u32)
            .map(|view| {
                let kind = if view < self.num_global {
                    &self.global
                } else {
                    &self.local
                };
                kind.draw(width, height, rng)
            })
            .collect()
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
        let first = augment.draw(500, 375, &mut rng);
        let more = augment.draw_more(500, 375, &mut rng);
        let sides: Vec<u32> = more.iter().map(|plan| plan.output_size).collect();
        assert_eq!((first.output_size, &sides[..]), (224, augment.more_views()));
        assert_eq!(sides, [224, 96, 96, 96, 96, 96, 96, 96, 96]);
        for plan in &more {
            let share = plan.rect.width * plan.rect.height / (500.0 * 375.0);
            let range = if plan.output_size == 224 {
                0.39..=1.0
            } else {
                0.04..=0.41
            };
            assert!(range.contains(&share), "{plan:?}");
        }
        assert!(more.iter().any(|plan| plan.flip) && more.iter().any(|plan| !plan.flip));
    }
}
