//! Crop and resize of an 8-bit RGB image to a square, antialiased, in Pillow's arithmetic (by
//! `fast_image_resize`, whose kernels pick SIMD at run time).
//!
//! Pillow resizes along one axis, rounds to 8 bits, then along the other; here each pass is a call
//! of its own to keep its order.
use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{
    FilterType, IntoImageView, IntoImageViewMut, PixelType, ResizeAlg, ResizeOptions, Resizer,
};

use crate::image::{Orientation, PixelRect};
use crate::{CropPlan, EdgeSupport, Filter};

/// Resizes with the same scratch memory again and again.
#[derive(Debug, Default)]
pub(super) struct Resampler {
    resizer: Resizer,
    /// The image after the first pass.
    halfway: Vec<u8>,
    /// The image after both, `[S, S, 3]`.
    square: Vec<u8>,
}

/// A stretch of one axis of an image.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: f64,
    length: f64,
}

impl Span {
    /// The same stretch of an axis that runs the other way.
    fn mirrored(self, limit: u32) -> Self {
        Self {
            start: (f64::from(limit) - self.start - self.length).max(0.0),
            ..self
        }
    }

    /// The whole pixels of 0..`limit` that it touches once widened by `margin` on both sides: start
    /// and number.
    fn pixels(self, margin: f64, limit: u32) -> (u32, u32) {
        let start = (self.start - margin).floor().max(0.0) as u32;
        let end = (self.start + self.length + margin)
            .ceil()
            .min(f64::from(limit)) as u32;
        let start = start.min(limit - 1);
        (start, end.max(start + 1) - start)
    }

    /// Seen from pixel `start` of a part of `length` pixels, whose end it must not pass by a
    /// rounding error.
    fn within(self, start: u32, length: u32) -> Self {
        let start = self.start - f64::from(start);
        Self {
            start,
            length: self.length.min(f64::from(length) - start),
        }
    }
}

impl PixelRect {
    /// All pixels of a stored image of `size` that a plan's crop reads: those under its rectangle,
    /// and those that its filter reaches.
    pub fn read_by(plan: &CropPlan, orientation: Orientation, size: (u32, u32)) -> Self {
        let (across, down) = stored_spans(plan, orientation, size);
        // The filter's reach, and a pixel more for rounding.
        let reach = |span: Span| match plan.edge {
            EdgeSupport::Rect => 0.0,
            EdgeSupport::Image => {
                filter(plan).1 * (span.length / f64::from(plan.output_size)).max(1.0) + 1.0
            }
        };
        let (left, width) = across.pixels(reach(across), size.0);
        let (top, height) = down.pixels(reach(down), size.1);
        Self {
            left,
            top,
            width,
            height,
        }
    }
}

/// The plan's rectangle along the axes of the stored image, x and y.
fn stored_spans(
    plan: &CropPlan,
    orientation: Orientation,
    (width, height): (u32, u32),
) -> (Span, Span) {
    let rect = plan.rect;
    let mut across = Span {
        start: rect.x,
        length: rect.width,
    };
    let mut down = Span {
        start: rect.y,
        length: rect.height,
    };
    if orientation.swaps_axes() {
        std::mem::swap(&mut across, &mut down);
    }
    if orientation.mirrors_x() {
        across = across.mirrored(width);
    }
    if orientation.mirrors_y() {
        down = down.mirrored(height);
    }
    (across, down)
}

/// The plan's filter, and its reach in pixels at a scale of one.
fn filter(plan: &CropPlan) -> (FilterType, f64) {
    match plan.filter {
        Filter::Bilinear => (FilterType::Bilinear, 1.0),
        Filter::Bicubic => (FilterType::CatmullRom, 2.0),
    }
}

impl Resampler {
    /// Renders the plan from `decoded`, which holds the pixels of `part` of a stored image of
    /// `width` x `height`, into [`Self::square`].
    pub(super) fn resample(
        &mut self,
        decoded: &[u8],
        part: PixelRect,
        (width, height): (u32, u32),
        orientation: Orientation,
        plan: &CropPlan,
    ) {
        // The first pass is needed only for what the second one reads.
        let read = PixelRect::read_by(plan, orientation, (width, height));
        let (across, down) = stored_spans(plan, orientation, (width, height));
        let (across, down) = (
            across.within(read.left, read.width),
            down.within(read.top, read.height),
        );
        let filter = filter(plan).0;
        let side = plan.output_size;

        let image = ImageRef::new(part.width, part.height, decoded, PixelType::U8x3)
            .expect("the decoder filled the whole part");
        let view = CroppedImage::new(
            &image,
            read.left - part.left,
            read.top - part.top,
            read.width,
            read.height,
        )
        .expect("what the plan reads was decoded");
        // Pillow sees the upright image, cut to the rectangle only if it is cropped first; its rows
        // are columns here if the axes are swapped.
        let seen = match plan.edge {
            EdgeSupport::Rect => (plan.rect.width, plan.rect.height),
            EdgeSupport::Image => {
                let (width, height) = orientation.upright_size(width, height);
                (f64::from(width), f64::from(height))
            }
        };
        let rows_first = rows_come_first(seen, f64::from(side)) != orientation.swaps_axes();
        let (halfway_width, halfway_height) = if rows_first {
            (side, read.height)
        } else {
            (read.width, side)
        };
        let whole = |length: u32| Span {
            start: 0.0,
            length: f64::from(length),
        };
        let (first, second) = if rows_first {
            ((across, whole(read.height)), (whole(side), down))
        } else {
            ((whole(read.width), down), (across, whole(side)))
        };
        resize(
            &mut self.resizer,
            &view,
            &mut self.halfway,
            (halfway_width, halfway_height),
            filter,
            first,
        );
        let halfway = ImageRef::new(
            halfway_width,
            halfway_height,
            &self.halfway,
            PixelType::U8x3,
        )
        .expect("of this size");
        let halfway = CroppedImage::new(&halfway, 0, 0, halfway_width, halfway_height)
            .expect("the whole of it");
        resize(
            &mut self.resizer,
            &halfway,
            &mut self.square,
            (side, side),
            filter,
            second,
        );
    }

    /// The last result, `[S, S, 3]`: still turned as the stored image is, and not yet flipped.
    pub(super) fn square(&self) -> &[u8] {
        &self.square
    }
}

/// Whether Pillow 13 resizes rows before columns (releases before it always did, but for images a
/// hundred times as high as wide). The order decides what is rounded in between, one part in 255
/// here and there.
fn rows_come_first((width, height): (f64, f64), side: f64) -> bool {
    height <= side || height - side <= 2.0 * (width - side)
}

/// One pass, of a stretch of each axis; an axis that keeps its length is not filtered.
fn resize(
    resizer: &mut Resizer,
    source: &CroppedImage<ImageRef>,
    target: &mut Vec<u8>,
    (width, height): (u32, u32),
    filter: FilterType,
    (across, down): (Span, Span),
) {
    target.resize(width as usize * height as usize * 3, 0);
    let mut target =
        Image::from_slice_u8(width, height, target, PixelType::U8x3).expect("resized to this size");
    // By their type, and of one kind of image: chosen at run time, the kernels of all fifteen types of
    // pixels would be compiled into this package, half of its code.
    let source = source.image_view::<U8x3>().expect("RGB of 8 bits");
    let mut target = target.image_view_mut::<U8x3>().expect("RGB of 8 bits");
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(filter))
        .crop(across.start, down.start, across.length, down.length);
    resizer
        .resize_typed(&source, &mut target, &options)
        .expect("the stretches lie inside the source");
}
