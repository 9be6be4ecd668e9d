//! Two-dimensional rotary positions: the random factors of a forward pass and the table of cosines
//! and sines.
use std::f64::consts::TAU;

use crate::NepaConfig;
use crate::init::{Purpose, stream, unit};

/// The random factors of the rotary coordinates of one forward pass; the default changes nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeDraw {
    /// Added to (y, x).
    pub shift: [f64; 2],
    /// Factors of (y, x).
    pub jitter: [f64; 2],
    /// One factor for both.
    pub rescale: f64,
}

impl Default for RopeDraw {
    fn default() -> Self {
        Self {
            shift: [0.0; 2],
            jitter: [1.0; 2],
            rescale: 1.0,
        }
    }
}

/// Cosine and sine for every token and the first half of a head's d values (the second half has the
/// same), `[T, d / 2]`.
#[derive(Debug)]
pub(crate) struct RotaryTable {
    pub(crate) cos: Vec<f64>,
    pub(crate) sin: Vec<f64>,
}

impl RopeDraw {
    /// Draws from (seed, step, micro-batch) with the ranges of `config`; the same on every machine.
    /// All five numbers are always taken from the stream, so that turning one on leaves the others
    /// as they were.
    pub fn draw(config: &NepaConfig, seed: u64, step: u64, micro_batch: u64) -> Self {
        let mut rng = stream(seed, step, micro_batch, Purpose::Rotary);
        let mut uniform = |half_width: f64| half_width * (2.0 * unit(&mut rng) - 1.0);
        let shift = config.pos_embed_shift.unwrap_or(0.0);
        let shift = [uniform(shift), uniform(shift)];
        let mut log_uniform =
            |range: Option<f64>| libm::exp(uniform(libm::log(range.unwrap_or(1.0))));
        let jitter = [
            log_uniform(config.pos_embed_jitter),
            log_uniform(config.pos_embed_jitter),
        ];
        Self {
            shift,
            jitter,
            rescale: log_uniform(config.pos_embed_rescale),
        }
    }

    /// The table for the class token (never rotated) and the patches of a grid of rows and columns,
    /// row by row. A model without rotary positions has the class token's throughout.
    pub(crate) fn table(&self, config: &NepaConfig, grid: [usize; 2]) -> RotaryTable {
        let quarter = config.head_size() / 4;
        let half = 2 * quarter;
        let mut table = RotaryTable {
            cos: vec![1.0; half],
            sin: vec![0.0; half],
        };
        if !config.use_rope {
            let values = (1 + grid[0] * grid[1]) * half;
            table.cos.resize(values, 1.0);
            table.sin.resize(values, 0.0);
            return table;
        }
        let frequencies: Vec<f64> = (0..quarter)
            .map(|k| libm::pow(config.rope_theta, -(k as f64) / quarter as f64))
            .collect();
        // A row or a column of patches has the same angles throughout: once each, since a GPU waits
        // for the table.
        let of_axis = [0, 1].map(|axis| {
            let angles = (0..grid[axis]).flat_map(|index| {
                let centre = 2.0 * (index as f64 + 0.5) / grid[axis] as f64 - 1.0;
                let coordinate = (centre + self.shift[axis]) * self.jitter[axis] * self.rescale;
                frequencies
                    .iter()
                    .map(move |frequency| TAU * coordinate * frequency)
            });
            let (mut cos, mut sin) = (Vec::new(), Vec::new());
            for angle in angles {
                cos.push(libm::cos(angle));
                sin.push(libm::sin(angle));
            }
            [cos, sin]
        });
        for patch in 0..grid[0] * grid[1] {
            let place = [patch / grid[1], patch % grid[1]];
            for (axis, index) in place.into_iter().enumerate() {
                let [cos, sin] = &of_axis[axis];
                let angles = index * quarter..(index + 1) * quarter;
                table.cos.extend_from_slice(&cos[angles.clone()]);
                table.sin.extend_from_slice(&sin[angles]);
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_log_uniform_and_repeatable() {
        let config = NepaConfig::tiny();
        let draws: Vec<f64> = (0..2000)
            .map(|step| RopeDraw::draw(&config, 1337, step, 0).rescale)
            .collect();
        assert!(draws.iter().all(|r| (0.5..=2.0).contains(r)));
        let mean_log = draws.iter().map(|r| r.ln()).sum::<f64>() / 2000.0;
        assert!(mean_log.abs() < 0.05, "{mean_log}");
        let upper = draws.iter().filter(|r| r.ln() > 0.5 * 2f64.ln()).count();
        assert!(
            (400..600).contains(&upper),
            "a quarter of the draws, not {upper} of 2000"
        );
        let draw = RopeDraw::draw(&config, 1337, 5, 1);
        assert_eq!(draw, RopeDraw::draw(&config, 1337, 5, 1));
        assert_ne!(draw, RopeDraw::draw(&config, 1337, 5, 0));
        assert_ne!(draw, RopeDraw::draw(&config, 1337, 6, 1));
        assert_eq!(
            (draw.shift, draw.jitter),
            ([0.0; 2], [1.0; 2]),
            "off by default"
        );
    }

    #[test]
    fn each_range_takes_effect_alone() {
        let plain = RopeDraw::draw(&NepaConfig::tiny(), 1, 2, 3);
        let all = NepaConfig {
            pos_embed_shift: Some(0.25),
            pos_embed_jitter: Some(1.5),
            ..NepaConfig::tiny()
        };
        let draw = RopeDraw::draw(&all, 1, 2, 3);
        assert_eq!(draw.rescale.to_bits(), plain.rescale.to_bits());
        assert!(
            draw.shift.iter().all(|s| s.abs() <= 0.25 && *s != 0.0)
                && draw.shift[0].to_bits() != draw.shift[1].to_bits()
        );
        assert!(
            draw.jitter.iter().all(|j| (1.0 / 1.5..=1.5).contains(j))
                && draw.jitter[0].to_bits() != draw.jitter[1].to_bits()
        );
        let none = NepaConfig {
            pos_embed_rescale: None,
            ..NepaConfig::tiny()
        };
        assert_eq!(RopeDraw::draw(&none, 1, 2, 3), RopeDraw::default());
    }
}
