//! The means of the scenes: vectors, random draws, noise, materials, and a canvas that paints
//! shapes given by their distance. Only exact float operations and `libm` are used, so that pixels
//! are the same on every machine.
use std::f32::consts::TAU;
use std::ops::{Add, Mul, Sub};

use nepa_pipeline::{random::below, random::uniform};
use rand_chacha::ChaCha8Rng;

/// A point in space, or a colour (red, green, blue in 0 to 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Vec3(pub(super) f32, pub(super) f32, pub(super) f32);

impl Add for Vec3 {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0, self.1 + other.1, self.2 + other.2)
    }
}

impl Sub for Vec3 {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self(self.0 - other.0, self.1 - other.1, self.2 - other.2)
    }
}

impl Mul<f32> for Vec3 {
    type Output = Self;
    fn mul(self, factor: f32) -> Self {
        Self(self.0 * factor, self.1 * factor, self.2 * factor)
    }
}

impl Vec3 {
    pub(super) fn dot(self, other: Self) -> f32 {
        self.0 * other.0 + self.1 * other.1 + self.2 * other.2
    }

    pub(super) fn cross(self, other: Self) -> Self {
        Self(
            self.1 * other.2 - self.2 * other.1,
            self.2 * other.0 - self.0 * other.2,
            self.0 * other.1 - self.1 * other.0,
        )
    }

    pub(super) fn length(self) -> f32 {
        self.dot(self).sqrt()
    }

    pub(super) fn unit(self) -> Self {
        self * (1.0 / self.length())
    }

    #[inline]
    pub(super) fn mix(self, other: Self, share: f32) -> Self {
        self + (other - self) * share.clamp(0.0, 1.0)
    }
}

/// The random numbers of one image.
pub(super) struct Draw(pub(super) ChaCha8Rng);

impl Draw {
    pub(super) fn between(&mut self, low: f32, high: f32) -> f32 {
        uniform(&mut self.0, f64::from(low), f64::from(high)) as f32
    }

    pub(super) fn chance(&mut self, probability: f32) -> bool {
        self.between(0.0, 1.0) < probability
    }

    pub(super) fn below(&mut self, bound: u32) -> u32 {
        below(&mut self.0, u64::from(bound)) as u32
    }

    /// A colour of any hue, as bright as `low` to `high` and as vivid as `chroma`.
    pub(super) fn colour(&mut self, low: f32, high: f32, chroma: f32) -> Vec3 {
        let (hue, value) = (self.between(0.0, TAU), self.between(low, high));
        let part = |shift: f32| (value + chroma * libm::cosf(hue + shift)).clamp(0.0, 1.0);
        Vec3(part(0.0), part(TAU / 3.0), part(2.0 * TAU / 3.0))
    }

    pub(super) fn noise(&mut self) -> Noise {
        Noise(self.below(u32::MAX))
    }
}

/// Smooth noise in the plane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noise(u32);

impl Noise {
    /// An independent number in `[0, 1)` at each point of the grid.
    pub(super) fn cell(self, x: i32, y: i32) -> f32 {
        finish((x as u32).wrapping_mul(ACROSS) ^ (y as u32).wrapping_mul(UP) ^ self.0)
    }

    /// The grid's numbers, interpolated; about one bump a unit.
    #[inline]
    pub(super) fn smooth(self, x: f32, y: f32) -> f32 {
        let (i, j) = (floor(x), floor(y));
        let ease = |t: f32| t * t * (3.0 - 2.0 * t);
        let (u, v) = (ease(x - i as f32), ease(y - j as f32));
        // As `cell` at the four corners, each product made once.
        let left = (i as u32).wrapping_mul(ACROSS) ^ self.0;
        let right = (i as u32).wrapping_add(1).wrapping_mul(ACROSS) ^ self.0;
        let row = |bottom: u32| finish(left ^ bottom) * (1.0 - u) + finish(right ^ bottom) * u;
        let bottom = (j as u32).wrapping_mul(UP);
        row(bottom) * (1.0 - v) + row(bottom.wrapping_add(UP)) * v
    }

    /// Bumps upon bumps: four octaves, in 0 to 1.
    #[inline]
    pub(super) fn rough(self, x: f32, y: f32) -> f32 {
        let octave = |scale: f32, weight: f32| weight * self.smooth(x * scale + scale, y * scale);
        octave(1.0, 0.53) + octave(2.1, 0.27) + octave(4.3, 0.13) + octave(8.9, 0.07)
    }
}

/// Factors of a cell's place in its hash.
const ACROSS: u32 = 0x9E37_79B1;
const UP: u32 = 0x85EB_CA77;

/// The hash of a cell as a number in `[0, 1)`.
fn finish(mut hash: u32) -> f32 {
    for factor in [0x2C1B_3C6D, 0x297A_2D39] {
        hash = (hash ^ (hash >> 15)).wrapping_mul(factor);
    }
    // Through i32, for which every processor has an instruction.
    ((hash ^ (hash >> 15)) >> 8) as i32 as f32 / (1 << 24) as f32
}

/// `floor`, without the call that it is where a processor of 2003 must do.
fn floor(value: f32) -> i32 {
    let towards_zero = value as i32;
    towards_zero - i32::from(towards_zero as f32 > value)
}

/// What a surface looks like before it is lit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Material {
    colours: [Vec3; 2],
    kind: u32,
    scale: f32,
    noise: Noise,
}

impl Material {
    pub(super) fn new(draw: &mut Draw, chroma: f32) -> Self {
        let first = draw.colour(0.35, 0.8, chroma);
        let second = draw.colour(0.25, 0.8, chroma);
        let strength = draw.between(0.15, 0.6);
        let (kind, scale, noise) = (draw.below(4), draw.between(1.5, 5.0), draw.noise());
        Self {
            colours: [first, first.mix(second, strength)],
            kind,
            scale,
            noise,
        }
    }

    #[inline]
    pub(super) fn at(&self, x: f32, y: f32) -> Vec3 {
        let (x, y) = (x * self.scale, y * self.scale);
        let share = match self.kind {
            0 => self.noise.smooth(x * 0.5, y * 0.5),
            1 => self.noise.rough(x, y),
            // Veins of marble, then grain of wood.
            2 => (self.noise.rough(x, y) - 0.5).abs() * 5.0,
            _ => self.noise.rough(x * 6.0, y * 0.5),
        };
        self.colours[0].mix(self.colours[1], share)
    }
}

/// Pixels in the making; coordinates run from -1 to 1 along the shorter side, y upward.
pub(super) struct Canvas {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) pixels: Vec<Vec3>,
}

impl Canvas {
    pub(super) fn new(width: usize, height: usize) -> Self {
        Self {
            width,
            height,
            pixels: vec![Vec3(0.0, 0.0, 0.0); width * height],
        }
    }

    /// The coordinates at the right and upper edge.
    pub(super) fn extent(&self) -> (f32, f32) {
        let short = self.width.min(self.height) as f32;
        (self.width as f32 / short, self.height as f32 / short)
    }

    /// Paints everything.
    pub(super) fn fill(&mut self, colour: impl Fn(f32, f32) -> Vec3) {
        self.paint(|_, _| -1.0, colour);
    }

    /// Paints where `distance` is negative; its edge is softened over one pixel.
    pub(super) fn paint(
        &mut self,
        distance: impl Fn(f32, f32) -> f32,
        colour: impl Fn(f32, f32) -> Vec3,
    ) {
        self.each(
            |_| (),
            |(), brush, under| {
                brush.stroke(under, distance(brush.x, brush.y), || {
                    colour(brush.x, brush.y)
                });
            },
        );
    }

    /// Paints where the sum of `plain` and `ragged` is negative. `ragged` is dear and at most
    /// `reach` to either side, so it is asked near the edge only, where it matters.
    pub(super) fn paint_ragged(
        &mut self,
        plain: impl Fn(f32, f32) -> f32,
        ragged: impl Fn(f32, f32) -> f32,
        reach: f32,
        colour: impl Fn(f32, f32) -> Vec3,
    ) {
        let distance = |brush: &Brush| {
            let plain = plain(brush.x, brush.y);
            if plain.abs() > reach + brush.pixel {
                plain
            } else {
                plain + ragged(brush.x, brush.y)
            }
        };
        self.each(
            |_| (),
            |(), brush, under| {
                brush.stroke(under, distance(brush), || colour(brush.x, brush.y));
            },
        );
    }

    /// Paints where `distance` is negative, which gets what `outline` gave for the column, and y.
    pub(super) fn paint_outlined(
        &mut self,
        outline: impl Fn(f32) -> f32,
        distance: impl Fn(f32, f32) -> f32,
        colour: impl Fn(f32, f32) -> Vec3,
    ) {
        self.each(outline, |outline, brush, under| {
            brush.stroke(under, distance(*outline, brush.y), || {
                colour(brush.x, brush.y)
            });
        });
    }

    /// Asks `column` once for each x, then calls `paint` for every pixel with the answer for its
    /// column.
    pub(super) fn each<T>(
        &mut self,
        column: impl Fn(f32) -> T,
        paint: impl Fn(&T, &Brush, &mut Vec3),
    ) {
        let ((right, top), pixel) = (self.extent(), 2.0 / self.width.min(self.height) as f32);
        let x = |column: usize| (column as f32 + 0.5) * pixel - right;
        let columns = (0..self.width).map(x);
        let columns = columns.map(|x| (x, column(x))).collect::<Vec<_>>();
        for (row, pixels) in self.pixels.chunks_exact_mut(self.width).enumerate() {
            let y = top - (row as f32 + 0.5) * pixel;
            for ((x, column), under) in columns.iter().zip(pixels) {
                paint(column, &Brush { x: *x, y, pixel }, under);
            }
        }
    }
}

/// What paints one pixel.
pub(super) struct Brush {
    pub(super) x: f32,
    pub(super) y: f32,
    /// Side of the pixel.
    pub(super) pixel: f32,
}

impl Brush {
    /// Paints if the distance to a shape is negative, or partly at its edge.
    pub(super) fn stroke(&self, under: &mut Vec3, distance: f32, colour: impl FnOnce() -> Vec3) {
        let share = 0.5 - distance / self.pixel;
        if share > 0.0 {
            *under = under.mix(colour(), share);
        }
    }
}

/// Distance to a rectangle around `(x, y)` with these half sides.
pub(super) fn rectangle(x: f32, y: f32, half_width: f32, half_height: f32) -> f32 {
    (x.abs() - half_width).max(y.abs() - half_height)
}

/// About the distance to an ellipse around `(x, y)`.
pub(super) fn ellipse(x: f32, y: f32, half_width: f32, half_height: f32) -> f32 {
    let (u, v) = (x / half_width, y / half_height);
    ((u * u + v * v).sqrt() - 1.0) * half_width.min(half_height)
}
