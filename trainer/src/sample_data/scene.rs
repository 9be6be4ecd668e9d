//! Everything random about one scene, drawn before a pixel is computed.
use nepa_pipeline::random::{below, uniform, unit};
use rand_chacha::ChaCha8Rng;

use super::paint::{PATTERNS, Paint, Pattern};
use super::shape::{SHAPES, Shape};
use super::vector::{Vec3, vec3};

/// The object of the scene's class.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub shape: Shape,
    pub proportion: f32,
    /// Cosine and sine of its turn about the vertical.
    pub turn: (f32, f32),
    pub paint: Paint,
    pub second: Paint,
    pub gloss: f32,
}

/// A half-buried ball of clutter.
#[derive(Debug, Clone)]
pub(super) struct Stone {
    pub center: Vec3,
    pub radius: f32,
    pub paint: Paint,
}

/// Something far away, seen flat against the sky or wall, in units of the view's direction.
#[derive(Debug, Clone)]
pub(super) struct Silhouette {
    pub x: f32,
    pub half_width: f32,
    pub height: f32,
    pub round: bool,
    pub color: Vec3,
}

/// What stands behind.
#[derive(Debug, Clone)]
pub(super) enum Backdrop {
    /// Colours at the horizon and above, and how clouded.
    Sky { low: Vec3, high: Vec3, clouds: f32 },
    /// A wall at this depth.
    Wall { paint: Paint, depth: f32 },
}

/// A scene; the object's origin lies above (0, 0, 0), the ground is y = 0.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    pub width: usize,
    pub height: usize,
    pub grayscale: bool,
    pub object: Object,
    pub ground: Paint,
    pub backdrop: Backdrop,
    pub stones: Vec<Stone>,
    pub silhouettes: Vec<Silhouette>,
    pub eye: Vec3,
    pub target: Vec3,
    pub roll: f32,
    /// Half the shorter side of the picture, at distance one.
    pub field: f32,
    pub sun: Vec3,
    pub sun_color: Vec3,
    pub ambient: Vec3,
    pub exposure: f32,
    pub vignette: f32,
    pub noise: f32,
    pub salt: u32,
}

impl Scene {
    /// Draws a scene of a class.
    pub(super) fn draw(rng: &mut ChaCha8Rng, label: usize) -> Self {
        let shape = SHAPES[label];
        let (width, height) = size(rng);
        let object = Object {
            shape,
            proportion: range(rng, 0.0, 1.0),
            turn: turn(rng, shape),
            paint: paint(rng, 2.0),
            second: paint(rng, 2.5),
            gloss: range(rng, 0.0, 0.7),
        };
        let distance = range(rng, 3.4, 6.2);
        let eye = vec3(range(rng, -0.6, 0.6), range(rng, 1.0, 3.0), -distance);
        let stones = (0..below(rng, 6)).map(|_| stone(rng)).collect();
        let silhouettes = (0..below(rng, 8)).map(|_| silhouette(rng)).collect();
        let elevation = range(rng, 0.3, 1.3);
        let azimuth = range(rng, -2.4, 2.4);
        let flat = libm::cosf(elevation);
        let warm = range(rng, -0.25, 0.25);
        Self {
            width,
            height,
            grayscale: unit(rng) < 0.08,
            ground: Paint {
                frequency: range(rng, 0.5, 2.0),
                ..paint(rng, 1.0)
            },
            backdrop: backdrop(rng),
            stones,
            silhouettes,
            eye,
            target: vec3(
                range(rng, -0.7, 0.7),
                shape.base() + range(rng, -0.45, 0.45),
                0.0,
            ),
            roll: range(rng, -0.12, 0.12),
            field: range(rng, 0.36, 0.5),
            object,
            // Never behind the object: a lit side is always seen.
            sun: vec3(
                libm::sinf(azimuth) * flat,
                libm::sinf(elevation),
                -libm::cosf(azimuth) * flat,
            ),
            sun_color: vec3(1.0 + warm, 1.0, 1.0 - warm) * range(rng, 0.5, 1.1),
            ambient: vec3(1.0 - warm * 0.6, 1.0, 1.0 + warm * 0.6) * range(rng, 0.22, 0.6),
            exposure: range(rng, 0.75, 1.35),
            vignette: range(rng, 0.0, 0.35),
            noise: range(rng, 0.0, 0.05),
            salt: below(rng, 1 << 32) as u32,
        }
    }
}

fn range(rng: &mut ChaCha8Rng, low: f32, high: f32) -> f32 {
    uniform(rng, f64::from(low), f64::from(high)) as f32
}

/// Sides from 160 to 640 pixels, small ones more often, from upright to wide.
fn size(rng: &mut ChaCha8Rng) -> (usize, usize) {
    let small = unit(rng);
    let short = 160.0 + 280.0 * small * small;
    let long = (short * uniform(rng, 1.0, 1.5)).min(640.0);
    let (short, long) = (short as usize, long as usize);
    if unit(rng) < 0.7 {
        (long, short)
    } else {
        (short, long)
    }
}

/// Flat shapes show their face, more or less.
fn turn(rng: &mut ChaCha8Rng, shape: Shape) -> (f32, f32) {
    let most = match shape {
        Shape::Ring | Shape::Star => 0.8,
        Shape::Table => 0.9,
        Shape::House => 1.0,
        _ => 3.1,
    };
    let angle = range(rng, -most, most);
    (libm::cosf(angle), libm::sinf(angle))
}

/// Linear RGB of a hue (0 to 1), saturation and value.
fn color(rng: &mut ChaCha8Rng, saturation: f32, value: f32) -> Vec3 {
    let hue = range(rng, 0.0, 6.0);
    let channel = |shift: f32| {
        let x = ((hue + shift).rem_euclid(6.0) - 3.0).abs() - 1.0;
        value * (1.0 - saturation * (1.0 - x.clamp(0.0, 1.0)))
    };
    vec3(channel(0.0), channel(4.0), channel(2.0))
}

fn any_color(rng: &mut ChaCha8Rng) -> Vec3 {
    let (saturation, value) = (range(rng, 0.05, 0.85), range(rng, 0.15, 0.9));
    color(rng, saturation, value)
}

fn paint(rng: &mut ChaCha8Rng, frequency: f32) -> Paint {
    let first = any_color(rng);
    let second = first.mix(any_color(rng), range(rng, 0.25, 1.0));
    Paint {
        pattern: if unit(rng) < 0.25 {
            Pattern::Plain
        } else {
            PATTERNS[below(rng, PATTERNS.len() as u64) as usize]
        },
        first,
        second,
        frequency: frequency * range(rng, 0.6, 1.8),
        salt: below(rng, 1 << 32) as u32,
    }
}

fn stone(rng: &mut ChaCha8Rng) -> Stone {
    // Beside or behind the object, so that it stays in full view.
    let side = if unit(rng) < 0.5 { -1.0 } else { 1.0 };
    let radius = range(rng, 0.12, 0.5);
    Stone {
        center: vec3(
            side * range(rng, 1.5, 3.2),
            -radius * range(rng, 0.1, 0.6),
            range(rng, -0.6, 5.0),
        ),
        radius,
        paint: paint(rng, 3.0),
    }
}

fn silhouette(rng: &mut ChaCha8Rng) -> Silhouette {
    Silhouette {
        x: range(rng, -0.9, 0.9),
        half_width: range(rng, 0.03, 0.2),
        height: range(rng, 0.02, 0.28),
        round: unit(rng) < 0.5,
        color: any_color(rng),
    }
}

fn backdrop(rng: &mut ChaCha8Rng) -> Backdrop {
    if unit(rng) < 0.55 {
        let high = if unit(rng) < 0.6 {
            vec3(0.25, range(rng, 0.4, 0.6), range(rng, 0.7, 1.0))
        } else {
            let value = range(rng, 0.1, 0.9);
            color(rng, 0.5, value)
        };
        Backdrop::Sky {
            low: high.mix(vec3(1.0, 0.92, 0.85), range(rng, 0.3, 0.9)),
            high,
            clouds: range(rng, 0.0, 0.9),
        }
    } else {
        Backdrop::Wall {
            paint: paint(rng, 0.9),
            depth: range(rng, 2.5, 7.0),
        }
    }
}
