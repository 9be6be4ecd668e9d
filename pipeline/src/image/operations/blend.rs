//! Operations that blend a picture with a plainer one of itself (`ImageEnhance`): towards it below
//! a factor of 1, away from it above.
#![expect(
    clippy::inline_always,
    reason = "only what is inlined into a body of pulp is compiled for its instruction set"
)]
use super::tables::map;

/// Pillow's `Image.blend` of one value, in f32: cut, not rounded.
#[inline(always)]
fn blend(plain: u8, value: u8, factor: f32) -> u8 {
    let (plain, value) = (i32::from(plain), i32::from(value));
    // The conversion cuts towards 0 and to 0..=255.
    (plain as f32 + factor * (value - plain) as f32) as u8
}

/// ITU-R 601-2 luma, as Pillow's conversion to `L`.
#[inline(always)]
fn gray([red, green, blue]: [u8; 3]) -> u8 {
    let [red, green, blue] = [red, green, blue].map(u32::from);
    ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16) as u8
}

pub(super) fn color(pixels: &mut [u8], factor: f64) {
    let factor = factor as f32;
    pulp::Arch::new().dispatch(Color { pixels, factor });
}

/// [`color`], compiled for each instruction set that `pulp` knows.
struct Color<'a> {
    pixels: &'a mut [u8],
    factor: f32,
}

impl pulp::NullaryFnOnce for Color<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let factor = self.factor;
        for pixel in self.pixels.as_chunks_mut::<3>().0 {
            let gray = gray(*pixel);
            *pixel = pixel.map(|value| blend(gray, value, factor));
        }
    }
}

pub(super) fn contrast(pixels: &mut [u8], factor: f64) {
    let pixels_of_gray = pixels.as_chunks::<3>().0.iter();
    let sum: u64 = pixels_of_gray.map(|&pixel| u64::from(gray(pixel))).sum();
    let mean = sum as f64 / (pixels.len() / 3) as f64;
    let plain = (mean + 0.5) as u8;
    map(pixels, |value| blend(plain, value, factor as f32));
}

pub(super) fn brightness(pixels: &mut [u8], factor: f64) {
    map(pixels, |value| blend(0, value, factor as f32));
}

/// The plain picture is the one under Pillow's `SMOOTH` filter, (1 1 1; 1 5 1; 1 1 1) / 13, but for
/// its border.
pub(super) fn sharpness(pixels: &mut [u8], width: usize, factor: f64, smoothed: &mut Vec<u8>) {
    let factor = factor as f32;
    let stride = 3 * width;
    let height = pixels.len() / stride;
    if width < 3 || height < 3 {
        // All of it is border, and blended with itself.
        return;
    }
    smoothed.clear();
    smoothed.extend_from_slice(pixels);
    let rows = smoothed.chunks_exact(stride);
    let rows = rows.clone().zip(rows.clone().skip(1)).zip(rows.skip(2));
    let outputs = pixels.chunks_exact_mut(stride).skip(1);
    for (output, ((above, row), below)) in outputs.zip(rows) {
        pulp::Arch::new().dispatch(SharpnessRow {
            rows: [above, row, below],
            output: &mut output[3..stride - 3],
            factor,
        });
    }
}

/// A row of [`sharpness`] but for its ends, compiled for each instruction set that `pulp` knows.
struct SharpnessRow<'a> {
    rows: [&'a [u8]; 3],
    output: &'a mut [u8],
    factor: f32,
}

impl pulp::NullaryFnOnce for SharpnessRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self {
            rows: [above, row, below],
            output,
            factor,
        } = self;
        // Neighbours are three bytes before and after: slices of one length, so that no bound is
        // checked in the loop.
        let len = output.len();
        let (above, above_1, above_2) = (&above[..len], &above[3..][..len], &above[6..][..len]);
        let (row, row_1, row_2) = (&row[..len], &row[3..][..len], &row[6..][..len]);
        let (below, below_1, below_2) = (&below[..len], &below[3..][..len], &below[6..][..len]);
        for (x, output) in output.iter_mut().enumerate() {
            let value = row_1[x];
            let above = i32::from(above[x]) + i32::from(above_1[x]) + i32::from(above_2[x]);
            let beside = i32::from(row[x]) + 5 * i32::from(value) + i32::from(row_2[x]);
            let below = i32::from(below[x]) + i32::from(below_1[x]) + i32::from(below_2[x]);
            let sum = above + beside + below;
            // The nearest whole number; there are no halves of thirteenths.
            let plain = ((2 * sum + 13) / 26) as u8;
            *output = blend(plain, value, factor);
        }
    }
}
