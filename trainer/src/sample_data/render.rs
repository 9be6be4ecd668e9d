//! A scene to 8-bit RGB pixels: one ray a pixel, a light with shadows, then what a camera adds (blur, noise, a darker rim).
use super::paint::{fbm, hash, unit};
use super::scene::{Backdrop, Scene};
use super::shape::BOUND;
use super::vector::{Vec3, vec3};

/// Steps of a ray towards a surface.
const MAX_STEPS: usize = 56;
/// A ray that is so close has arrived.
const CLOSE: f32 = 0.004;

/// Renders `[height, width, 3]`.
pub(super) fn render(scene: &Scene) -> Vec<u8> {
    let forward = (scene.target - scene.eye).unit();
    let level = vec3(0.0, 1.0, 0.0).cross(forward).unit();
    let upright = forward.cross(level);
    let (sin, cos) = (libm::sinf(scene.roll), libm::cosf(scene.roll));
    let right = level * cos + upright * sin;
    let up = upright * cos - level * sin;

    let (width, height) = (scene.width, scene.height);
    let scale = 2.0 * scene.field / width.min(height) as f32;
    let middle = (width as f32 / 2.0, height as f32 / 2.0);
    let mut linear = Vec::with_capacity(width * height);
    for y in 0..height {
        for x in 0..width {
            let dx = (x as f32 + 0.5 - middle.0) * scale;
            let dy = (middle.1 - y as f32 - 0.5) * scale;
            let ray = (forward + right * dx + up * dy).unit();
            let rim = 1.0 - scene.vignette * (dx * dx + dy * dy) / (scene.field * scene.field);
            linear.push(trace(scene, ray) * (scene.exposure * rim.max(0.3)));
        }
    }
    develop(scene, &linear)
}

/// Luma of RGB pixels, as JPEG weighs it.
pub(super) fn to_gray(pixels: &[u8]) -> Vec<u8> {
    let luma = |rgb: &[u8]| {
        let [r, g, b] = [rgb[0], rgb[1], rgb[2]].map(u32::from);
        ((r * 299 + g * 587 + b * 114 + 500) / 1000) as u8
    };
    pixels.chunks_exact(3).map(luma).collect()
}

/// Blurs by a 3 x 3 tent against jagged edges, adds noise, and applies the tone curve.
fn develop(scene: &Scene, linear: &[Vec3]) -> Vec<u8> {
    let (width, height) = (scene.width, scene.height);
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        let rows = [y.saturating_sub(1), y, (y + 1).min(height - 1)];
        for x in 0..width {
            let columns = [x.saturating_sub(1), x, (x + 1).min(width - 1)];
            let mut sum = vec3(0.0, 0.0, 0.0);
            for (row, weight) in rows.into_iter().zip([0.2, 0.6, 0.2]) {
                let line = row * width;
                let [left, center, right] = columns.map(|column| linear[line + column]);
                sum = sum + ((left + right) * 0.2 + center * 0.6) * weight;
            }
            let grain = unit(hash(x as i32, y as i32, 7, scene.salt)) - 0.5;
            for value in [sum.x, sum.y, sum.z] {
                // Square root stands in for the display's gamma; the quotient rolls bright light off.
                let toned = (value * 1.25 / (1.0 + 0.25 * value)).max(0.0).sqrt();
                let level = (toned + grain * scene.noise).clamp(0.0, 1.0);
                pixels.push((level * 255.0 + 0.5) as u8);
            }
        }
    }
    pixels
}

/// The light that comes along a ray from the eye.
fn trace(scene: &Scene, ray: Vec3) -> Vec3 {
    let eye = scene.eye;
    let ground = if ray.y < -1e-4 {
        -eye.y / ray.y
    } else {
        f32::MAX
    };
    let wall = match scene.backdrop {
        Backdrop::Wall { depth, .. } if ray.z > 1e-4 => (depth - eye.z) / ray.z,
        _ => f32::MAX,
    };
    let mut nearest = ground.min(wall);
    let mut stone_hit = None;
    for stone in &scene.stones {
        if let Some(t) = ball(eye - stone.center, ray, stone.radius)
            && t < nearest
        {
            nearest = t;
            stone_hit = Some(stone);
        }
    }
    if let Some((t, p)) = object_hit(scene, eye, ray)
        && t < nearest
    {
        return shade_object(scene, p, ray);
    }
    let p = eye + ray * nearest.min(1e4);
    if let Some(stone) = stone_hit {
        let normal = (p - stone.center) * (1.0 / stone.radius);
        return lit(scene, stone.paint.at(p), p, normal);
    }
    if ground < wall {
        let color = lit(scene, scene.ground.at(p), p, vec3(0.0, 1.0, 0.0));
        let haze = (nearest / 40.0).clamp(0.0, 1.0);
        return color.mix(horizon(scene), haze * haze);
    }
    match &scene.backdrop {
        Backdrop::Wall { paint, .. } if wall < f32::MAX => {
            lit(scene, paint.at(p), p, vec3(0.0, 0.0, -1.0))
        }
        _ => sky(scene, ray),
    }
}

fn horizon(scene: &Scene) -> Vec3 {
    match &scene.backdrop {
        Backdrop::Sky { low, .. } => *low,
        Backdrop::Wall { paint, .. } => paint.first.by(scene.ambient),
    }
}

fn sky(scene: &Scene, ray: Vec3) -> Vec3 {
    let Backdrop::Sky { low, high, clouds } = scene.backdrop else {
        return horizon(scene);
    };
    let depth = ray.z.max(0.05);
    let (x, y) = (ray.x / depth, ray.y / depth);
    for thing in &scene.silhouettes {
        let across = (x - thing.x) / thing.half_width;
        let height = if thing.round {
            thing.height * (1.0 - across * across).max(0.0).sqrt()
        } else {
            thing.height
        };
        if across.abs() < 1.0 && y < height {
            let light = scene.ambient * 0.7 + scene.sun_color * 0.35;
            let uneven = 0.75 + 0.5 * fbm(vec3(x * 30.0, y * 30.0, 0.0), scene.salt);
            return thing.color.by(light).mix(low, 0.25) * uneven;
        }
    }
    let open = low.mix(high, (y * 1.6).clamp(0.0, 1.0));
    let cloud = fbm(vec3(x * 3.0, y * 7.0, 0.0), scene.salt ^ 9) * 2.5 - 0.9;
    open.mix(vec3(0.95, 0.95, 0.97), cloud.clamp(0.0, 1.0) * clouds)
}

/// Distance along a ray from `from` (relative to the centre) to a ball in front of it.
fn ball(from: Vec3, ray: Vec3, radius: f32) -> Option<f32> {
    let along = from.dot(ray);
    let inside = along * along - from.dot(from) + radius * radius;
    if inside <= 0.0 {
        return None;
    }
    let t = -along - inside.sqrt();
    (t > 0.0).then_some(t)
}

/// Where a ray meets the object: distance and point, in the scene.
fn object_hit(scene: &Scene, from: Vec3, ray: Vec3) -> Option<(f32, Vec3)> {
    let center = vec3(0.0, scene.object.shape.base(), 0.0);
    let relative = from - center;
    let mut t = if relative.length() < BOUND {
        0.0
    } else {
        ball(relative, ray, BOUND)?
    };
    let end = t + 2.0 * BOUND;
    for _ in 0..MAX_STEPS {
        let p = from + ray * t;
        let distance = object_distance(scene, p);
        if distance < CLOSE {
            return Some((t, p));
        }
        t += distance;
        if t > end {
            return None;
        }
    }
    None
}

/// A point of the scene in the object's own axes.
fn object_point(scene: &Scene, p: Vec3) -> Vec3 {
    let (cos, sin) = scene.object.turn;
    (p - vec3(0.0, scene.object.shape.base(), 0.0)).turn(cos, sin)
}

fn object_distance(scene: &Scene, p: Vec3) -> f32 {
    let object = &scene.object;
    object
        .shape
        .distance(object_point(scene, p), object.proportion)
}

fn shade_object(scene: &Scene, p: Vec3, ray: Vec3) -> Vec3 {
    const STEP: f32 = 0.003;
    let slope = |direction: Vec3| {
        object_distance(scene, p + direction * STEP) - object_distance(scene, p - direction * STEP)
    };
    let normal = vec3(
        slope(vec3(1.0, 0.0, 0.0)),
        slope(vec3(0.0, 1.0, 0.0)),
        slope(vec3(0.0, 0.0, 1.0)),
    );
    // A point of symmetry has no slope.
    let normal = if normal.length() > 1e-9 {
        normal.unit()
    } else {
        -ray
    };
    let own = object_point(scene, p);
    let paint = if scene.object.shape.second_part(own) {
        &scene.object.second
    } else {
        &scene.object.paint
    };
    let color = lit(scene, paint.at(own), p, normal);
    let half = (scene.sun - ray).unit();
    let shine = half.dot(normal).max(0.0);
    let shine = shine * shine;
    let shine = shine * shine;
    let shine = shine * shine;
    let shine = shine * shine;
    color + scene.sun_color * (shine * shine * scene.object.gloss)
}

/// A surface in daylight: the sun where nothing is in its way, the sky from above, less light close to the ground.
fn lit(scene: &Scene, color: Vec3, p: Vec3, normal: Vec3) -> Vec3 {
    let facing = normal.dot(scene.sun);
    let sun = if facing > 0.0 && !in_shadow(scene, p + normal * 0.02) {
        facing
    } else {
        0.0
    };
    let sky = 0.65 + 0.35 * normal.y;
    let from_object = (p - vec3(0.0, 0.2, 0.0)).length();
    let contact = if normal.y > 0.9 {
        (from_object * 0.55).clamp(0.45, 1.0)
    } else {
        1.0
    };
    color.by(scene.sun_color * sun + scene.ambient * (sky * contact))
}

fn in_shadow(scene: &Scene, p: Vec3) -> bool {
    object_hit(scene, p, scene.sun).is_some()
        || scene
            .stones
            .iter()
            .any(|stone| ball(p - stone.center, scene.sun, stone.radius).is_some())
}
