use super::*;
use crate::golden_tests as golden;

/// What an operation of the golden data is in a plan.
fn operation(name: &str, args: &[f64]) -> Operation {
    match name {
        "AutoContrast" => Operation::AutoContrast,
        "Equalize" => Operation::Equalize,
        "Invert" => Operation::Invert,
        "Rotate" => Operation::Rotate(args[0]),
        "PosterizeIncreasing" => Operation::Posterize(args[0] as u8),
        "SolarizeIncreasing" => Operation::Solarize(args[0] as u16),
        "SolarizeAdd" => Operation::SolarizeAdd(args[0] as u8),
        "ColorIncreasing" => Operation::Color(args[0]),
        "ContrastIncreasing" => Operation::Contrast(args[0]),
        "BrightnessIncreasing" => Operation::Brightness(args[0]),
        "SharpnessIncreasing" => Operation::Sharpness(args[0]),
        "ShearX" => Operation::ShearX(args[0]),
        "ShearY" => Operation::ShearY(args[0]),
        "TranslateXRel" => Operation::TranslateX(args[0]),
        "TranslateYRel" => Operation::TranslateY(args[0]),
        other => panic!("{other}"),
    }
}

/// Every picture of every operation is what timm with Pillow makes of it, bit for bit.
#[test]
fn pictures_are_those_of_pillow() {
    let (Some(index), Some(pictures)) =
        (golden::json("ops.json"), golden::tensors("ops.safetensors"))
    else {
        return;
    };
    let mut operations = PixelOperations::new([128; 3]);
    let mut seen = 0;
    for entry in index["entries"].as_array().unwrap() {
        let text = |key: &str| entry[key].as_str().unwrap();
        let args = entry["args"].as_array().unwrap().iter();
        let args = args.map(|arg| arg.as_f64().unwrap()).collect::<Vec<_>>();
        let input = &pictures[&format!("input.{}", text("image"))];
        let (height, width) = (input.shape[0] as u32, input.shape[1] as u32);
        let mut pixels = input.bytes.clone();
        let operation = operation(text("op"), &args);
        operations.apply(&[operation], &mut pixels, width, height);
        let expected = &pictures[text("key")].bytes;
        let off = pixels.iter().zip(expected).filter(|(a, b)| a != b).count();
        assert_eq!(off, 0, "{}: {off} values", text("key"));
        seen += 1;
    }
    assert_eq!(seen, 142);
}

/// One of each, both ways where there are two.
fn all() -> Vec<Operation> {
    let mut all = vec![
        Operation::AutoContrast,
        Operation::Equalize,
        Operation::Invert,
        Operation::Posterize(1),
        Operation::Solarize(26),
        Operation::SolarizeAdd(99),
    ];
    for sign in [1.0, -1.0] {
        let factor = 1.0 + 0.81 * sign;
        all.extend([
            Operation::Color(factor),
            Operation::Contrast(factor),
            Operation::Brightness(factor),
            Operation::Sharpness(factor),
            Operation::Rotate(27.0 * sign),
            Operation::ShearX(0.27 * sign),
            Operation::ShearY(0.27 * sign),
            Operation::TranslateX(0.405 * sign),
            Operation::TranslateY(0.405 * sign),
        ]);
    }
    all
}

/// Values that are the same each time and follow no pattern.
fn noise(num_values: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let value = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..num_values).map(value).collect()
}

fn applied(operation: Operation, pixels: &[u8], width: u32, height: u32) -> Vec<u8> {
    let mut pixels = pixels.to_vec();
    PixelOperations::new([128, 7, 250]).apply(&[operation], &mut pixels, width, height);
    pixels
}

/// One value of an affine map, pixel by pixel as Pillow's source goes, without any shortcut.
fn mapped(affine: Affine, pixels: &[u8], (width, height): (i64, i64), place: [i64; 3]) -> u8 {
    let Affine([a, b, c, d, e, f]) = affine;
    let [x, y, channel] = place;
    let (center_x, center_y) = (x as f64 + 0.5, y as f64 + 0.5);
    let u = a * center_x + b * center_y + c;
    let v = d * center_x + e * center_y + f;
    if u < 0.0 || u >= width as f64 || v < 0.0 || v >= height as f64 {
        return [128, 7, 250][channel as usize];
    }
    let (u, v) = (u - 0.5, v - 0.5);
    let (i, j) = (u.floor() as i64, v.floor() as i64);
    let cubic = |[v1, v2, v3, v4]: [f64; 4], d: f64| {
        let (p2, p3, p4) = (-v1 + v3, 2.0 * (v1 - v2) + v3 - v4, -v1 + v2 - v3 + v4);
        v2 + d * (p2 + d * (p3 + d * p4))
    };
    let rows = [-1, 0, 1, 2].map(|row| {
        let row = (j + row).clamp(0, height - 1);
        let value = |column: i64| {
            let column = (i + column).clamp(0, width - 1);
            f64::from(pixels[((row * width + column) * 3 + channel) as usize])
        };
        cubic([-1, 0, 1, 2].map(value), u - i as f64)
    });
    let value = cubic(rows, v - j as f64);
    if value <= 0.0 {
        0
    } else if value >= 255.0 {
        255
    } else {
        value as u8
    }
}

/// Of every size, also those that are no multiple of what is worked on at once.
#[test]
fn maps_have_the_values_of_the_formula_at_every_size() {
    for (width, height) in [(1, 1), (1, 9), (9, 1), (2, 2), (15, 17), (37, 23), (224, 5)] {
        let (columns, rows) = (width as usize, height as usize);
        let pixels = noise(columns * rows * 3);
        for operation in all() {
            let affine = match operation {
                Operation::Rotate(degrees) => Affine::rotate(degrees, columns, rows),
                Operation::ShearX(shear) => Affine([1.0, shear, 0.0, 0.0, 1.0, 0.0]),
                Operation::ShearY(shear) => Affine([1.0, 0.0, 0.0, shear, 1.0, 0.0]),
                Operation::TranslateX(share) => {
                    Affine([1.0, 0.0, share * f64::from(width), 0.0, 1.0, 0.0])
                }
                Operation::TranslateY(share) => {
                    Affine([1.0, 0.0, 0.0, 0.0, 1.0, share * f64::from(height)])
                }
                _ => continue,
            };
            let found = applied(operation, &pixels, width, height);
            for (place, found) in found.iter().enumerate() {
                let (pixel, channel) = (place / 3, place % 3);
                let place = [pixel % columns, pixel / columns, channel].map(|n| n as i64);
                let size = (i64::from(width), i64::from(height));
                let expected = mapped(affine, &pixels, size, place);
                assert_eq!(
                    *found, expected,
                    "{operation:?}, {width} x {height}, {place:?}"
                );
            }
        }
    }
}

/// Scratch memory of a picture before, of another size, changes nothing.
#[test]
fn nothing_is_carried_from_one_picture_to_the_next() {
    let mut used = PixelOperations::new([128, 7, 250]);
    for (width, height) in [(31, 7), (3, 3), (64, 48), (1, 1), (7, 31), (2, 5)] {
        for operation in all() {
            let pixels = noise((width * height * 3) as usize);
            let mut found = pixels.clone();
            used.apply(&[operation], &mut found, width, height);
            assert_eq!(
                found,
                applied(operation, &pixels, width, height),
                "{operation:?}"
            );
        }
    }
    used.apply(&all(), &mut [], 0, 0);
}

#[test]
fn operations_follow_one_another() {
    let pixels = noise(20 * 10 * 3);
    let chain = [
        Operation::Rotate(27.0),
        Operation::Invert,
        Operation::ShearX(0.2),
    ];
    let mut found = pixels.clone();
    PixelOperations::new([128, 7, 250]).apply(&chain, &mut found, 20, 10);
    let expected = chain.into_iter().fold(pixels.clone(), |pixels, operation| {
        applied(operation, &pixels, 20, 10)
    });
    assert_eq!(found, expected);
    let turned = [
        Operation::ShearX(0.2),
        Operation::Invert,
        Operation::Rotate(27.0),
    ];
    let mut other = pixels;
    PixelOperations::new([128, 7, 250]).apply(&turned, &mut other, 20, 10);
    assert_ne!(found, other);
}

#[test]
fn no_bits_are_black_and_eight_are_all() {
    let pixels = noise(300);
    assert_eq!(applied(Operation::Posterize(0), &pixels, 10, 10), [0; 300]);
    assert_eq!(applied(Operation::Posterize(8), &pixels, 10, 10), pixels);
    let one = applied(Operation::Posterize(1), &pixels, 10, 10);
    assert!(
        one.iter()
            .zip(&pixels)
            .all(|(bit, value)| *bit == value & 0x80)
    );
}

/// Below three rows or columns all is border, which sharpness leaves as it is.
#[test]
fn sharpness_leaves_small_pictures_and_borders() {
    for (width, height) in [(1, 1), (2, 9), (9, 2), (1, 3)] {
        let pixels = noise((width * height * 3) as usize);
        let found = applied(Operation::Sharpness(0.1), &pixels, width, height);
        assert_eq!(found, pixels, "{width} x {height}");
    }
    let pixels = noise(27);
    let found = applied(Operation::Sharpness(0.0), &pixels, 3, 3);
    for (place, (found, value)) in found.iter().zip(&pixels).enumerate() {
        if !(12..15).contains(&place) {
            assert_eq!(found, value);
            continue;
        }
        let around = pixels.iter().skip(place % 3).step_by(3);
        let sum = around.map(|&value| u32::from(value)).sum::<u32>() + 4 * u32::from(*value);
        let expected = (f64::from(sum) / 13.0 + 0.5).floor();
        assert!(
            (f64::from(*found) - expected).abs() < 0.5,
            "{found}, {expected}"
        );
    }
}

#[test]
fn a_picture_of_one_value_has_no_contrast_to_stretch() {
    for operation in [Operation::AutoContrast, Operation::Equalize] {
        assert_eq!(applied(operation, &[77; 48], 4, 4), [77; 48]);
    }
    // Fewer pixels than there are steps between values: Pillow leaves the picture.
    let few = noise(3 * 16 * 15);
    assert_eq!(applied(Operation::Equalize, &few, 16, 15), few);
}
