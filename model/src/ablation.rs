//! What the paper takes away from pretraining to see what it is for (arXiv 2512.16922, table 1):
//! switches of the reference model's loss, and the patches that are masked.
use rand_core::Rng;
use serde::{Deserialize, Serialize};

use crate::NepaConfig;
use crate::init::{Purpose, stream, unit};

/// Ablations of pretraining; the default is pretraining as published.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ablation {
    /// Whether a token predicts the next patch; without, itself.
    pub shift: bool,
    /// Whether targets are constants; without, a gradient flows through them into the embedding.
    pub stop_gradient: bool,
    /// Share of the patches of each image whose embedding is a learned mask token for the blocks;
    /// as targets they stay what they are.
    pub mask_ratio: f64,
    /// Whether tokens have rotary positions.
    pub rope: bool,
}

impl Default for Ablation {
    fn default() -> Self {
        Self {
            shift: true,
            stop_gradient: true,
            mask_ratio: 0.0,
            rope: true,
        }
    }
}

impl Ablation {
    /// Whether the loss is another than the published one, of another model or not.
    pub fn changes_the_loss(&self) -> bool {
        !self.shift || !self.stop_gradient || self.mask_ratio > 0.0
    }

    /// Patches of an image of P patches that are masked.
    pub fn num_masked(&self, config: &NepaConfig) -> usize {
        (self.mask_ratio * config.num_patches() as f64).round() as usize
    }

    /// Whether each patch of `images` images is masked, `[images, P]`: as many of each image, every
    /// choice of them as likely. A function of (seed, step, micro-batch). None if none is.
    pub fn draw_masked(
        &self,
        config: &NepaConfig,
        seed: u64,
        step: u64,
        micro_batch: u64,
        images: usize,
    ) -> Option<Vec<bool>> {
        let (patches, count) = (config.num_patches(), self.num_masked(config));
        if count == 0 {
            return None;
        }
        let mut rng = stream(seed, step, micro_batch, Purpose::Mask);
        let of_image = |_| choose(patches, count, &mut rng);
        Some((0..images).flat_map(of_image).collect())
    }
}

/// Which `count` of `total` are chosen, each choice as likely (the start of Fisher-Yates).
fn choose(total: usize, count: usize, rng: &mut impl Rng) -> Vec<bool> {
    let mut order: Vec<usize> = (0..total).collect();
    let mut chosen = vec![false; total];
    for place in 0..count {
        let left = (total - place) as f64;
        order.swap(place, place + (unit(rng) * left) as usize);
        chosen[order[place]] = true;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masking(mask_ratio: f64) -> Ablation {
        Ablation {
            mask_ratio,
            ..Ablation::default()
        }
    }

    #[test]
    fn as_many_patches_of_each_image_are_masked_and_each_as_often() {
        let config = NepaConfig::tiny();
        for (ratio, count) in [(0.4, 6), (0.6, 10), (1.0, 16)] {
            let images = 3000;
            let masked = masking(ratio)
                .draw_masked(&config, 7, 0, 0, images)
                .expect("a mask");
            assert_eq!(masked.len(), 16 * images);
            let mut of_patch = [0usize; 16];
            for image in masked.chunks_exact(16) {
                assert_eq!(image.iter().filter(|masked| **masked).count(), count);
                for (sum, masked) in of_patch.iter_mut().zip(image) {
                    *sum += usize::from(*masked);
                }
            }
            let expected = (images * count) as f64 / 16.0;
            // Five standard deviations of a count.
            let off = 5.0 * (expected * (1.0 - count as f64 / 16.0)).sqrt();
            for sum in of_patch {
                assert!((sum as f64 - expected).abs() <= off, "{sum} {expected}");
            }
        }
        assert_eq!(masking(0.0).draw_masked(&config, 7, 0, 0, 2), None);
        assert_eq!(masking(0.03).num_masked(&config), 0);
    }

    #[test]
    fn a_mask_is_a_function_of_seed_step_and_micro_batch() {
        let config = NepaConfig::tiny();
        let draw = |seed, step, micro| masking(0.4).draw_masked(&config, seed, step, micro, 4);
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        for other in [draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)] {
            assert_ne!(draw(1, 2, 3), other);
        }
    }
}
