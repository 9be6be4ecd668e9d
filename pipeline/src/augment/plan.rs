//! What an augmentation draws: a plan for each view of a sample.
use serde::{Deserialize, Serialize};

use super::{EraseBox, Operation};
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
///
/// In order: the image is turned upright (EXIF), cut and resized, mirrored, changed by the
/// operations as 8-bit RGB, normalised, and erased.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// What is done to the 8-bit pixels of the view, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<Operation>,
    /// What of the view becomes noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erase: Option<EraseBox>,
}

impl CropPlan {
    /// Whether pixels are changed beyond cutting, resizing and mirroring. Only the processor does
    /// that, in the device's batches, too.
    pub fn changes_pixels(&self) -> bool {
        !self.operations.is_empty() || self.erase.is_some()
    }
}

/// An augmentation: which views of an image a sample is. Draws only; touches no pixel.
///
/// Implemented for [`crate::RandomResizedCrop`], [`crate::MultiCrop`], [`crate::CenterCrop`] and
/// [`crate::Squash`]; one of your own goes into [`crate::LoaderBuilder::augment_by`]. All that is random in it must
/// come from the stream, so that a run can be repeated and resumed.
pub trait Augment: Send + Sync + std::fmt::Debug {
    /// Sides of the square views of each sample in pixels; at least one.
    fn view_sides(&self) -> Vec<u32>;

    /// Draws the views of an upright image of `width` x `height` pixels, one for each of
    /// [`Self::view_sides`] and of that size, from the sample's own random stream (see
    /// [`crate::random`]).
    fn draw(&self, width: u32, height: u32, stream: &mut Stream) -> Vec<CropPlan>;
}
