//! Renders images for `scripts/check-pillow.py`, which compares the pixels and the time with
//! Pillow's.
//!
//! Reads frames from standard input (length as u32, little-endian, then the encoded image) and
//! answers each on standard output with one JSON line for each augmentation: the plan and the
//! nanoseconds that the rendering took, or the error. A line with a plan is followed by `[3, S, S]`
//! pixels as f32.
use std::error::Error;
use std::io::{BufWriter, Read, Write};
use std::time::Instant;

use nepa_pipeline::{
    AugmentConfig, CpuRenderer, Filter, Normalize, SampleId,
    random::{Purpose, sample_stream},
};

fn main() -> Result<(), Box<dyn Error>> {
    let side = std::env::args()
        .nth(1)
        .map_or(Ok(224), |argument| argument.parse())?;
    let crop = |filter| AugmentConfig::RandomResizedCrop {
        size: side,
        scale: [0.08, 1.0],
        ratio: [3.0 / 4.0, 4.0 / 3.0],
        flip: 0.5,
        filter,
        rand_augment: None,
        erase: None,
    };
    let center = |filter| AugmentConfig::CenterCrop {
        size: side,
        resize: side * 8 / 7,
        filter,
    };
    let augments = [
        crop(Filter::Bilinear),
        crop(Filter::Bicubic),
        center(Filter::Bilinear),
        center(Filter::Bicubic),
    ]
    .iter()
    .map(AugmentConfig::build)
    .collect::<Result<Vec<_>, _>>()?;

    let mut renderer = CpuRenderer::new(Normalize::default(), true);
    let mut pixels = vec![0f32; 3 * (side * side) as usize];
    let mut input = std::io::stdin().lock();
    let mut output = BufWriter::new(std::io::stdout().lock());
    let mut encoded = Vec::new();
    for row in 0.. {
        let mut length = [0; 4];
        if input.read_exact(&mut length).is_err() {
            break;
        }
        encoded.resize(u32::from_le_bytes(length) as usize, 0);
        input.read_exact(&mut encoded)?;
        for augment in &augments {
            let mut rng = sample_stream(
                1337,
                0,
                SampleId {
                    shard: 0,
                    row_group: 0,
                    row,
                },
                Purpose::Augment,
            );
            let start = Instant::now();
            let result = renderer.read_header(&encoded).and_then(|header| {
                let views = augment.draw(header.width, header.height, &mut rng);
                renderer.render(&encoded, header, &views, [&mut pixels[..]])?;
                Ok(views)
            });
            let nanoseconds = start.elapsed().as_nanos() as u64;
            match result {
                Ok(views) => {
                    writeln!(
                        output,
                        "{}",
                        serde_json::json!({ "plan": views[0], "ns": nanoseconds })
                    )?;
                    for value in &pixels {
                        output.write_all(&value.to_le_bytes())?;
                    }
                }
                Err(error) => writeln!(
                    output,
                    "{}",
                    serde_json::json!({ "error": error.to_string() })
                )?,
            }
        }
        output.flush()?;
    }
    Ok(())
}
