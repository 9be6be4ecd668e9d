//! Any bytes as an image and any crop of it: an image or an error, and a part has the pixels of the whole.
#![no_main]

use libfuzzer_sys::{arbitrary, arbitrary::Arbitrary, fuzz_target};
use nepa_pipeline::image_decode::{Decoder, PixelRect, read_header};
use nepa_pipeline::render::CpuRenderer;
use nepa_pipeline::{CropPlan, CropRect, EdgeSupport, Filter};

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
    };
    let mut output = vec![0f32; 3 * (plan.output_size as usize).pow(2)];
    let rendered = CpuRenderer::default().render_plan(input.bytes, &plan, &mut output);

    let mut decoder = Decoder::default();
    let (mut whole, mut part) = (Vec::new(), Vec::new());
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
    // Twice with one decoder: the second time its memory is used again.
    let again = decoder.decode_part(input.bytes, wanted, &mut part);
    if let (Ok((width, height)), Ok((size, rect))) = (all, again) {
        assert_eq!(size, (width, height));
        let wanted = wanted(width, height);
        for y in wanted.top..wanted.top + wanted.height {
            let length = wanted.width as usize * 3;
            let in_part = ((y - rect.top) * rect.width + wanted.left - rect.left) as usize * 3;
            let in_whole = (y as usize * width as usize + wanted.left as usize) * 3;
            assert_eq!(
                part[in_part..in_part + length],
                whole[in_whole..in_whole + length]
            );
        }
    }
});
