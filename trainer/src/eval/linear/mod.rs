//! Linear probes of frozen features: ridge regression in closed form, and logistic regression
//! trained to convergence.
//!
//! Both see features of mean 0 and variance 1 (as in the training set), choose the strength of
//! their penalty on a tenth of the training images (drawn at random, of each class its share), and
//! are fitted once more on all of them. Intercepts are not penalised.
//!
//! Layers of a transformer are so correlated that L-BFGS would take thousands of iterations. It
//! works in the principal components of the features instead, each scaled to about the same
//! curvature; the problem that it solves stays the same.
mod error;
mod logistic;
mod scaling;

use faer::Mat;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde::Serialize;

use self::error::HELD_OUT;
use self::logistic::minimize;
use self::scaling::{Moments, Scaling};
use super::accuracy::Accuracy;
use super::features::Features;

pub(crate) use self::error::ProbeError;

/// Penalties that ridge regression tries: the weight of |W|^2 against the mean squared error.
const RIDGE_PENALTIES: [f64; 6] = [1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4];
/// Penalties that logistic regression tries: the weight of |W|^2 / 2 against the mean
/// cross-entropy.
const LOGISTIC_PENALTIES: [f64; 6] = [1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5];
/// Fits of a logistic regression: one for each penalty, and one on all images.
pub(super) const LOGISTIC_FITS: u64 = LOGISTIC_PENALTIES.len() as u64 + 1;

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Probe {
    pub accuracy: Accuracy,
    pub penalty: f64,
    /// With this penalty, on the training images held out.
    pub held_out: Accuracy,
    /// Whether the last fit converged; always true for ridge regression.
    pub converged: bool,
}

/// Training features and what both probes of them need, and the test features that they are asked
/// about.
pub(crate) struct LinearProbes<'a> {
    train: &'a Features,
    test: &'a Features,
    scaling: Scaling,
    /// Whether the penalty is chosen on a training image.
    held_out: Vec<bool>,
    /// Of the training images that are not held out.
    fitted: Moments,
    /// Of all training images.
    all: Moments,
}

impl<'a> LinearProbes<'a> {
    /// Prepares both; the product of all training features with themselves takes its time where
    /// features are wide.
    pub(crate) fn new(train: &'a Features, test: &'a Features) -> Result<Self, ProbeError> {
        let scaling = Scaling::new(train)?;
        let held_out = draw_held_out(train.classes());
        let (fitted, rest) = scaling.split(train, &held_out);
        let share = fitted.len() as f64 / train.len() as f64;
        let fitted = Moments::new(&fitted);
        let all = fitted.mixed(share, &Moments::new(&rest));
        Ok(Self {
            train,
            test,
            scaling,
            held_out,
            fitted,
            all,
        })
    }

    /// Ridge regression on one-hot targets, in closed form: W = (X^T X / n + penalty I)^-1 X^T Y /
    /// n.
    pub(crate) fn ridge(&self) -> Probe {
        let held_out = self.scaling.part(self.train, |row| self.held_out[row]);
        let fits = RIDGE_PENALTIES.map(|penalty| self.fitted.solve(penalty));
        let (choice, held_out) = best(fits.iter().map(|weights| held_out.accuracy(weights)));
        let penalty = RIDGE_PENALTIES[choice];
        let weights = self.all.solve(penalty);
        Probe {
            accuracy: self.scaling.part(self.test, |_| true).accuracy(&weights),
            penalty,
            held_out,
            converged: true,
        }
    }

    /// Multinomial logistic regression by L-BFGS. Penalties are tried from the strongest on, each
    /// fit starting from the one before. Tells `done` after each fit, in all [`LOGISTIC_FITS`]
    /// times.
    pub(crate) fn logistic_regression(&self, done: &dyn Fn(u64)) -> Result<Probe, ProbeError> {
        let (scaling, variances) = self.scaling.rotated(&self.all)?;
        let (fitted, held_out) = scaling.split(self.train, &self.held_out);
        let mut fits = vec![Mat::zeros(fitted.columns, fitted.num_classes)];
        let mut found: Vec<Accuracy> = Vec::new();
        for penalty in LOGISTIC_PENALTIES {
            let (weights, _) = minimize(&fitted, &variances, penalty, &fits[found.len()])?;
            done(1);
            let accuracy = held_out.accuracy(&weights);
            let falls = found
                .last()
                .is_some_and(|last| accuracy.share() + 0.01 < last.share());
            found.push(accuracy);
            fits.push(weights);
            // Weaker penalties overfit more and more.
            if falls {
                break;
            }
        }
        let (choice, held_out) = best(found);
        let penalty = LOGISTIC_PENALTIES[choice];
        let all = scaling.part(self.train, |_| true);
        let (weights, converged) = minimize(&all, &variances, penalty, &fits[choice + 1])?;
        done(LOGISTIC_FITS - (fits.len() - 1) as u64);
        Ok(Probe {
            accuracy: scaling.part(self.test, |_| true).accuracy(&weights),
            penalty,
            held_out,
            converged,
        })
    }
}

/// Draws the training images on which the penalty is chosen: a tenth, of each class its share. The
/// same classes give the same draw.
fn draw_held_out(classes: &[usize]) -> Vec<bool> {
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let rows = classes.iter().enumerate();
    let mut rows = rows
        .map(|(row, class)| (*class, random.next_u64(), row))
        .collect::<Vec<_>>();
    rows.sort_unstable();
    let mut held_out = vec![false; classes.len()];
    for (_, _, row) in rows.iter().skip(HELD_OUT / 2).step_by(HELD_OUT) {
        held_out[*row] = true;
    }
    held_out
}

/// The first of the best.
fn best(found: impl IntoIterator<Item = Accuracy>) -> (usize, Accuracy) {
    let better =
        |a: (usize, Accuracy), b: (usize, Accuracy)| if b.1.right > a.1.right { b } else { a };
    let best = found.into_iter().enumerate().reduce(better);
    best.expect("at least one penalty")
}

#[cfg(test)]
mod tests;
