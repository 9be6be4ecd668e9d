//! Tests of linear probes: what is found is the minimum of the problem as it is stated.
use faer::Mat;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::logistic::minimize;
use super::scaling::{Moments, Scaling};
use super::*;

/// Numbers of about a normal distribution.
struct Noise(ChaCha8Rng);

impl Noise {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn next(&mut self) -> f32 {
        let uniform = |random: &mut ChaCha8Rng| random.next_u32() as f32 / u32::MAX as f32;
        (0..12).map(|_| uniform(&mut self.0)).sum::<f32>() - 6.0
    }
}

/// Three classes on a line in the first two of `width` features; the second repeats the first
/// but for a thousandth, the rest is noise, and the last is constant.
fn classes(seed: u64, count: usize, width: usize, distance: f32) -> Features {
    let mut noise = Noise::new(seed);
    let mut features = Features::new(width);
    for row in 0..count {
        let class = row % 3;
        let value = distance * class as f32 + noise.next();
        let mut feature = vec![100.0 + value, 5.0 * value + 1e-3 * noise.next()];
        feature.extend((2..width - 1).map(|_| noise.next()));
        feature.push(7.0);
        features.push(&feature, class);
    }
    features
}

fn both(train: &Features, test: &Features) -> [Probe; 2] {
    let probes = LinearProbes::new(train, test).expect("features");
    [
        probes.ridge(),
        probes.logistic_regression(&|_| ()).expect("a probe"),
    ]
}

#[test]
fn separate_classes_are_told_apart() {
    let (train, test) = (classes(1, 300, 6, 20.0), classes(2, 90, 6, 20.0));
    let [ridge, logistic] = both(&train, &test);
    for probe in [ridge, logistic] {
        assert!(probe.converged);
        // On a line, least squares cannot give the class in the middle the greatest score
        // everywhere; 2 of 3 it must.
        assert!(probe.accuracy.share() > 0.6, "{probe:?}");
        assert_eq!((probe.accuracy.total, probe.held_out.total), (90, 30));
    }
    assert_eq!(logistic.accuracy.right, 90, "{logistic:?}");
}

/// At the minimum the gradient of the problem as stated is zero: computed here in double
/// precision, without components or scales.
#[test]
fn logistic_regression_finds_the_minimum() {
    for (rows, width) in SIZES {
        let train = classes(3, rows, width, 1.0);
        let scaling = Scaling::new(&train).expect("a scaling");
        let plain = scaling.part(&train, |_| true);
        let (scaling, variances) = scaling.rotated(&Moments::new(&plain)).expect("components");
        let part = scaling.part(&train, |_| true);
        let components = scaling.components.as_ref().expect("components");
        for penalty in [1.0, 1e-3] {
            let start = Mat::zeros(part.columns, part.num_classes);
            let (found, converged) = minimize(&part, &variances, penalty, &start).expect("a fit");
            assert!(converged);
            // Back to weights of the features themselves.
            let weights = Mat::from_fn(width + 1, 3, |column, class| {
                if column == width {
                    return f64::from(found[(width, class)]);
                }
                let along = |component| {
                    f64::from(components[(column, component)])
                        * f64::from(found[(component, class)])
                };
                (0..width).map(along).sum()
            });
            let mut gradient = Mat::<f64>::zeros(width + 1, 3);
            for (row, own) in plain.x.chunks_exact(plain.columns).zip(&plain.classes) {
                let powers = [0, 1, 2].map(|class| dot(row, &weights, class).exp());
                for class in 0..3 {
                    let target = f64::from(u8::from(class == *own));
                    let error = powers[class] / powers.iter().sum::<f64>() - target;
                    for (column, x) in row.iter().enumerate() {
                        gradient[(column, class)] += error * f64::from(*x) / rows as f64;
                    }
                }
            }
            assert_balance(&gradient, &weights, penalty, 1e-4);
        }
    }
}

/// W solves the normal equations on the scaled features.
#[test]
fn ridge_solves_its_equations() {
    for (rows, width) in SIZES {
        let train = classes(4, rows, width, 1.0);
        let scaling = Scaling::new(&train).expect("a scaling");
        let part = scaling.part(&train, |_| true);
        // As for the probe: put together from the moments of both parts.
        let probes = LinearProbes::new(&train, &train).expect("features");
        let weights = probes.all.solve(0.1);
        let weights = Mat::from_fn(width + 1, 3, |column, class| {
            f64::from(weights[(column, class)])
        });
        let mut gradient = Mat::<f64>::zeros(width + 1, 3);
        for (row, own) in part.x.chunks_exact(part.columns).zip(&part.classes) {
            for class in 0..3 {
                let error = dot(row, &weights, class) - f64::from(u8::from(class == *own));
                for (column, x) in row.iter().enumerate() {
                    gradient[(column, class)] += error * f64::from(*x) / rows as f64;
                }
            }
        }
        assert_balance(&gradient, &weights, 0.1, 1e-5);
    }
}

/// Training images and width of the features: one for the small kernels of matrix multiplication,
/// one for the blocked ones.
const SIZES: [(usize, usize); 2] = [(240, 5), (1500, 70)];

fn dot(row: &[f32], weights: &Mat<f64>, class: usize) -> f64 {
    let columns = row.iter().enumerate();
    columns
        .map(|(column, x)| f64::from(*x) * weights[(column, class)])
        .sum()
}

/// The penalty pulls each weight but the intercepts as strongly as the data do the other way.
fn assert_balance(gradient: &Mat<f64>, weights: &Mat<f64>, penalty: f64, tolerance: f64) {
    let intercept = weights.nrows() - 1;
    for class in 0..weights.ncols() {
        for column in 0..=intercept {
            let pull = f64::from(u8::from(column < intercept)) * penalty;
            let rest = gradient[(column, class)] + pull * weights[(column, class)];
            assert!(rest.abs() < tolerance, "{column}, {class}: {rest}");
        }
    }
}

/// With more noise than images, the weakest penalty learns the noise by heart; a stronger one
/// must be chosen.
#[test]
fn the_penalty_fits_the_data() {
    let (train, test) = (classes(5, 120, 200, 2.0), classes(6, 600, 200, 2.0));
    for probe in both(&train, &test) {
        assert!(probe.penalty >= 1e-2, "{probe:?}");
        assert!(probe.accuracy.share() > 0.4, "{probe:?}");
    }
}

/// Rows often lie in an order of their classes; no class may be missing on either side.
#[test]
fn each_class_is_held_out_by_its_share() {
    let cyclic = (0..1000).map(|row| row % 10);
    let sorted = (0..1000).map(|row| row / 100);
    let orders: [Vec<usize>; 2] = [cyclic.collect(), sorted.collect()];
    for classes in orders {
        let held_out = draw_held_out(&classes);
        for class in 0..10 {
            let rows = classes.iter().zip(&held_out);
            let count = rows.filter(|(own, out)| **own == class && **out).count();
            assert_eq!(count, 10, "class {class}");
        }
    }
    assert_eq!(
        draw_held_out(&[0; 10]).iter().filter(|out| **out).count(),
        1
    );
}

#[test]
fn what_cannot_be_fitted_is_refused() {
    let few = classes(7, 9, 4, 1.0);
    let probes = LinearProbes::new(&few, &few);
    assert!(matches!(probes, Err(ProbeError::TooFew { images: 9 })));
    let mut broken = classes(8, 30, 4, 1.0);
    broken.push(&[f32::NAN; 4], 0);
    let probes = LinearProbes::new(&broken, &broken);
    assert!(matches!(probes, Err(ProbeError::NotFinite)));
}
