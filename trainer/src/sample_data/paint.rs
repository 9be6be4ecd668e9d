//! The means of the scenes: vectors, random draws, noise, materials, and a canvas that paints shapes given by their
//! distance. Only exact float operations and `libm` are used, so that pixels are the same on every machine.
use std::f32::consts::TAU;
use std::ops::{Add, Mul, Sub};

use nepa_pipeline::random::{below, uniform};
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
        let mut hash =
            (x as u32).wrapping_mul(0x9E37_79B1) ^ (y as u32).wrapping_mul(0x85EB_CA77) ^ self.0;
        for factor in [0x2C1B_3C6D, 0x297A_2D39] {
            hash = (hash ^ (hash >> 15)).wrapping_mul(factor);
        }
        ((hash ^ (hash >> 15)) >> 8) as f32 / (1 << 24) as f32
    }

    /// The grid's numbers, interpolated; about one bump a unit.
    pub(super) fn smooth(self, x: f32, y: f32) -> f32 {
        let (left, bottom) = (x.floor(), y.floor());
        let ease = |t: f32| t * t * (3.0 - 2.0 * t);
        let (u, v) = (ease(x - left), ease(y - bottom));
        let (i, j) = (left as i32, bottom as i32);
        let row = |j| self.cell(i, j) * (1.0 - u) + self.cell(i + 1, j) * u;
        row(j) * (1.0 - v) + row(j + 1) * v
    }

    /// Bumps upon bumps: four octaves, in 0 to 1.
    pub(super) fn rough(self, x: f32, y: f32) -> f32 {
        let octave = |scale: f32, weight: f32| weight * self.smooth(x * scale + scale, y * scale);
        octave(1.0, 0.53) + octave(2.1, 0.27) + octave(4.3, 0.13) + octave(8.9, 0.07)
    }
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
        let ((right, top), pixel) = (self.extent(), 2.0 / self.width.min(self.height) as f32);
        for row in 0..self.height {
            let y = top - (row as f32 + 0.5) * pixel;
            for column in 0..self.width {
                let x = (column as f32 + 0.5) * pixel - right;
                let share = 0.5 - distance(x, y) / pixel;
                if share > 0.0 {
                    let under = &mut self.pixels[row * self.width + column];
                    *under = under.mix(colour(x, y), share);
                }
            }
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
