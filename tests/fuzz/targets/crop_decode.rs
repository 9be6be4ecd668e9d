//! Any bytes as an image and any crop of it: an image or an error, whose pixels do not depend on what was decoded before.
#![no_main]

use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};
use nepa_pipeline::{CpuRenderer, CropPlan, CropRect, Decoder, EdgeSupport, Filter, PixelRect, read_header};

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    /// Left, top, right and bottom as shares of the image.
    edges: [u8; 4],
    flip: bool,
    bicubic: bool,
    whole_edge: bool,
    side: u8,
    bytes: &'a [u8],
}

/// Larger images say nothing more and take long.
const MAX_PIXELS: u64 = 1 << 20;

fuzz_target!(|input: Input| {
    let Ok(header) = read_header(input.bytes) else {
        return;
    };
    if u64::from(header.width) * u64::from(header.height) > MAX_PIXELS {
        return;
    }
    let span = |a: u8, b: u8, length: u32| {
        let (a, b) = (a.min(b), a.max(b));
        let start = f64::from(length) * f64::from(a) / 256.0;
        (
            start,
            f64::from(length) * f64::from(u16::from(b) + 1) / 256.0 - start,
        )
    };
    let (x, width) = span(input.edges[0], input.edges[2], header.width);
    let (y, height) = span(input.edges[1], input.edges[3], header.height);
    let plan = CropPlan {
        rect: CropRect {
            x,
            y,
            width,
            height,
        },
        flip: input.flip,
        output_size: u32::from(input.side).clamp(1, 64),
        filter: if input.bicubic {
            Filter::Bicubic
        } else {
            Filter::Bilinear
        },
        edge: if input.whole_edge {
            EdgeSupport::Image
        } else {
            EdgeSupport::Rect
        },
        operations: Vec::new(),
        erase: None,
    };
    let mut output = vec![0f32; 3 * (plan.output_size as usize).pow(2)];
    let rendered = CpuRenderer::default().render_plan(input.bytes, &plan, &mut output);

    let mut decoder = Decoder::default();
    let mut whole = Vec::new();
    let all = decoder.decode_stored(input.bytes, &mut whole);
    if all.is_ok() {
        assert!(
            rendered.is_ok(),
            "the whole image decodes and a crop of it does not"
        );
    }
    let wanted = |width: u32, height: u32| {
        let place = |a: u8, b: u8, length: u32| {
            let (a, b) = (u64::from(a.min(b)), u64::from(a.max(b)) + 1);
            let start = (a * u64::from(length) / 256) as u32;
            (
                start,
                ((b * u64::from(length)).div_ceil(256) as u32 - start).max(1),
            )
        };
        let (left, columns) = place(input.edges[0], input.edges[2], width);
        let (top, rows) = place(input.edges[1], input.edges[3], height);
        PixelRect {
            left,
            top,
            width: columns,
            height: rows,
        }
    };
    // Twice with one decoder, whose memory is used again, and once with a fresh one: the same pixels. (Those of the whole, too, where no data is missing; which files
    // these are is not known here, so that is the unit tests' matter.)
    let mut decoded = || {
        let mut part = Vec::new();
        let rect = decoder.decode_part(input.bytes, wanted, &mut part);
        (rect.ok(), part)
    };
    let (first, second) = (decoded(), decoded());
    let mut part = Vec::new();
    let fresh = Decoder::default()
        .decode_part(input.bytes, wanted, &mut part)
        .ok();
    if let (Ok(size), Some((found, rect))) = (all, fresh) {
        assert_eq!(size, found);
        assert_eq!(part.len(), rect.width as usize * rect.height as usize * 3);
        assert!(
            first == (fresh, part.clone()) && second == (fresh, part),
            "it depends on what was decoded before"
        );
    }
});
