//! Random erasing (Zhong et al., <https://arxiv.org/abs/1708.04896>) as timm has it in mode
//! `pixel`: one box of a view becomes noise.
use serde::{Deserialize, Serialize};

use super::AugmentError;
use crate::random::{Stream, below, uniform, unit};
use rand_core::Rng;

/// Tries before nothing is erased, as in timm.
const NUM_TRIES: usize = 10;

/// Erases a box of some views: its normalised values become standard normal draws.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RandomErasing {
    /// Probability that a view gets a box.
    pub probability: f64,
    /// Range of the box's share of the area.
    pub scale: [f64; 2],
    /// Range of the box's height over its width, drawn evenly in the logarithm.
    pub ratio: [f64; 2],
}

impl Default for RandomErasing {
    /// timm's, with the published probability.
    fn default() -> Self {
        Self {
            probability: 0.25,
            scale: [0.02, 1.0 / 3.0],
            ratio: [0.3, 1.0 / 0.3],
        }
    }
}

/// A box of a view that is erased, in pixels of the upright, flipped view; not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EraseBox {
    /// First row.
    pub top: u32,
    /// First column.
    pub left: u32,
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
    /// What the noise is drawn from, so that plans stay small and comparable.
    pub noise_seed: u64,
}

impl RandomErasing {
    /// Whether the values are possible.
    pub(super) fn check(&self) -> Result<(), AugmentError> {
        if !(0.0..=1.0).contains(&self.probability) {
            return Err(AugmentError::Value {
                field: "erase.probability",
                value: self.probability,
                rule: "from 0 to 1: it is a probability",
            });
        }
        let [min, max] = self.scale;
        if !(min > 0.0 && min <= max && max <= 1.0) {
            return Err(AugmentError::Scale {
                field: "erase.scale",
                min,
                max,
            });
        }
        let [min, max] = self.ratio;
        if !(min > 0.0 && min <= max && max.is_finite()) {
            return Err(AugmentError::Ratio {
                field: "erase.ratio",
                what: "height over width",
                min,
                max,
            });
        }
        Ok(())
    }

    /// The box of one view of `side` x `side` pixels, if it gets one.
    pub(super) fn draw(&self, side: u32, rng: &mut Stream) -> Option<EraseBox> {
        if unit(rng) >= self.probability {
            return None;
        }
        // libm: the same seed gives the same boxes on every machine.
        let log_ratio = self.ratio.map(libm::log);
        for _ in 0..NUM_TRIES {
            let share = uniform(rng, self.scale[0], self.scale[1]);
            let ratio = libm::exp(uniform(rng, log_ratio[0], log_ratio[1]));
            let [height, width] = box_size(side, share, ratio);
            if height < side && width < side {
                let top = below(rng, u64::from(side - height) + 1) as u32;
                let left = below(rng, u64::from(side - width) + 1) as u32;
                let noise_seed = rng.next_u64();
                // Of a small view a box may round to nothing, and timm erases nothing then.
                return (height > 0 && width > 0).then_some(EraseBox {
                    top,
                    left,
                    height,
                    width,
                    noise_seed,
                });
            }
        }
        None
    }
}

/// Height and width of a box with a share of the area and a ratio of height to width.
fn box_size(side: u32, share: f64, ratio: f64) -> [u32; 2] {
    let area = share * (f64::from(side) * f64::from(side));
    // Python's `round` takes halves to the even number.
    [(area * ratio).sqrt(), (area / ratio).sqrt()].map(|length| length.round_ties_even() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden_tests as golden;
    use crate::random::{Purpose, epoch_stream};

    #[test]
    fn boxes_have_timms_sizes() {
        let Some(golden) = golden::json("erase.json") else {
            return;
        };
        let rows = golden["rows"].as_array().unwrap();
        for row in rows {
            let [side, height, width] = [0, 3, 4].map(|i| row[i].as_u64().unwrap() as u32);
            let [share, ratio] = [1, 2].map(|i| row[i].as_f64().unwrap());
            assert_eq!(box_size(side, share, ratio), [height, width], "{row}");
            let fits = row[5].as_bool().unwrap();
            assert_eq!(height < side && width < side, fits, "{row}");
        }
        assert_eq!(rows.len(), 60);
    }

    fn draws(erase: RandomErasing, side: u32, views: u64) -> Vec<Option<EraseBox>> {
        erase.check().unwrap();
        let stream = |view| epoch_stream(9, 1, view, Purpose::Augment);
        (0..views)
            .map(|view| erase.draw(side, &mut stream(view)))
            .collect()
    }

    #[test]
    fn a_quarter_of_the_views_get_a_box_inside() {
        let views = 40_000;
        let boxes = draws(RandomErasing::default(), 224, views);
        let boxes = boxes.into_iter().flatten().collect::<Vec<_>>();
        let share = boxes.len() as f64 / views as f64;
        // A try of ten nearly always fits.
        assert!((share - 0.25).abs() < 0.01, "{share}");
        let (mut area, mut log_ratio) = (0.0, 0.0);
        for rect in &boxes {
            let EraseBox {
                top,
                left,
                height,
                width,
                ..
            } = *rect;
            assert!(height > 0 && width > 0 && height < 224 && width < 224);
            assert!(top + height <= 224 && left + width <= 224, "{rect:?}");
            area += f64::from(height * width) / (224.0 * 224.0);
            log_ratio += (f64::from(height) / f64::from(width)).ln();
        }
        let n = boxes.len() as f64;
        // Large flat boxes fit less often, so that the mean lies below the middle, 0.1767.
        assert!((area / n - 0.172).abs() < 0.006, "{}", area / n);
        assert!((log_ratio / n).abs() < 0.03, "{}", log_ratio / n);
        assert!(boxes.iter().any(|rect| rect.top == 0) && boxes.iter().any(|rect| rect.left == 0));
        // Each has noise of its own.
        let mut seeds = boxes.iter().map(|rect| rect.noise_seed).collect::<Vec<_>>();
        seeds.sort_unstable();
        assert!(seeds.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn what_does_not_fit_is_not_erased() {
        let always = RandomErasing {
            probability: 1.0,
            ..RandomErasing::default()
        };
        assert!(draws(always, 1, 1000).iter().all(Option::is_none));
        let whole = RandomErasing {
            scale: [1.0, 1.0],
            ..always
        };
        assert!(draws(whole, 224, 1000).iter().all(Option::is_none));
        let small = draws(always, 3, 1000);
        assert!(
            small
                .iter()
                .flatten()
                .all(|rect| rect.height * rect.width > 0)
        );
        assert!(small.iter().any(Option::is_some) && small.iter().any(Option::is_none));
    }
}
