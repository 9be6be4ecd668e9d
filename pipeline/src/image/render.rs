//! Encoded image and plan to normalised pixels: decode, crop, resize, flip, change by operations,
//! normalise, erase.
//!
//! Called on the loader's decode threads, one [`CpuRenderer`] each. The arithmetic is Pillow's, so
//! that models see what the reference's saw, the rounding to 8 bits between its two passes
//! included. The stored image is never turned upright: the crop is turned the other way instead.
use super::erase::erase;
use super::normalize::{Normalize, Pixel};
use super::resample::Resampler;
use super::{Decoder, ImageHeader, Orientation, PixelOperations, PixelRect};
use crate::{CropPlan, ImageError};

/// What one thread needs to render samples on the CPU; holds its scratch memory.
#[derive(Debug)]
pub struct CpuRenderer<P: Pixel = f32> {
    tables: Box<[[P; 256]; 3]>,
    normalize: Normalize,
    exif_orientation: bool,
    patch_size: Option<u32>,
    decoder: Decoder,
    resampler: Resampler,
    operations: PixelOperations,
    /// A view that operations change, upright and flipped, `[S, S, 3]`.
    upright: Vec<u8>,
    /// The decoded part of the image as stored, `[height, width, 3]`.
    decoded: Vec<u8>,
}

impl Default for CpuRenderer {
    /// NEPA's normalisation, EXIF orientation applied.
    fn default() -> Self {
        Self::new(Normalize::default(), true)
    }
}

/// Scratch memory above this is given back after a sample, so that one huge image does not stay for
/// the whole run.
const MAX_KEPT_BYTES: usize = 64 << 20;

impl<P: Pixel> CpuRenderer<P> {
    /// A renderer; `exif_orientation` says whether the EXIF orientation is applied.
    pub fn new(normalize: Normalize, exif_orientation: bool) -> Self {
        Self {
            tables: Box::new(normalize.tables()),
            normalize,
            exif_orientation,
            patch_size: None,
            decoder: Decoder::default(),
            resampler: Resampler::default(),
            operations: PixelOperations::new(normalize.fill()),
            upright: Vec::new(),
            decoded: Vec::new(),
        }
    }

    /// Writes views as patches: `[P, 3 * p * p]` for `Some(p)`, which must divide their sides.
    #[must_use]
    pub fn in_patches(self, patch_size: Option<u32>) -> Self {
        Self { patch_size, ..self }
    }

    /// Reads the header, with the orientation if that counts.
    pub fn read_header(&mut self, encoded: &[u8]) -> Result<ImageHeader, ImageError> {
        self.decoder.header(encoded, self.exif_orientation)
    }

    /// Decodes once and renders each of `views` into its output, `[3, S, S]` or patches.
    pub fn render<'a>(
        &mut self,
        encoded: &[u8],
        header: ImageHeader,
        views: &[CropPlan],
        outputs: impl IntoIterator<Item = &'a mut [P]>,
    ) -> Result<(), ImageError> {
        let (size, part) = self.decode(encoded, header, views)?;
        let mut outputs = outputs.into_iter();
        for plan in views {
            self.resampler
                .resample(&self.decoded, part, size, header.orientation, plan);
            let side = plan.output_size as usize;
            let output = outputs.next().expect("an output for each view");
            assert_eq!(
                output.len(),
                3 * side * side,
                "the output holds another size than the plan's"
            );
            let mut view = Turned {
                square: self.resampler.square(),
                side,
                orientation: header.orientation,
                flip: plan.flip,
            };
            if !plan.operations.is_empty() {
                self.upright.resize(output.len(), 0);
                view.write_crop(&mut self.upright);
                let (operations, side) = (&plan.operations, plan.output_size);
                self.operations
                    .apply(operations, &mut self.upright, side, side);
                view = Turned::upright(&self.upright, view.side);
            }
            view.write_pixels(&self.tables, self.patch_size, output);
            if let Some(rect) = &plan.erase {
                erase(rect, &self.normalize, side, self.patch_size, output);
            }
        }
        self.trim();
        Ok(())
    }

    /// Reads the header, decodes and renders one view, `[3, S, S]` or patches.
    pub fn render_plan(
        &mut self,
        encoded: &[u8],
        plan: &CropPlan,
        output: &mut [P],
    ) -> Result<(), ImageError> {
        let header = self.read_header(encoded)?;
        self.render(encoded, header, std::slice::from_ref(plan), [output])
    }

    /// The same of one view before normalisation, and so without its erased box: 8-bit RGB, `[S, S,
    /// 3]`.
    pub fn render_crop(
        &mut self,
        encoded: &[u8],
        header: ImageHeader,
        plan: &CropPlan,
        output: &mut [u8],
    ) -> Result<(), ImageError> {
        let (size, part) = self.decode(encoded, header, std::slice::from_ref(plan))?;
        self.resampler
            .resample(&self.decoded, part, size, header.orientation, plan);
        let side = plan.output_size;
        let view = Turned {
            square: self.resampler.square(),
            side: side as usize,
            orientation: header.orientation,
            flip: plan.flip,
        };
        view.write_crop(output);
        self.operations.apply(&plan.operations, output, side, side);
        self.trim();
        Ok(())
    }

    /// Decodes what the plans read. Returns the stored size and the part that is decoded.
    fn decode(
        &mut self,
        encoded: &[u8],
        header: ImageHeader,
        plans: &[CropPlan],
    ) -> Result<((u32, u32), PixelRect), ImageError> {
        let lies_inside = |start: f64, length: f64, limit: u32| {
            // Products of a ratio and a length may exceed the limit by the last bit.
            start >= 0.0 && length > 0.0 && start + length <= f64::from(limit) * (1.0 + 1e-9)
        };
        for rect in plans.iter().map(|plan| plan.rect) {
            if !lies_inside(rect.x, rect.width, header.width)
                || !lies_inside(rect.y, rect.height, header.height)
            {
                return Err(ImageError::CropOutside {
                    x: rect.x,
                    y: rect.y,
                    width: rect.width,
                    height: rect.height,
                    image_width: header.width,
                    image_height: header.height,
                });
            }
        }
        for (plan, rect) in plans.iter().filter_map(|plan| Some((plan, plan.erase?))) {
            let side = plan.output_size;
            let fits = |start: u32, length: u32| {
                let end = start.checked_add(length);
                end.is_some_and(|end| end <= side)
            };
            if !fits(rect.left, rect.width) || !fits(rect.top, rect.height) {
                return Err(ImageError::EraseOutside { rect, side });
            }
        }
        let wanted = |width, height| {
            plans
                .iter()
                .map(|plan| PixelRect::read_by(plan, header.orientation, (width, height)))
                .reduce(PixelRect::around)
                .expect("at least one plan")
        };
        self.decoder.decode_part(encoded, wanted, &mut self.decoded)
    }

    /// Gives back the scratch memory of a huge image.
    fn trim(&mut self) {
        if self.decoded.capacity() > MAX_KEPT_BYTES {
            self.decoder = Decoder::default();
            self.resampler = Resampler::default();
            self.decoded = Vec::new();
        }
    }
}

/// A view as it was resized: turned as the stored image is, and not yet flipped.
struct Turned<'a> {
    /// `[S, S, 3]`.
    square: &'a [u8],
    side: usize,
    /// What turns it upright.
    orientation: Orientation,
    /// Whether it is mirrored then.
    flip: bool,
}

impl<'a> Turned<'a> {
    /// One that is upright and flipped already.
    fn upright(square: &'a [u8], side: usize) -> Self {
        Self {
            square,
            side,
            orientation: Orientation::UPRIGHT,
            flip: false,
        }
    }

    /// Where pixel 0 of the upright and flipped row `y` lies, and the step from each pixel to the
    /// next; in bytes. Pixels of one output row lie at even steps, wherever the row starts and
    /// whichever way it runs.
    fn row(&self, y: usize) -> (isize, isize) {
        let side = self.side;
        let source_of = |x: usize| {
            let x = if self.flip { side - 1 - x } else { x };
            let (source_x, source_y) = self.orientation.stored_pixel(x, y, side, side);
            (source_y * side + source_x) as isize * 3
        };
        let first = source_of(0);
        let step = if side > 1 { source_of(1) - first } else { 0 };
        (first, step)
    }

    /// Turns it upright and flips it, `[S, S, 3]`.
    fn write_crop(&self, output: &mut [u8]) {
        let side = self.side;
        assert_eq!(
            output.len(),
            3 * side * side,
            "the output slot holds another size than the plan's"
        );
        for (y, row) in output.chunks_exact_mut(3 * side).enumerate() {
            let (mut source, step) = self.row(y);
            for pixel in row.chunks_exact_mut(3) {
                pixel.copy_from_slice(&self.square[source as usize..source as usize + 3]);
                source += step;
            }
        }
    }

    /// Turns it upright, flips it, normalises it and writes it as `[3, S, S]`, or as patches.
    fn write_pixels<P: Pixel>(
        &self,
        tables: &[[P; 256]; 3],
        patch_size: Option<u32>,
        output: &mut [P],
    ) {
        let side = self.side;
        // A view that is not cut is one patch.
        let patch = patch_size.map_or(side, |size| size as usize);
        let patches_per_row = side / patch;
        let plane = patch * patch;
        for y in 0..side {
            let (mut source, step) = self.row(y);
            let patch_row = y / patch * patches_per_row;
            for patch_column in 0..patches_per_row {
                let start = (patch_row + patch_column) * 3 * plane;
                let (red, rest) = output[start..start + 3 * plane].split_at_mut(plane);
                let (green, blue) = rest.split_at_mut(plane);
                let row = y % patch * patch..(y % patch + 1) * patch;
                let planes = red[row.clone()]
                    .iter_mut()
                    .zip(&mut green[row.clone()])
                    .zip(&mut blue[row]);
                for ((red, green), blue) in planes {
                    let pixel = &self.square[source as usize..source as usize + 3];
                    *red = tables[0][usize::from(pixel[0])];
                    *green = tables[1][usize::from(pixel[1])];
                    *blue = tables[2][usize::from(pixel[2])];
                    source += step;
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
