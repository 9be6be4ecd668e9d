//! RandAugment (Cubuk et al., <https://arxiv.org/abs/1909.13719>) as timm has it in
//! `rand-m9-mstd0.5-inc1`: which operations a sample gets, and how strong.
use serde::{Deserialize, Serialize};

use super::operation::MAX_LEVEL;
use super::{AugmentError, Operation};
use crate::random::{Stream, below, normal, unit};

/// Most operations of one image; more are surely mistaken.
const MAX_OPERATIONS: u32 = 32;

/// Some operations for each view, drawn uniformly and with replacement from the fifteen of timm's
/// "increasing" set ([`Operation`]); each is applied with a probability, at a level of its own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RandAugment {
    /// Operations drawn for each view.
    pub operations: u32,
    /// Mean of the level, 0 to 10.
    pub magnitude: f64,
    /// Standard deviation of the level, which is cut to 0..=10 afterwards; 0 for a fixed level.
    pub magnitude_std: f64,
    /// Probability that a drawn operation is applied.
    pub probability: f64,
}

impl Default for RandAugment {
    /// `rand-m9-mstd0.5-inc1`.
    fn default() -> Self {
        Self {
            operations: 2,
            magnitude: 9.0,
            magnitude_std: 0.5,
            probability: 0.5,
        }
    }
}

impl RandAugment {
    /// Whether the values are possible.
    pub(super) fn check(&self) -> Result<(), AugmentError> {
        let field = |field, value, rule| Err(AugmentError::Value { field, value, rule });
        if !(1..=MAX_OPERATIONS).contains(&self.operations) {
            let operations = f64::from(self.operations);
            return field("rand_augment.operations", operations, "from 1 to 32");
        }
        if !(0.0..=MAX_LEVEL).contains(&self.magnitude) {
            return field("rand_augment.magnitude", self.magnitude, "from 0 to 10");
        }
        if !(0.0..f64::INFINITY).contains(&self.magnitude_std) {
            let rule = "finite and not negative";
            return field("rand_augment.magnitude_std", self.magnitude_std, rule);
        }
        if !(0.0..=1.0).contains(&self.probability) {
            let rule = "from 0 to 1: it is a probability";
            return field("rand_augment.probability", self.probability, rule);
        }
        Ok(())
    }

    /// The operations of one view, in the order in which they are applied.
    pub(super) fn draw(&self, rng: &mut Stream) -> Vec<Operation> {
        let mut operations = Vec::new();
        for _ in 0..self.operations {
            let index = below(rng, Operation::COUNT);
            if unit(rng) >= self.probability {
                continue;
            }
            let level = self.magnitude + self.magnitude_std * normal(rng);
            let negative = unit(rng) < 0.5;
            operations.push(Operation::at_level(
                index,
                level.clamp(0.0, MAX_LEVEL),
                negative,
            ));
        }
        operations
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden_tests as golden;
    use crate::random::{Purpose, epoch_stream};

    /// timm's name of operation number `index`.
    const NAMES: [&str; 15] = [
        "AutoContrast",
        "Equalize",
        "Invert",
        "Rotate",
        "PosterizeIncreasing",
        "SolarizeIncreasing",
        "SolarizeAdd",
        "ColorIncreasing",
        "ContrastIncreasing",
        "BrightnessIncreasing",
        "SharpnessIncreasing",
        "ShearX",
        "ShearY",
        "TranslateXRel",
        "TranslateYRel",
    ];

    /// The number of an operation in the list, and its argument.
    fn parts(operation: Operation) -> (usize, f64) {
        match operation {
            Operation::AutoContrast => (0, 0.0),
            Operation::Equalize => (1, 0.0),
            Operation::Invert => (2, 0.0),
            Operation::Rotate(degrees) => (3, degrees),
            Operation::Posterize(bits) => (4, bits.into()),
            Operation::Solarize(from) => (5, from.into()),
            Operation::SolarizeAdd(add) => (6, add.into()),
            Operation::Color(factor) => (7, factor),
            Operation::Contrast(factor) => (8, factor),
            Operation::Brightness(factor) => (9, factor),
            Operation::Sharpness(factor) => (10, factor),
            Operation::ShearX(shear) => (11, shear),
            Operation::ShearY(shear) => (12, shear),
            Operation::TranslateX(share) => (13, share),
            Operation::TranslateY(share) => (14, share),
        }
    }

    #[test]
    fn arguments_of_levels_are_timms_to_the_bit() {
        let Some(golden) = golden::json("ops.json") else {
            return;
        };
        let mut seen = 0;
        for entry in golden["levels"].as_array().unwrap() {
            let name = entry["op"].as_str().unwrap();
            let index = NAMES.iter().position(|known| *known == name).unwrap();
            for (sign, negative) in [("plus", false), ("minus", true)] {
                let Some(expected) = entry[sign][0].as_f64() else {
                    continue;
                };
                let level = entry["level"].as_f64().unwrap();
                let operation = Operation::at_level(index as u64, level, negative);
                let (number, argument) = parts(operation);
                assert_eq!(number, index);
                assert!(
                    argument.to_bits() == expected.to_bits(),
                    "{name} at {level}: {argument}, {expected}"
                );
                seen += 1;
            }
        }
        assert!(seen > 500, "{seen} arguments");
    }

    fn draws(rand_augment: RandAugment, views: u64) -> Vec<Vec<Operation>> {
        rand_augment.check().unwrap();
        let stream = |view| epoch_stream(3, 1, view, Purpose::Augment);
        (0..views)
            .map(|view| rand_augment.draw(&mut stream(view)))
            .collect()
    }

    #[test]
    fn operations_are_drawn_alike_and_half_of_them_applied() {
        let views = 40_000;
        let all = draws(RandAugment::default(), views);
        let mut lengths = [0; 3];
        let (mut counts, mut negative) = ([0i32; 15], [0i32; 15]);
        for operations in &all {
            lengths[operations.len()] += 1;
            for &operation in operations {
                let (index, argument) = parts(operation);
                counts[index] += 1;
                negative[index] +=
                    i32::from(argument < if (7..11).contains(&index) { 1.0 } else { 0.0 });
            }
        }
        // Binomial of two with a half, and 40,000 in all over fifteen.
        for (length, share) in [0.25, 0.5, 0.25].into_iter().enumerate() {
            let found = f64::from(lengths[length]) / views as f64;
            assert!((found - share).abs() < 0.01, "{length} operations: {found}");
        }
        for (index, count) in counts.into_iter().enumerate() {
            assert!((2667 - count).abs() < 250, "{}: {count}", NAMES[index]);
            // Of those with two directions half go each way.
            if index == 3 || index >= 7 {
                let share = f64::from(negative[index]) / f64::from(count);
                assert!((share - 0.5).abs() < 0.06, "{}: {share}", NAMES[index]);
            }
        }
        // With replacement: a fifteenth of the pairs are twins.
        let pairs = all.iter().filter(|operations| operations.len() == 2);
        let twins = pairs
            .filter(|pair| parts(pair[0]).0 == parts(pair[1]).0)
            .count();
        let share = twins as f64 / f64::from(lengths[2]);
        assert!((share - 1.0 / 15.0).abs() < 0.012, "{share}");
    }

    #[test]
    fn levels_are_normal_and_cut() {
        // Degrees of turns are three times the level.
        let levels = |rand_augment| {
            let all = draws(rand_augment, 60_000);
            let turns = all
                .into_iter()
                .flatten()
                .filter_map(|operation| match operation {
                    Operation::Rotate(degrees) => Some(degrees.abs() / 3.0),
                    _ => None,
                });
            turns.collect::<Vec<f64>>()
        };
        let found = levels(RandAugment::default());
        let n = found.len() as f64;
        let mean = found.iter().sum::<f64>() / n;
        // A normal of 9 and 0.5 that is cut at 10 has a mean of 8.9958.
        assert!((mean - 8.9958).abs() < 0.03, "{mean}");
        let at_the_end = found.iter().filter(|&&level| level >= 10.0).count() as f64 / n;
        assert!((at_the_end - 0.02275).abs() < 0.008, "{at_the_end}");
        let wide = levels(RandAugment {
            magnitude: 5.0,
            magnitude_std: 50.0,
            ..RandAugment::default()
        });
        assert!(wide.iter().all(|level| (0.0..=10.0).contains(level)));
        assert!(wide.contains(&0.0) && wide.contains(&10.0));
        let fixed = levels(RandAugment {
            magnitude: 4.5,
            magnitude_std: 0.0,
            ..RandAugment::default()
        });
        assert!(fixed.iter().all(|&level| (level - 4.5).abs() < 1e-12));
    }
}
