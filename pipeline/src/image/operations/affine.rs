//! Affine maps of a picture with Pillow's bicubic interpolation (`ImagingTransform`, cubic
//! convolution with a = -1, where resizing has -0.5).
//!
//! The arithmetic is in doubles, in Pillow's order, so that results agree bit for bit. Sums of four
//! 8-bit values are exact in any order, and are made of integers.
#![expect(
    clippy::inline_always,
    reason = "only what is inlined into a body of pulp is compiled for its instruction set"
)]

/// Output pixel (x, y) shows the source at `(a x + b y + c, d x + e y + f)`, pixels counted by
/// their centres.
#[derive(Debug, Clone, Copy)]
pub(super) struct Affine(pub(super) [f64; 6]);

/// Pixels beyond each edge that interpolation may read: copies of the edge's.
const MARGIN: usize = 2;

/// A picture with copies of its edges around it, four bytes a pixel.
#[derive(Debug, Default)]
pub(super) struct Padded {
    pixels: Vec<[u8; 4]>,
    width: usize,
    height: usize,
}

impl Padded {
    /// From one row to the next.
    fn stride(&self) -> usize {
        self.width + 2 * MARGIN
    }

    /// Takes a picture of `width` x `height`, which is not empty.
    pub(super) fn fill(&mut self, picture: &[u8], width: usize, height: usize) {
        (self.width, self.height) = (width, height);
        self.pixels.clear();
        let rows = height + 2 * MARGIN;
        for row in 0..rows {
            let row = row.saturating_sub(MARGIN).min(height - 1);
            let row = picture[row * width * 3..(row + 1) * width * 3]
                .as_chunks::<3>()
                .0;
            let pixel = |[red, green, blue]: [u8; 3]| [red, green, blue, 0];
            self.pixels.extend([pixel(row[0]); MARGIN]);
            self.pixels.extend(row.iter().map(|&rgb| pixel(rgb)));
            self.pixels.extend([pixel(row[width - 1]); MARGIN]);
        }
    }
}

impl Affine {
    /// A turn about the centre, as Pillow's `rotate` makes its matrix.
    pub(super) fn rotate(degrees: f64, width: usize, height: usize) -> Self {
        let radians = -degrees.rem_euclid(360.0).to_radians();
        let (cos, sin) = (
            to_15_decimals(libm::cos(radians)),
            to_15_decimals(libm::sin(radians)),
        );
        let (x, y) = (width as f64 / 2.0, height as f64 / 2.0);
        Self([
            cos,
            sin,
            cos * -x + sin * -y + x,
            -sin,
            cos,
            -sin * -x + cos * -y + y,
        ])
    }

    /// Writes the map of `source` to `output`, `[height, width, 3]` of the same size.
    pub(super) fn apply(self, source: &Padded, fill: [u8; 3], output: &mut [u8]) {
        pulp::Arch::new().dispatch(Apply {
            affine: self,
            source,
            fill,
            output,
        });
    }
}

/// [`Affine::apply`], compiled for each instruction set that `pulp` knows.
struct Apply<'a> {
    affine: Affine,
    source: &'a Padded,
    fill: [u8; 3],
    output: &'a mut [u8],
}

impl pulp::NullaryFnOnce for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self {
            affine: Affine([a, b, c, d, e, f]),
            source,
            fill,
            output,
        } = self;
        let rows = output.chunks_exact_mut(3 * source.width).enumerate();
        // Where one coordinate stays what it is, its fraction is 0 throughout, and interpolation
        // along it gives the very value that it starts from.
        if (d, e, f) == (0.0, 1.0, 0.0) {
            for (y, row) in rows {
                let across = Line::new(a, b, c, y, source.width);
                source.row_along_x(across, y, fill, row);
            }
        } else if (a, b, c) == (1.0, 0.0, 0.0) {
            for (y, row) in rows {
                let down = Line::new(d, e, f, y, source.height);
                source.row_along_y(down, fill, row);
            }
        } else {
            for (y, row) in rows {
                let across = Line::new(a, b, c, y, source.width);
                let down = Line::new(d, e, f, y, source.height);
                source.row_along_both(across, down, fill, row);
            }
        }
    }
}

/// As Python's `round(x, 15)`: the nearest decimal number, and the number nearest to that.
fn to_15_decimals(x: f64) -> f64 {
    format!("{x:.15}").parse().expect("digits")
}

/// One coordinate of the source along a row of the output.
#[derive(Debug, Clone, Copy)]
struct Line {
    slope: f64,
    of_row: f64,
    constant: f64,
    length: f64,
}

impl Line {
    #[inline(always)]
    fn new(slope: f64, of_y: f64, constant: f64, y: usize, length: usize) -> Self {
        Self {
            slope,
            of_row: of_y * (y as f64 + 0.5),
            constant,
            length: length as f64,
        }
    }

    /// At output column `x`: the first of the four source pixels that count, seen from the first of
    /// the margin, and the fraction; `None` outside of the picture.
    #[inline(always)]
    fn at(&self, x: usize) -> Option<(usize, f64)> {
        let source = self.slope * (x as f64 + 0.5) + self.of_row + self.constant;
        if !(source >= 0.0 && source < self.length) {
            return None;
        }
        let source = source - 0.5;
        let whole = source.floor();
        // From -1 on; the pixel before it is the first that counts.
        Some((
            (whole + (MARGIN - 1) as f64) as u32 as usize,
            source - whole,
        ))
    }
}

/// Pixels that are worked on together: their values lie side by side, so that the loops over them
/// become vector instructions.
const CHUNK: usize = 16;
/// Values of a chunk; the fourth of each pixel has no meaning.
type Values<T> = [[T; 4]; CHUNK];

impl Padded {
    #[inline(always)]
    fn row_along_x(&self, across: Line, y: usize, fill: [u8; 3], output: &mut [u8]) {
        let row = &self.pixels[(y + MARGIN) * self.stride()..][..self.stride()];
        let (mut taps, mut fractions) = ([[[0; 4]; CHUNK]; 4], [[0.0; 4]; CHUNK]);
        for (number, pixels) in chunks(output) {
            let mut inside = [false; CHUNK];
            for (i, inside) in inside.iter_mut().take(pixels.len()).enumerate() {
                let Some((start, fraction)) = across.at(number * CHUNK + i) else {
                    continue;
                };
                *inside = true;
                fractions[i] = [fraction; 4];
                let pixels = &row[start..start + 4];
                for k in 0..4 {
                    taps[k][i] = pixels[k];
                }
            }
            let mut values = [[0.0; 4]; CHUNK];
            of_values(&taps, &fractions, &mut values);
            write(&values, &inside, fill, pixels);
        }
    }

    #[inline(always)]
    fn row_along_y(&self, down: Line, fill: [u8; 3], output: &mut [u8]) {
        let stride = self.stride();
        let (mut taps, mut fractions) = ([[[0; 4]; CHUNK]; 4], [[0.0; 4]; CHUNK]);
        for (number, pixels) in chunks(output) {
            let mut inside = [false; CHUNK];
            for (i, inside) in inside.iter_mut().take(pixels.len()).enumerate() {
                let x = number * CHUNK + i;
                let Some((start, fraction)) = down.at(x) else {
                    continue;
                };
                *inside = true;
                fractions[i] = [fraction; 4];
                let column = &self.pixels[start * stride + x + MARGIN..][..=3 * stride];
                for k in 0..4 {
                    taps[k][i] = column[k * stride];
                }
            }
            let mut values = [[0.0; 4]; CHUNK];
            of_values(&taps, &fractions, &mut values);
            write(&values, &inside, fill, pixels);
        }
    }

    #[inline(always)]
    fn row_along_both(&self, across: Line, down: Line, fill: [u8; 3], output: &mut [u8]) {
        let stride = self.stride();
        let mut taps = [[[[0; 4]; CHUNK]; 4]; 4];
        let mut fractions = [[[0.0; 4]; CHUNK]; 2];
        let mut rows = [[[0.0; 4]; CHUNK]; 4];
        for (number, pixels) in chunks(output) {
            let mut inside = [false; CHUNK];
            for (i, inside) in inside.iter_mut().take(pixels.len()).enumerate() {
                let x = number * CHUNK + i;
                let (Some((column, dx)), Some((row, dy))) = (across.at(x), down.at(x)) else {
                    continue;
                };
                *inside = true;
                fractions[0][i] = [dx; 4];
                fractions[1][i] = [dy; 4];
                let window = &self.pixels[row * stride + column..][..3 * stride + 4];
                for (row, taps) in taps.iter_mut().enumerate() {
                    let pixels = &window[row * stride..row * stride + 4];
                    for k in 0..4 {
                        taps[k][i] = pixels[k];
                    }
                }
            }
            for (taps, row) in taps.iter().zip(&mut rows) {
                of_values(taps, &fractions[0], row);
            }
            let mut values = [[0.0; 4]; CHUNK];
            of_rows(&rows, &fractions[1], &mut values);
            write(&values, &inside, fill, pixels);
        }
    }
}

/// The chunks of a row, numbered; the last may be shorter.
#[inline(always)]
fn chunks(row: &mut [u8]) -> impl Iterator<Item = (usize, &mut [[u8; 3]])> {
    row.as_chunks_mut::<3>().0.chunks_mut(CHUNK).enumerate()
}

/// Between the second and the third of four pixels.
#[inline(always)]
fn of_values(taps: &[Values<u8>; 4], fractions: &Values<f64>, results: &mut Values<f64>) {
    let [v1, v2, v3, v4] = taps;
    let (v1, v2) = (v1.as_flattened(), v2.as_flattened());
    let (v3, v4) = (v3.as_flattened(), v4.as_flattened());
    let places = results.as_flattened_mut().iter_mut();
    for (i, (result, fraction)) in places.zip(fractions.as_flattened()).enumerate() {
        let (v1, v2) = (i32::from(v1[i]), i32::from(v2[i]));
        let (v3, v4) = (i32::from(v3[i]), i32::from(v4[i]));
        let p2 = f64::from(v3 - v1);
        let p3 = f64::from(2 * (v1 - v2) + v3 - v4);
        let p4 = f64::from(v2 - v1 - v3 + v4);
        *result = f64::from(v2) + fraction * (p2 + fraction * (p3 + fraction * p4));
    }
}

/// The same of values that are not whole.
#[inline(always)]
fn of_rows(rows: &[Values<f64>; 4], fractions: &Values<f64>, results: &mut Values<f64>) {
    let [v1, v2, v3, v4] = rows;
    let (v1, v2) = (v1.as_flattened(), v2.as_flattened());
    let (v3, v4) = (v3.as_flattened(), v4.as_flattened());
    let places = results.as_flattened_mut().iter_mut();
    for (i, (result, fraction)) in places.zip(fractions.as_flattened()).enumerate() {
        let (v1, v2, v3, v4) = (v1[i], v2[i], v3[i], v4[i]);
        let p2 = v3 - v1;
        let p3 = 2.0 * (v1 - v2) + v3 - v4;
        let p4 = v2 - v1 - v3 + v4;
        *result = v2 + fraction * (p2 + fraction * (p3 + fraction * p4));
    }
}

/// Writes a chunk as 8 bits, cut and not rounded; `fill` where the source's inside does not show.
#[inline(always)]
fn write(values: &Values<f64>, inside: &[bool; CHUNK], fill: [u8; 3], pixels: &mut [[u8; 3]]) {
    /// Added to a whole number below it, it leaves that in the lowest bits.
    const WHOLE: f64 = (1u64 << 52) as f64;
    let mut bytes = [[0; 4]; CHUNK];
    let places = bytes.as_flattened_mut().iter_mut();
    for (byte, &value) in places.zip(values.as_flattened()) {
        let value = if value > 0.0 { value } else { 0.0 };
        let value = if value < 255.0 { value } else { 255.0 };
        *byte = (value.floor() + WHOLE).to_bits() as u8;
    }
    for ((pixel, [red, green, blue, _]), inside) in pixels.iter_mut().zip(bytes).zip(inside) {
        *pixel = if *inside { [red, green, blue] } else { fill };
    }
}
