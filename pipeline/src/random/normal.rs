//! Standard normal draws by the ziggurat (Marsaglia and Tsang, "The Ziggurat Method for Generating
//! Random Variables", Journal of Statistical Software 5(8), 2000), with 256 layers.
//!
//! By `libm` alone and in one order, so that the same stream gives the same bits on every machine;
//! crates of distributions take the platform's logarithm.
use std::sync::LazyLock;

use rand_core::Rng;

use super::uniform::unit;

const LAYERS: usize = 256;
/// Where the tail begins, and the area of each layer.
const TAIL: f64 = 3.654_152_885_361_009;
const AREA: f64 = 0.004_928_673_233_974_655;

/// The layers, from the widest at the bottom to the top: their right edges, and the density there.
struct Layers {
    edge: [f64; LAYERS + 1],
    density: [f64; LAYERS + 1],
}

static LAYERS_OF_NORMAL: LazyLock<Layers> = LazyLock::new(|| {
    let mut edge = [0.0; LAYERS + 1];
    // The bottom one is a rectangle of the same area as itself with the tail.
    edge[0] = AREA / density(TAIL);
    edge[1] = TAIL;
    for layer in 2..LAYERS {
        let below = edge[layer - 1];
        edge[layer] = (-2.0 * libm::log(AREA / below + density(below))).sqrt();
    }
    Layers {
        density: edge.map(density),
        edge,
    }
});

fn density(x: f64) -> f64 {
    libm::exp(-0.5 * x * x)
}

/// Draws standard normal numbers; holds the tables, so that many draws look them up once.
#[derive(Clone, Copy)]
pub(crate) struct Normal(&'static Layers);

impl Default for Normal {
    fn default() -> Self {
        Self(&LAYERS_OF_NORMAL)
    }
}

impl Normal {
    #[inline]
    pub(crate) fn draw(self, rng: &mut impl Rng) -> f64 {
        let Layers { edge, density } = self.0;
        loop {
            let bits = rng.next_u64();
            let layer = (bits & 0xff) as usize;
            // 53 bits that the layer has no part in, the highest of them the sign: uniform in [-1, 1).
            let x = (bits as i64 >> 11) as f64 * (1.0 / (1u64 << 52) as f64) * edge[layer];
            if x.abs() < edge[layer + 1] {
                return x;
            }
            if layer == 0 {
                return tail(rng).copysign(x);
            }
            let height = density[layer] + (density[layer + 1] - density[layer]) * unit(rng);
            if height < self::density(x) {
                return x;
            }
        }
    }
}

/// A draw from beyond [`TAIL`] (Marsaglia, 1964).
#[cold]
fn tail(rng: &mut impl Rng) -> f64 {
    loop {
        // 1 - unit: never 0.
        let x = -libm::log(1.0 - unit(rng)) / TAIL;
        let y = -libm::log(1.0 - unit(rng));
        if 2.0 * y >= x * x {
            return TAIL + x;
        }
    }
}

/// A standard normal number.
pub fn normal(rng: &mut impl Rng) -> f64 {
    Normal::default().draw(rng)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, epoch_stream};

    #[test]
    fn layers_of_one_area_end_at_the_top() {
        let Layers { edge, density } = &*LAYERS_OF_NORMAL;
        for layer in 1..LAYERS {
            let area = edge[layer] * (density[layer + 1] - density[layer]);
            assert!((area - AREA).abs() < 1e-12, "layer {layer}: {area}");
        }
        assert!(edge.is_sorted_by(|below, above| below > above));
    }

    #[test]
    fn draws_are_standard_normal() {
        let mut rng = epoch_stream(1, 2, 3, Purpose::Augment);
        let n = 1_000_000;
        let draws: Vec<f64> = (0..n).map(|_| normal(&mut rng)).collect();
        let n = f64::from(n);
        let moment = |power| draws.iter().map(|x| x.powi(power)).sum::<f64>() / n;
        for (power, expected, tolerance) in [
            (1, 0.0, 0.005),
            (2, 1.0, 0.007),
            (3, 0.0, 0.02),
            (4, 3.0, 0.05),
        ] {
            let found = moment(power);
            assert!(
                (found - expected).abs() < tolerance,
                "moment {power}: {found}"
            );
        }
        // Share beyond, of both sides: erfc(x / sqrt 2). The last is that of the tail alone.
        for (beyond, expected) in [
            (0.5, 0.61708),
            (1.0, 0.31731),
            (2.0, 0.04550),
            (TAIL, 0.000_258),
        ] {
            let share = draws.iter().filter(|x| x.abs() > beyond).count() as f64 / n;
            let tolerance = 5.0 * f64::sqrt(expected / n);
            assert!(
                (share - expected).abs() < tolerance,
                "beyond {beyond}: {share}"
            );
        }
    }

    /// What an erased box holds must not depend on the machine: these bits are for all of them.
    #[test]
    fn bits_are_the_same_everywhere() {
        let mut rng = epoch_stream(0, 0, 0, Purpose::Augment);
        let mut fold = 0u64;
        for _ in 0..100_000 {
            fold = fold.rotate_left(5) ^ normal(&mut rng).to_bits();
        }
        assert_eq!(fold, FOLD);
    }

    const FOLD: u64 = 997_493_625_329_970_874;
}
