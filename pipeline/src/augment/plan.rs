//! What an augmentation draws: a plan for each view of a sample.
use serde::{Deserialize, Serialize};

use crate::random::Stream;

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

/// An augmentation: which views of an image a sample is. Draws only; touches no pixel.
///
/// Implemented for [`crate::RandomResizedCrop`], [`crate::MultiCrop`] and [`crate::CenterCrop`];
/// one of your own goes into [`crate::LoaderBuilder::augment_by`]. All that is random in it must
/// come from the stream, so that a run can be repeated and resumed.
pub trait Augment: Send + Sync + std::fmt::Debug {
    /// Sides of the square views of each sample in pixels; at least one.
    fn view_sides(&self) -> Vec<u32>;

    /// Draws the views of an upright image of `width` x `height` pixels, one for each of
    /// [`Self::view_sides`] and of that size, from the sample's own random stream (see
    /// [`crate::random`]).
    fn draw(&self, width: u32, height: u32, stream: &mut Stream) -> Vec<CropPlan>;
}
