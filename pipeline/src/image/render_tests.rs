//! The resampling against a plain f64 version of Pillow's, every orientation, what comes after it in
//! which order, and what a renderer must not carry from one image to the next.
use std::io::Cursor;

use rand_core::SeedableRng;

use super::*;
use crate::golden_tests as golden;
use crate::image::decode_rgb;
use crate::random::Stream;
use crate::{AugmentConfig, CropRect, EdgeSupport, EraseBox, Filter, Operation};

fn noise(width: u32, height: u32, seed: u32) -> Vec<u8> {
    // Values from a linear congruential generator, with a slow gradient below it.
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(1);
    (0..width * height * 3)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 25) + (i * 127 / (width * height * 3))) as u8
        })
        .collect()
}

fn png(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image::RgbImage::from_raw(width, height, pixels.to_vec())
        .unwrap()
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}

fn kernel(filter: Filter, x: f64) -> f64 {
    let x = x.abs();
    match filter {
        Filter::Bilinear => (1.0 - x).max(0.0),
        Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        Filter::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        Filter::Bicubic => 0.0,
    }
}

/// One pass along an axis of `length` samples, by definition: `read(i)` is sample i.
fn filter_at(
    filter: Filter,
    start: f64,
    span: f64,
    side: u32,
    length: usize,
    i: u32,
    read: impl Fn(usize) -> f64,
) -> f64 {
    let scale = span / f64::from(side);
    let width = scale.max(1.0);
    let center = start + (f64::from(i) + 0.5) * scale;
    let (mut sum, mut weights) = (0.0, 0.0);
    for j in 0..length {
        let weight = kernel(filter, (j as f64 + 0.5 - center) / width);
        sum += weight * read(j);
        weights += weight;
    }
    (sum / weights).round().clamp(0.0, 255.0)
}

/// Pillow's resize of an upright image, by definition and slowly: `[S, S, 3]`.
fn reference(pixels: &[u8], width: u32, height: u32, plan: &CropPlan) -> Vec<f64> {
    let (w, side) = (width as usize, plan.output_size);
    let s = side as usize;
    let mut rect = plan.rect;
    // Cropping first makes the rectangle the whole image.
    let (left, top, w_seen, h_seen) = match plan.edge {
        EdgeSupport::Rect => {
            let seen = (
                rect.x as usize,
                rect.y as usize,
                rect.width as usize,
                rect.height as usize,
            );
            (rect.x, rect.y) = (0.0, 0.0);
            seen
        }
        EdgeSupport::Image => (0, 0, w, height as usize),
    };
    let source =
        |x: usize, y: usize, c: usize| f64::from(pixels[((top + y) * w + left + x) * 3 + c]);
    let mut out = vec![0.0; s * s * 3];
    for c in 0..3 {
        let rows: Vec<f64> = (0..h_seen)
            .flat_map(|y| (0..side).map(move |x| (x, y)))
            .map(|(x, y)| {
                filter_at(plan.filter, rect.x, rect.width, side, w_seen, x, |j| {
                    source(j, y, c)
                })
            })
            .collect();
        for y in 0..side {
            for x in 0..s {
                let value = filter_at(plan.filter, rect.y, rect.height, side, h_seen, y, |j| {
                    rows[j * s + x]
                });
                let x = if plan.flip { s - 1 - x } else { x };
                out[(y as usize * s + x) * 3 + c] = value;
            }
        }
    }
    out
}

fn assert_matches(output: &[f32], expected: &[f64], what: &str) {
    let pixels = expected.len() / 3;
    let (mut worst, mut sum) = (0.0f64, 0.0);
    for (i, expected) in expected.iter().enumerate() {
        let value = (f64::from(output[(i % 3) * pixels + i / 3]) * 0.5 + 0.5) * 255.0;
        worst = worst.max((value - expected).abs());
        sum += (value - expected).abs();
    }
    let mean = sum / expected.len() as f64;
    // The order of the two passes may differ, so single values may round the other way.
    assert!(
        worst <= 2.01 && mean <= 0.25,
        "{what}: greatest difference {worst}, mean {mean}"
    );
}

fn plans() -> Vec<CropPlan> {
    let rects = [
        (0.0, 0.0, 40.0, 30.0),
        (3.0, 5.0, 20.0, 17.0),
        (30.0, 20.0, 10.0, 10.0),
        (7.0, 1.0, 1.0, 1.0),
        (0.0, 0.0, 40.0, 1.0),
    ];
    let mut plans = Vec::new();
    for (x, y, width, height) in rects {
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            for edge in [EdgeSupport::Rect, EdgeSupport::Image] {
                let flip = plans.len() % 3 == 0;
                let rect = CropRect {
                    x,
                    y,
                    width,
                    height,
                };
                plans.push(CropPlan {
                    rect,
                    flip,
                    output_size: 13,
                    filter,
                    edge,
                    operations: Vec::new(),
                    erase: None,
                });
            }
        }
    }
    let rect = CropRect {
        x: 2.3,
        y: 4.7,
        width: 31.4,
        height: 19.9,
    };
    plans.push(CropPlan {
        rect,
        flip: false,
        output_size: 13,
        filter: Filter::Bicubic,
        edge: EdgeSupport::Image,
        operations: Vec::new(),
        erase: None,
    });
    plans
}

#[test]
fn agrees_with_the_definition() {
    let pixels = noise(40, 30, 1);
    let encoded = png(40, 30, &pixels);
    let mut renderer = CpuRenderer::default();
    for plan in plans() {
        let mut output = vec![0.0; 3 * 13 * 13];
        renderer.render_plan(&encoded, &plan, &mut output).unwrap();
        assert_matches(
            &output,
            &reference(&pixels, 40, 30, &plan),
            &format!("{plan:?}"),
        );
    }
}

#[test]
fn a_turned_image_renders_like_the_upright_one() {
    let (width, height) = (40u32, 30u32);
    for value in 1..=8u32 {
        let orientation = Orientation::from_exif(value);
        // Stored so that it becomes the same upright image each time.
        let upright = noise(width, height, 2);
        let (stored_width, stored_height) = orientation.upright_size(width, height);
        let mut stored = vec![0; upright.len()];
        for y in 0..height as usize {
            for x in 0..width as usize {
                let (sx, sy) =
                    orientation.stored_pixel(x, y, stored_width as usize, stored_height as usize);
                let (from, to) = (
                    (y * width as usize + x) * 3,
                    (sy * stored_width as usize + sx) * 3,
                );
                stored[to..to + 3].copy_from_slice(&upright[from..from + 3]);
            }
        }
        let mut resampler = Resampler::default();
        let tables = Normalize::default().tables();
        for plan in plans() {
            let whole = PixelRect::whole(stored_width, stored_height);
            resampler.resample(
                &stored,
                whole,
                (stored_width, stored_height),
                orientation,
                &plan,
            );
            let mut output = vec![0.0; 3 * 13 * 13];
            let view = Turned {
                square: resampler.square(),
                side: plan.output_size as usize,
                orientation,
                flip: plan.flip,
            };
            view.write_pixels(&tables, None, &mut output);
            assert_matches(
                &output,
                &reference(&upright, width, height, &plan),
                &format!("orientation {value}, {plan:?}"),
            );
        }
    }
}

#[test]
fn an_image_of_the_right_size_is_only_normalised() {
    let pixels = noise(16, 16, 3);
    let augment = AugmentConfig::CenterCrop {
        size: 16,
        resize: 16,
        filter: Filter::Bicubic,
    }
    .build()
    .unwrap();
    let normalize = Normalize {
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    };
    let mut output = vec![0.0; 3 * 256];
    let plan = &augment.draw(16, 16, &mut Stream::seed_from_u64(0))[0];
    CpuRenderer::new(normalize, true)
        .render_plan(&png(16, 16, &pixels), plan, &mut output)
        .unwrap();
    for (i, value) in output.iter().enumerate() {
        let (channel, pixel) = (i / 256, i % 256);
        let expected = (f32::from(pixels[pixel * 3 + channel]) / 255.0 - normalize.mean[channel])
            / normalize.std[channel];
        assert_eq!(value.to_bits(), expected.to_bits());
    }
}

#[test]
fn nothing_is_carried_from_one_image_to_the_next() {
    let augment = AugmentConfig::RandomResizedCrop {
        size: 24,
        scale: [0.08, 1.0],
        ratio: [0.75, 4.0 / 3.0],
        flip: 0.5,
        filter: Filter::Bilinear,
        rand_augment: None,
        erase: None,
    }
    .build()
    .unwrap();
    let images = [
        (50, 40, 1),
        (8, 90, 2),
        (200, 10, 3),
        (1, 1, 4),
        (33, 33, 5),
    ]
    .map(|(w, h, seed)| png(w, h, &noise(w, h, seed)));
    let mut used = CpuRenderer::default();
    for round in 0..3 {
        for (i, encoded) in images.iter().enumerate() {
            let header = used.read_header(encoded).unwrap();
            let mut stream = Stream::seed_from_u64(round * 100 + i as u64);
            let plan = &augment.draw(header.width, header.height, &mut stream)[0];
            let (mut from_used, mut from_fresh) = (vec![0.0; 3 * 24 * 24], vec![1.0; 3 * 24 * 24]);
            used.render_plan(encoded, plan, &mut from_used).unwrap();
            CpuRenderer::default()
                .render_plan(encoded, plan, &mut from_fresh)
                .unwrap();
            assert_eq!(from_used, from_fresh);
            let half = &encoded[..encoded.len() / 2];
            assert!(used.render_plan(half, plan, &mut from_used).is_err());
        }
    }
}

#[test]
fn a_plan_for_another_image_is_refused() {
    let encoded = png(20, 10, &noise(20, 10, 6));
    let rect = CropRect {
        x: 5.0,
        y: 5.0,
        width: 10.0,
        height: 6.0,
    };
    let plan = CropPlan {
        rect,
        flip: false,
        output_size: 4,
        filter: Filter::Bilinear,
        edge: EdgeSupport::Rect,
        operations: Vec::new(),
        erase: None,
    };
    let error = CpuRenderer::default()
        .render_plan(&encoded, &plan, &mut [0.0; 48])
        .unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::CropOutside {
                image_width: 20,
                image_height: 10,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(decode_rgb(&encoded, true).unwrap().width, 20);
}

/// A view of all of an image, as it is.
fn whole_view(side: u32, flip: bool, operations: &[Operation]) -> CropPlan {
    let length = f64::from(side);
    CropPlan {
        rect: CropRect {
            x: 0.0,
            y: 0.0,
            width: length,
            height: length,
        },
        flip,
        output_size: side,
        filter: Filter::Bilinear,
        edge: EdgeSupport::Rect,
        operations: operations.to_vec(),
        erase: None,
    }
}

/// A square image that is stored turned: what `upright` becomes for its EXIF value.
fn stored(upright: &[u8], side: usize, orientation: Orientation) -> Vec<u8> {
    let mut stored = vec![0; upright.len()];
    for y in 0..side {
        for x in 0..side {
            let (to_x, to_y) = orientation.stored_pixel(x, y, side, side);
            let (to, from) = ((to_y * side + to_x) * 3, (y * side + x) * 3);
            stored[to..to + 3].copy_from_slice(&upright[from..from + 3]);
        }
    }
    stored
}

/// Operations see the view upright and mirrored: before either, a turn, a shear or a shift would go
/// elsewhere.
#[test]
fn operations_come_after_the_exif_orientation_and_the_flip() {
    const SIDE: usize = 16;
    let upright = noise(SIDE as u32, SIDE as u32, 9);
    for operation in [
        Operation::Rotate(27.0),
        Operation::ShearX(0.27),
        Operation::ShearY(-0.27),
        Operation::TranslateX(0.4),
        Operation::TranslateY(0.4),
    ] {
        for flip in [false, true] {
            let mut expected = upright.clone();
            if flip {
                for row in expected.chunks_exact_mut(3 * SIDE) {
                    row.as_chunks_mut::<3>().0.reverse();
                }
            }
            PixelOperations::new([128; 3]).apply(
                &[operation],
                &mut expected,
                SIDE as u32,
                SIDE as u32,
            );
            for value in 1..=8 {
                let orientation = Orientation::from_exif(value);
                let file = png(
                    SIDE as u32,
                    SIDE as u32,
                    &stored(&upright, SIDE, orientation),
                );
                let mut renderer = CpuRenderer::<u8>::new(Normalize::default(), true);
                let header = ImageHeader {
                    orientation,
                    ..renderer.read_header(&file).unwrap()
                };
                let plan = whole_view(SIDE as u32, flip, &[operation]);
                let mut crop = vec![0; expected.len()];
                renderer
                    .render_crop(&file, header, &plan, &mut crop)
                    .unwrap();
                assert!(crop == expected, "{operation:?}, flip {flip}, EXIF {value}");
                let mut planes = vec![0; expected.len()];
                renderer
                    .render(&file, header, &[plan], [&mut planes[..]])
                    .unwrap();
                for (i, value) in planes.iter().enumerate() {
                    let (channel, pixel) = (i / (SIDE * SIDE), i % (SIDE * SIDE));
                    assert_eq!(*value, expected[pixel * 3 + channel]);
                }
            }
        }
    }
}

/// A plan with a box, of which it draws the noise anew.
fn erased_view(side: u32, rect: EraseBox) -> CropPlan {
    CropPlan {
        erase: Some(rect),
        ..whole_view(side, false, &[])
    }
}

const ERASED: EraseBox = EraseBox {
    top: 3,
    left: 5,
    height: 9,
    width: 4,
    noise_seed: 11,
};

fn rendered<P: Pixel>(file: &[u8], plan: &CropPlan, patch_size: Option<u32>) -> Vec<P> {
    let normalize = Normalize {
        mean: [0.5, 0.4, 0.3],
        std: [0.5, 0.25, 0.2],
    };
    let mut renderer = CpuRenderer::<P>::new(normalize, true).in_patches(patch_size);
    let mut pixels = vec![P::default(); 3 * (plan.output_size as usize).pow(2)];
    renderer.render_plan(file, plan, &mut pixels).unwrap();
    pixels
}

/// The box, all of it and nothing else, holds standard normal values in every layout and type.
#[test]
fn an_erased_box_is_noise_and_nothing_else_changes() {
    const SIDE: usize = 16;
    let file = png(
        SIDE as u32,
        SIDE as u32,
        &noise(SIDE as u32, SIDE as u32, 10),
    );
    let plain = rendered::<f32>(&file, &whole_view(SIDE as u32, false, &[]), None);
    let plan = erased_view(SIDE as u32, ERASED);
    let erased = rendered::<f32>(&file, &plan, None);
    assert_eq!(erased, rendered::<f32>(&file, &plan, None));
    let inside = |place: usize| {
        let (y, x) = (place / SIDE % SIDE, place % SIDE);
        (3..12).contains(&y) && (5..9).contains(&x)
    };
    for (place, (found, value)) in erased.iter().zip(&plain).enumerate() {
        assert_eq!(inside(place), found.to_bits() != value.to_bits(), "{place}");
    }
    let other = EraseBox {
        noise_seed: 12,
        ..ERASED
    };
    assert_ne!(
        erased,
        rendered::<f32>(&file, &erased_view(SIDE as u32, other), None)
    );

    let bf16 = rendered::<half::bf16>(&file, &plan, None);
    let bytes = rendered::<u8>(&file, &plan, None);
    for (place, value) in erased.iter().enumerate() {
        assert_eq!(bf16[place], half::bf16::from_f32(*value));
        let channel = place / (SIDE * SIDE);
        let (mean, std) = ([0.5, 0.4, 0.3][channel], [0.5, 0.25, 0.2][channel]);
        let nearest = ((value * std + mean) * 255.0).round().clamp(0.0, 255.0);
        assert!((f32::from(bytes[place]) - nearest).abs() <= 1.0, "{value}");
    }
    // The same values where the view is cut into patches.
    let patches = rendered::<f32>(&file, &plan, Some(4));
    for (place, value) in erased.iter().enumerate() {
        let (channel, y, x) = (place / (SIDE * SIDE), place / SIDE % SIDE, place % SIDE);
        let patch = y / 4 * (SIDE / 4) + x / 4;
        let in_patches = (patch * 3 + channel) * 16 + y % 4 * 4 + x % 4;
        assert_eq!(patches[in_patches].to_bits(), value.to_bits());
    }
}

#[test]
fn noise_is_standard_normal() {
    let side = 96;
    let file = png(side, side, &noise(side, side, 12));
    let whole = EraseBox {
        top: 0,
        left: 0,
        height: side,
        width: side,
        noise_seed: 3,
    };
    let values = rendered::<f32>(&file, &erased_view(side, whole), None);
    let n = values.len() as f32;
    let mean = values.iter().sum::<f32>() / n;
    let variance = values.iter().map(|value| value * value).sum::<f32>() / n;
    assert!(
        mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05,
        "{mean}, {variance}"
    );
}

#[test]
fn a_box_outside_of_its_view_is_refused() {
    let file = png(16, 16, &noise(16, 16, 13));
    for rect in [
        EraseBox { top: 8, ..ERASED },
        EraseBox { left: 13, ..ERASED },
        EraseBox {
            left: u32::MAX,
            ..ERASED
        },
    ] {
        let error = CpuRenderer::default()
            .render_plan(&file, &erased_view(16, rect), &mut [0.0; 768])
            .unwrap_err();
        assert!(
            matches!(error, ImageError::EraseOutside { side: 16, .. }),
            "{error}"
        );
    }
}

/// A published evaluation transform, or crop, of a golden picture, before normalisation.
fn transformed(picture: &golden::Tensor, plan: &CropPlan) -> Vec<u8> {
    let (height, width) = (picture.shape[0] as u32, picture.shape[1] as u32);
    let file = png(width, height, &picture.bytes);
    let mut renderer = CpuRenderer::default();
    let header = renderer.read_header(&file).unwrap();
    let mut output = vec![0; 3 * (plan.output_size as usize).pow(2)];
    renderer
        .render_crop(&file, header, plan, &mut output)
        .unwrap();
    output
}

/// The crops of training and the three published transforms of evaluation, as torchvision with
/// Pillow makes them.
#[test]
fn crops_and_evaluation_transforms_are_torchvisions() {
    let (Some(index), Some(pictures)) = (
        golden::json("crops.json"),
        golden::tensors("crops.safetensors"),
    ) else {
        return;
    };
    let cases = index["cases"].as_array().unwrap();
    for case in cases {
        let picture = &pictures[&format!("input.{}", case["image"].as_str().unwrap())];
        let (height, width) = (picture.shape[0] as u32, picture.shape[1] as u32);
        let filter = |name: &str| match name {
            "bicubic" => Filter::Bicubic,
            _ => Filter::Bilinear,
        };
        let evaluation = match case["how"].as_str() {
            // 256, 235 and 224 pixels of 224, in small.
            Some("shorter") => Some(AugmentConfig::CenterCrop {
                size: 32,
                resize: 37,
                filter: Filter::Bicubic,
            }),
            Some("squash") => Some(AugmentConfig::Squash {
                size: 32,
                resize: 34,
                filter: Filter::Bicubic,
            }),
            Some("processor") => Some(AugmentConfig::squash(32, 32)),
            _ => None,
        };
        let plan = if let Some(config) = evaluation {
            let mut stream = Stream::seed_from_u64(0);
            config
                .build()
                .unwrap()
                .draw(width, height, &mut stream)
                .remove(0)
        } else {
            let number = |key: &str| case[key].as_f64().unwrap();
            CropPlan {
                rect: CropRect {
                    x: number("left"),
                    y: number("top"),
                    width: number("width"),
                    height: number("height"),
                },
                filter: filter(case["filter"].as_str().unwrap()),
                ..whole_view(32, false, &[])
            }
        };
        let key = case["key"].as_str().unwrap();
        let expected = &pictures[key].bytes;
        let off = transformed(picture, &plan).into_iter().zip(expected);
        let off = off.map(|(a, &b)| a.abs_diff(b)).max().unwrap();
        assert!(off <= 1, "{key}: {off} of 255");
    }
    assert_eq!(cases.len(), 39);
}
