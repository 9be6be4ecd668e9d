//! Initial weights from counter-based random numbers, the same on every machine and whatever the
//! order: one stream a weight, a function of (seed, name).
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::weights::CLASSIFIER_WEIGHT;
use crate::{NepaConfig, ParamSpec, Weights};

/// What a stream of random numbers is for; different purposes never share numbers.
#[derive(Debug, Clone, Copy)]
#[repr(u64)]
pub(crate) enum Purpose {
    /// Initial weights.
    Weights = 101,
    /// The factors of the rotary coordinates.
    Rotary = 102,
    /// Branches that are dropped.
    DropPath = 103,
    /// Patches that are masked.
    Mask = 104,
}

/// The stream of (seed, a, b) for one purpose.
pub(crate) fn stream(seed: u64, a: u64, b: u64, purpose: Purpose) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&a.to_le_bytes());
    key[16..24].copy_from_slice(&b.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(purpose as u64);
    rng
}

/// Uniform in `[0, 1)` with 53 random bits.
pub(crate) fn unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// A name as a number (FNV-1a, 64 bits).
fn name_number(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Where the normal distribution is cut, in absolute terms, as PyTorch's `trunc_normal_` does by
/// default.
const CUT: f64 = 2.0;

/// Fills with normal numbers of that standard deviation, drawn again beyond the cut. `libm` gives
/// the same bits on every machine.
fn fill_truncated_normal(values: &mut [f32], std: f64, rng: &mut ChaCha8Rng) {
    let mut filled = 0;
    while filled < values.len() {
        // Box-Muller; 1 - u is in (0, 1], so that the logarithm is finite.
        let radius = std * libm::sqrt(-2.0 * libm::log(1.0 - unit(rng)));
        let angle = std::f64::consts::TAU * unit(rng);
        for value in [radius * libm::cos(angle), radius * libm::sin(angle)] {
            if value.abs() <= CUT && filled < values.len() {
                values[filled] = value as f32;
                filled += 1;
            }
        }
    }
}

/// Initial weights as published: truncated normal (std `initializer_range`, cut at +-2) for
/// matrices, the convolution and the class token; biases 0; LayerNorm 1 and 0; LayerScale
/// `layerscale_value`. A classifier's head starts at 0, as after the published conversion: its
/// first loss is that of a guess, and the encoder's first gradient is 0. The mask token is drawn as
/// the class token: LayerNorm divides by a length, which must not be 0.
pub fn init_weights(config: &NepaConfig, seed: u64) -> Weights {
    let specs = ParamSpec::all(config);
    let mut flat = vec![0.0; specs.iter().map(ParamSpec::len).sum()];
    for spec in &specs {
        let values = &mut flat[spec.range()];
        if spec.name.rsplit('.').next() == Some("bias") || spec.name == CLASSIFIER_WEIGHT {
            values.fill(0.0);
        } else if spec.name.ends_with("layer_scale.lambda1") {
            values.fill(config.layerscale_value.unwrap_or(1.0) as f32);
        } else if spec.shape.len() == 1 {
            values.fill(1.0);
        } else {
            let mut rng = stream(seed, name_number(&spec.name), 0, Purpose::Weights);
            fill_truncated_normal(values, config.initializer_range, &mut rng);
        }
    }
    Weights { specs, flat }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_weights_in_any_model_that_has_them() {
        let (small, deep) = (
            NepaConfig::tiny(),
            NepaConfig {
                num_hidden_layers: 5,
                use_gated_mlp: true,
                ..NepaConfig::tiny()
            },
        );
        let (a, b) = (init_weights(&small, 1337), init_weights(&deep, 1337));
        for spec in &a.specs {
            assert_eq!(
                a.get(&spec.name).map(|(_, v)| v),
                b.get(&spec.name).map(|(_, v)| v),
                "{}",
                spec.name
            );
        }
        assert_ne!(a.flat, init_weights(&small, 1338).flat);
        // Pinned: another machine or version must give these very bits.
        let (_, cls) = a.get("vit_nepa.embeddings.cls_token").expect("exists");
        assert_eq!(
            cls[..3].iter().map(|v| v.to_bits()).collect::<Vec<_>>(),
            PINNED
        );
    }

    const PINNED: [u32; 3] = [3_125_288_075, 1_024_937_460, 1_008_340_666];

    #[test]
    fn values_are_distributed_as_published() {
        let config = NepaConfig {
            hidden_size: 192,
            intermediate_size: 768,
            ..NepaConfig::tiny()
        };
        let weights = init_weights(&config, 7);
        for spec in &weights.specs {
            let values = &weights.flat[spec.range()];
            if spec.shape.len() > 1 && spec.len() > 10_000 {
                let n = values.len() as f64;
                let mean = values.iter().map(|v| *v as f64).sum::<f64>() / n;
                let std = (values
                    .iter()
                    .map(|v| (*v as f64 - mean).powi(2))
                    .sum::<f64>()
                    / n)
                    .sqrt();
                assert!(
                    mean.abs() < 5.0 * 0.02 / n.sqrt() && (std / 0.02 - 1.0).abs() < 0.03,
                    "{}: {mean} {std}",
                    spec.name
                );
            }
        }
        let wide = init_weights(
            &NepaConfig {
                initializer_range: 3.0,
                ..config
            },
            7,
        );
        assert!(
            wide.flat.iter().all(|v| v.abs() <= 2.0),
            "cut at +-2, absolute"
        );
    }
}
