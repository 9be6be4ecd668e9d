//! The ten shapes as distance bounds: never more than the distance to the surface, negative inside. About two units large.
use super::vector::{Vec3, vec3};

/// A shape and which part of it is painted in the second colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Ball,
    Box,
    Can,
    Cone,
    Gem,
    House,
    Ring,
    Star,
    Table,
    Tree,
}

/// In the order of [`super::CLASSES`].
pub(super) const SHAPES: [Shape; 10] = [
    Shape::Ball,
    Shape::Box,
    Shape::Can,
    Shape::Cone,
    Shape::Gem,
    Shape::House,
    Shape::Ring,
    Shape::Star,
    Shape::Table,
    Shape::Tree,
];

/// Radius of a sphere about the origin that holds every shape.
pub(super) const BOUND: f32 = 1.32;

impl Shape {
    /// Height of the origin above the ground that the shape stands on.
    pub(super) fn base(self) -> f32 {
        match self {
            Self::Ball | Self::Gem | Self::Tree => 1.0,
            Self::Box => 0.75,
            Self::Star => 0.88,
            Self::Ring => 0.95,
            Self::Can | Self::Cone | Self::House | Self::Table => 0.9,
        }
    }

    /// Lower bound of the distance from `p`. `proportion` from 0 to 1 varies the shape.
    pub(super) fn distance(self, p: Vec3, proportion: f32) -> f32 {
        match self {
            Self::Ball => p.length() - 1.0,
            Self::Box => cuboid(p, vec3(0.65 + 0.25 * proportion, 0.7, 0.7)) - 0.05,
            Self::Can => {
                let radius = (p.x * p.x + p.z * p.z).sqrt();
                let (side, cap) = (radius - (0.5 + 0.2 * proportion), p.y.abs() - 0.9);
                outside(side, cap) + side.max(cap).min(0.0)
            }
            Self::Cone => {
                let radius = (p.x * p.x + p.z * p.z).sqrt();
                let width = 0.65 + 0.3 * proportion;
                // Height 1.9 from -0.9 to 1.0.
                let slant = (1.9 * 1.9 + width * width).sqrt();
                ((radius * 1.9 + (p.y - 1.0) * width) / slant).max(-0.9 - p.y)
            }
            Self::Gem => {
                let q = p.abs();
                let height = 1.0;
                let width = 0.65 + 0.2 * proportion;
                let n = vec3(1.0 / width, 1.0 / height, 1.0 / width);
                (q.dot(n) - 1.0) / n.length()
            }
            Self::House => {
                let walls = cuboid(p - vec3(0.0, -0.4, 0.0), vec3(0.7, 0.5, 0.55));
                let slope = (p.x.abs() * 0.6 + (p.y - 0.75) * 0.8).max(0.08 - p.y);
                let roof = slope.max(p.z.abs() - 0.65);
                let chimney = cuboid(p - vec3(0.42, 0.55, 0.2), vec3(0.1, 0.35, 0.1));
                walls.min(roof).min(chimney)
            }
            Self::Ring => {
                let tube = 0.2 + 0.1 * proportion;
                let around = (p.x * p.x + p.y * p.y).sqrt() - (0.95 - tube);
                (around * around + p.z * p.z).sqrt() - tube
            }
            Self::Star => {
                let (flat, cap) = (star(p.x, p.y), p.z.abs() - (0.16 + 0.16 * proportion));
                outside(flat, cap) + flat.max(cap).min(0.0) - 0.03
            }
            Self::Table => {
                let top = cuboid(p - vec3(0.0, 0.2, 0.0), vec3(1.0, 0.07, 0.65));
                let legs = vec3(p.x.abs() - 0.87, p.y + 0.35, p.z.abs() - 0.52);
                let half = 0.06 + 0.04 * proportion;
                top.min(cuboid(legs, vec3(half, 0.55, half)))
            }
            Self::Tree => {
                let radius = (p.x * p.x + p.z * p.z).sqrt();
                let trunk = (radius - 0.12).max(p.y.abs() - 1.0);
                let crown = (p - vec3(0.0, 0.45, 0.0)).length() - 0.55;
                let left = (p - vec3(-0.42, 0.15, 0.2 * proportion)).length() - 0.38;
                let right = (p - vec3(0.45, 0.2, -0.25)).length() - 0.36;
                let back = (p - vec3(0.05, 0.1, 0.45)).length() - 0.36;
                trunk.min(crown).min(left).min(right).min(back)
            }
        }
    }

    /// Whether the surface at `p` is of the second colour: roof, trunk, door, windows.
    pub(super) fn second_part(self, p: Vec3) -> bool {
        match self {
            Self::House => {
                let door = p.z < -0.5 && p.x.abs() < 0.14 && p.y < -0.4;
                let window =
                    p.z.abs() > 0.5 && (p.x.abs() - 0.42).abs() < 0.13 && (p.y + 0.3).abs() < 0.13;
                p.y > 0.07 || door || window
            }
            Self::Tree => p.y < -0.1 && p.x * p.x + p.z * p.z < 0.03,
            Self::Table => p.y < 0.1,
            _ => false,
        }
    }
}

fn cuboid(p: Vec3, half: Vec3) -> f32 {
    let q = p.abs() - half;
    let out = vec3(q.x.max(0.0), q.y.max(0.0), q.z.max(0.0));
    out.length() + q.x.max(q.y.max(q.z)).min(0.0)
}

/// Length of the positive parts: the distance to the edge of an extruded figure.
fn outside(a: f32, b: f32) -> f32 {
    let (a, b) = (a.max(0.0), b.max(0.0));
    (a * a + b * b).sqrt()
}

/// A five-pointed star of outer radius 1.05 in a plane (after Inigo Quilez, <https://iquilezles.org/articles/distfunctions2d/>).
fn star(x: f32, y: f32) -> f32 {
    const K1: (f32, f32) = (0.809_017, -0.587_785_24);
    const K2: (f32, f32) = (-0.809_017, -0.587_785_24);
    const OUTER: f32 = 1.05;
    const INNER: f32 = 0.45;
    let mut p = (x.abs(), y);
    for k in [K1, K2] {
        let d = 2.0 * (k.0 * p.0 + k.1 * p.1).max(0.0);
        p = (p.0 - d * k.0, p.1 - d * k.1);
    }
    p = (p.0.abs(), p.1 - OUTER);
    let edge = (INNER * 0.587_785_24, INNER * 0.809_017 - OUTER * 0.99);
    let along =
        ((p.0 * edge.0 + p.1 * edge.1) / (edge.0 * edge.0 + edge.1 * edge.1)).clamp(0.0, 1.0);
    let off = (p.0 - edge.0 * along, p.1 - edge.1 * along);
    let distance = (off.0 * off.0 + off.1 * off.1).sqrt();
    if p.1 * edge.0 - p.0 * edge.1 > 0.0 {
        distance
    } else {
        -distance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bound that is too large would let rays pass through a surface.
    #[test]
    fn distances_never_grow_faster_than_space() {
        for shape in SHAPES {
            for i in 0..400 {
                let t = i as f32;
                let p = vec3(
                    (t * 0.37) % 3.0 - 1.5,
                    (t * 0.73) % 3.0 - 1.5,
                    (t * 1.31) % 3.0 - 1.5,
                );
                for step in [
                    vec3(0.1, 0.0, 0.0),
                    vec3(0.0, 0.1, 0.0),
                    vec3(0.0, 0.0, 0.1),
                ] {
                    let change = (shape.distance(p + step, 0.5) - shape.distance(p, 0.5)).abs();
                    assert!(change < 0.102, "{shape:?} at {p:?}: {change}");
                }
            }
        }
    }

    #[test]
    fn shapes_are_in_the_bound_and_hold_their_base() {
        for shape in SHAPES {
            for proportion in [0.0, 1.0] {
                for i in 0..2_000 {
                    let t = i as f32;
                    let p = vec3(
                        (t * 0.37) % 3.0 - 1.5,
                        (t * 0.73) % 3.0 - 1.5,
                        (t * 1.31) % 3.0 - 1.5,
                    );
                    if shape.distance(p, proportion) < 0.0 {
                        assert!(p.length() < BOUND, "{shape:?} reaches {p:?}");
                        assert!(
                            p.y > -shape.base() - 0.01,
                            "{shape:?} is below its base at {p:?}"
                        );
                    }
                }
            }
        }
    }
}
