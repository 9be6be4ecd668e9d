//! What a model sees and expects: attention of a patch, and where in the image its prediction is
//! found.
use anyhow::ensure;
use candle_core::{D, DType, Tensor};
use image::imageops::FilterType;
use image::{Rgb, RgbImage};
use nepa_model::{Nepa, NepaConfig};
use nepa_pipeline::Normalize;
use plotters::prelude::{ColorMap, RGBColor, ViridisRGB};

/// Least side of one tile, in pixels; images are enlarged by whole factors to reach it.
const TILE: u32 = 160;
/// Pixels between tiles.
const GAP: u32 = 6;
/// Share of the colour in a map; the rest is the image in grey.
pub(super) const INK: f32 = 0.65;
const HERE: Rgb<u8> = Rgb([255, 255, 255]);
const NEXT: Rgb<u8> = Rgb([255, 40, 40]);

/// One image with its maps.
#[derive(Debug)]
pub(super) struct MapSheet {
    /// The image as the model sees it.
    pub(super) photo: RgbImage,
    /// Patches of a row of the image.
    pub(super) side: usize,
    /// What is seen from each of the chosen patches.
    pub(super) rows: Vec<MapRow>,
}

/// What is seen from one patch.
#[derive(Debug)]
pub(super) struct MapRow {
    pub(super) patch: usize,
    /// Cosine of the prediction with the next patch's embedding.
    pub(super) cosine: f32,
    /// Its rank among all patches (1: the nearest).
    pub(super) rank: usize,
    /// For each of [`columns`] but the first, a value of each patch from 0 to 1.
    pub(super) maps: Vec<Vec<f32>>,
}

/// What the columns of a sheet show.
pub(super) fn columns(config: &NepaConfig) -> Vec<String> {
    let mut names = vec!["image".to_owned(), "prediction".to_owned()];
    names.extend(
        blocks(config)
            .iter()
            .map(|block| format!("attention, block {}", block + 1)),
    );
    names
}

/// The first block, the middle one and the last.
fn blocks(config: &NepaConfig) -> Vec<usize> {
    let last = config.num_hidden_layers.saturating_sub(1);
    let mut blocks = vec![0, last / 2, last];
    blocks.dedup();
    blocks
}

/// The patches that are looked at: a quarter, half and three quarters down, each at another place
/// across.
fn chosen_patches(side: usize) -> Vec<usize> {
    let places = [(1, 2), (2, 1), (3, 3)];
    let mut chosen = places
        .map(|(down, across)| (side * down / 4) * side + (side * across / 4).min(side - 1))
        .to_vec();
    // The last patch has no next one.
    chosen.retain(|patch| patch + 1 < side * side);
    chosen.dedup();
    chosen
}

/// Draws one image, `[3, S, S]`, normalised. Attention is causal, as in pretraining.
pub(super) fn draw_sheet(
    model: &Nepa,
    image: &Tensor,
    normalize: &Normalize,
) -> anyhow::Result<MapSheet> {
    let config = model.config();
    let side = config.patches_per_side();
    let patches = chosen_patches(side);
    ensure!(
        !patches.is_empty(),
        "an image of one patch has nothing to predict"
    );
    let states = model.hidden_states(&image.unsqueeze(0)?, true)?;
    let num_patches = config.num_patches();
    let unit = |x: &Tensor| -> candle_core::Result<Tensor> {
        let x = x.to_dtype(DType::F32)?;
        x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?)
    };
    let embeddings = unit(&states[0].squeeze(0)?.narrow(0, 1, num_patches)?)?;
    let predictions = unit(
        &states[states.len() - 1]
            .squeeze(0)?
            .narrow(0, 1, num_patches)?,
    )?;
    // Row p: the cosines of what is predicted after patch p with every patch.
    let cosines = predictions.matmul(&embeddings.t()?)?.to_vec2::<f32>()?;
    let mut attention = Vec::new();
    for block in blocks(config) {
        // Mean over heads, `[T, T]`.
        let map = model.attention_map(block, &states[block], true)?;
        attention.push(
            map.squeeze(0)?
                .mean(0)?
                .to_dtype(DType::F32)?
                .to_vec2::<f32>()?,
        );
    }

    let rows = patches.into_iter().map(|patch| {
        let seen = &cosines[patch];
        let cosine = seen[patch + 1];
        let nearer = seen.iter().filter(|other| **other > cosine).count();
        let attended = attention.iter().map(|map| {
            // Without the class token; the greatest is the brightest.
            let map = &map[patch + 1][1..];
            let greatest = map.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
            map.iter().map(|value| value / greatest).collect()
        });
        MapRow {
            patch,
            cosine,
            rank: nearer + 1,
            maps: std::iter::once(seen.clone()).chain(attended).collect(),
        }
    });
    Ok(MapSheet {
        photo: photo(image, normalize)?,
        side,
        rows: rows.collect(),
    })
}

impl MapSheet {
    /// All tiles in one picture: a row for each chosen patch, a column for each of [`columns`].
    pub(super) fn picture(&self) -> RgbImage {
        let size = self.photo.width();
        let factor = TILE.div_ceil(size);
        let tile = size * factor;
        let photo = image::imageops::resize(&self.photo, tile, tile, FilterType::Nearest);
        let cell = tile / self.side as u32;
        let columns = self.rows.first().map_or(1, |row| 1 + row.maps.len() as u32);
        let length = |count: u32| count * (tile + GAP) - GAP;
        let (width, height) = (length(columns), length(self.rows.len() as u32));
        let mut picture = RgbImage::from_pixel(width, height, Rgb([255, 255, 255]));
        for (number, row) in self.rows.iter().enumerate() {
            let maps = row.maps.iter();
            let maps = maps.map(|map| overlay(&photo, self.side, cell, |at| map[at]));
            for (column, mut drawn) in std::iter::once(photo.clone()).chain(maps).enumerate() {
                if column < 2 {
                    frame(&mut drawn, self.side, cell, row.patch + 1, NEXT);
                }
                frame(&mut drawn, self.side, cell, row.patch, HERE);
                let x = column as u32 * (tile + GAP);
                let y = number as u32 * (tile + GAP);
                image::imageops::replace(&mut picture, &drawn, i64::from(x), i64::from(y));
            }
        }
        picture
    }

    /// One map by itself, a few pixels a patch.
    pub(super) fn heat(&self, map: &[f32]) -> RgbImage {
        /// So that a browser that blurs what it enlarges blurs the edges only.
        const PATCH: usize = 8;
        let length = (self.side * PATCH) as u32;
        RgbImage::from_fn(length, length, |x, y| {
            let patch = (y as usize / PATCH) * self.side + x as usize / PATCH;
            let RGBColor(r, g, b) = ViridisRGB.get_color(map[patch].clamp(0.0, 1.0));
            Rgb([r, g, b])
        })
    }
}

/// The image as pixels.
fn photo(image: &Tensor, normalize: &Normalize) -> anyhow::Result<RgbImage> {
    let values = image.to_dtype(DType::F32)?.to_vec3::<f32>()?;
    let size = values[0].len() as u32;
    Ok(RgbImage::from_fn(size, size, |x, y| {
        Rgb(std::array::from_fn(|channel| {
            let value = values[channel][y as usize][x as usize];
            let value = value * normalize.std[channel] + normalize.mean[channel];
            (255.0 * value).round().clamp(0.0, 255.0) as u8
        }))
    }))
}

/// The photo in grey under a colour for each patch: `value` from 0 (dark) to 1 (bright).
fn overlay(photo: &RgbImage, side: usize, cell: u32, value: impl Fn(usize) -> f32) -> RgbImage {
    let mut map = photo.clone();
    for (x, y, pixel) in map.enumerate_pixels_mut() {
        let patch = (y / cell) as usize * side + (x / cell) as usize;
        let RGBColor(r, g, b) = ViridisRGB.get_color(value(patch).clamp(0.0, 1.0));
        let [red, green, blue] = pixel.0.map(f32::from);
        let grey = 0.299 * red + 0.587 * green + 0.114 * blue;
        pixel.0 = [r, g, b].map(|ink| (INK * f32::from(ink) + (1.0 - INK) * grey) as u8);
    }
    map
}

/// A frame around one patch.
fn frame(picture: &mut RgbImage, side: usize, cell: u32, patch: usize, colour: Rgb<u8>) {
    let (left, top) = ((patch % side) as u32 * cell, (patch / side) as u32 * cell);
    let width = (cell / 8).clamp(1, 3);
    for y in 0..cell {
        for x in 0..cell {
            if x.min(y) < width || x.max(y) >= cell - width {
                picture.put_pixel(left + x, top + y, colour);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use nepa_model::init_weights;

    use super::*;

    #[test]
    fn a_sheet_has_a_row_a_patch_and_marks_it() {
        let config = NepaConfig::tiny();
        let model = Nepa::new(&config, &init_weights(&config, 1), DType::F32, &Device::Cpu)
            .expect("a model");
        let side = config.image_size;
        let grey = Normalize::default();
        let image = Tensor::zeros((3, side, side), DType::F32, &Device::Cpu).expect("an image");
        let sheet = draw_sheet(&model, &image, &grey).expect("draws");
        let names = columns(&config);
        assert!(names[2].ends_with("block 1"));
        let factor = TILE.div_ceil(side as u32);
        let tile = side as u32 * factor;
        let picture = sheet.picture();
        let (width, height) = picture.dimensions();
        assert_eq!(width, names.len() as u32 * (tile + GAP) - GAP);
        assert_eq!(height, sheet.rows.len() as u32 * (tile + GAP) - GAP);
        // The frame's corner of the first chosen patch, in the plain image; and the mean colour
        // elsewhere.
        let cell = config.patch_size as u32 * factor;
        let across = config.patches_per_side();
        let first = chosen_patches(across)[0];
        let corner = (
            (first % across) as u32 * cell,
            (first / across) as u32 * cell,
        );
        assert_eq!(*picture.get_pixel(corner.0, corner.1), HERE);
        assert_eq!(*picture.get_pixel(corner.0 + cell, corner.1), NEXT);
        let mean = grey.mean.map(|value| (255.0 * value).round() as u8);
        assert_eq!(picture.get_pixel(0, 0).0, mean);
        for row in &sheet.rows {
            assert!((-1.0..=1.0).contains(&row.cosine) && row.rank <= config.num_patches());
            assert_eq!(row.maps.len(), names.len() - 1);
            let heat = sheet.heat(&row.maps[0]);
            assert_eq!(heat.width() as usize, 8 * across);
        }
    }
}
