//! Thousands of odd and broken JPEGs go through the decoder: each gives an image or an error, quickly, in bounded memory, and valid ones always an image.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use nepa_pipeline::{Decoder, JpegFacts, MAX_PIXELS, PixelRect, decode_rgb, read_header};

/// No single file may take longer, on a busy machine and unoptimised.
const MAX_TIME: Duration = Duration::from_secs(20);

/// Width, height and whether Pillow decodes it, by file name, from the collection's own list.
fn manifest(text: &str) -> BTreeMap<String, (Option<(u32, u32)>, bool)> {
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let size = fields[3]
            .split_once('x')
            .and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
        (fields[0].to_owned(), (size, fields[9] == "decodes"))
    };
    text.lines().skip(1).map(parse).collect()
}

#[test]
fn every_file_of_the_zoo_gives_an_image_or_an_error() {
    let Some(data) = std::env::var_os("NEPA_TEST_DATA") else {
        eprintln!("SKIPPED: NEPA_TEST_DATA is not set, so there is no collection of odd JPEGs");
        return;
    };
    let archive = Path::new(&data).join("jpeg-zoo/zoo.tar.zst");
    let mut archive = tar::Archive::new(
        zstd::Decoder::new(File::open(&archive).expect("the archive opens")).expect("it is zstd"),
    );
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry
            .path()
            .unwrap()
            .to_string_lossy()
            .trim_start_matches("./")
            .to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        files.insert(path, bytes);
    }
    let manifest =
        manifest(std::str::from_utf8(&files.remove("MANIFEST.tsv").expect("the list")).unwrap());

    let mut decoder = Decoder::default();
    let (mut pixels, mut part_pixels) = (Vec::new(), Vec::new());
    // Folder to (as Pillow, image where Pillow refuses, error where Pillow decodes).
    let mut agreement: BTreeMap<&str, [u32; 3]> = BTreeMap::new();
    // Decodable files that suit the hardware engines, and nvJPEG at all.
    let mut for_device = [0, 0];
    for (path, bytes) in &files {
        let Some((folder, _)) = path.split_once('/') else {
            continue;
        };
        if bytes.is_empty() && !manifest.contains_key(path) {
            continue;
        }
        let start = Instant::now();
        let result = decoder.decode_stored(bytes, &mut pixels);
        assert!(
            start.elapsed() < MAX_TIME,
            "{path} took {:?}",
            start.elapsed()
        );
        // The markers are read without a panic, and an image that a GPU may decode has the size that the CPU sees.
        let facts = JpegFacts::of(bytes).filter(JpegFacts::suits_hybrid);
        if let (Some(facts), Ok((width, height))) = (facts, &result) {
            assert_eq!(
                (u32::from(facts.width), u32::from(facts.height)),
                (*width, *height),
                "{path}"
            );
            for_device[0] += u32::from(facts.suits_hardware());
            for_device[1] += 1;
        }
        let (size, pillow_decodes) = manifest[path];
        match &result {
            Ok((width, height)) => {
                assert!(u64::from(*width) * u64::from(*height) <= MAX_PIXELS);
                assert_eq!(
                    pixels.len(),
                    *width as usize * *height as usize * 3,
                    "{path}"
                );
                assert!(
                    read_header(bytes).is_ok(),
                    "{path} decodes, but its header is refused"
                );
                if folder == "valid" {
                    assert_eq!(Some((*width, *height)), size, "{path}");
                }
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert_ne!(
                    folder,
                    "valid",
                    "{path}: {error}: {:?}",
                    std::error::Error::source(error)
                );
            }
        }
        if let Ok((width, height)) = result {
            // A part of it has the same pixels. Where data is missing, libjpeg guesses from what lies around, which a part lacks; then it is only the same each time.
            let wanted = PixelRect {
                left: width / 3,
                top: height / 4,
                width: width.div_ceil(3),
                height: height.div_ceil(3),
            };
            let (size, part) = decoder
                .decode_part(bytes, |_, _| wanted, &mut part_pixels)
                .unwrap_or_else(|error| panic!("a part of {path}: {error}"));
            assert_eq!(size, (width, height), "{path}");
            let mut again = Vec::new();
            let fresh = Decoder::default().decode_part(bytes, |_, _| wanted, &mut again);
            assert_eq!(fresh.unwrap(), (size, part), "{path}");
            assert!(
                again == part_pixels,
                "{path} depends on what was decoded before"
            );
            let rows = if folder == "valid" { wanted.height } else { 0 };
            for y in wanted.top..wanted.top + rows {
                let in_part = ((y - part.top) * part.width + wanted.left - part.left) as usize * 3;
                let in_whole = (y as usize * width as usize + wanted.left as usize) * 3;
                let length = wanted.width as usize * 3;
                assert!(
                    part_pixels[in_part..in_part + length] == pixels[in_whole..in_whole + length],
                    "{path}, row {y}"
                );
            }
        }
        if folder == "valid" {
            // The same pixels from a decoder that has seen nothing before.
            let fresh = decode_rgb(bytes, false).unwrap();
            assert_eq!(
                fresh.data, pixels,
                "{path} depends on what was decoded before"
            );
        }
        let kind = match (result.is_ok(), pillow_decodes) {
            (true, false) => 1,
            (false, true) => 2,
            _ => 0,
        };
        agreement.entry(folder).or_default()[kind] += 1;
        if kind != 0 {
            println!("{path}: ours {result:?}, Pillow decodes: {pillow_decodes}");
        }
    }
    println!(
        "folder: [as Pillow, image where Pillow refuses, error where Pillow decodes]\n{agreement:?}"
    );
    println!("hardware engines, nvJPEG: {for_device:?}");
    assert!(
        for_device[0] > 100 && for_device[1] > for_device[0],
        "{for_device:?} would be decoded on a device"
    );
    let total: u32 = agreement.values().flatten().sum();
    let same: u32 = agreement.values().map(|counts| counts[0]).sum();
    assert!(total > 4000, "only {total} files were tried");
    assert!(
        f64::from(same) >= 0.9 * f64::from(total),
        "only {same} of {total} are judged as by Pillow"
    );
}
