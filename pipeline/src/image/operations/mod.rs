//! The operations of a plan on 8-bit RGB pixels, in Pillow's arithmetic, bit for bit: Pillow 12's
//! and 13's results, as golden tests show.
//!
//! Called by the renderer on a view that is upright and flipped, before normalisation.
//! [`PixelOperations`] is for programs of their own.
use crate::Operation;

mod affine;
mod blend;
mod tables;
#[cfg(test)]
mod tests;

use affine::{Affine, Padded};

/// Applies operations to pictures; holds scratch memory of one of them. Made for one thread.
#[derive(Debug)]
pub struct PixelOperations {
    fill: [u8; 3],
    padded: Padded,
    smoothed: Vec<u8>,
}

impl PixelOperations {
    /// `fill` is what comes in from outside of the picture where it is moved, turned or sheared.
    pub fn new(fill: [u8; 3]) -> Self {
        Self {
            fill,
            padded: Padded::default(),
            smoothed: Vec::new(),
        }
    }

    /// Applies operations one after the other to a picture, `[height, width, 3]`, in place.
    ///
    /// # Panics
    /// If the picture has another size.
    pub fn apply(&mut self, operations: &[Operation], pixels: &mut [u8], width: u32, height: u32) {
        let (width, height) = (width as usize, height as usize);
        assert_eq!(
            pixels.len(),
            width * height * 3,
            "the picture has another size"
        );
        if pixels.is_empty() {
            return;
        }
        for &operation in operations {
            self.apply_one(operation, pixels, width, height);
        }
    }

    fn apply_one(&mut self, operation: Operation, pixels: &mut [u8], width: usize, height: usize) {
        let affine = match operation {
            Operation::AutoContrast => return tables::auto_contrast(pixels),
            Operation::Equalize => return tables::equalize(pixels),
            Operation::Invert => return tables::map(pixels, |value| 255 - value),
            Operation::Posterize(bits) => return tables::posterize(pixels, bits),
            Operation::Solarize(from) => return tables::solarize(pixels, from),
            Operation::SolarizeAdd(add) => return tables::solarize_add(pixels, add),
            Operation::Color(factor) => return blend::color(pixels, factor),
            Operation::Contrast(factor) => return blend::contrast(pixels, factor),
            Operation::Brightness(factor) => return blend::brightness(pixels, factor),
            Operation::Sharpness(factor) => {
                return blend::sharpness(pixels, width, factor, &mut self.smoothed);
            }
            Operation::Rotate(degrees) => Affine::rotate(degrees, width, height),
            Operation::ShearX(shear) => Affine([1.0, shear, 0.0, 0.0, 1.0, 0.0]),
            Operation::ShearY(shear) => Affine([1.0, 0.0, 0.0, shear, 1.0, 0.0]),
            Operation::TranslateX(share) => Affine([1.0, 0.0, share * width as f64, 0.0, 1.0, 0.0]),
            Operation::TranslateY(share) => {
                Affine([1.0, 0.0, 0.0, 0.0, 1.0, share * height as f64])
            }
        };
        self.padded.fill(pixels, width, height);
        affine.apply(&self.padded, self.fill, pixels);
    }
}
