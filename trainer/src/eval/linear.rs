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
use std::cell::RefCell;

use argmin::core::{CostFunction, Executor, Gradient, State, TerminationReason, TerminationStatus};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use faer::linalg::matmul::matmul;
use faer::linalg::solvers::{Llt, Solve};
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde::Serialize;

use super::{Accuracy, Features};

/// One training image in so many is held out while the penalty is chosen.
const HELD_OUT: usize = 10;
/// Penalties that ridge regression tries: the weight of |W|^2 against the mean squared error.
const RIDGE_PENALTIES: [f64; 6] = [1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4];
/// Penalties that logistic regression tries: the weight of |W|^2 / 2 against the mean
/// cross-entropy.
const LOGISTIC_PENALTIES: [f64; 6] = [1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5];
/// Fits of a logistic regression: one for each penalty, and one on all images.
pub(super) const LOGISTIC_FITS: u64 = LOGISTIC_PENALTIES.len() as u64 + 1;
/// Curvature of the cross-entropy along a component of variance 1, for the scaling: between 0 and
/// 1/4, for ten classes about 0.09.
const CURVATURE: f64 = 0.09;
/// L-BFGS ends when the gradient's norm (in the scaled components) is below this; the loss then is
/// right to about its square.
const GRADIENT_TOLERANCE: f64 = 1e-4;
/// Or when the loss falls by less than this in one iteration.
const LOSS_TOLERANCE: f64 = 1e-8;
/// Most iterations of one fit.
const ITERATIONS: u64 = 1000;
/// Rows that are converted at a time.
const ROWS: usize = 4096;

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Probe {
    /// On the test set.
    pub accuracy: Accuracy,
    /// The penalty chosen.
    pub penalty: f64,
    /// With this penalty, on the training images held out.
    pub held_out: Accuracy,
    /// Whether the last fit converged; always true for ridge regression.
    pub converged: bool,
}

/// A probe cannot be fitted.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nothing to choose the penalty on.
    #[error(
        "{images} training images are too few for a linear probe: it needs at least {HELD_OUT}, one of which is held out"
    )]
    TooFew {
        /// Training images.
        images: usize,
    },
    /// A feature is no number.
    #[error("the features are not finite; has training diverged?")]
    NotFinite,
    /// The optimiser gave up.
    #[error("logistic regression failed: {0}")]
    Optimizer(String),
}

/// Training features and what both probes of them need, and the test features that they are asked
/// about.
pub struct LinearProbes<'a> {
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
    pub fn new(train: &'a Features, test: &'a Features) -> Result<Self, ProbeError> {
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
    pub fn ridge(&self) -> Probe {
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
    /// fit starting from the one before.
    pub fn logistic_regression(&self) -> Result<Probe, ProbeError> {
        self.logistic_regression_watched(&|_| ())
    }

    /// As [`logistic_regression`](Self::logistic_regression); tells after each fit that it is done,
    /// in all [`LOGISTIC_FITS`] of them.
    pub(super) fn logistic_regression_watched(
        &self,
        done: &dyn Fn(u64),
    ) -> Result<Probe, ProbeError> {
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

/// How features are scaled, as found on the training set.
#[derive(Clone)]
struct Scaling {
    mean: Vec<f64>,
    /// 1 / standard deviation.
    inverse: Vec<f64>,
    /// Principal components of the scaled features, one a column, where these take their place.
    components: Option<Mat<f32>>,
    num_classes: usize,
}

impl Scaling {
    fn new(train: &Features) -> Result<Self, ProbeError> {
        let (count, width) = (train.len(), train.width());
        if count < HELD_OUT {
            return Err(ProbeError::TooFew { images: count });
        }
        let (mut sums, mut squares) = (vec![0.0; width], vec![0.0; width]);
        for row in train.values().chunks_exact(width) {
            for ((sum, square), value) in sums.iter_mut().zip(&mut squares).zip(row) {
                let value = f64::from(*value);
                *sum += value;
                *square += value * value;
            }
        }
        if !squares.iter().all(|square| square.is_finite()) {
            return Err(ProbeError::NotFinite);
        }
        let count = count as f64;
        let mean = sums.iter().map(|sum| sum / count).collect::<Vec<_>>();
        let inverse = squares.iter().zip(&mean).map(|(square, mean)| {
            // A feature that hardly varies (its variance drowns in rounding) counts as constant.
            let variance = square / count - mean * mean;
            let varies = variance > 1e-12 * (square / count);
            if varies { variance.sqrt().recip() } else { 0.0 }
        });
        Ok(Self {
            inverse: inverse.collect(),
            mean,
            components: None,
            num_classes: train.num_classes(),
        })
    }

    /// With principal components in the place of the features, and the variance of each.
    fn rotated(&self, moments: &Moments) -> Result<(Self, Vec<f64>), ProbeError> {
        let width = self.mean.len();
        let covariance = moments.features.submatrix(0, 0, width, width);
        let found = covariance.self_adjoint_eigen(Side::Lower);
        let found = found.map_err(|_| ProbeError::NotFinite)?;
        let (vectors, variances) = (found.U(), found.S().column_vector());
        let components = Mat::from_fn(width, width, |row, column| vectors[(row, column)] as f32);
        let rotated = Self {
            components: Some(components),
            ..self.clone()
        };
        let variances = variances.iter().map(|variance| variance.max(0.0)).collect();
        Ok((rotated, variances))
    }

    /// The training images that are not held out, and those that are.
    fn split(&self, train: &Features, held_out: &[bool]) -> (Part, Part) {
        (
            self.part(train, |row| !held_out[row]),
            self.part(train, |row| held_out[row]),
        )
    }

    /// The scaled features of some rows.
    fn part(&self, features: &Features, keep: impl Fn(usize) -> bool) -> Part {
        let (width, columns) = (features.width(), features.width() + 1);
        let (mut x, mut classes) = (Vec::new(), Vec::new());
        let rows = features.values().chunks_exact(width);
        for (index, (row, class)) in rows.zip(features.classes()).enumerate() {
            if keep(index) {
                let scaled = row.iter().zip(self.mean.iter().zip(&self.inverse));
                x.extend(
                    scaled.map(|(value, (mean, inverse))| {
                        ((f64::from(*value) - mean) * inverse) as f32
                    }),
                );
                x.push(1.0);
                classes.push(*class);
            }
        }
        if let Some(components) = &self.components {
            for rows in x.chunks_mut(ROWS * columns) {
                let count = rows.len() / columns;
                let rows = MatMut::from_row_major_slice_mut(rows, count, columns);
                let mut rows = rows.subcols_mut(0, width);
                let scaled = rows.to_owned();
                matmul(
                    rows.as_mut(),
                    Accum::Replace,
                    &scaled,
                    components,
                    1.0,
                    Par::rayon(0),
                );
            }
        }
        Part {
            x,
            classes,
            columns,
            num_classes: self.num_classes,
        }
    }
}

/// Scaled features with a last column of ones for the intercepts, `[n, width + 1]`.
struct Part {
    x: Vec<f32>,
    classes: Vec<usize>,
    columns: usize,
    num_classes: usize,
}

impl Part {
    fn len(&self) -> usize {
        self.classes.len()
    }

    fn x(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.x, self.len(), self.columns)
    }

    /// `X W`, `[n, classes]`, row by row.
    fn scores(&self, weights: &Mat<f32>) -> Vec<f32> {
        let mut scores = vec![0.0; self.len() * self.num_classes];
        let rows = MatMut::from_row_major_slice_mut(&mut scores, self.len(), self.num_classes);
        matmul(rows, Accum::Replace, self.x(), weights, 1.0, Par::rayon(0));
        scores
    }

    fn accuracy(&self, weights: &Mat<f32>) -> Accuracy {
        let scores = self.scores(weights);
        let answer = |scores: &[f32]| {
            let classes = scores.iter().enumerate();
            let best = classes.reduce(|best, next| if next.1 > best.1 { next } else { best });
            best.map_or(usize::MAX, |(class, _)| class)
        };
        let answers = scores.chunks_exact(self.num_classes).map(answer);
        Accuracy::of(answers.zip(self.classes.iter().copied()))
    }
}

/// `X^T X / n` and `X^T Y / n`, in double precision.
struct Moments {
    features: Mat<f64>,
    targets: Mat<f64>,
}

impl Moments {
    fn new(part: &Part) -> Self {
        let columns = part.columns;
        let mut features = Mat::zeros(columns, columns);
        let mut targets = Mat::zeros(columns, part.num_classes);
        let share = 1.0 / part.len() as f64;
        for (rows, classes) in part.x.chunks(ROWS * columns).zip(part.classes.chunks(ROWS)) {
            let x = Mat::from_fn(classes.len(), columns, |row, column| {
                f64::from(rows[row * columns + column])
            });
            let y = Mat::from_fn(classes.len(), part.num_classes, |row, class| {
                f64::from(u8::from(classes[row] == class))
            });
            let (x_t, par) = (x.transpose(), Par::rayon(0));
            matmul(&mut features, Accum::Add, x_t, &x, share, par);
            matmul(&mut targets, Accum::Add, x_t, &y, share, par);
        }
        Self { features, targets }
    }

    /// Of these rows and others together; `share` is that of these.
    fn mixed(&self, share: f64, others: &Self) -> Self {
        let mixed = |own: &Mat<f64>, other: &Mat<f64>| {
            Mat::from_fn(own.nrows(), own.ncols(), |row, column| {
                share * own[(row, column)] + (1.0 - share) * other[(row, column)]
            })
        };
        Self {
            features: mixed(&self.features, &others.features),
            targets: mixed(&self.targets, &others.targets),
        }
    }

    fn solve(&self, penalty: f64) -> Mat<f32> {
        let mut system = self.features.clone();
        let intercept = system.nrows() - 1;
        for column in 0..intercept {
            system[(column, column)] += penalty;
        }
        let factors = Llt::new(system.as_ref(), Side::Lower)
            .expect("a Gram matrix plus a positive diagonal is positive definite");
        let weights = factors.solve(&self.targets);
        Mat::from_fn(weights.nrows(), weights.ncols(), |row, column| {
            weights[(row, column)] as f32
        })
    }
}

/// Mean cross-entropy plus `penalty / 2 |W|^2`, as L-BFGS sees it: its flat parameters are the
/// weights, class by class, over `scales`.
struct CrossEntropy<'a> {
    part: &'a Part,
    penalty: f64,
    scales: Vec<f64>,
    /// The gradient at the point whose loss was asked for last: the two are computed together.
    last: RefCell<Option<(Vec<f64>, Vec<f64>)>>,
}

impl CrossEntropy<'_> {
    fn weights(&self, flat: &[f64]) -> Mat<f32> {
        let columns = self.part.columns;
        Mat::from_fn(columns, self.part.num_classes, |column, class| {
            (self.scales[column] * flat[class * columns + column]) as f32
        })
    }

    fn compute(&self, flat: &[f64]) -> (f64, Vec<f64>) {
        let part = self.part;
        // In place: scores, then probabilities minus targets.
        let mut scores = part.scores(&self.weights(flat));
        let rows = scores
            .par_chunks_exact_mut(part.num_classes)
            .zip(&part.classes);
        let losses = rows.map(|(scores, class)| {
            let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let own = scores[*class] - greatest;
            let mut sum = 0.0;
            for score in &mut *scores {
                *score = (*score - greatest).exp();
                sum += *score;
            }
            for score in &mut *scores {
                *score /= sum;
            }
            scores[*class] -= 1.0;
            f64::from(sum.ln() - own)
        });
        // Added in order, so that the same features give the same loss.
        let losses = losses.collect::<Vec<_>>();
        let share = 1.0 / part.len() as f64;
        let mut products = Mat::<f32>::zeros(part.columns, part.num_classes);
        matmul(
            &mut products,
            Accum::Replace,
            part.x().transpose(),
            MatRef::from_row_major_slice(&scores, part.len(), part.num_classes),
            share as f32,
            Par::rayon(0),
        );
        let mut loss = share * losses.iter().sum::<f64>();
        let mut gradient = vec![0.0; flat.len()];
        for (index, (gradient, value)) in gradient.iter_mut().zip(flat).enumerate() {
            let (class, column) = (index / part.columns, index % part.columns);
            *gradient = f64::from(products[(column, class)]);
            if column + 1 < part.columns {
                let weight = self.scales[column] * value;
                loss += 0.5 * self.penalty * weight * weight;
                *gradient += self.penalty * weight;
            }
            *gradient *= self.scales[column];
        }
        (loss, gradient)
    }
}

impl CostFunction for CrossEntropy<'_> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, flat: &Vec<f64>) -> Result<f64, argmin::core::Error> {
        let (loss, gradient) = self.compute(flat);
        *self.last.borrow_mut() = Some((flat.clone(), gradient));
        Ok(loss)
    }
}

impl Gradient for CrossEntropy<'_> {
    type Param = Vec<f64>;
    type Gradient = Vec<f64>;

    fn gradient(&self, flat: &Vec<f64>) -> Result<Vec<f64>, argmin::core::Error> {
        match &*self.last.borrow() {
            Some((at, gradient)) if at == flat => Ok(gradient.clone()),
            _ => Ok(self.compute(flat).1),
        }
    }
}

/// The weights of least loss, and whether L-BFGS converged. `variances` are those of the columns
/// but the last.
fn minimize(
    part: &Part,
    variances: &[f64],
    penalty: f64,
    start: &Mat<f32>,
) -> Result<(Mat<f32>, bool), ProbeError> {
    let failed = |error: argmin::core::Error| ProbeError::Optimizer(error.to_string());
    let curvatures = variances
        .iter()
        .map(|variance| CURVATURE * variance + penalty);
    let scales = curvatures
        .chain([CURVATURE])
        .map(|curvature| curvature.sqrt().recip());
    let problem = CrossEntropy {
        part,
        penalty,
        scales: scales.collect(),
        last: RefCell::new(None),
    };
    let mut flat = Vec::new();
    for class in 0..part.num_classes {
        let scales = problem.scales.iter().enumerate();
        flat.extend(scales.map(|(column, scale)| f64::from(start[(column, class)]) / scale));
    }
    let solver = LBFGS::new(MoreThuenteLineSearch::new(), 10)
        .with_tolerance_grad(GRADIENT_TOLERANCE)
        .and_then(|solver| solver.with_tolerance_cost(LOSS_TOLERANCE))
        .map_err(failed)?;
    let mut found = Executor::new(problem, solver)
        .configure(|state| state.param(flat).max_iters(ITERATIONS))
        .run()
        .map_err(failed)?;
    let converged = matches!(
        found.state.get_termination_status(),
        TerminationStatus::Terminated(TerminationReason::SolverConverged)
    );
    let weights = found.state.take_best_param();
    match (found.problem.take_problem(), weights) {
        (Some(problem), Some(weights)) => Ok((problem.weights(&weights), converged)),
        _ => Err(ProbeError::Optimizer("it found no weights".to_owned())),
    }
}

#[cfg(test)]
mod tests {
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
            probes.logistic_regression().expect("a probe"),
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
                let (found, converged) =
                    minimize(&part, &variances, penalty, &start).expect("a fit");
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

    /// Training images and width of the features: one for the small kernels of the matrix products,
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
}
