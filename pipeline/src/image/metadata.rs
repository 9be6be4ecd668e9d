//! Where each format keeps the EXIF and XMP blocks that say how an image is turned: all places
//! where Pillow 13 looks, the last one counting as there.
//!
//! Reads no pixels, and never fails: what cannot be read is not there.
use std::borrow::Cow;
use std::io::Read;

use tiff::tags::Tag;

use super::orientation::EXIF_PREFIX;
use super::tiff_directory::Directory;
use super::{ImageFormat, Orientation, jpeg_markers};

/// Most bytes that a compressed text may become, as in Pillow.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// TIFF's tag of an XMP packet.
const XMP: Tag = Tag::Unknown(700);

/// How the stored image is turned.
pub(super) fn orientation(bytes: &[u8], format: ImageFormat) -> Orientation {
    match format {
        ImageFormat::Jpeg => of_jpeg(bytes),
        ImageFormat::Png => of_png(bytes),
        ImageFormat::WebP => of_webp(bytes),
        ImageFormat::Tiff => {
            let directory = Directory::read(bytes);
            let xmp = directory.as_ref().and_then(|directory| directory.data(XMP));
            Orientation::from_directory(directory.as_ref(), xmp)
        }
        ImageFormat::Bmp | ImageFormat::Gif => Orientation::UPRIGHT,
    }
}

/// EXIF in APP1 segments before the first scan, joined where there are several; XMP in the last
/// such segment.
fn of_jpeg(bytes: &[u8]) -> Orientation {
    let (mut exif, mut xmp) = (None::<Cow<[u8]>>, None);
    for payload in jpeg_markers::app1_segments(bytes) {
        if let Some(block) = payload.strip_prefix(EXIF_PREFIX) {
            match &mut exif {
                Some(begun) => begun.to_mut().extend_from_slice(block),
                None => exif = Some(payload.into()),
            }
        } else if let Some(packet) = payload.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0") {
            xmp = Some(packet);
        }
    }
    Orientation::from_metadata(exif.as_deref(), xmp)
}

/// `eXIf`, or a text called `exif`, or one with a profile in hexadecimal digits; XMP in a text.
/// Before the pixels or after them.
fn of_png(bytes: &[u8]) -> Orientation {
    let (mut exif, mut profile, mut xmp) = (None, None, None);
    for (kind, data) in png_chunks(bytes) {
        if kind == *b"eXIf" {
            exif = Some(data);
        } else if matches!(&kind, b"tEXt" | b"zTXt" | b"iTXt") {
            let end = data.iter().position(|byte| *byte == 0);
            let (keyword, rest) = data.split_at(end.unwrap_or(data.len()));
            match keyword {
                b"exif" if kind == *b"tEXt" => exif = rest.get(1..),
                b"Raw profile type exif" => profile = Some((kind, rest)),
                b"XML:com.adobe.xmp" => xmp = Some((kind, rest)),
                _ => {}
            }
        }
    }
    let exif = exif
        .map(Cow::from)
        .or_else(|| profile_bytes(&text(profile?)?).map(Cow::from));
    let xmp = xmp.and_then(text);
    Orientation::from_metadata(exif.as_deref(), xmp.as_deref())
}

/// Chunks of a PNG after its signature, up to its end or a second frame's beginning.
fn png_chunks(bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    let mut rest = bytes.get(8..).unwrap_or_default();
    let (mut is_animated, mut has_pixels) = (false, false);
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk()?;
        let (kind, after) = after.split_first_chunk::<4>()?;
        let (data, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        rest = after.get(4..).unwrap_or_default();
        is_animated |= kind == b"acTL";
        has_pixels |= kind == b"IDAT";
        let ends = kind == b"IEND" || (kind == b"fcTL" && is_animated && has_pixels);
        (!ends).then_some((*kind, data))
    })
}

/// The text of a chunk, from the zero byte behind its keyword on.
fn text((kind, data): ([u8; 4], &[u8])) -> Option<Cow<'_, [u8]>> {
    let data = data.get(1..)?;
    let (is_compressed, data) = match &kind {
        b"tEXt" => (false, data),
        b"zTXt" => (true, data.strip_prefix(&[0])?),
        // Whether it is compressed and how, then two texts that each end with a zero byte.
        _ => {
            let (&[compressed, _], rest) = data.split_first_chunk()?;
            let mut parts = rest.splitn(3, |byte| *byte == 0).skip(2);
            (compressed != 0, parts.next()?)
        }
    };
    if !is_compressed {
        return Some(data.into());
    }
    let mut plain = Vec::new();
    let mut decoder = flate2::read::ZlibDecoder::new(data).take(MAX_TEXT_BYTES);
    decoder.read_to_end(&mut plain).ok()?;
    Some(plain.into())
}

/// ImageMagick's form of a block: an empty line, its name, its length, then hexadecimal digits in
/// lines.
fn profile_bytes(text: &[u8]) -> Option<Vec<u8>> {
    let lines = text.split(|byte| *byte == b'\n').skip(3);
    let digits = lines.flatten().filter(|byte| !byte.is_ascii_whitespace());
    let digits = digits.map(|byte| char::from(*byte).to_digit(16).map(|digit| digit as u8));
    let digits = digits.collect::<Option<Vec<_>>>()?;
    let pairs = digits
        .chunks(2)
        .map(|pair| Some(pair[0] << 4 | pair.get(1)?));
    pairs.collect()
}

/// The first chunk of each kind, where the header announces it.
fn of_webp(bytes: &[u8]) -> Orientation {
    let announced = match (bytes.get(12..16), bytes.get(20)) {
        (Some(b"VP8X"), Some(flags)) => *flags,
        _ => 0,
    };
    let find = |kind: &[u8; 4], flag: u8| {
        let mut rest = bytes.get(12..).filter(|_| announced & flag != 0)?;
        loop {
            let (found, after) = rest.split_first_chunk::<4>()?;
            let (length, after) = after.split_first_chunk()?;
            let length = u32::from_le_bytes(*length) as usize;
            if found == kind {
                return after.get(..length);
            }
            // Chunks begin at even places.
            rest = after.get(length.checked_next_multiple_of(2)?..)?;
        }
    };
    Orientation::from_metadata(find(b"EXIF", 8), find(b"XMP ", 4))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{decode_rgb, read_header};
    use super::*;

    /// A TIFF structure with an orientation for each value.
    fn exif(values: &[u8]) -> Vec<u8> {
        let mut block = b"II\x2a\0\x08\0\0\0".to_vec();
        block.extend([values.len() as u8, 0]);
        for value in values {
            block.extend(b"\x12\x01\x03\0\x01\0\0\0");
            block.extend([*value, 0, 0, 0]);
        }
        block.extend([0; 4]);
        block
    }

    fn xmp(value: u8) -> Vec<u8> {
        format!("<x><rdf:Description tiff:Orientation=\"{value}\"/></x>").into_bytes()
    }

    fn png_chunk(kind: &[u8], data: &[u8]) -> Vec<u8> {
        let mut checked = kind.to_vec();
        checked.extend(data);
        let checksum = crc32fast::hash(&checked).to_be_bytes();
        let length = (data.len() as u32).to_be_bytes();
        [length.as_slice(), &checked, &checksum].concat()
    }

    /// A PNG of 3 x 2 pixels with more chunks before and after them.
    fn png(before: &[u8], after: &[u8]) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let image = image::RgbImage::from_fn(3, 2, |x, y| image::Rgb([x as u8, y as u8, 7]));
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        let bytes = bytes.into_inner();
        let (start, rest) = bytes.split_at(33);
        let (pixels, end) = rest.split_at(rest.len() - 12);
        [start, before, pixels, after, end].concat()
    }

    fn compressed(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::read::ZlibEncoder::new(data, flate2::Compression::default());
        let mut bytes = Vec::new();
        encoder.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// As tEXt, zTXt, iTXt, and compressed iTXt.
    fn texts(keyword: &str, data: &[u8]) -> [Vec<u8>; 4] {
        let with = |between: &[u8], data: &[u8]| [keyword.as_bytes(), between, data].concat();
        [
            png_chunk(b"tEXt", &with(b"\0", data)),
            png_chunk(b"zTXt", &with(b"\0\0", &compressed(data))),
            png_chunk(b"iTXt", &with(b"\0\0\0en\0what\0", data)),
            png_chunk(b"iTXt", &with(b"\0\x01\0\0\0", &compressed(data))),
        ]
    }

    /// ImageMagick's form, in lines of ten bytes.
    fn profile(block: &[u8]) -> Vec<u8> {
        let lines = block.chunks(10).map(|line| {
            let digits = line.iter().map(|byte| format!("{byte:02x}"));
            digits.collect::<String>() + "\n"
        });
        let lines = lines.collect::<String>();
        format!("\nexif\n{:8}\n{lines}", block.len()).into_bytes()
    }

    /// PNGs with texts of all kinds, for the test of damaged files.
    pub(in super::super) fn odd_files() -> Vec<Vec<u8>> {
        let profiles = texts("Raw profile type exif", &profile(&exif(&[6])));
        let packets = texts("XML:com.adobe.xmp", &xmp(6)).concat();
        let block = png_chunk(b"eXIf", &exif(&[6, 3]));
        vec![png(&profiles.concat(), &packets), png(&packets, &block)]
    }

    #[track_caller]
    fn assert_orientation(file: &[u8], expected: u8, what: &str) {
        let header = read_header(file).unwrap();
        assert_eq!(header.orientation.exif_value(), expected, "{what}");
        decode_rgb(file, true).unwrap();
    }

    #[test]
    fn png_says_it_in_many_places() {
        let prefixed = [EXIF_PREFIX, &exif(&[6])].concat();
        let mut places = vec![
            ("eXIf".to_owned(), png_chunk(b"eXIf", &exif(&[6]))),
            ("eXIf with prefix".to_owned(), png_chunk(b"eXIf", &prefixed)),
            (
                "text exif".to_owned(),
                png_chunk(b"tEXt", &[b"exif\0", prefixed.as_slice()].concat()),
            ),
        ];
        let profiles = texts("Raw profile type exif", &profile(&exif(&[6])));
        let packets = texts("XML:com.adobe.xmp", &xmp(6));
        for (number, (profile, packet)) in profiles.into_iter().zip(packets).enumerate() {
            places.push((format!("profile, text {number}"), profile));
            places.push((format!("XMP, text {number}"), packet));
        }
        for (what, chunk) in &places {
            assert_orientation(&png(chunk, b""), 6, &format!("{what} before the pixels"));
            assert_orientation(&png(b"", chunk), 6, &format!("{what} after the pixels"));
        }
        let other = texts("Raw profile type APP1", &profile(&exif(&[6])));
        assert_orientation(&png(&other[1], b""), 1, "another profile");
    }

    #[test]
    fn png_blocks_have_an_order() {
        let block = |value| png_chunk(b"eXIf", &exif(&[value]));
        let [profile_3, ..] = texts("Raw profile type exif", &profile(&exif(&[3])));
        let [packet_8, ..] = texts("XML:com.adobe.xmp", &xmp(8));
        assert_orientation(&png(&block(3), &block(6)), 6, "the last eXIf");
        assert_orientation(&png(&block(6), &profile_3), 6, "eXIf before a profile");
        let all = [profile_3, packet_8.clone()].concat();
        assert_orientation(&png(b"", &all), 3, "a profile before XMP");
        assert_orientation(&png(&block(1), &packet_8), 1, "the tag before XMP");
        let without = png_chunk(b"eXIf", &exif(&[]));
        assert_orientation(&png(&without, &packet_8), 8, "XMP where there is no tag");
    }

    #[test]
    fn a_second_frame_of_a_png_ends_the_search() {
        let control = png_chunk(b"acTL", &[0, 0, 0, 2, 0, 0, 0, 0]);
        let size = [0u32, 3, 2, 0, 0].map(u32::to_be_bytes).concat();
        let first = png_chunk(b"fcTL", &[size.as_slice(), &[0, 1, 0, 9, 0, 0]].concat());
        let second = [&[0, 0, 0, 1], &size[4..], &[0, 1, 0, 9, 0, 0]].concat();
        let after = [png_chunk(b"fcTL", &second), png_chunk(b"eXIf", &exif(&[6]))].concat();
        let bytes = png(&[control, first].concat(), &after);
        assert_eq!(orientation(&bytes, ImageFormat::Png), Orientation::UPRIGHT);
    }

    #[test]
    fn texts_that_become_too_large_or_are_broken_say_nothing() {
        let far = [vec![b' '; 2 << 20], xmp(6)].concat();
        let [_, latin, _, unicode] = texts("XML:com.adobe.xmp", &far);
        for text in [latin, unicode] {
            assert_orientation(&png(b"", &text), 1, "2 MiB of blanks");
        }
        for broken in [
            "",
            "\nexif",
            "\nexif\n4\n12345",
            "\nexif\n4\nxyz",
            "\n\n\n\n",
        ] {
            let [text, ..] = texts("Raw profile type exif", broken.as_bytes());
            assert_orientation(&png(b"", &text), 1, broken);
        }
    }

    fn jpeg(segments: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0xff, 0xd8];
        for payload in segments {
            bytes.extend([0xff, 0xe1]);
            bytes.extend((payload.len() as u16 + 2).to_be_bytes());
            bytes.extend(*payload);
        }
        bytes.extend([0xff, 0xda, 0, 2]);
        bytes
    }

    #[test]
    fn jpeg_says_it_in_one_or_more_segments() {
        let block = [EXIF_PREFIX, &exif(&[6])].concat();
        let (start, rest) = block.split_at(20);
        let rest = [EXIF_PREFIX, rest].concat();
        let other = [EXIF_PREFIX, &exif(&[3])].concat();
        let twice = [EXIF_PREFIX, &block].concat();
        let thrice = [EXIF_PREFIX, &twice].concat();
        let tag_twice = [EXIF_PREFIX, &exif(&[6, 3])].concat();
        let without = [EXIF_PREFIX, &exif(&[])].concat();
        let packet = |value| [b"http://ns.adobe.com/xap/1.0/\0".as_slice(), &xmp(value)].concat();
        let (packet_3, packet_8) = (packet(3), packet(8));
        let cases: [(&str, &[&[u8]], u8); 9] = [
            ("split", &[start, &rest], 6),
            ("prefix twice", &[&twice], 6),
            ("prefix three times", &[&thrice], 1),
            ("tag twice", &[&tag_twice], 6),
            ("two whole ones", &[&block, &other], 6),
            ("XMP", &[&packet_8], 8),
            ("XMP twice", &[&packet_8, &packet_3], 3),
            ("the tag before XMP", &[&packet_8, &block], 6),
            ("XMP where there is no tag", &[&without, &packet_8], 8),
        ];
        for (what, segments, expected) in cases {
            let found = orientation(&jpeg(segments), ImageFormat::Jpeg);
            assert_eq!(found.exif_value(), expected, "{what}");
        }
    }

    #[test]
    fn webp_says_it_where_its_header_announces_it() {
        let webp = |flags: u8, chunks: &[(&[u8; 4], Vec<u8>)]| {
            let mut bytes = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0".to_vec();
            bytes.extend([flags, 0, 0, 0, 2, 0, 0, 1, 0, 0]);
            // A chunk of odd length comes first.
            for (kind, data) in [(b"ICCP", vec![1, 2, 3])].iter().chain(chunks) {
                bytes.extend(*kind);
                bytes.extend((data.len() as u32).to_le_bytes());
                bytes.extend(data);
                bytes.resize(bytes.len().next_multiple_of(2), 0);
            }
            orientation(&bytes, ImageFormat::WebP).exif_value()
        };
        let (block, packet) = ((b"EXIF", exif(&[6])), (b"XMP ", xmp(8)));
        assert_eq!(webp(8, std::slice::from_ref(&block)), 6);
        assert_eq!(webp(4, std::slice::from_ref(&packet)), 8);
        assert_eq!(webp(12, &[packet.clone(), block.clone()]), 6);
        assert_eq!(webp(8, &[block.clone(), (b"EXIF", exif(&[3]))]), 6);
        assert_eq!(webp(0, &[block, packet]), 1);
    }
}
