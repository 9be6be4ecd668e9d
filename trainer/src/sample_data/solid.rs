//! The five solids: spheres, cubes, cylinders, cones and tori on a floor before a wall, lit by one
//! lamp. Rays are marched along the distance to the solid; floor and wall are met exactly.
use super::paint::{Canvas, Draw, Material, Vec3};

/// A class of solids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Solid {
    Sphere,
    Cube,
    Cylinder,
    Cone,
    Torus,
}

const CUBE_HALF: f32 = 0.72;
const CYLINDER: (f32, f32) = (0.58, 0.85);
const CONE: (f32, f32) = (0.8, 0.85);
const TORUS: (f32, f32) = (0.74, 0.27);
/// All solids fit in a sphere of this radius.
const BOUND: f32 = 1.28;

impl Solid {
    /// Distance (at most) from a point to the solid; its axis is y.
    fn distance(self, p: Vec3) -> f32 {
        let around = (p.0 * p.0 + p.2 * p.2).sqrt();
        match self {
            Self::Sphere => p.length() - 0.95,
            Self::Cube => {
                let q =
                    Vec3(p.0.abs(), p.1.abs(), p.2.abs()) - Vec3(CUBE_HALF, CUBE_HALF, CUBE_HALF);
                let outside = Vec3(q.0.max(0.0), q.1.max(0.0), q.2.max(0.0)).length();
                outside + q.0.max(q.1).max(q.2).min(0.0)
            }
            Self::Cylinder => (around - CYLINDER.0).max(p.1.abs() - CYLINDER.1),
            Self::Cone => {
                let (radius, half) = CONE;
                let slope = (radius * radius + 4.0 * half * half).sqrt();
                ((around * 2.0 * half + (p.1 - half) * radius) / slope).max(-half - p.1)
            }
            Self::Torus => {
                let ring = around - TORUS.0;
                (ring * ring + p.1 * p.1).sqrt() - TORUS.1
            }
        }
    }

    /// Radius of a sphere around the middle that a ray must cross to meet the solid, with some room
    /// to spare.
    fn radius(self) -> f32 {
        match self {
            Self::Sphere => 0.96,
            Self::Cube => 1.26,
            Self::Cylinder => 1.04,
            Self::Cone => 1.18,
            Self::Torus => 1.02,
        }
    }

    /// How far below its middle the solid reaches; `up` is the world's upward direction seen from
    /// the solid.
    fn reach(self, up: Vec3) -> f32 {
        let across = (1.0 - up.1 * up.1).max(0.0).sqrt();
        match self {
            Self::Sphere => 0.95,
            Self::Cube => CUBE_HALF * (up.0.abs() + up.1.abs() + up.2.abs()),
            Self::Cylinder => CYLINDER.1 * up.1.abs() + CYLINDER.0 * across,
            Self::Cone => (CONE.1 * up.1 + CONE.0 * across).max(-CONE.1 * up.1),
            Self::Torus => TORUS.0 * across + TORUS.1,
        }
    }
}

/// A solid in its place.
struct Placed {
    solid: Solid,
    middle: Vec3,
    /// The world's axes seen from the solid, as columns.
    turn: [Vec3; 3],
}

impl Placed {
    fn distance(&self, point: Vec3) -> f32 {
        let p = point - self.middle;
        self.solid
            .distance(self.turn[0] * p.0 + self.turn[1] * p.1 + self.turn[2] * p.2)
    }

    /// Where the ray first meets the solid.
    fn hit(&self, from: Vec3, direction: Vec3) -> Option<f32> {
        let to_middle = self.middle - from;
        let nearest = to_middle.dot(direction);
        let passes = to_middle.dot(to_middle) - nearest * nearest;
        let radius = self.solid.radius();
        if passes > radius * radius {
            return None;
        }
        let half = (BOUND * BOUND - passes).sqrt();
        let mut t = (nearest - half).max(0.01);
        for _ in 0..80 {
            let distance = self.distance(from + direction * t);
            if distance < 0.002 {
                return Some(t);
            }
            t += distance;
            if t > nearest + half {
                return None;
            }
        }
        None
    }

    fn normal(&self, point: Vec3) -> Vec3 {
        let step = |x, y, z| Vec3(x, y, z) * self.distance(point + Vec3(x, y, z) * 0.002);
        (step(1.0, -1.0, -1.0)
            + step(-1.0, -1.0, 1.0)
            + step(-1.0, 1.0, -1.0)
            + step(1.0, 1.0, 1.0))
        .unit()
    }
}

/// Floor or wall: a material with patches of other materials on it.
struct Plane {
    material: Material,
    patches: Vec<(Material, [f32; 4], bool)>,
}

impl Plane {
    fn new(draw: &mut Draw, patches: u32, spread: f32) -> Self {
        let mut patch = || {
            let place = [draw.between(-spread, spread), draw.between(-spread, spread)];
            let size = [draw.between(0.15, 1.2), draw.between(0.15, 1.2)];
            (
                Material::new(draw, 0.2),
                [place[0], place[1], size[0], size[1]],
                draw.chance(0.4),
            )
        };
        let patches = (0..patches).map(|_| patch()).collect();
        Self {
            material: Material::new(draw, 0.15),
            patches,
        }
    }

    fn at(&self, x: f32, y: f32) -> Vec3 {
        let over = self
            .patches
            .iter()
            .rev()
            .find(|(_, [px, py, w, h], round)| {
                let (u, v) = ((x - px) / w, (y - py) / h);
                if *round {
                    u * u + v * v < 1.0
                } else {
                    u.abs() < 1.0 && v.abs() < 1.0
                }
            });
        over.map_or(&self.material, |(material, ..)| material)
            .at(x, y)
            * 0.85
    }
}

/// Paints one solid in a room.
pub(super) fn paint(canvas: &mut Canvas, draw: &mut Draw, solid: Solid) {
    let placed = place(draw, solid);
    let (floor_patches, wall_patches) = (draw.below(5), 2 + draw.below(9));
    let floor = Plane::new(draw, floor_patches, 4.0);
    let wall = Plane::new(draw, wall_patches, 5.0);
    let wall_z = draw.between(2.5, 6.0);
    let skin = Material::new(draw, 0.35);
    let gloss = draw.between(0.0, 0.6);
    let ambient = draw.between(0.25, 0.45);
    let light = Vec3(
        draw.between(-1.0, 1.0),
        draw.between(0.6, 1.3),
        draw.between(-1.2, -0.3),
    )
    .unit();

    // The camera looks at the solid from the front and above, a little past it.
    let camera = Vec3(0.0, draw.between(1.6, 4.5), -6.0);
    let forward = (placed.middle - camera).unit();
    let right = Vec3(0.0, 1.0, 0.0).cross(forward).unit();
    let up = forward.cross(right);
    let fill = draw.between(0.45, 0.95);
    let zoom = 1.0 / ((placed.middle - camera).length() * fill);
    let extent = canvas.extent();
    let room =
        |draw: &mut Draw, extent: f32| draw.between(-1.0, 1.0) * (extent - fill).max(0.0) * 0.8;
    let shift = (room(draw, extent.0), room(draw, extent.1));

    canvas.fill(|x, y| {
        let ray = (forward + right * ((x - shift.0) * zoom) + up * ((y - shift.1) * zoom)).unit();
        if let Some(t) = placed.hit(camera, ray) {
            let point = camera + ray * t;
            let normal = placed.normal(point);
            let p = point - placed.middle;
            let diffuse = normal.dot(light).max(0.0);
            let shine = normal.dot((light - ray).unit()).max(0.0);
            let shine = [shine; 24].into_iter().product::<f32>() * gloss;
            let base = skin.at(p.0 + 0.4 * p.2, p.1 + 0.6 * p.2);
            return base * (ambient + 0.8 * diffuse) + Vec3(shine, shine, shine);
        }
        let to_floor = if ray.1 < 0.0 {
            -camera.1 / ray.1
        } else {
            f32::INFINITY
        };
        let to_wall = if ray.2 > 0.0 {
            (wall_z - camera.2) / ray.2
        } else {
            f32::INFINITY
        };
        let on_floor = to_floor < to_wall;
        let point = camera + ray * to_floor.min(to_wall).min(50.0);
        let (base, facing) = if on_floor {
            (floor.at(point.0, point.2), light.1)
        } else {
            (wall.at(point.0, point.1), -light.2)
        };
        let lit = placed.hit(point, light).is_none();
        base * (ambient + if lit { 0.3 + 0.5 * facing } else { 0.1 })
    });
}

fn place(draw: &mut Draw, solid: Solid) -> Placed {
    let lying = solid == Solid::Cylinder && draw.chance(0.3);
    let tilt = match solid {
        // Towards the camera, so that its hole shows.
        Solid::Torus => draw.between(-1.2, -0.3),
        _ if lying => std::f32::consts::FRAC_PI_2,
        _ => draw.between(-0.35, 0.35),
    };
    // A lying cylinder shows its side, not only its end.
    let (yaw, spin) = (
        draw.between(-0.9, 0.9),
        draw.between(0.0, std::f32::consts::TAU),
    );
    let yaw = if lying {
        yaw + std::f32::consts::FRAC_PI_2
    } else {
        yaw
    };
    let turn_y = |p: Vec3, angle: f32| {
        let (s, c) = (libm::sinf(angle), libm::cosf(angle));
        Vec3(c * p.0 + s * p.2, p.1, c * p.2 - s * p.0)
    };
    let turn = |p: Vec3| {
        let p = turn_y(p, yaw);
        let (s, c) = (libm::sinf(-tilt), libm::cosf(tilt));
        turn_y(Vec3(p.0, c * p.1 - s * p.2, s * p.1 + c * p.2), spin)
    };
    let turn = [
        turn(Vec3(1.0, 0.0, 0.0)),
        turn(Vec3(0.0, 1.0, 0.0)),
        turn(Vec3(0.0, 0.0, 1.0)),
    ];
    let middle = Vec3(0.0, solid.reach(turn[1]), 0.0);
    Placed {
        solid,
        middle,
        turn,
    }
}
