//! Draws from Beta(alpha, alpha).
use rand_core::Rng;

use super::normal::normal;
use super::uniform::unit;

/// A number from Beta(`alpha`, `alpha`), in `[0, 1]`; `alpha` is positive and finite.
///
/// Up to 1 by Jöhnk's method (Metrika 8, 1964), in logarithms where its powers underflow; above by
/// two gamma draws.
pub fn beta(rng: &mut impl Rng, alpha: f64) -> f64 {
    assert!(alpha > 0.0 && alpha.is_finite(), "Beta({alpha}, {alpha})");
    if alpha > 1.0 {
        let (x, y) = (gamma(rng, alpha), gamma(rng, alpha));
        return x / (x + y);
    }
    loop {
        // 1 - unit: in (0, 1], so that the logarithms are finite.
        let [x, y] = [(); 2].map(|()| libm::log(1.0 - unit(rng)) / alpha);
        if libm::exp(x) + libm::exp(y) <= 1.0 {
            // x / (x + y) of the powers, both divided by the larger.
            return 1.0 / (1.0 + libm::exp(y - x));
        }
    }
}

/// A number from Gamma(`shape`), shape at least 1 (Marsaglia and Tsang, "A Simple Method for
/// Generating Gamma Variables", ACM TOMS 26(3), 2000).
fn gamma(rng: &mut impl Rng, shape: f64) -> f64 {
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = 1.0 + c * x;
        if v <= 0.0 {
            continue;
        }
        let v = v * v * v;
        let u = 1.0 - unit(rng);
        if libm::log(u) < 0.5 * x * x + d * (1.0 - v + libm::log(v)) {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Purpose, epoch_stream};

    #[test]
    fn moments_are_those_of_beta() {
        let mut rng = epoch_stream(4, 0, 0, Purpose::MixImages);
        let n = 100_000;
        for alpha in [0.1, 0.4, 0.8, 1.0, 1.5, 8.0] {
            let draws: Vec<f64> = (0..n).map(|_| beta(&mut rng, alpha)).collect();
            assert!(draws.iter().all(|x| (0.0..=1.0).contains(x)));
            let mean = draws.iter().sum::<f64>() / f64::from(n);
            let moment = |power| {
                let powers = draws.iter().map(|x| (x - 0.5).powi(power));
                powers.sum::<f64>() / f64::from(n)
            };
            let variance = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((mean - 0.5).abs() < 0.006, "alpha {alpha}: mean {mean}");
            assert!(
                (moment(2) / variance - 1.0).abs() < 0.03,
                "alpha {alpha}: variance {}",
                moment(2)
            );
            // E (x - 1/2)^4 = 3 / (16 (2 alpha + 1) (2 alpha + 3)).
            let fourth = 3.0 / (16.0 * (2.0 * alpha + 1.0) * (2.0 * alpha + 3.0));
            assert!((moment(4) / fourth - 1.0).abs() < 0.05, "alpha {alpha}");
        }
    }

    #[test]
    fn extreme_shapes_give_numbers() {
        let mut rng = epoch_stream(5, 0, 0, Purpose::MixImages);
        let mut ends = [0, 0];
        for _ in 0..1000 {
            let near_an_end = beta(&mut rng, 1e-6);
            assert!((near_an_end - 0.5).abs() > 0.499, "{near_an_end}");
            ends[usize::from(near_an_end > 0.5)] += 1;
            let in_the_middle = beta(&mut rng, 1e6);
            assert!((in_the_middle - 0.5).abs() < 0.01, "{in_the_middle}");
        }
        assert!(ends.iter().all(|&count| count > 400), "{ends:?}");
    }
}
