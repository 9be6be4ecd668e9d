//! What each image of a micro-batch becomes: drawn once, plain data.
use serde::{Deserialize, Serialize};

use super::{MixConfig, MixError, MixMode};
use crate::random::{Stream, below, beta, unit};

/// How the images of a micro-batch are mixed. The partner of image i is image B - 1 - i.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MixPlan {
    /// Side S of the images in pixels.
    pub side: u32,
    /// What each image becomes.
    pub images: Vec<ImageMix>,
    /// Share of each target that is spread evenly over all classes.
    pub label_smoothing: f64,
}

/// What an image of a micro-batch becomes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageMix {
    /// It stays as it is.
    Alone,
    /// The sum of its share and the partner's.
    Mixup {
        /// The image's own share; the partner's is 1 minus it.
        lambda: f64,
    },
    /// A box of it shows the partner.
    CutMix(CutBox),
}

/// A box of an image, in pixels; perhaps empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutBox {
    /// First row.
    pub top: u32,
    /// After the last row.
    pub bottom: u32,
    /// First column.
    pub left: u32,
    /// After the last column.
    pub right: u32,
}

impl CutBox {
    /// The box of a drawn lambda about the pixel in row `center_y` and column `center_x` of an
    /// image of `side` x `side` pixels, as timm 1.0.22 cuts it: each side of the box is even, and
    /// what lies outside is lost.
    pub fn around(side: u32, lambda: f64, center_y: u32, center_x: u32) -> Self {
        let cut = (f64::from(side) * (1.0 - lambda).sqrt()) as u32;
        let span = |center: u32| {
            let start = center.saturating_sub(cut / 2);
            (start.min(side), (center + cut / 2).min(side))
        };
        let ((top, bottom), (left, right)) = (span(center_y), span(center_x));
        Self {
            top,
            bottom,
            left,
            right,
        }
    }

    /// Its pixels.
    pub fn area(&self) -> u64 {
        u64::from(self.bottom - self.top) * u64::from(self.right - self.left)
    }
}

impl MixPlan {
    /// Draws how `images` images of `side` x `side` pixels are mixed. `config` is one that
    /// [`MixConfig::check`] takes; the stream is this micro-batch's own
    /// ([`crate::random::micro_batch_stream`]).
    ///
    /// An error if they are an odd number and may be mixed.
    pub fn draw(
        config: &MixConfig,
        images: usize,
        side: u32,
        stream: &mut Stream,
    ) -> Result<Self, MixError> {
        config.check()?;
        if config.mixes() && !images.is_multiple_of(2) {
            return Err(MixError::Odd { images });
        }
        let mut draw = || draw_one(config, side, stream);
        let images = match config.mode {
            MixMode::Batch => vec![draw(); images],
            MixMode::Elem => (0..images).map(|_| draw()).collect(),
            MixMode::Pair => {
                // The middle image of an odd number stays alone, as all do then.
                let first: Vec<_> = (0..images.div_ceil(2)).map(|_| draw()).collect();
                let partners = first[..images / 2].iter().rev().copied();
                first.iter().copied().chain(partners).collect()
            }
        };
        Ok(Self {
            side,
            images,
            label_smoothing: config.label_smoothing,
        })
    }

    /// The image that image `i` is mixed with.
    pub fn partner(&self, i: usize) -> usize {
        self.images.len() - 1 - i
    }

    /// The share of image `i`'s own label in its target.
    pub fn lambda(&self, i: usize) -> f64 {
        match &self.images[i] {
            ImageMix::Alone => 1.0,
            ImageMix::Mixup { lambda } => *lambda,
            ImageMix::CutMix(cut) => {
                let area = f64::from(self.side) * f64::from(self.side);
                1.0 - cut.area() as f64 / area
            }
        }
    }

    /// The targets of labels, `[B]`, as `[B, K]`: each label's one-hot vector, smoothed, in its
    /// share, and the partner's in the rest (`mixup_target` of timm). An image that is mixed with
    /// none is smoothed all the same.
    pub fn targets(&self, labels: &[u32], num_classes: usize) -> Result<Vec<f32>, MixError> {
        let images = self.images.len();
        if labels.len() != images {
            let labels = labels.len();
            return Err(MixError::Labels { labels, images });
        }
        let no_class = |&label: &u32| label as usize >= num_classes;
        if let Some(position) = labels.iter().position(no_class) {
            return Err(MixError::Label {
                position,
                label: labels[position],
                num_classes,
            });
        }
        let off = self.label_smoothing / num_classes as f64;
        let on = (1.0 - self.label_smoothing + off) as f32;
        let off = off as f32;
        let mut targets = vec![0.0; images * num_classes];
        for (i, target) in targets.chunks_exact_mut(num_classes).enumerate() {
            let lambda = self.lambda(i);
            let (own, partner) = (lambda as f32, (1.0 - lambda) as f32);
            let labels = [labels[i], labels[self.partner(i)]].map(|label| label as usize);
            for (class, target) in target.iter_mut().enumerate() {
                let [at_own, at_partner] =
                    labels.map(|label| if label == class { on } else { off });
                *target = at_own * own + at_partner * partner;
            }
        }
        Ok(targets)
    }
}

/// What one image, one pair or all of them become.
fn draw_one(config: &MixConfig, side: u32, stream: &mut Stream) -> ImageMix {
    if !config.mixes() || unit(stream) >= config.probability {
        return ImageMix::Alone;
    }
    let is_cutmix = if config.mixup_alpha > 0.0 && config.cutmix_alpha > 0.0 {
        unit(stream) < config.switch_probability
    } else {
        config.cutmix_alpha > 0.0
    };
    if is_cutmix {
        let lambda = beta(stream, config.cutmix_alpha);
        let [center_y, center_x] = [(); 2].map(|()| below(stream, u64::from(side)) as u32);
        ImageMix::CutMix(CutBox::around(side, lambda, center_y, center_x))
    } else {
        let lambda = beta(stream, config.mixup_alpha);
        ImageMix::Mixup { lambda }
    }
}
