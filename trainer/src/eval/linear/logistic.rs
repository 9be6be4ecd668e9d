//! Logistic regression by L-BFGS.
use std::cell::RefCell;

use argmin::core::{CostFunction, Executor, Gradient, State, TerminationReason, TerminationStatus};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

use super::error::ProbeError;
use super::scaling::Part;

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
pub(super) fn minimize(
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
