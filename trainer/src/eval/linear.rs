//! Linear probes of frozen features: ridge regression in closed form, and logistic regression trained to convergence.
//!
//! Both see features of mean 0 and variance 1 (as in the training set), choose the strength of their penalty on every tenth training
//! image, and are fitted once more on all of them. Intercepts are not penalised.
use std::cell::RefCell;

use argmin::core::{CostFunction, Executor, Gradient, State, TerminationReason, TerminationStatus};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use faer::linalg::matmul::matmul;
use faer::linalg::solvers::{Llt, Solve};
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use rayon::prelude::*;
use serde::Serialize;

use super::{Accuracy, Features};

/// One training image in so many is held out while the penalty is chosen.
const HELD_OUT: usize = 10;
/// Penalties that ridge regression tries: the weight of |W|^2 against the mean squared error.
const RIDGE_PENALTIES: [f64; 6] = [1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4];
/// Penalties that logistic regression tries: the weight of |W|^2 / 2 against the mean cross-entropy.
const LOGISTIC_PENALTIES: [f64; 6] = [1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5];
/// L-BFGS ends when the gradient's norm is below this; the loss then is right to about its square over the penalty.
const GRADIENT_TOLERANCE: f64 = 1e-4;
/// Or when the loss falls by less than this in one iteration.
const LOSS_TOLERANCE: f64 = 1e-8;
/// Most iterations of one fit.
const ITERATIONS: u64 = 1000;

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

/// Ridge regression on one-hot targets, in closed form: W = (X^T X / n + penalty I)^-1 X^T Y / n.
pub fn ridge(train: &Features, test: &Features) -> Result<Probe, ProbeError> {
    let split = Split::new(train)?;
    let fit = |part: &Part| {
        let moments = Moments::new(part);
        RIDGE_PENALTIES.map(|penalty| moments.solve(penalty))
    };
    let (choice, held_out) = best(
        fit(&split.fitted)
            .iter()
            .map(|weights| split.held_out.accuracy(weights)),
    );
    let all = Part::new(train, &split.scaling, |_| true);
    let weights = Moments::new(&all).solve(RIDGE_PENALTIES[choice]);
    Ok(Probe {
        accuracy: Part::new(test, &split.scaling, |_| true).accuracy(&weights),
        penalty: RIDGE_PENALTIES[choice],
        held_out,
        converged: true,
    })
}

/// Multinomial logistic regression by L-BFGS. Penalties are tried from the strongest on, each fit starting from the one before.
pub fn logistic_regression(train: &Features, test: &Features) -> Result<Probe, ProbeError> {
    let split = Split::new(train)?;
    let mut weights = vec![0.0; split.fitted.num_weights()];
    let (mut fits, mut found) = (Vec::new(), Vec::new());
    for penalty in LOGISTIC_PENALTIES {
        weights = minimize(&split.fitted, penalty, weights)?.0;
        found.push(split.held_out.accuracy(&split.fitted.matrix(&weights)));
        fits.push(weights.clone());
        // Weaker penalties overfit more and more.
        if let [.., before, last] = found[..]
            && last.share() + 0.01 < before.share()
        {
            break;
        }
    }
    let (choice, held_out) = best(found);
    let all = Part::new(train, &split.scaling, |_| true);
    let (weights, converged) =
        minimize(&all, LOGISTIC_PENALTIES[choice], fits.swap_remove(choice))?;
    Ok(Probe {
        accuracy: Part::new(test, &split.scaling, |_| true).accuracy(&all.matrix(&weights)),
        penalty: LOGISTIC_PENALTIES[choice],
        held_out,
        converged,
    })
}

/// The first of the best.
fn best(found: impl IntoIterator<Item = Accuracy>) -> (usize, Accuracy) {
    found
        .into_iter()
        .enumerate()
        .reduce(|best, next| {
            if next.1.right > best.1.right {
                next
            } else {
                best
            }
        })
        .expect("at least one penalty")
}

/// Mean and 1 / standard deviation of every feature over the training set.
struct Scaling {
    mean: Vec<f64>,
    inverse: Vec<f64>,
    num_classes: usize,
}

/// The training set in two parts.
struct Split {
    scaling: Scaling,
    fitted: Part,
    held_out: Part,
}

impl Split {
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
            if variance > 1e-12 * (square / count) {
                variance.sqrt().recip()
            } else {
                0.0
            }
        });
        let scaling = Scaling {
            inverse: inverse.collect(),
            mean,
            num_classes: train.num_classes(),
        };
        let held_out = |row: usize| row % HELD_OUT == HELD_OUT - 1;
        Ok(Self {
            fitted: Part::new(train, &scaling, |row| !held_out(row)),
            held_out: Part::new(train, &scaling, held_out),
            scaling,
        })
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
    fn new(features: &Features, scaling: &Scaling, keep: impl Fn(usize) -> bool) -> Self {
        let columns = features.width() + 1;
        let (mut x, mut classes) = (Vec::new(), Vec::new());
        let rows = features.values().chunks_exact(features.width());
        for (index, (row, class)) in rows.zip(features.classes()).enumerate() {
            if keep(index) {
                x.extend(
                    row.iter().zip(&scaling.mean).zip(&scaling.inverse).map(
                        |((value, mean), inverse)| ((f64::from(*value) - mean) * inverse) as f32,
                    ),
                );
                x.push(1.0);
                classes.push(*class);
            }
        }
        Self {
            x,
            classes,
            columns,
            num_classes: scaling.num_classes,
        }
    }

    fn len(&self) -> usize {
        self.classes.len()
    }

    fn x(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.x, self.len(), self.columns)
    }

    fn num_weights(&self) -> usize {
        self.columns * self.num_classes
    }

    /// Flat weights as a matrix, `[columns, classes]`.
    fn matrix(&self, flat: &[f64]) -> Mat<f32> {
        Mat::from_fn(self.columns, self.num_classes, |column, class| {
            flat[class * self.columns + column] as f32
        })
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
        /// Rows converted to double precision at a time.
        const ROWS: usize = 4096;
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

/// Mean cross-entropy plus `penalty / 2 |W|^2`, as L-BFGS sees it.
struct CrossEntropy<'a> {
    part: &'a Part,
    penalty: f64,
    /// The gradient at the point whose loss was asked for last: the two are computed together.
    last: RefCell<Option<(Vec<f64>, Vec<f64>)>>,
}

impl CrossEntropy<'_> {
    fn compute(&self, flat: &[f64]) -> (f64, Vec<f64>) {
        let part = self.part;
        // In place: scores, then probabilities minus targets.
        let mut scores = part.scores(&part.matrix(flat));
        let loss = scores
            .par_chunks_exact_mut(part.num_classes)
            .zip(&part.classes)
            .map(|(scores, class)| {
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
            })
            // In order, so that the same features give the same loss.
            .collect::<Vec<_>>()
            .iter()
            .sum::<f64>();
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
        let mut loss = loss * share;
        let mut gradient = vec![0.0; flat.len()];
        let classes = gradient
            .chunks_exact_mut(part.columns)
            .zip(flat.chunks_exact(part.columns));
        for (class, (gradient, weights)) in classes.enumerate() {
            for (column, (gradient, weight)) in gradient.iter_mut().zip(weights).enumerate() {
                *gradient = f64::from(products[(column, class)]);
                if column + 1 < part.columns {
                    loss += 0.5 * self.penalty * weight * weight;
                    *gradient += self.penalty * weight;
                }
            }
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

/// The weights of least loss, and whether L-BFGS converged.
fn minimize(part: &Part, penalty: f64, start: Vec<f64>) -> Result<(Vec<f64>, bool), ProbeError> {
    let failed = |error: argmin::core::Error| ProbeError::Optimizer(error.to_string());
    let problem = CrossEntropy {
        part,
        penalty,
        last: RefCell::new(None),
    };
    let solver = LBFGS::new(MoreThuenteLineSearch::new(), 10)
        .with_tolerance_grad(GRADIENT_TOLERANCE)
        .and_then(|solver| solver.with_tolerance_cost(LOSS_TOLERANCE))
        .map_err(failed)?;
    let mut found = Executor::new(problem, solver)
        .configure(|state| state.param(start).max_iters(ITERATIONS))
        .run()
        .map_err(failed)?;
    let converged = matches!(
        found.state.get_termination_status(),
        TerminationStatus::Terminated(TerminationReason::SolverConverged)
    );
    let weights = found
        .state
        .take_best_param()
        .ok_or_else(|| ProbeError::Optimizer("it found no weights".to_owned()))?;
    Ok((weights, converged))
}
