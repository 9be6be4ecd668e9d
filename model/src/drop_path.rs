//! Stochastic depth (arXiv 1603.09382): while training, a branch of a block is left out for some of
//! the images, and more often the deeper the block.
use crate::NepaConfig;
use crate::init::{Purpose, stream, unit};

/// Rates and draws of a model's branches. It has no state: a draw is a function of (seed, step,
/// micro-batch), so a run that goes on draws what it would have drawn.
#[derive(Debug, Clone, Copy)]
pub struct DropPath;

impl DropPath {
    /// The rate of each block, from 0 to `drop_path_prob`, as `torch.linspace` has them in f32.
    pub fn rates(config: &NepaConfig) -> Vec<f64> {
        let (end, blocks) = (config.drop_path_prob as f32, config.num_hidden_layers);
        // From both ends to the middle, as PyTorch computes it; one block has the start's rate.
        let step = end / blocks.saturating_sub(1).max(1) as f32;
        (0..blocks)
            .map(|block| {
                let rate = if block < blocks / 2 || blocks == 1 {
                    step * block as f32
                } else {
                    end - step * (blocks - 1 - block) as f32
                };
                f64::from(rate)
            })
            .collect()
    }

    /// What each branch is multiplied by, `[blocks, 2, images]`: for each block attention, then
    /// MLP, 0 where it is dropped and 1 / (1 - rate) where not. None if the rate is 0 throughout.
    ///
    /// Each factor has its own number of the stream, also where the rate is 0: another rate, or a
    /// micro-batch of more blocks, leaves the other numbers as they were.
    pub fn draw(
        config: &NepaConfig,
        seed: u64,
        step: u64,
        micro_batch: u64,
        images: usize,
    ) -> Option<Vec<f32>> {
        if config.drop_path_prob == 0.0 {
            return None;
        }
        let mut rng = stream(seed, step, micro_batch, Purpose::DropPath);
        let rates = Self::rates(config);
        let branches = rates.iter().flat_map(|rate| [rate; 2]);
        let factors = branches.flat_map(|rate| std::iter::repeat_n(1.0 - rate, images));
        Some(
            factors
                .map(|kept| {
                    if unit(&mut rng) < kept {
                        (1.0 / kept) as f32
                    } else {
                        0.0
                    }
                })
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(drop_path_prob: f64, num_hidden_layers: usize) -> NepaConfig {
        NepaConfig {
            num_hidden_layers,
            drop_path_prob,
            ..NepaConfig::tiny()
        }
    }

    #[test]
    fn rates_rise_in_f32() {
        // As the published code has them (`info.json` of the golden folder).
        let rates = DropPath::rates(&config(0.3, 3));
        let expected = [0.0, 0.150_000_005_960_464_48, 0.300_000_011_920_928_96];
        assert_eq!(rates.len(), 3);
        for (rate, expected) in rates.iter().zip(expected) {
            assert_eq!(rate.to_bits(), f64::to_bits(expected));
        }
        assert_eq!(
            DropPath::rates(&config(0.3, 1)),
            [0.0],
            "torch.linspace(0, r, 1)"
        );
        assert_eq!(
            DropPath::rates(&config(0.3, 2))[1].to_bits(),
            f64::from(0.3f32).to_bits()
        );
        let rates = DropPath::rates(&NepaConfig {
            drop_path_prob: 0.2,
            ..NepaConfig::large_14()
        });
        assert!(rates.is_sorted() && rates[0] == 0.0);
        assert_eq!(rates[23].to_bits(), f64::from(0.2f32).to_bits());
        for (block, rate) in rates.iter().enumerate() {
            assert!(
                (rate - 0.2 * block as f64 / 23.0).abs() < 2e-8,
                "{block}: {rate}"
            );
        }
    }

    #[test]
    fn branches_are_dropped_at_their_rate_and_kept_ones_made_up_for() {
        let (config, images) = (config(0.4, 3), 4000);
        let factors = DropPath::draw(&config, 5, 0, 0, images).expect("a draw");
        assert_eq!(factors.len(), 3 * 2 * images);
        let rates = DropPath::rates(&config);
        for (branch, factors) in factors.chunks_exact(images).enumerate() {
            let rate = rates[branch / 2];
            let kept = (1.0 / (1.0 - rate)) as f32;
            let dropped = factors.iter().filter(|factor| **factor == 0.0).count();
            let others = factors
                .iter()
                .filter(|factor| factor.to_bits() == kept.to_bits());
            assert_eq!(others.count() + dropped, images, "0 or 1 / (1 - rate)");
            let expected = rate * images as f64;
            let off = 5.0 * (expected * (1.0 - rate)).sqrt();
            assert!(
                (dropped as f64 - expected).abs() <= off,
                "{branch}: {dropped}"
            );
        }
        // Attention and MLP of a block, and its images, have draws of their own.
        let of_branch = |branch: usize| &factors[branch * images..(branch + 1) * images];
        assert_ne!(of_branch(2), of_branch(3));
    }

    #[test]
    fn a_draw_is_a_function_of_seed_step_and_micro_batch() {
        let config = config(0.3, 3);
        let draw = |seed, step, micro| DropPath::draw(&config, seed, step, micro, 16);
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        for other in [draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)] {
            assert_ne!(draw(1, 2, 3), other);
        }
        assert_eq!(
            DropPath::draw(&super::tests::config(0.0, 3), 1, 2, 3, 4),
            None
        );
        // A greater rate drops what a smaller one dropped, and more.
        let more = DropPath::draw(&super::tests::config(0.6, 3), 1, 2, 3, 16).expect("a draw");
        let fewer = draw(1, 2, 3).expect("a draw");
        assert!(
            fewer
                .iter()
                .zip(&more)
                .all(|(fewer, more)| *fewer > 0.0 || *more == 0.0)
        );
        // Pinned: another machine or version must give these very factors.
        let dropped: Vec<usize> = (0..96).filter(|i| fewer[*i] == 0.0).collect();
        assert_eq!(dropped, PINNED);
    }

    const PINNED: [usize; 15] = [45, 55, 57, 59, 70, 71, 72, 80, 81, 82, 83, 85, 88, 90, 92];
}
