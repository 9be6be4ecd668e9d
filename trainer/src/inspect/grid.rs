//! A picture of random crops, drawn as epoch 0 of a run with the same seed draws them.
use anyhow::Context;
use image::RgbImage;
use nepa_pipeline::{
    AugmentConfig, CpuRenderer, Filter, Normalize,
    random::{Purpose, sample_stream},
};

use super::SampledImage;

/// Most images in a row, and most rows.
const SIDE: usize = 6;
const GAP: u32 = 2;

/// Draws up to 36 of `images` as the model will see them, each `size` pixels wide.
pub(crate) fn draw_grid(images: &[SampledImage], size: u32, seed: u64) -> anyhow::Result<RgbImage> {
    let augment = AugmentConfig::RandomResizedCrop {
        size,
        scale: [0.08, 1.0],
        ratio: [3.0 / 4.0, 4.0 / 3.0],
        flip: 0.5,
        filter: Filter::Bilinear,
        rand_augment: None,
        erase: None,
    }
    .build()?;
    let images = &images[..images.len().min(SIDE * SIDE)];
    let columns = images.len().clamp(1, SIDE);
    let rows = images.len().div_ceil(columns).max(1);
    let length = |count: usize| count as u32 * (size + GAP) + GAP;
    let mut picture =
        RgbImage::from_pixel(length(columns), length(rows), image::Rgb([255, 255, 255]));
    let normalize = Normalize::default();
    let mut renderer = CpuRenderer::new(normalize, true);
    let plane = (size * size) as usize;
    let mut pixels = vec![0.0; 3 * plane];
    for (index, sampled) in images.iter().enumerate() {
        let mut random = sample_stream(seed, 0, sampled.id, Purpose::Augment);
        let header = sampled.header;
        let views = augment.draw(header.width, header.height, &mut random);
        renderer
            .render(&sampled.bytes, header, &views, [&mut pixels[..]])
            .with_context(|| format!("cannot draw {}", sampled.id))?;
        let left = GAP + (index % columns) as u32 * (size + GAP);
        let top = GAP + (index / columns) as u32 * (size + GAP);
        for at in 0..plane {
            let colour = std::array::from_fn(|channel| {
                let value = pixels[channel * plane + at];
                let value = value * normalize.std[channel] + normalize.mean[channel];
                (value * 255.0).round().clamp(0.0, 255.0) as u8
            });
            let (x, y) = (at as u32 % size, at as u32 / size);
            picture.put_pixel(left + x, top + y, image::Rgb(colour));
        }
    }
    Ok(picture)
}
