//! The augmentations there are, as settings.
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    Augment, AugmentError, CenterCrop, Filter, MultiCrop, RandAugment, RandomErasing,
    RandomResizedCrop, Squash,
};

/// The augmentations there are; each variant is built by [`AugmentConfig::build`].
///
/// Crops, flips and normalisation run where the backend decodes: on the processor or on the device.
/// Operations (`rand_augment`) and boxes (`erase`) are the processor's: in a device's batches, too,
/// views that get any are decoded and changed on the decode threads, and only those. A view with
/// operations alone goes to the device as 8-bit pixels, one with a box as it lies in the batch.
/// In a batch of 8-bit pixels a box holds the values nearest to its noise, cut to 0..=255.
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
        /// Operations on the 8-bit pixels after the flip.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rand_augment: Option<RandAugment>,
        /// A box of noise after normalisation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        erase: Option<RandomErasing>,
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
        /// Operations on the 8-bit pixels after the flip, drawn for each view by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rand_augment: Option<RandAugment>,
        /// A box of noise after normalisation, drawn for each view by itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        erase: Option<RandomErasing>,
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
    /// Resize to `resize` x `resize` pixels, not keeping the aspect ratio, then cut the centre; for
    /// evaluation.
    Squash {
        /// Output side in pixels.
        size: u32,
        /// Side after resizing, in pixels.
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
            rand_augment: None,
            erase: None,
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

    /// The whole resized to `resize` x `resize` pixels, then the central `size` pixels.
    pub fn squash(size: u32, resize: u32) -> Self {
        Self::Squash {
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
            rand_augment: None,
            erase: None,
        }
    }

    /// Checks the values and builds the augmentation; the error names the field and the rule.
    pub fn build(&self) -> Result<Arc<dyn Augment>, AugmentError> {
        let random = |size, scale, ratio, flip, filter, more: (&Option<_>, &Option<_>)| {
            let mut crop = RandomResizedCrop::new(size, scale, ratio, flip, filter)?;
            if let Some(rand_augment) = *more.0 {
                crop = crop.with_rand_augment(rand_augment)?;
            }
            if let Some(erase) = *more.1 {
                crop = crop.with_erasing(erase)?;
            }
            Ok(crop)
        };
        Ok(match *self {
            Self::RandomResizedCrop {
                size,
                scale,
                ratio,
                flip,
                filter,
                ref rand_augment,
                ref erase,
            } => Arc::new(random(
                size,
                scale,
                ratio,
                flip,
                filter,
                (rand_augment, erase),
            )?),
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
                ref rand_augment,
                ref erase,
            } => {
                let kind = |prefix, size, scale| {
                    let kind = random(size, scale, ratio, flip, filter, (rand_augment, erase));
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
            Self::Squash {
                size,
                resize,
                filter,
            } => Arc::new(Squash::new(size, resize, filter)?),
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
            rand_augment: None,
            erase: None,
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

    #[test]
    fn impossible_operations_and_boxes_name_the_field_and_the_rule() {
        let refused = |text: &str| {
            let config: AugmentConfig = serde_json::from_str(text).unwrap();
            config.build().unwrap_err().to_string()
        };
        for (setting, parts) in [
            (
                r#""rand_augment":{"operations":0}"#,
                ["rand_augment.operations is 0", "1 to 32"],
            ),
            (
                r#""rand_augment":{"operations":33}"#,
                ["rand_augment.operations is 33", "1 to 32"],
            ),
            (
                r#""rand_augment":{"magnitude":10.5}"#,
                ["rand_augment.magnitude is 10.5", "0 to 10"],
            ),
            (
                r#""rand_augment":{"magnitude":-1}"#,
                ["rand_augment.magnitude is -1", "0 to 10"],
            ),
            (
                r#""rand_augment":{"magnitude_std":-0.5}"#,
                ["magnitude_std is -0.5", "negative"],
            ),
            (
                r#""rand_augment":{"probability":1.5}"#,
                ["rand_augment.probability is 1.5", "0 to 1"],
            ),
            (
                r#""erase":{"probability":-0.1}"#,
                ["augment.erase.probability is -0.1", "0 to 1"],
            ),
            (
                r#""erase":{"scale":[0.5,0.1]}"#,
                ["augment.erase.scale is [0.5, 0.1]", "min <= max"],
            ),
            (
                r#""erase":{"ratio":[0,1]}"#,
                ["augment.erase.ratio is [0, 1]", "height over width"],
            ),
        ] {
            for kind in [
                r#""kind":"random_resized_crop","size":8"#,
                r#""kind":"multi_crop","global_size":8,"local_size":4"#,
            ] {
                let message = refused(&format!("{{{kind},{setting}}}"));
                for part in parts {
                    assert!(message.contains(part), "{message}: {part}");
                }
            }
        }
        // Unknown keys are no settings; evaluation changes no pixels.
        for text in [
            r#"{"kind":"random_resized_crop","size":8,"rand_augment":{"level":3}}"#,
            r#"{"kind":"random_resized_crop","size":8,"erase":{"count":3}}"#,
            r#"{"kind":"center_crop","size":8,"resize":8,"erase":{}}"#,
            r#"{"kind":"squash","size":8,"resize":8,"rand_augment":{}}"#,
        ] {
            let read = serde_json::from_str::<AugmentConfig>(text);
            assert!(
                read.unwrap_err().to_string().contains("unknown field"),
                "{text}"
            );
        }
        assert_eq!(
            AugmentConfig::squash(256, 224).build().unwrap_err(),
            AugmentError::CropExceedsResize {
                size: 256,
                resize: 224
            }
        );
    }
}
