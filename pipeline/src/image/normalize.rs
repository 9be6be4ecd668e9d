//! Types of pixels, and what makes them of 8-bit values.

/// Pixel normalisation, per channel: `(rgb / 255 - mean) / std`.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Normalize {
    /// Mean of R, G, B in `[0, 1]`.
    pub mean: [f32; 3],
    /// Standard deviation of R, G, B.
    pub std: [f32; 3],
}

impl Default for Normalize {
    /// NEPA's: 0.5 and 0.5.
    fn default() -> Self {
        Self {
            mean: [0.5; 3],
            std: [0.5; 3],
        }
    }
}

/// A pixel value in host memory.
pub trait Pixel:
    bytemuck::Pod + Default + PartialEq + Send + Sync + std::fmt::Debug + 'static
{
    /// The value of an 8-bit channel value, given its normalised one.
    fn new(value: u8, normalized: f32) -> Self;
}

impl Pixel for f32 {
    fn new(_value: u8, normalized: f32) -> Self {
        normalized
    }
}

impl Pixel for half::bf16 {
    /// Rounded to nearest even.
    fn new(_value: u8, normalized: f32) -> Self {
        Self::from_f32(normalized)
    }
}

impl Pixel for u8 {
    /// As it is, not normalised.
    fn new(value: u8, _normalized: f32) -> Self {
        value
    }
}

impl Normalize {
    /// What comes in from outside where operations move a picture: the 8-bit value nearest to the
    /// mean, as timm has it.
    pub fn fill(&self) -> [u8; 3] {
        // Halves to the even number; the conversion cuts to 0..=255.
        self.mean
            .map(|mean| (255.0 * f64::from(mean)).round_ties_even() as u8)
    }

    /// The 8-bit value of a normalised one of a channel, as near as there is one.
    pub(super) fn nearest(&self, channel: usize, normalized: f32) -> u8 {
        let value = normalized * self.std[channel] + self.mean[channel];
        (value * 255.0).round_ties_even() as u8
    }

    /// The pixel of each 8-bit value, a table a channel.
    pub(super) fn tables<P: Pixel>(&self) -> [[P; 256]; 3] {
        std::array::from_fn(|channel| {
            std::array::from_fn(|value| {
                let normalized = (value as f32 / 255.0 - self.mean[channel]) / self.std[channel];
                P::new(value as u8, normalized)
            })
        })
    }
}
