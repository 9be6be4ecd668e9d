//! Renders the labelled scenes of `nepa sample-data`: ten classes of solids, textures and outdoor
//! scenes as JPEG files. An image is a pure function of (seed, split, index), the same bytes on
//! every machine. Knows nothing of shards.
mod flat;
mod paint;
mod solid;

use anyhow::Context;
use paint::{Canvas, Draw, Vec3};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use solid::Solid;
use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

/// Names of the classes; image `index` is of class `index % 10`.
pub(crate) const CLASSES: [&str; 10] = [
    "checker",
    "cone",
    "cube",
    "cylinder",
    "house",
    "landscape",
    "sphere",
    "stripes",
    "torus",
    "tree",
];

/// Shortest and longest side of an image.
const SIDES: (usize, usize) = (160, 640);

/// One of the two sets of scenes; they share no image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Split {
    /// For pretraining.
    Train,
    /// For validation.
    Val,
}

impl Split {
    /// The first part of its shards' names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
        }
    }
}

/// Index of the class of image `index`.
pub(crate) fn class_of(index: usize) -> usize {
    index % CLASSES.len()
}

/// Renders image `index` of `split` and encodes it as JPEG.
pub(crate) fn render_jpeg(seed: u64, split: Split, index: usize) -> anyhow::Result<Vec<u8>> {
    let (pixels, size, mut draw) = render(seed, split, index);
    encode(&pixels, size, &mut draw)
        .with_context(|| format!("cannot encode scene {index} of {}", split.name()))
}

/// Pixels of an image, its width and height, and the random numbers after its own.
fn render(seed: u64, split: Split, index: usize) -> (Vec<[u8; 3]>, (usize, usize), Draw) {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&(index as u64).to_le_bytes());
    key[16] = split as u8;
    key[24..].copy_from_slice(b"sampleda");
    let mut draw = Draw(ChaCha8Rng::from_seed(key));

    let (width, height) = size(&mut draw);
    let mut canvas = Canvas::new(width, height);
    match CLASSES[class_of(index)] {
        "checker" => flat::pattern(&mut canvas, &mut draw, true),
        "cone" => solid::paint(&mut canvas, &mut draw, Solid::Cone),
        "cube" => solid::paint(&mut canvas, &mut draw, Solid::Cube),
        "cylinder" => solid::paint(&mut canvas, &mut draw, Solid::Cylinder),
        "house" => flat::house(&mut canvas, &mut draw),
        "landscape" => flat::landscape(&mut canvas, &mut draw),
        "sphere" => solid::paint(&mut canvas, &mut draw, Solid::Sphere),
        "stripes" => flat::pattern(&mut canvas, &mut draw, false),
        "torus" => solid::paint(&mut canvas, &mut draw, Solid::Torus),
        "tree" => flat::tree(&mut canvas, &mut draw),
        class => unreachable!("no painter for the class {class}"),
    }
    (develop(&canvas, &mut draw), (width, height), draw)
}

/// A longer side of 200 to 640 pixels, and an aspect ratio between those of an upright and a lying
/// photo.
fn size(draw: &mut Draw) -> (usize, usize) {
    let (longer, ratio) = (draw.between(200.0, 641.0), draw.between(0.6, 1.0));
    let side = |length: f32| (length as usize).clamp(SIDES.0, SIDES.1);
    let (longer, shorter) = (side(longer), side(longer * ratio));
    if draw.chance(0.6) {
        (longer, shorter)
    } else {
        (shorter, longer)
    }
}

/// What a camera adds: exposure, a tint, darker corners and grain.
fn develop(canvas: &Canvas, draw: &mut Draw) -> Vec<[u8; 3]> {
    let tint = Vec3(
        draw.between(0.9, 1.1),
        draw.between(0.95, 1.05),
        draw.between(0.9, 1.1),
    ) * draw.between(0.8, 1.15);
    let (corners, strength, grain) = (
        draw.between(0.0, 0.15),
        draw.between(0.005, 0.05),
        draw.noise(),
    );
    let middle = (canvas.width as f32 / 2.0, canvas.height as f32 / 2.0);
    let develop = |(at, pixel): (usize, &Vec3)| {
        let (column, row) = (at % canvas.width, at / canvas.width);
        let (x, y) = (column as f32 / middle.0 - 1.0, row as f32 / middle.1 - 1.0);
        let light = 1.0 - corners * (x * x + y * y);
        [pixel.0 * tint.0, pixel.1 * tint.1, pixel.2 * tint.2].map(|value| {
            let dust = strength * (grain.cell(column as i32, row as i32) - 0.5);
            ((value * light + dust).clamp(0.0, 1.0) * 255.0 + 0.5) as u8
        })
    };
    canvas.pixels.iter().enumerate().map(develop).collect()
}

/// Encodes as cameras and web sites do: mostly colour, sometimes gray; any usual quality,
/// subsampling and scan order.
fn encode(
    pixels: &[[u8; 3]],
    (width, height): (usize, usize),
    draw: &mut Draw,
) -> turbojpeg::Result<Vec<u8>> {
    let gray = draw.chance(0.08);
    let mut compressor = Compressor::new()?;
    compressor.set_quality(draw.between(50.0, 97.0) as i32)?;
    let subsampling = match draw.below(10) {
        _ if gray => Subsamp::Gray,
        0..6 => Subsamp::Sub2x2,
        6..8 => Subsamp::Sub2x1,
        _ => Subsamp::None,
    };
    compressor.set_subsamp(subsampling)?;
    compressor.set_progressive(draw.chance(0.15))?;
    let pixels = pixels.as_flattened();
    compressor.compress_to_vec(Image {
        pixels,
        width,
        pitch: 3 * width,
        height,
        format: PixelFormat::RGB,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_anything_else_gives_others() {
        for (index, class) in CLASSES.iter().enumerate() {
            let jpeg = render_jpeg(7, Split::Train, index).expect("a scene");
            assert_eq!(
                jpeg,
                render_jpeg(7, Split::Train, index).expect("a scene"),
                "{class}"
            );
            assert_ne!(jpeg, render_jpeg(8, Split::Train, index).expect("a scene"));
            assert_ne!(jpeg, render_jpeg(7, Split::Val, index).expect("a scene"));
            assert_ne!(
                jpeg,
                render_jpeg(7, Split::Train, index + CLASSES.len()).expect("a scene")
            );
        }
    }

    /// What is measured on these scenes (the quickstart's recipe, README) holds for these pixels.
    #[test]
    fn the_pixels_stay_the_same() {
        let sum = |index| {
            let (pixels, ..) = render(1337, Split::Val, index);
            crc32fast::hash(pixels.as_flattened())
        };
        let sums = (0..2 * CLASSES.len()).map(sum).collect::<Vec<_>>();
        let expected = [
            0xcb35_ef06,
            0xe5f7_5c40,
            0x7900_476a,
            0x3197_8f4a,
            0xfb4b_b26f,
            0x82f5_3535,
            0x1fbc_6585,
            0x0e2a_fa29,
            0x336d_4a32,
            0xf3e0_45a2,
            0x3bd4_b124,
            0x9a77_6df5,
            0x7f97_7a67,
            0xd859_f2bd,
            0x3135_ccac,
            0xcaf5_02a6,
            0xdaaf_f3c8,
            0x5842_a0e1,
            0x3628_5cb3,
            0x0585_da30,
        ];
        assert_eq!(sums, expected, "{sums:#010x?}");
    }

    #[test]
    fn scenes_vary_in_size_and_colour_within_bounds() {
        let header = |index| {
            let jpeg = render_jpeg(7, Split::Train, index).expect("a scene");
            turbojpeg::read_header(&jpeg).expect("a JPEG header")
        };
        let headers = (0..60).map(header).collect::<Vec<_>>();
        let sides = || {
            headers
                .iter()
                .flat_map(|header| [header.width, header.height])
        };
        assert!(sides().all(|side| (SIDES.0..=SIDES.1).contains(&side)));
        assert!(sides().any(|side| side < 220) && sides().any(|side| side > 540));
        let gray = headers
            .iter()
            .filter(|header| header.subsamp == Subsamp::Gray)
            .count();
        assert!((1..20).contains(&gray), "{gray} of 60 are gray");
    }

    #[test]
    fn every_scene_has_contrast() {
        for index in 0..CLASSES.len() * 2 {
            let jpeg = render_jpeg(3, Split::Val, index).expect("a scene");
            let image = turbojpeg::decompress(&jpeg, PixelFormat::GRAY).expect("a JPEG");
            let mean = |power: fn(f64) -> f64| {
                image
                    .pixels
                    .iter()
                    .map(|&pixel| power(f64::from(pixel)))
                    .sum::<f64>()
                    / image.pixels.len() as f64
            };
            let (average, square) = (mean(|x| x), mean(|x| x * x));
            let deviation = (square - average * average).sqrt();
            assert!(
                deviation > 8.0 && (30.0..225.0).contains(&average),
                "{index}: {average} +- {deviation}"
            );
        }
    }
}
