//! The augmentations there are, as settings.
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Augment, AugmentError, CenterCrop, Filter, MultiCrop, RandomResizedCrop};

/// The augmentations there are; each variant is built by [`AugmentConfig::build`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AugmentConfig {
    /// torchvision's `RandomResizedCrop` and a horizontal flip.
    RandomResizedCrop {
        /// Output side in pixels.
        size: u32,
        /// Range of the crop's share of the area.
        #[serde(default = "default_scale")]
        scale: [f64; 2],
        /// Range of the crop's aspect ratio.
        #[serde(default = "default_ratio")]
        ratio: [f64; 2],
        /// Probability of a horizontal flip.
        #[serde(default = "default_flip")]
        flip: f64,
        /// Interpolation.
        #[serde(default = "default_filter")]
        filter: Filter,
    },
    /// Several random crops of each image from one decode, for models that compare views; each with
    /// a horizontal flip.
    MultiCrop {
        /// Output side of the global views in pixels.
        global_size: u32,
        /// Number of global views.
        #[serde(default = "default_global_views")]
        global_views: u32,
        /// Range of a global crop's share of the area.
        #[serde(default = "default_global_scale")]
        global_scale: [f64; 2],
        /// Output side of the local views in pixels.
        local_size: u32,
        /// Number of local views.
        #[serde(default = "default_local_views")]
        local_views: u32,
        /// Range of a local crop's share of the area.
        #[serde(default = "default_local_scale")]
        local_scale: [f64; 2],
        /// Range of the crops' aspect ratio.
        #[serde(default = "default_ratio")]
        ratio: [f64; 2],
        /// Probability of a horizontal flip.
        #[serde(default = "default_flip")]
        flip: f64,
        /// Interpolation.
        #[serde(default = "default_filter")]
        filter: Filter,
    },
    /// Resize the shorter side to `resize`, then cut the centre; for evaluation.
    CenterCrop {
        /// Output side in pixels.
        size: u32,
        /// Length of the shorter side after resizing, in pixels.
        resize: u32,
        /// Interpolation.
        #[serde(default = "default_filter")]
        filter: Filter,
    },
}

fn default_scale() -> [f64; 2] {
    [0.08, 1.0]
}
fn default_ratio() -> [f64; 2] {
    [3.0 / 4.0, 4.0 / 3.0]
}
fn default_global_views() -> u32 {
    2
}
fn default_global_scale() -> [f64; 2] {
    [0.4, 1.0]
}
fn default_local_views() -> u32 {
    8
}
fn default_local_scale() -> [f64; 2] {
    [0.05, 0.4]
}
fn default_flip() -> f64 {
    0.5
}
fn default_filter() -> Filter {
    Filter::Bilinear
}

impl Default for AugmentConfig {
    /// torchvision's `RandomResizedCrop(224)` and a horizontal flip.
    fn default() -> Self {
        Self::random_resized_crop(224, default_scale())
    }
}

impl AugmentConfig {
    /// Random crops of this share of the area, resized to `size` pixels, half of them mirrored.
    pub fn random_resized_crop(size: u32, scale: [f64; 2]) -> Self {
        Self::RandomResizedCrop {
            size,
            scale,
            ratio: default_ratio(),
            flip: default_flip(),
            filter: default_filter(),
        }
    }

    /// The shorter side resized to `resize` pixels, then the central `size` pixels.
    pub fn center_crop(size: u32, resize: u32) -> Self {
        Self::CenterCrop {
            size,
            resize,
            filter: default_filter(),
        }
    }

    /// `global_views` and `local_views` random crops of each image, with the shares of the area
    /// that DINO takes.
    pub fn multi_crop(
        (global_views, global_size): (u32, u32),
        (local_views, local_size): (u32, u32),
    ) -> Self {
        Self::MultiCrop {
            global_size,
            global_views,
            global_scale: default_global_scale(),
            local_size,
            local_views,
            local_scale: default_local_scale(),
            ratio: default_ratio(),
            flip: default_flip(),
            filter: default_filter(),
        }
    }

    /// Checks the values and builds the augmentation; the error names the field and the rule.
    pub fn build(&self) -> Result<Arc<dyn Augment>, AugmentError> {
        Ok(match *self {
            Self::RandomResizedCrop {
                size,
                scale,
                ratio,
                flip,
                filter,
            } => Arc::new(RandomResizedCrop::new(size, scale, ratio, flip, filter)?),
            Self::MultiCrop {
                global_size,
                global_views,
                global_scale,
                local_size,
                local_views,
                local_scale,
                ratio,
                flip,
                filter,
            } => {
                let kind = |prefix, size, scale| {
                    let kind = RandomResizedCrop::new(size, scale, ratio, flip, filter);
                    kind.map_err(|error: AugmentError| error.of(prefix))
                };
                Arc::new(MultiCrop::new(
                    (kind("global", global_size, global_scale)?, global_views),
                    (kind("local", local_size, local_scale)?, local_views),
                )?)
            }
            Self::CenterCrop {
                size,
                resize,
                filter,
            } => Arc::new(CenterCrop::new(size, resize, filter)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crop(
        size: u32,
        scale: [f64; 2],
        ratio: [f64; 2],
        flip: f64,
    ) -> Result<Arc<dyn Augment>, AugmentError> {
        AugmentConfig::RandomResizedCrop {
            size,
            scale,
            ratio,
            flip,
            filter: Filter::Bilinear,
        }
        .build()
    }

    #[test]
    fn impossible_settings_name_the_field_and_the_rule() {
        let ratio = default_ratio();
        assert_eq!(
            crop(0, [0.08, 1.0], ratio, 0.5).unwrap_err(),
            AugmentError::Side {
                field: "size",
                value: 0
            }
        );
        for scale in [
            [0.0, 1.0],
            [0.5, 1.5],
            [0.9, 0.2],
            [f64::NAN, 1.0],
            [-0.1, 0.5],
        ] {
            let error = crop(224, scale, ratio, 0.5).unwrap_err();
            assert!(
                matches!(error, AugmentError::Scale { .. }),
                "{scale:?}: {error}"
            );
            assert!(error.to_string().contains("augment.scale"));
        }
        for ratio in [
            [0.0, 1.0],
            [2.0, 1.0],
            [1.0, f64::INFINITY],
            [f64::NAN, 1.0],
        ] {
            assert!(matches!(
                crop(224, [0.08, 1.0], ratio, 0.5).unwrap_err(),
                AugmentError::Ratio { .. }
            ));
        }
        for flip in [-0.1, 1.1, f64::NAN] {
            assert!(matches!(
                crop(224, [0.08, 1.0], ratio, flip).unwrap_err(),
                AugmentError::Flip { .. }
            ));
        }
        let center = |size, resize| {
            AugmentConfig::CenterCrop {
                size,
                resize,
                filter: Filter::Bicubic,
            }
            .build()
        };
        assert_eq!(
            center(224, 0).unwrap_err(),
            AugmentError::Side {
                field: "resize",
                value: 0
            }
        );
        assert_eq!(
            center(256, 224).unwrap_err(),
            AugmentError::CropExceedsResize {
                size: 256,
                resize: 224
            }
        );
        assert_eq!(center(224, 256).unwrap().view_sides(), [224]);
    }
}
