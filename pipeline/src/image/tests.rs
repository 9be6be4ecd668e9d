//! Every format, mode and orientation on images made here; damaged and hostile files.
use std::io::Cursor;

use ::tiff::encoder::colortype::RGB8;
use image::{DynamicImage, ImageBuffer, Luma, LumaA, Rgb, Rgba};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

use super::*;
use crate::random::below;

/// Smooth colours, so that JPEG keeps them almost as they are.
fn color(x: u32, y: u32) -> [u8; 3] {
    [
        (40 + x * 5) as u8,
        (30 + y * 6) as u8,
        (200 - x * 2 - y) as u8,
    ]
}

const WIDTH: u32 = 24;
const HEIGHT: u32 = 17;

fn rgb_pixels() -> Vec<u8> {
    (0..HEIGHT)
        .flat_map(|y| (0..WIDTH).flat_map(move |x| color(x, y)))
        .collect()
}

fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let library_format = match format {
        ImageFormat::Jpeg => unreachable!("JPEGs are made by `jpeg`"),
        ImageFormat::Png => image::ImageFormat::Png,
        ImageFormat::WebP => image::ImageFormat::WebP,
        ImageFormat::Bmp => image::ImageFormat::Bmp,
        ImageFormat::Gif => {
            let (width, height) = (image.width() as u16, image.height() as u16);
            let mut encoder = ::gif::Encoder::new(&mut bytes, width, height, &[]).unwrap();
            let pixels = image.to_rgb8();
            let frame = ::gif::Frame::from_rgb(width, height, &pixels);
            encoder.write_frame(&frame).unwrap();
            drop(encoder);
            return bytes.into_inner();
        }
        ImageFormat::Tiff => {
            let mut encoder = ::tiff::encoder::TiffEncoder::new(&mut bytes).unwrap();
            let pixels = image.to_rgb8();
            encoder
                .write_image::<RGB8>(image.width(), image.height(), &pixels)
                .unwrap();
            return bytes.into_inner();
        }
    };
    image.write_to(&mut bytes, library_format).unwrap();
    bytes.into_inner()
}

fn rgb_image() -> DynamicImage {
    DynamicImage::ImageRgb8(ImageBuffer::from_fn(WIDTH, HEIGHT, |x, y| Rgb(color(x, y))))
}

fn jpeg_of(pixels: &[u8], format: PixelFormat, subsamp: Subsamp, progressive: bool) -> Vec<u8> {
    let (width, height) = (WIDTH as usize, HEIGHT as usize);
    let mut compressor = Compressor::new().unwrap();
    compressor.set_quality(100).unwrap();
    compressor.set_subsamp(subsamp).unwrap();
    compressor.set_progressive(progressive).unwrap();
    compressor
        .compress_to_vec(Image {
            pixels,
            width,
            pitch: width * format.size(),
            height,
            format,
        })
        .unwrap()
}

fn jpeg() -> Vec<u8> {
    jpeg_of(&rgb_pixels(), PixelFormat::RGB, Subsamp::None, false)
}

/// Puts a segment right after the start of a JPEG.
fn with_segment(jpeg: &[u8], marker: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, marker], &length, payload, &jpeg[2..]].concat()
}

fn with_orientation(jpeg: &[u8], value: u8) -> Vec<u8> {
    let block = [
        b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".as_slice(),
        &[value, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    with_segment(jpeg, 0xe1, &block)
}

/// Where a marker's 0xff lies.
fn find(jpeg: &[u8], marker: u8) -> usize {
    jpeg.windows(2)
        .position(|pair| pair == [0xff, marker])
        .unwrap()
}

fn assert_close(actual: &[u8], expected: &[u8], tolerance: u8, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let worst = actual
        .iter()
        .zip(expected)
        .map(|(a, b)| a.abs_diff(*b))
        .max()
        .unwrap();
    assert!(worst <= tolerance, "{what}: differs by {worst}");
}

#[test]
fn lossless_formats_keep_every_pixel() {
    for format in [
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
    ] {
        let bytes = encode(&rgb_image(), format);
        let header = read_header(&bytes).unwrap();
        assert_eq!(
            (header.format, header.width, header.height),
            (format, WIDTH, HEIGHT)
        );
        let image = decode_rgb(&bytes, true).unwrap();
        assert_eq!((image.width, image.height), (WIDTH, HEIGHT));
        assert_eq!(image.data, rgb_pixels(), "{format}");
    }
}

/// An image and what its columns become.
type Case = (DynamicImage, fn(u32) -> [u8; 3]);

#[test]
fn modes_become_rgb_as_in_pillow() {
    let gray = |x: u32| (x * 10) as u8;
    let wide = |x: u32| (x * 2749) as u16;
    let cases: [Case; 7] = [
        (
            DynamicImage::ImageLuma8(ImageBuffer::from_fn(WIDTH, HEIGHT, |x, _| Luma([gray(x)]))),
            |x| [(x * 10) as u8; 3],
        ),
        (
            DynamicImage::ImageLumaA8(ImageBuffer::from_fn(WIDTH, HEIGHT, |x, y| {
                LumaA([gray(x), y as u8])
            })),
            |x| [(x * 10) as u8; 3],
        ),
        // Alpha is dropped, not blended: even what cannot be seen keeps its colour.
        (
            DynamicImage::ImageRgba8(ImageBuffer::from_fn(WIDTH, HEIGHT, |x, _| {
                Rgba([gray(x), 1, 2, 0])
            })),
            |x| [(x * 10) as u8, 1, 2],
        ),
        // 16-bit grayscale is clipped, while 16-bit colour and gray with alpha keep the high byte.
        (
            DynamicImage::ImageLuma16(ImageBuffer::from_fn(WIDTH, HEIGHT, |x, _| {
                Luma([x as u16 * 20])
            })),
            |x| [(x * 20).min(255) as u8; 3],
        ),
        (
            DynamicImage::ImageLumaA16(ImageBuffer::from_fn(WIDTH, HEIGHT, |x, _| {
                LumaA([wide(x), 9])
            })),
            |x| [(x * 2749 / 256) as u8; 3],
        ),
        (
            DynamicImage::ImageRgb16(ImageBuffer::from_fn(WIDTH, HEIGHT, |x, _| {
                Rgb([wide(x), 255, 256])
            })),
            |x| [(x * 2749 / 256) as u8, 0, 1],
        ),
        (
            DynamicImage::ImageRgba16(ImageBuffer::from_fn(WIDTH, HEIGHT, |x, _| {
                Rgba([wide(x), 511, 512, 0])
            })),
            |x| [(x * 2749 / 256) as u8, 1, 2],
        ),
    ];
    for (image, expected) in cases {
        let decoded = decode_rgb(&encode(&image, ImageFormat::Png), true).unwrap();
        let expected: Vec<u8> = (0..HEIGHT)
            .flat_map(|_| (0..WIDTH).flat_map(expected))
            .collect();
        assert_eq!(decoded.data, expected, "{:?}", image.color());
    }
}

#[test]
fn gray16_with_a_transparent_value_is_gray_as_without() {
    let image = DynamicImage::ImageLuma16(ImageBuffer::from_fn(WIDTH, HEIGHT, |x, y| {
        Luma([(x * 20 + y * 300) as u16])
    }));
    let plain = encode(&image, ImageFormat::Png);
    let (start, rest) = plain.split_at(33);
    let mut transparent = b"tRNS,".to_vec();
    let checksum = crc32fast::hash(&transparent).to_be_bytes();
    transparent.extend(checksum);
    let marked = [start, &[0, 0, 0, 2], &transparent, rest].concat();
    let expected = decode_rgb(&plain, true).unwrap();
    assert!(decode_rgb(&marked, true).unwrap() == expected);
    assert!(clips_gray(&plain) && clips_gray(&marked));
    assert!(!clips_gray(&encode(&rgb_image(), ImageFormat::Png)));
}

#[test]
fn gif_keeps_the_colour_of_transparent_pixels() {
    let palette = [10, 20, 30, 40, 50, 60];
    let mut bytes = Vec::new();
    let mut encoder = ::gif::Encoder::new(&mut bytes, 3, 2, &palette).unwrap();
    let frame = ::gif::Frame {
        width: 2,
        height: 1,
        left: 1,
        top: 1,
        transparent: Some(1),
        buffer: vec![0, 1].into(),
        ..::gif::Frame::default()
    };
    encoder.write_frame(&frame).unwrap();
    drop(encoder);
    let image = decode_rgb(&bytes, true).unwrap();
    assert_eq!((image.width, image.height), (3, 2));
    assert_eq!(image.data[12..], [10, 20, 30, 40, 50, 60]);
}

#[test]
fn jpegs_of_every_kind() {
    let expected = rgb_pixels();
    for progressive in [false, true] {
        let bytes = jpeg_of(&expected, PixelFormat::RGB, Subsamp::None, progressive);
        assert_close(
            &decode_rgb(&bytes, true).unwrap().data,
            &expected,
            3,
            "4:4:4",
        );
        let bytes = jpeg_of(&expected, PixelFormat::RGB, Subsamp::Sub2x2, progressive);
        assert_close(
            &decode_rgb(&bytes, true).unwrap().data,
            &expected,
            16,
            "4:2:0",
        );
    }
    let gray: Vec<u8> = (0..HEIGHT)
        .flat_map(|_| (0..WIDTH).map(|x| (x * 10) as u8))
        .collect();
    let bytes = jpeg_of(&gray, PixelFormat::GRAY, Subsamp::Gray, false);
    let expected: Vec<u8> = gray.iter().flat_map(|&value| [value; 3]).collect();
    assert_close(
        &decode_rgb(&bytes, true).unwrap().data,
        &expected,
        2,
        "grayscale",
    );
    // The library writes YCCK, and Pillow takes the inks to be inverted: 255 - (255 - stored) means
    // paper white at 255.
    let inks: Vec<u8> = (0..HEIGHT)
        .flat_map(|_| (0..WIDTH).flat_map(|x| [200, (x * 5) as u8, 100, 240]))
        .collect();
    let expected: Vec<u8> = inks
        .chunks(4)
        .flat_map(|ink| {
            [0, 1, 2].map(|i| (f32::from(ink[i]) * f32::from(ink[3]) / 255.0).round() as u8)
        })
        .collect();
    let bytes = jpeg_of(&inks, PixelFormat::CMYK, Subsamp::None, false);
    assert_close(
        &decode_rgb(&bytes, true).unwrap().data,
        &expected,
        4,
        "YCCK",
    );
}

#[test]
fn orientation_is_applied_unless_switched_off() {
    let stored = decode_rgb(&jpeg(), true).unwrap();
    for value in 1..=8u8 {
        let bytes = with_orientation(&jpeg(), value);
        let header = read_header(&bytes).unwrap();
        assert_eq!(header.orientation.exif_value(), value);
        let expected_size = if value >= 5 {
            (HEIGHT, WIDTH)
        } else {
            (WIDTH, HEIGHT)
        };
        assert_eq!((header.width, header.height), expected_size);
        let upright = decode_rgb(&bytes, true).unwrap();
        assert_eq!((upright.width, upright.height), expected_size);
        // The stored top left corner lands in the corner that the standard names.
        let (right, bottom) = (upright.width - 1, upright.height - 1);
        let (x, y) = [
            (0, 0),
            (right, 0),
            (right, bottom),
            (0, bottom),
            (0, 0),
            (right, 0),
            (right, bottom),
            (0, bottom),
        ][usize::from(value) - 1];
        let start = ((y * upright.width + x) * 3) as usize;
        assert_eq!(
            upright.data[start..start + 3],
            stored.data[..3],
            "orientation {value}"
        );
        assert_eq!(decode_rgb(&bytes, false).unwrap(), stored);
    }
    // A broken EXIF block does not spoil the image.
    let broken = with_segment(&jpeg(), 0xe1, b"Exif\0\0MM\0\x2a\xff\xff\xff\xff");
    assert_eq!(decode_rgb(&broken, true).unwrap(), stored);
}

#[test]
fn truncated_files_are_refused_and_damaged_scans_are_not() {
    let bytes = jpeg_of(&rgb_pixels(), PixelFormat::RGB, Subsamp::None, false);
    for length in [
        bytes.len() - 1,
        bytes.len() - 2,
        find(&bytes, 0xda) + 14,
        find(&bytes, 0xda) + 40,
    ] {
        let error = decode_rgb(&bytes[..length], true).unwrap_err();
        assert!(
            matches!(
                error,
                ImageError::Truncated {
                    format: ImageFormat::Jpeg
                }
            ),
            "{length}: {error:?}"
        );
    }
    for length in [2, 3, 20, find(&bytes, 0xda)] {
        assert!(decode_rgb(&bytes[..length], true).is_err(), "{length}");
    }
    // A scan that ends early, with the end of the image in place, is a warning to libjpeg and an
    // image to Pillow.
    let shortened = [&bytes[..bytes.len() - 40], &[0xff, 0xd9]].concat();
    let image = decode_rgb(&shortened, true).unwrap();
    assert_eq!(image.data[..3], decode_rgb(&bytes, true).unwrap().data[..3]);
    for format in [
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Tiff,
        ImageFormat::Bmp,
        ImageFormat::Gif,
    ] {
        let bytes = encode(&rgb_image(), format);
        assert!(
            decode_rgb(&bytes[..bytes.len() / 2], true).is_err(),
            "{format}"
        );
    }
}

#[test]
fn headers_that_libjpeg_warns_of_are_accepted() {
    let bytes = jpeg();
    let expected = decode_rgb(&bytes, true).unwrap();
    let quantisation = find(&bytes, 0xdb);
    let garbage = [&bytes[..quantisation], &[1, 2, 3], &bytes[quantisation..]].concat();
    assert_eq!(decode_rgb(&garbage, true).unwrap(), expected);
    let mut revision = bytes.clone();
    let jfif = find(&revision, 0xe0);
    revision[jfif + 9] = 7;
    assert_eq!(decode_rgb(&revision, true).unwrap(), expected);
    let adobe = with_segment(&bytes, 0xee, b"Adobe\0\x64\0\0\0\0\x09");
    assert_eq!(decode_rgb(&adobe, true).unwrap(), expected);
}

#[test]
fn an_image_never_borrows_the_tables_of_the_one_before() {
    // Without its own quantisation tables a file is broken, whatever was decoded before by the same
    // decoder.
    let bytes = jpeg();
    let start = find(&bytes, 0xdb);
    let length = usize::from(u16::from_be_bytes([bytes[start + 2], bytes[start + 3]]));
    let mut without = [&bytes[..start], &bytes[start + 2 + length..]].concat();
    if let Some(second) = without.windows(2).position(|pair| pair == [0xff, 0xdb]) {
        let length = usize::from(u16::from_be_bytes([
            without[second + 2],
            without[second + 3],
        ]));
        without.drain(second..second + 2 + length);
    }
    let mut decoder = Decoder::default();
    let mut pixels = Vec::new();
    decoder.decode_stored(&bytes, &mut pixels).unwrap();
    assert!(matches!(
        decoder.decode_stored(&without, &mut pixels).unwrap_err(),
        ImageError::Jpeg(_)
    ));
}

#[test]
fn absurd_sizes_are_refused_from_the_header() {
    let bytes = jpeg();
    let frame = find(&bytes, 0xc0);
    let claim = |width: u16, height: u16| {
        let mut bytes = bytes.clone();
        bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
        bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
        bytes
    };
    assert!(matches!(
        read_header(&claim(60_000, 60_000)).unwrap_err(),
        ImageError::TooLarge { width: 60_000, .. }
    ));
    assert!(matches!(
        read_header(&claim(10_000, 10_000)).unwrap_err(),
        ImageError::TooFewBytes { .. }
    ));
    assert!(read_header(&claim(0, 100)).is_err());
    assert!(read_header(&claim(100, 0)).is_err());
    // The size in a PNG's header is guarded by a checksum, so a bomb is made whole.
    let mut png = encode(&rgb_image(), ImageFormat::Png);
    png[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    assert!(read_header(&png).is_err());
    let mut bmp = encode(&rgb_image(), ImageFormat::Bmp);
    bmp[18..26].copy_from_slice(&[0x60, 0xea, 0, 0, 0x60, 0xea, 0, 0]);
    assert!(matches!(
        read_header(&bmp).unwrap_err(),
        ImageError::TooLarge { .. }
    ));
}

#[test]
fn endless_progressive_scans_are_refused() {
    let bytes = jpeg_of(&rgb_pixels(), PixelFormat::RGB, Subsamp::None, true);
    let last_scan = bytes
        .windows(2)
        .rposition(|pair| pair == [0xff, 0xda])
        .unwrap();
    let scan = &bytes[last_scan..bytes.len() - 2];
    let bomb = [&bytes[..bytes.len() - 2], &scan.repeat(1000), &[0xff, 0xd9]].concat();
    let error = decode_rgb(&bomb, true).unwrap_err();
    assert!(
        matches!(&error, ImageError::Jpeg(source) if source.to_string().contains("scans")),
        "{error:?}"
    );
}

#[test]
fn what_is_no_image_says_so() {
    assert!(matches!(
        decode_rgb(b"", true).unwrap_err(),
        ImageError::Empty
    ));
    let error = decode_rgb(b"<html>not found</html>", true).unwrap_err();
    assert!(matches!(error, ImageError::UnknownFormat { .. }));
    assert!(error.to_string().contains("3c, 68"), "{error}");
}

#[test]
fn no_bytes_make_it_panic() {
    let seed = std::env::var("NEPA_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_nanos() as u64
        });
    println!("seed {seed} (set NEPA_TEST_SEED to repeat)");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let formats = [
        ImageFormat::Png,
        ImageFormat::WebP,
        ImageFormat::Bmp,
        ImageFormat::Gif,
        ImageFormat::Tiff,
    ];
    let mut originals: Vec<Vec<u8>> = formats
        .iter()
        .map(|&format| encode(&rgb_image(), format))
        .collect();
    originals.push(with_orientation(&jpeg(), 6));
    originals.extend(tiff::tests::odd_files());
    originals.extend(metadata::tests::odd_files());
    originals.push(jpeg_of(
        &rgb_pixels(),
        PixelFormat::RGB,
        Subsamp::Sub2x2,
        true,
    ));
    let mut decoder = Decoder::default();
    let mut pixels = Vec::new();
    for round in 0..3000 {
        let mut bytes = originals[round % originals.len()].clone();
        for _ in 0..=below(&mut rng, 8) {
            let position = below(&mut rng, bytes.len() as u64) as usize;
            match below(&mut rng, 4) {
                0 => bytes[position] = rng.next_u32() as u8,
                1 => bytes[position] = [0, 0xff, 0x7f, 0x80][below(&mut rng, 4) as usize],
                2 => bytes.truncate(position.max(12)),
                _ => {
                    let end = (position + below(&mut rng, 16) as usize).min(bytes.len());
                    let piece = bytes[position..end].to_vec();
                    bytes.splice(position..position, piece);
                }
            }
        }
        let header = decoder.header(&bytes, true);
        if let Ok((width, height)) = decoder.decode_stored(&bytes, &mut pixels) {
            assert_eq!(pixels.len(), width as usize * height as usize * 3);
            assert!(header.is_ok(), "decoded, but its header was refused");
        }
    }
    for _ in 0..500 {
        let prefixes: [&[u8]; 7] = [
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"RIFF\xff\0\0\0WEBPVP8 ",
            b"BM",
            b"GIF89a",
            b"II\x2a\0",
            b"",
        ];
        let mut bytes = prefixes[below(&mut rng, 7) as usize].to_vec();
        bytes.extend((0..below(&mut rng, 400)).map(|_| rng.next_u32() as u8));
        let _ = decode_rgb(&bytes, true);
    }
}

/// A part has the very pixels of the whole, whatever the sampling of chroma and wherever it begins
/// and ends.
#[test]
fn a_part_has_the_pixels_of_the_whole() {
    let seed = 7;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (width, height) = (203usize, 149usize);
    // Blocks of 5 x 5 pixels of random colour: hard edges, also in chroma.
    let tiles: Vec<[u8; 3]> = (0..41 * 30)
        .map(|_| std::array::from_fn(|_| below(&mut rng, 256) as u8))
        .collect();
    let pixels: Vec<u8> = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .flat_map(|(x, y)| tiles[y / 5 * 41 + x / 5])
        .collect();
    let mut decoder = Decoder::default();
    let kinds = [
        Subsamp::None,
        Subsamp::Sub2x1,
        Subsamp::Sub2x2,
        Subsamp::Sub1x2,
        Subsamp::Sub4x1,
        Subsamp::Gray,
    ]
    .into_iter()
    .flat_map(|subsamp| [(subsamp, false, false), (subsamp, true, false)])
    .chain([(Subsamp::None, false, true)]);
    for (subsamp, progressive, lossless) in kinds {
        let mut compressor = Compressor::new().unwrap();
        compressor.set_quality(90).unwrap();
        compressor.set_subsamp(subsamp).unwrap();
        compressor.set_progressive(progressive).unwrap();
        compressor.set_lossless(lossless).unwrap();
        let jpeg = compressor
            .compress_to_vec(Image {
                pixels: &pixels[..],
                width,
                pitch: width * 3,
                height,
                format: PixelFormat::RGB,
            })
            .unwrap();
        let whole = decode_rgb(&jpeg, false).unwrap().data;
        for _ in 0..100 {
            let mut span = |length: usize| {
                let start = below(&mut rng, length as u64) as u32;
                (
                    start,
                    1 + below(&mut rng, length as u64 - u64::from(start)) as u32,
                )
            };
            let ((left, columns), (top, rows)) = (span(width), span(height));
            let wanted = PixelRect {
                left,
                top,
                width: columns,
                height: rows,
            };
            let mut part_pixels = Vec::new();
            let (size, part) = decoder
                .decode_part(&jpeg, |_, _| wanted, &mut part_pixels)
                .unwrap();
            assert_eq!(size, (width as u32, height as u32));
            for y in top..top + rows {
                let in_part = ((y - part.top) * part.width + left - part.left) as usize * 3;
                let in_whole = (y as usize * width + left as usize) * 3;
                let length = columns as usize * 3;
                assert_eq!(
                    part_pixels[in_part..in_part + length],
                    whole[in_whole..in_whole + length],
                    "{subsamp:?}, progressive {progressive}, lossless {lossless}, {wanted:?} decoded as {part:?}, row {y}, seed {seed}"
                );
            }
        }
    }
}
