//! Augmentations draw a [`CropPlan`] from a sample's random stream; they touch no pixel.
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Interpolation, always antialiased when shrinking, as Pillow's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Triangle filter.
    Bilinear,
    /// Cubic convolution with a = -0.5.
    Bicubic,
}

/// Which source pixels the filter may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EdgeSupport {
    /// Only those inside the rectangle: crop, then resize (torchvision's `resized_crop`).
    Rect,
    /// All of the image: resize the whole, then crop (Pillow's `resize(box=...)`).
    Image,
}

/// A rectangle in pixels of the upright image (after EXIF orientation).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CropRect {
    /// Left edge.
    pub x: f64,
    /// Top edge.
    pub y: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

/// Everything random about a sample, already decided: plain data, comparable.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CropPlan {
    /// What is cut out of the upright image.
    pub rect: CropRect,
    /// Whether the result is mirrored left to right.
    pub flip: bool,
    /// Side of the square output in pixels.
    pub output_size: u32,
    /// Interpolation.
    pub filter: Filter,
    /// Which source pixels count.
    pub edge: EdgeSupport,
}

/// An augmentation, ready to draw.
pub trait Augment: Send + Sync + std::fmt::Debug {
    /// Draws a plan for an upright image of `width` x `height` pixels.
    fn draw(&self, width: u32, height: u32, rng: &mut ChaCha8Rng) -> CropPlan;
    /// Side of the square output in pixels.
    fn output_size(&self) -> u32;
}

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
fn default_flip() -> f64 {
    0.5
}
fn default_filter() -> Filter {
    Filter::Bilinear
}

impl AugmentConfig {
    /// Checks the values and builds the augmentation; the error names the field and the rule.
    pub fn build(&self) -> Result<Box<dyn Augment>, AugmentError> {
        unimplemented!()
    }
}

/// A setting of an augmentation is impossible.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AugmentError {}
