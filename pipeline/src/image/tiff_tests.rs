//! Every kind of TIFF that is read, put together here byte by byte; what is not read, with its
//! name; hostile ones.
use super::super::{decode_rgb, read_header};
use super::*;

const WIDTH: usize = 21;
const HEIGHT: usize = 13;

/// Tag, type, and values.
type Field = (Tag, u16, Vec<u64>);

/// A TIFF to be: the pixels' chunks come on top of its fields.
#[derive(Clone, Copy, Default)]
struct Form {
    big_endian: bool,
    big_tiff: bool,
    /// Chunks are tiles of this size, else strips.
    tile: Option<usize>,
    rows_per_strip: Option<usize>,
}

impl Form {
    const fn of(big_endian: bool, big_tiff: bool) -> Self {
        Self {
            big_endian,
            big_tiff,
            tile: None,
            rows_per_strip: None,
        }
    }

    fn number(self, value: u64, num_bytes: usize) -> Vec<u8> {
        let mut bytes = value.to_le_bytes()[..num_bytes].to_vec();
        if self.big_endian {
            bytes.reverse();
        }
        bytes
    }

    fn file(self, fields: &[Field], chunks: &[Vec<u8>]) -> Vec<u8> {
        let (offset_bytes, offset_kind) = if self.big_tiff { (8, 16) } else { (4, 4) };
        let mut file = if self.big_endian {
            b"MM".to_vec()
        } else {
            b"II".to_vec()
        };
        if self.big_tiff {
            file.extend([self.number(43, 2), self.number(8, 2), self.number(0, 2)].concat());
        } else {
            file.extend(self.number(42, 2));
        }
        let directory_place = file.len();
        file.extend(self.number(0, offset_bytes));
        let mut offsets = Vec::new();
        for chunk in chunks {
            offsets.push(file.len() as u64);
            file.extend(chunk);
        }
        let lengths = chunks.iter().map(|chunk| chunk.len() as u64).collect();
        let mut fields = fields.to_vec();
        fields.extend([
            (Tag::ImageWidth, 4, vec![WIDTH as u64]),
            (Tag::ImageLength, 4, vec![HEIGHT as u64]),
        ]);
        fields.extend(match self.tile {
            Some(side) => vec![
                (Tag::TileWidth, 4, vec![side as u64]),
                (Tag::TileLength, 4, vec![side as u64]),
                (Tag::TileOffsets, offset_kind, offsets),
                (Tag::TileByteCounts, 4, lengths),
            ],
            None => vec![
                (
                    Tag::RowsPerStrip,
                    4,
                    vec![self.rows_per_strip.unwrap_or(HEIGHT) as u64],
                ),
                (Tag::StripOffsets, offset_kind, offsets),
                (Tag::StripByteCounts, 4, lengths),
            ],
        });
        fields.sort_by_key(|field| field.0.to_u16());
        let mut entries = Vec::new();
        for (tag, kind, values) in &fields {
            let unit = [0, 1, 1, 2, 4, 8][usize::from(*kind).min(5)];
            let mut data = values
                .iter()
                .flat_map(|value| self.number(*value, unit))
                .collect::<Vec<_>>();
            if data.len() > offset_bytes {
                let place = file.len() as u64;
                file.extend(data);
                data = self.number(place, offset_bytes);
            }
            data.resize(offset_bytes, 0);
            let head = [
                self.number(tag.to_u16().into(), 2),
                self.number((*kind).into(), 2),
            ];
            entries.extend(head.concat());
            entries.extend(self.number(values.len() as u64, offset_bytes));
            entries.extend(data);
        }
        let place = self.number(file.len() as u64, offset_bytes);
        file[directory_place..directory_place + offset_bytes].copy_from_slice(&place);
        file.extend(self.number(fields.len() as u64, if self.big_tiff { 8 } else { 2 }));
        file.extend(entries);
        file.extend(self.number(0, offset_bytes));
        file
    }
}

/// Both byte orders in both sizes of file.
const FORMS: [Form; 4] = [
    Form::of(false, false),
    Form::of(true, false),
    Form::of(false, true),
    Form::of(true, true),
];

/// Photometric interpretation, bits a sample, and number of samples.
fn kind(photometric: u64, bits: u64, samples: u64) -> Vec<Field> {
    vec![
        (Tag::PhotometricInterpretation, 3, vec![photometric]),
        (Tag::BitsPerSample, 3, vec![bits; samples as usize]),
        (Tag::SamplesPerPixel, 3, vec![samples]),
    ]
}

/// Sample `channel` of a pixel, 0 to 255.
fn sample(x: usize, y: usize, channel: usize) -> u8 {
    (x * 11 + y * 7 + channel * 50) as u8
}

fn samples(num_channels: usize) -> Vec<u8> {
    let pixels = (0..HEIGHT).flat_map(|y| (0..WIDTH).map(move |x| (x, y)));
    pixels
        .flat_map(|(x, y)| (0..num_channels).map(move |channel| sample(x, y, channel)))
        .collect()
}

/// Rows of samples of `bits`, each row padded to a byte.
fn pack(values: &[u8], per_row: usize, bits: usize) -> Vec<u8> {
    let pack_row = |row: &[u8]| {
        let mut packed = vec![0u8; (row.len() * bits).div_ceil(8)];
        for (index, value) in row.iter().enumerate() {
            packed[index * bits / 8] |= value << (8 - bits - index * bits % 8);
        }
        packed
    };
    values.chunks(per_row).flat_map(pack_row).collect()
}

#[track_caller]
fn assert_pixels(
    file: &[u8],
    expected: impl Fn(&[u8]) -> [u8; 3],
    num_channels: usize,
    what: &str,
) {
    let header = read_header(file).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((header.width, header.height), (WIDTH as u32, HEIGHT as u32));
    let image = decode_rgb(file, true).unwrap_or_else(|error| panic!("{what}: {error}"));
    let expected = samples(num_channels)
        .chunks(num_channels)
        .flat_map(expected)
        .collect::<Vec<_>>();
    assert!(image.data == expected, "{what}: other pixels");
}

#[test]
fn small_grays_and_palettes_in_both_byte_orders_and_sizes_of_file() {
    for form in FORMS {
        for bits in [1usize, 2, 4, 8] {
            let highest = (1u32 << bits) - 1;
            let small = |value: u8| value >> (8 - bits);
            let values = samples(1).into_iter().map(small).collect::<Vec<_>>();
            let chunk = [pack(&values, WIDTH, bits)];
            let what = format!("{bits} bits, {}{}", form.big_endian, form.big_tiff);
            let gray = |value: u8| [(u32::from(small(value)) * 255 / highest) as u8; 3];
            let file = form.file(&kind(1, bits as u64, 1), &chunk);
            assert_pixels(&file, |pixel| gray(pixel[0]), 1, &what);
            let file = form.file(&kind(0, bits as u64, 1), &chunk);
            assert_pixels(
                &file,
                |pixel| gray(pixel[0]).map(|value| 255 - value),
                1,
                &what,
            );

            let count = 1 << bits;
            let color = |index: u64| [index * 257, 65_535 - index * 200, index * 91 % 65_536];
            let table =
                (0..3).flat_map(|channel| (0..count).map(move |index| color(index)[channel]));
            let palette = (Tag::ColorMap, 3, table.collect());
            let fields = [kind(3, bits as u64, 1), vec![palette]].concat();
            let expected =
                |pixel: &[u8]| color(small(pixel[0]).into()).map(|value| (value >> 8) as u8);
            assert_pixels(
                &form.file(&fields, &chunk),
                expected,
                1,
                &format!("palette, {what}"),
            );
        }
    }
}

#[test]
fn wide_grays_are_clipped_and_wide_colours_keep_their_high_byte() {
    // Number format, bytes, how a sample is written, and what it becomes.
    type Case = (u64, usize, fn(u8) -> u64, fn(u8) -> u8);
    let cases: [Case; 6] = [
        (
            1,
            2,
            |value| u64::from(value) * 3,
            |value| (u32::from(value) * 3).min(255) as u8,
        ),
        (
            2,
            2,
            |value| (i64::from(value) * 3 - 200) as u64,
            |value| (i32::from(value) * 3 - 200).clamp(0, 255) as u8,
        ),
        (
            1,
            4,
            |value| u64::from(value) * 3,
            |value| (u32::from(value) * 3).min(255) as u8,
        ),
        (
            2,
            4,
            |value| (i64::from(value) * 3 - 200) as u64,
            |value| (i32::from(value) * 3 - 200).clamp(0, 255) as u8,
        ),
        (
            3,
            4,
            |value| (f32::from(value) * 2.5 - 100.3).to_bits().into(),
            |value| (f32::from(value) * 2.5 - 100.3) as u8,
        ),
        (2, 1, u64::from, |value| value),
    ];
    for form in FORMS {
        for (format, num_bytes, written, expected) in cases {
            let values = samples(1);
            let chunk = values
                .iter()
                .flat_map(|value| form.number(written(*value), num_bytes));
            let mut fields = kind(1, num_bytes as u64 * 8, 1);
            fields.push((Tag::SampleFormat, 3, vec![format]));
            let file = form.file(&fields, &[chunk.collect()]);
            let what = format!("format {format} of {num_bytes} bytes");
            assert_pixels(&file, |pixel| [expected(pixel[0]); 3], 1, &what);
            assert_eq!(super::super::clips_gray(&file), num_bytes > 1, "{what}");
        }
        for (photometric, channels) in [(2, 3), (5, 4)] {
            let values = samples(channels);
            let chunk = values
                .iter()
                .flat_map(|value| form.number(u64::from(*value) << 8 | 0xff, 2));
            let file = form.file(&kind(photometric, 16, channels as u64), &[chunk.collect()]);
            let expected = |pixel: &[u8]| match photometric {
                2 => [pixel[0], pixel[1], pixel[2]],
                _ => cmyk_to_rgb([pixel[0], pixel[1], pixel[2], pixel[3]]),
            };
            assert_pixels(
                &file,
                expected,
                channels,
                &format!("photometric {photometric}"),
            );
            assert!(!super::super::clips_gray(&file));
        }
    }
}

#[test]
fn further_samples_are_left_out_and_multiplied_alpha_is_divided_out() {
    for extra in [0, 1, 2] {
        let extra_field = |count| {
            (
                Tag::ExtraSamples,
                3,
                [vec![extra], vec![0; count - 1]].concat(),
            )
        };
        let gray = [kind(1, 8, 2), vec![extra_field(1)]].concat();
        let file = Form::default().file(&gray, &[samples(2)]);
        assert_pixels(
            &file,
            |pixel| [pixel[0]; 3],
            2,
            &format!("gray, extra {extra}"),
        );
        for count in [1, 2] {
            let color = [kind(2, 8, 3 + count as u64), vec![extra_field(count)]].concat();
            let file = Form::default().file(&color, &[samples(3 + count)]);
            let expected = |pixel: &[u8]| {
                let alpha = u32::from(pixel[3]);
                [0, 1, 2].map(|channel| match (extra, alpha) {
                    (1, 0) => 0,
                    (1, _) => (u32::from(pixel[channel]) * 255 / alpha).min(255) as u8,
                    _ => pixel[channel],
                })
            };
            let what = format!("RGB, {count} more, extra {extra}");
            assert_pixels(&file, expected, 3 + count, &what);
        }
    }
}

/// Chunks of an image of 8-bit samples: the strips or tiles of all channels, or of each.
fn chunks(form: Form, num_channels: usize, is_planar: bool) -> Vec<Vec<u8>> {
    let planes: Vec<Vec<usize>> = if is_planar {
        (0..num_channels).map(|channel| vec![channel]).collect()
    } else {
        vec![(0..num_channels).collect()]
    };
    let (across, down) = match (form.tile, form.rows_per_strip) {
        (Some(side), _) => (side, side),
        (None, rows) => (WIDTH, rows.unwrap_or(HEIGHT)),
    };
    let mut chunks = Vec::new();
    for channels in &planes {
        for top in (0..HEIGHT).step_by(down) {
            for left in (0..WIDTH).step_by(across) {
                let bottom = if form.tile.is_some() {
                    top + down
                } else {
                    (top + down).min(HEIGHT)
                };
                let pixels = (top..bottom).flat_map(|y| (left..left + across).map(move |x| (x, y)));
                let values = pixels
                    .flat_map(|(x, y)| channels.iter().map(move |channel| sample(x, y, *channel)));
                chunks.push(values.collect());
            }
        }
    }
    chunks
}

/// Some kinds for the test of damaged files.
pub(in super::super) fn odd_files() -> Vec<Vec<u8>> {
    let mut files = Vec::new();
    for form in [
        Form {
            tile: Some(16),
            ..FORMS[0]
        },
        Form {
            rows_per_strip: Some(4),
            ..FORMS[3]
        },
    ] {
        let planar = (Tag::PlanarConfiguration, 3, vec![2]);
        let fields = [kind(2, 8, 3), vec![planar]].concat();
        files.push(form.file(&fields, &chunks(form, 3, true)));
        let palette = (Tag::ColorMap, 3, (0..768).collect());
        let reversed = (Tag::FillOrder, 3, vec![2]);
        let fields = [kind(3, 8, 1), vec![palette, reversed]].concat();
        files.push(form.file(&fields, &chunks(form, 1, false)));
    }
    files
}

#[test]
fn strips_tiles_and_planes_give_the_same_pixels() {
    let forms = [
        Form::default(),
        Form {
            rows_per_strip: Some(4),
            ..Form::default()
        },
        Form {
            rows_per_strip: Some(1000),
            ..Form::default()
        },
        Form {
            tile: Some(16),
            ..Form::default()
        },
        Form {
            tile: Some(32),
            big_tiff: true,
            ..Form::default()
        },
    ];
    let planar = |is_planar| {
        (
            Tag::PlanarConfiguration,
            3,
            vec![if is_planar { 2 } else { 1 }],
        )
    };
    for (number, form) in forms.into_iter().enumerate() {
        for is_planar in [false, true] {
            for (photometric, channels) in [(2, 3), (2, 5), (5, 4), (1, 2)] {
                let fields = [
                    kind(photometric, 8, channels as u64),
                    vec![planar(is_planar)],
                ]
                .concat();
                let file = form.file(&fields, &chunks(form, channels, is_planar));
                let expected = |pixel: &[u8]| match photometric {
                    1 => [pixel[0]; 3],
                    2 => [pixel[0], pixel[1], pixel[2]],
                    _ => cmyk_to_rgb([pixel[0], pixel[1], pixel[2], pixel[3]]),
                };
                let what = format!(
                    "form {number}, planar {is_planar}, photometric {photometric}, {channels} samples"
                );
                assert_pixels(&file, expected, channels, &what);
            }
        }
    }
}

#[test]
fn reversed_bits_are_put_right() {
    let reversed = (Tag::FillOrder, 3, vec![2]);
    let fields = [kind(2, 8, 3), vec![reversed.clone()]].concat();
    let chunk = samples(3)
        .into_iter()
        .map(u8::reverse_bits)
        .collect::<Vec<_>>();
    let file = Form::default().file(&fields, std::slice::from_ref(&chunk));
    assert_pixels(
        &file,
        |pixel| [pixel[0], pixel[1], pixel[2]],
        3,
        "fill order 2",
    );
    // Many chunks that are all the whole file would take for ever.
    let form = Form {
        rows_per_strip: Some(1),
        ..Form::default()
    };
    let mut file = form.file(&fields, &vec![chunk; HEIGHT]);
    let directory = Directory::read(&file).unwrap();
    let place = directory.place_of(Tag::StripByteCounts).unwrap();
    let lengths = u32::from_le_bytes(*file[place + 8..].first_chunk().unwrap()) as usize;
    let whole = (file.len() as u32 / 2).to_le_bytes();
    for strip in 0..HEIGHT {
        file[lengths + strip * 4..lengths + strip * 4 + 4].copy_from_slice(&whole);
    }
    assert!(matches!(
        decode_rgb(&file, true).unwrap_err(),
        ImageError::Tiff(_)
    ));
}

#[test]
fn brightness_with_colour_differences_and_lab() {
    let whole = (Tag::ChromaSubsampling, 3, vec![1, 1]);
    let fields = [kind(6, 8, 3), vec![whole]].concat();
    let file = Form::default().file(&fields, &[samples(3)]);
    assert_pixels(&file, ycbcr_to_rgb, 3, "YCbCr");
    // Known colours: gray, and JFIF's red.
    assert_eq!(ycbcr_to_rgb(&[77, 128, 128]), [77; 3]);
    assert_eq!(ycbcr_to_rgb(&[76, 85, 255]), [254, 0, 0]);
    let file = Form::default().file(&kind(8, 8, 3), &[samples(3)]);
    assert_pixels(&file, lab_to_rgb, 3, "Lab");
    // White, black, middle gray; sRGB's red is L* 54.3, a* 80.8, b* 69.9 under D50.
    assert_eq!(lab_to_rgb(&[255, 0, 0]), [255; 3]);
    assert_eq!(lab_to_rgb(&[0, 0, 0]), [0; 3]);
    assert_eq!(lab_to_rgb(&[137, 0, 0]), [128; 3]);
    let red = lab_to_rgb(&[138, 81, 70]);
    assert!(red[0] > 250 && red[1] < 12 && red[2] < 12, "{red:?}");
}

#[test]
fn what_is_not_read_is_named() {
    let with = |mut fields: Vec<Field>, tag, values: &[u64]| {
        fields.push((tag, 3, values.to_vec()));
        fields
    };
    let cases: [(Vec<Field>, &str); 12] = [
        (
            with(kind(2, 8, 3), Tag::Compression, &[34_925]),
            "compressed by LZMA",
        ),
        (
            with(kind(0, 1, 1), Tag::Compression, &[3]),
            "compressed by CCITT group 3",
        ),
        (
            with(kind(6, 8, 3), Tag::Compression, &[6]),
            "JPEG of the old style",
        ),
        (
            with(kind(2, 8, 3), Tag::Compression, &[4711]),
            "method 4711",
        ),
        (kind(1, 12, 1), "gray of 12 bits"),
        (
            with(kind(2, 32, 3), Tag::SampleFormat, &[3, 3, 3]),
            "RGB of floating point of 32 bits",
        ),
        (
            with(kind(1, 64, 1), Tag::SampleFormat, &[3]),
            "gray of floating point of 64 bits",
        ),
        (
            with(kind(6, 8, 3), Tag::ChromaSubsampling, &[2, 2]),
            "YCbCr with coarser colour",
        ),
        (kind(9, 8, 3), "a kind of Lab"),
        (kind(3, 8, 1), "a palette with 0 values"),
        (kind(32_803, 8, 1), "an unknown kind of colour"),
        (
            vec![(Tag::BitsPerSample, 3, vec![8])],
            "`PhotometricInterpretation` not found",
        ),
    ];
    for (fields, expected) in cases {
        let file = Form::default().file(&fields, &[samples(3)]);
        let error = decode_rgb(&file, true).unwrap_err();
        let said = crate::store::full_text(&error);
        assert!(said.contains(expected), "{expected:?} is not in: {said}");
    }
}

#[test]
fn a_few_bytes_cannot_ask_for_much() {
    let mut fields = kind(2, 8, 3);
    fields.push((Tag::Compression, 3, vec![8]));
    // More samples than a pixel can have, and tiles larger than any image.
    for (tag, value) in [
        (Tag::SamplesPerPixel, 60_000u32),
        (Tag::TileWidth, 1 << 31),
        (Tag::TileLength, 1 << 31),
    ] {
        let form = Form {
            tile: Some(16),
            ..Form::default()
        };
        let mut file = form.file(&fields, &chunks(form, 3, false));
        let place = Directory::read(&file).unwrap().place_of(tag).unwrap();
        file[place + 8..place + 12].copy_from_slice(&value.to_le_bytes());
        assert!(decode_rgb(&file, true).is_err(), "{tag:?}");
    }
}
