//! Settings of mixing, and what can be wrong with them and with what is mixed.
use serde::{Deserialize, Serialize};

/// What is drawn for each image, and what for several at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MixMode {
    /// One draw for the whole micro-batch.
    #[default]
    Batch,
    /// One for each image.
    Elem,
    /// One for each pair of images that are each other's partners.
    Pair,
}

/// How the images of a micro-batch are mixed; the defaults are timm's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixConfig {
    /// Mixup's share is drawn from Beta(alpha, alpha); 0 for no Mixup.
    pub mixup_alpha: f64,
    /// CutMix's share is drawn from Beta(alpha, alpha); 0 for no CutMix.
    pub cutmix_alpha: f64,
    /// Probability that images are mixed at all.
    pub probability: f64,
    /// Probability of CutMix, where there are both.
    pub switch_probability: f64,
    /// What is drawn for each image, and what for several at once.
    pub mode: MixMode,
    /// Share of each target that is spread evenly over all classes.
    pub label_smoothing: f64,
}

impl Default for MixConfig {
    fn default() -> Self {
        Self {
            mixup_alpha: 1.0,
            cutmix_alpha: 0.0,
            probability: 1.0,
            switch_probability: 0.5,
            mode: MixMode::Batch,
            label_smoothing: 0.1,
        }
    }
}

/// Settings of mixing that are impossible, or images and labels that cannot be mixed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MixError {
    /// A number outside of its range.
    #[error("{field} is {value}, but it must be {rule}")]
    Value {
        /// The setting.
        field: &'static str,
        /// What it was set to.
        value: f64,
        /// What it may be.
        rule: &'static str,
    },
    /// The image in the middle would have no partner.
    #[error(
        "a micro-batch of {images} images cannot be mixed: each needs a partner, image i image B - 1 - i; choose an even number, or switch mixing off (mixup_alpha and cutmix_alpha 0)"
    )]
    Odd {
        /// Images of the micro-batch.
        images: usize,
    },
    /// Not one label an image.
    #[error("{labels} labels came with a micro-batch of {images} images")]
    Labels {
        /// Labels.
        labels: usize,
        /// Images.
        images: usize,
    },
    /// A label is no class.
    #[error(
        "image {position} of a micro-batch has the label {label}, but there are {num_classes} classes, numbered from 0"
    )]
    Label {
        /// Which image.
        position: usize,
        /// Its label.
        label: u32,
        /// How many classes there are.
        num_classes: usize,
    },
}

impl MixConfig {
    /// Whether the values are possible; the error names the field and the rule.
    pub fn check(&self) -> Result<(), MixError> {
        let value = |field, value, rule| Err(MixError::Value { field, value, rule });
        for (field, alpha) in [
            ("mixup_alpha", self.mixup_alpha),
            ("cutmix_alpha", self.cutmix_alpha),
        ] {
            // Beyond, the draws are the ends or the middle, as near as a number can be.
            if alpha != 0.0 && !(1e-6..=1e6).contains(&alpha) {
                return value(field, alpha, "0 (off) or from 1e-6 to 1e6");
            }
        }
        for (field, probability) in [
            ("probability", self.probability),
            ("switch_probability", self.switch_probability),
        ] {
            if !(0.0..=1.0).contains(&probability) {
                return value(field, probability, "from 0 to 1: it is a probability");
            }
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return value("label_smoothing", self.label_smoothing, "from 0 to below 1");
        }
        Ok(())
    }

    /// Whether any image may be mixed with another.
    pub fn mixes(&self) -> bool {
        self.probability > 0.0 && (self.mixup_alpha > 0.0 || self.cutmix_alpha > 0.0)
    }
}
