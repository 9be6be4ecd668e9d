//! The five flat scenes: stripes, checkers, landscapes, trees and houses, painted from back to
//! front.
use super::paint::{Canvas, Draw, Material, Noise, Vec3, ellipse, rectangle};

/// Paints stripes or, with `checker`, a checkerboard: bent and shaded cloth that fills the image,
/// or a panel before clutter.
pub(super) fn pattern(canvas: &mut Canvas, draw: &mut Draw, checker: bool) {
    let extent = canvas.extent();
    clutter(canvas, draw);
    let angle = draw.between(0.0, std::f32::consts::PI);
    let (sin, cos) = (libm::sinf(angle), libm::cosf(angle));
    let period = draw.between(0.14, 0.45);
    let (bend, noise) = (draw.between(0.0, 0.25), draw.noise());
    let lean = (draw.between(-0.2, 0.2), draw.between(-0.2, 0.2));
    let dark = draw.colour(0.15, 0.4, 0.2);
    let light = draw.colour(0.65, 0.9, 0.2);
    let (weave, duty) = (draw.noise(), draw.between(0.35, 0.65));
    let panel = (!draw.chance(0.5)).then(|| {
        (
            draw.between(0.6, 0.95),
            draw.between(0.6, 0.95),
            draw.chance(0.5),
        )
    });
    let at = (
        draw.between(-0.2, 0.2) * extent.0,
        draw.between(-0.2, 0.2) * extent.1,
    );
    let shape = |x: f32, y: f32| match panel {
        None => -1.0,
        Some((w, h, true)) => ellipse(x - at.0, y - at.1, w * extent.0, h * extent.1),
        Some((w, h, false)) => {
            rectangle(x - at.0, y - at.1, w * extent.0 * 0.9, h * extent.1 * 0.9)
        }
    };
    canvas.paint(shape, |x, y| {
        let depth = 1.0 + lean.0 * x + lean.1 * y;
        let folds = noise.rough(x * 1.3, y * 1.3);
        let (u, v) = (
            (x * cos + y * sin) / depth + bend * folds,
            (y * cos - x * sin) / depth + bend * noise.smooth(y, x),
        );
        let (i, j) = ((u / period).floor(), (v / period).floor());
        let odd = if checker {
            (i + j).rem_euclid(2.0) >= 1.0
        } else {
            (u / (2.0 * period)).rem_euclid(1.0) >= duty
        };
        let base = if odd { dark } else { light };
        base * (0.65 + 0.35 * folds + 0.15 * weave.smooth(u * 60.0, v * 60.0))
    });
}

/// Paints mountains behind each other under a sky, with grass or water before them.
pub(super) fn landscape(canvas: &mut Canvas, draw: &mut Draw) {
    let (_, top) = canvas.extent();
    let (sky, low_sky) = sky(canvas, draw);
    let rock = draw.colour(0.2, 0.4, 0.12);
    let num_ridges = 3 + draw.below(3);
    for ridge in 0..num_ridges {
        let near = (ridge + 1) as f32 / num_ridges as f32;
        let (outline, texture) = (draw.noise(), draw.noise());
        let (height, scale) = (draw.between(0.35, 0.6) - 0.75 * near, 0.8 + near);
        let jag = 0.75 - 0.4 * near;
        let crest = |x: f32| top * height + jag * (outline.rough(x * scale, 0.5) - 0.5) * 2.0;
        // Only peaks are white: what rises above the ridge's middle height.
        let snow_line = top * height + draw.between(-0.1, 0.25);
        canvas.paint_outlined(
            crest,
            |crest, y| (y - crest) * 0.7,
            |x, y| {
                let grain = texture.rough(x * 6.0 + y * 3.0, y * 8.0);
                let capped = near < 0.8 && y > snow_line + 0.3 * (0.5 - grain);
                let base = if capped {
                    Vec3(0.9, 0.92, 0.97)
                } else {
                    rock * (0.5 + grain)
                };
                low_sky.mix(base, 0.35 + 0.65 * near)
            },
        );
    }
    let (level, texture) = (-top * draw.between(0.45, 0.8), draw.noise());
    if draw.chance(0.5) {
        let ripple = |x: f32, y: f32| sky.mix(low_sky, texture.rough(x * 3.0, y * 25.0)) * 0.8;
        canvas.paint(|_, y| y - level, ripple);
    } else {
        meadow(canvas, draw, level);
    }
}

/// Paints one tree, leafy or a fir, in a meadow.
pub(super) fn tree(canvas: &mut Canvas, draw: &mut Draw) {
    let (extent, foot) = outdoors(canvas, draw);
    let size = draw.between(0.75, 1.15) * extent.1;
    let at = draw.between(-0.5, 0.5) * (extent.0 - 0.5);
    let bark = draw.colour(0.2, 0.35, 0.06);
    let (bark_noise, leaf_noise) = (draw.noise(), draw.noise());
    let (thick, lean) = (draw.between(0.05, 0.1) * size, draw.between(-0.08, 0.08));
    let trunk = |x: f32, y: f32| {
        let rise = (y - foot) / size;
        let middle = at + lean * rise * size;
        rectangle(
            x - middle,
            y - foot - size * 0.5,
            thick * (1.3 - 0.6 * rise),
            size * 0.5,
        )
    };
    canvas.paint(trunk, |x, y| {
        bark * (0.5 + bark_noise.rough(x * 30.0, y * 6.0) + 0.5 * (x - at) / thick)
    });
    // Green in summer, yellow to red in autumn.
    let autumn = if draw.chance(0.3) {
        draw.between(0.3, 0.5)
    } else {
        draw.between(0.0, 0.1)
    };
    let green = draw.between(0.35, 0.5);
    let leaf = Vec3(0.18 + autumn, green - autumn * 0.3, 0.12);
    let light = if draw.chance(0.5) { 1.0 } else { -1.0 };
    let grain = move |x: f32, y: f32| leaf_noise.rough(x * 18.0, y * 18.0);
    let leaves = move |x: f32, grain: f32, rise: f32| {
        leaf * (0.35 + grain + 0.45 * rise + 0.25 * light * (x - at) / size)
    };
    let ragged = move |x: f32, y: f32| leaf_noise.rough(x * 9.0, y * 9.0) - 0.5;
    if draw.chance(0.35) {
        for tier in 0..4 {
            let tier = tier as f32;
            let (bottom, tall) = (foot + size * (0.2 + 0.3 * tier), size * 0.55);
            let wide = size * (0.48 - 0.09 * tier);
            let fir = |x: f32, y: f32| {
                let side = (x - at).abs() - wide * (1.0 - (y - bottom) / tall);
                (side * 0.8).max(bottom - y + 0.08 * (x - at).abs())
            };
            canvas.paint_ragged(
                fir,
                |x, y| 0.12 * ragged(x, y),
                0.06,
                |x, y| leaves(x, grain(x, y), (y - bottom) / tall - 0.3),
            );
        }
    } else {
        let num_crowns = 6 + draw.below(5);
        let crown = |_| {
            let x0 = at + draw.between(-0.32, 0.32) * size;
            let y0 = foot + size * draw.between(0.85, 1.35);
            (x0, y0, size * draw.between(0.2, 0.34))
        };
        let crowns = (0..num_crowns).map(crown).collect::<Vec<_>>();
        paint_crowns(canvas, &crowns, ragged, grain, leaves);
    }
}

/// Paints crowns (x, y, radius) over each other. The noise is the same for all of them, so it is
/// asked once a pixel at most.
fn paint_crowns(
    canvas: &mut Canvas,
    crowns: &[(f32, f32, f32)],
    ragged: impl Fn(f32, f32) -> f32,
    grain: impl Fn(f32, f32) -> f32,
    leaves: impl Fn(f32, f32, f32) -> Vec3,
) {
    canvas.each(
        |_| (),
        |(), brush, under| {
            let (x, y) = (brush.x, brush.y);
            let (mut edge, mut shade) = (None, None);
            for &(x0, y0, radius) in crowns {
                let plain = ellipse(x - x0, y - y0, radius * 1.1, radius);
                let distance = if plain.abs() > 0.1 + brush.pixel {
                    plain
                } else {
                    plain + 0.2 * *edge.get_or_insert_with(|| ragged(x, y))
                };
                brush.stroke(under, distance, || {
                    let grain = *shade.get_or_insert_with(|| grain(x, y));
                    leaves(x, grain, (y - y0) / radius * 0.7)
                });
            }
        },
    );
}

/// Paints one house with roof, door, windows and perhaps a chimney in a meadow.
pub(super) fn house(canvas: &mut Canvas, draw: &mut Draw) {
    let (extent, foot) = outdoors(canvas, draw);
    let (wide, tall) = (draw.between(0.45, 0.75), draw.between(0.3, 0.5));
    let at = draw.between(-0.7, 0.7) * (extent.0 - wide).max(0.0);
    let (wall, roof) = (Material::new(draw, 0.15), draw.colour(0.2, 0.5, 0.2));
    let (eaves, gable) = (foot + 2.0 * tall, draw.between(0.35, 0.65));
    let (overhang, mortar, tiles) = (draw.between(1.05, 1.2), draw.chance(0.5), draw.noise());
    let shade = draw.between(-0.25, 0.25);
    if draw.chance(0.6) {
        let side = if draw.chance(0.5) { 0.5 } else { -0.5 } * wide;
        let chimney =
            |x: f32, y: f32| rectangle(x - at - side, y - eaves - gable * 0.5, 0.06, gable * 0.5);
        canvas.paint(chimney, |x, y| {
            Vec3(0.45, 0.28, 0.24) * (0.6 + 0.6 * tiles.rough(x * 30.0, y * 30.0))
        });
    }
    canvas.paint(
        |x, y| rectangle(x - at, y - foot - tall, wide, tall),
        |x, y| {
            let (row, line) = ((y / 0.05).floor(), (y / 0.05).rem_euclid(1.0));
            let joint = mortar && (line < 0.15 || ((x + 0.05 * row) / 0.11).rem_euclid(1.0) < 0.08);
            wall.at(x, y) * if joint { 0.75 } else { 1.05 + shade * (x - at) }
        },
    );
    let triangle = |x: f32, y: f32| {
        let side = (x - at).abs() - wide * overhang * (1.0 - (y - eaves) / gable);
        (side * 0.7).max(eaves - y)
    };
    canvas.paint(triangle, |x, y| {
        let (row, column) = (
            (y / 0.06).floor(),
            (x / 0.09 + 0.5 * (y / 0.06).floor()).floor(),
        );
        roof * (0.7 + 0.4 * tiles.cell(column as i32, row as i32)
            - 0.3 * (y / 0.06).rem_euclid(1.0))
    });
    let (frame, glass, wood) = (
        draw.colour(0.75, 0.95, 0.05),
        draw.colour(0.2, 0.45, 0.1),
        draw.colour(0.25, 0.5, 0.2),
    );
    let door = draw.below(3);
    let opening =
        |canvas: &mut Canvas, x0: f32, y0: f32, half: (f32, f32), inside: Vec3, bars: bool| {
            canvas.paint(
                |x, y| rectangle(x - x0, y - y0, half.0 + 0.025, half.1 + 0.025),
                |_, _| frame,
            );
            canvas.paint(
                |x, y| rectangle(x - x0, y - y0, half.0, half.1),
                |x, y| {
                    let bar = bars && ((x - x0).abs() < 0.01 || (y - y0).abs() < 0.01);
                    if bar {
                        frame
                    } else {
                        inside * (0.8 + 0.6 * tiles.smooth(x * 8.0, y * 8.0))
                    }
                },
            );
        };
    let half = wide * draw.between(0.13, 0.19);
    for place in 0..3 {
        let x0 = at + (place as f32 - 1.0) * wide * 0.6;
        if place == door {
            opening(
                canvas,
                x0,
                foot + tall * 0.55,
                (half * 0.9, tall * 0.55),
                wood,
                false,
            );
        } else {
            opening(
                canvas,
                x0,
                foot + tall * 1.15,
                (half, tall * 0.35),
                glass,
                true,
            );
        }
    }
}

/// Sky, far hills, a meadow and bushes; returns the extent and the height of the ground.
fn outdoors(canvas: &mut Canvas, draw: &mut Draw) -> ((f32, f32), f32) {
    let extent = canvas.extent();
    let (_, low_sky) = sky(canvas, draw);
    let foot = -extent.1 * draw.between(0.5, 0.85);
    let (hills, rise) = (draw.noise(), draw.between(0.0, 0.7));
    let far = low_sky.mix(draw.colour(0.3, 0.5, 0.15), 0.6);
    let crest = |x: f32| foot + 0.1 + rise * hills.rough(x * 1.2, 0.0);
    canvas.paint_outlined(
        crest,
        |crest, y| (y - crest) * 0.8,
        |x, y| far * (0.8 + 0.4 * hills.rough(x * 8.0, y * 8.0)),
    );
    meadow(canvas, draw, foot + 0.08);
    for _ in 0..draw.below(7) {
        let (x0, wide, tall) = (
            draw.between(-extent.0, extent.0),
            draw.between(0.08, 0.3),
            draw.between(0.06, 0.18),
        );
        let (green, noise) = (
            Vec3(draw.between(0.15, 0.35), draw.between(0.25, 0.45), 0.15),
            draw.noise(),
        );
        canvas.paint_ragged(
            |x, y| ellipse(x - x0, y - foot - tall, wide, tall),
            |x, y| 0.1 * (noise.rough(x * 12.0, y * 12.0) - 0.5),
            0.05,
            |x, y| green * (0.4 + noise.rough(x * 20.0, y * 20.0) + (y - foot) * 0.8),
        );
    }
    (extent, foot)
}

/// A sky with clouds and perhaps a sun; returns its colours above and at the horizon.
fn sky(canvas: &mut Canvas, draw: &mut Draw) -> (Vec3, Vec3) {
    let ((right, top), dusk) = (canvas.extent(), draw.between(0.0, 1.0));
    let high = Vec3(0.3, 0.5, 0.8).mix(Vec3(0.35, 0.3, 0.5), dusk) * draw.between(0.7, 1.15);
    let low = Vec3(0.75, 0.85, 0.95).mix(Vec3(0.95, 0.65, 0.45), dusk);
    let (clouds, cover) = (draw.noise(), draw.between(0.4, 0.7));
    let scale = draw.between(0.8, 2.0);
    canvas.fill(|x, y| {
        let cloud = (clouds.rough(x * scale, y * scale * 2.0) - cover) * 4.0;
        low.mix(high, 0.5 + 0.5 * y / top)
            .mix(Vec3(0.95, 0.94, 0.93), cloud)
    });
    if draw.chance(0.4) {
        let (x0, y0, radius) = (
            draw.between(-right, right),
            draw.between(0.3, 0.9) * top,
            draw.between(0.05, 0.13),
        );
        canvas.paint(
            |x, y| ellipse(x - x0, y - y0, radius, radius),
            |_, _| Vec3(1.0, 0.96, 0.8),
        );
    }
    (high, low)
}

fn meadow(canvas: &mut Canvas, draw: &mut Draw, level: f32) {
    let (edge, blades) = (draw.noise(), draw.noise());
    let grass = Vec3(
        draw.between(0.25, 0.55),
        draw.between(0.4, 0.55),
        draw.between(0.1, 0.25),
    );
    canvas.paint_outlined(
        |x| 0.06 * edge.smooth(x * 3.0, 0.0),
        |edge, y| y - level - edge,
        |x, y| {
            grass
                * (0.5
                    + 0.4 * edge.rough(x * 3.0, y * 9.0)
                    + 0.5 * blades.smooth(x * 60.0, y * 25.0))
        },
    );
}

/// A background of things that are none of the classes: overlapping patches of many materials.
fn clutter(canvas: &mut Canvas, draw: &mut Draw) {
    let extent = canvas.extent();
    let ground = Material::new(draw, 0.2);
    canvas.fill(|x, y| ground.at(x, y));
    for _ in 0..4 + draw.below(10) {
        let (x0, y0) = (
            draw.between(-extent.0, extent.0),
            draw.between(-extent.1, extent.1),
        );
        let (wide, tall) = (draw.between(0.1, 0.6), draw.between(0.1, 0.6));
        let (material, round, ragged): (_, _, Noise) =
            (Material::new(draw, 0.25), draw.chance(0.5), draw.noise());
        let shape = |x: f32, y: f32| {
            let (x, y) = (x - x0, y - y0);
            if round {
                ellipse(x, y, wide, tall)
            } else {
                rectangle(x, y, wide, tall)
            }
        };
        let ragged = |x: f32, y: f32| 0.2 * (ragged.smooth((x - x0) * 4.0, (y - y0) * 4.0) - 0.5);
        canvas.paint_ragged(shape, ragged, 0.1, |x, y| material.at(x, y));
    }
}
