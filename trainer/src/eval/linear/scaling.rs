//! Features as linear probes see them: scaled to mean 0 and variance 1, or in their principal
//! components, and their second moments.
use faer::linalg::matmul::matmul;
use faer::linalg::solvers::{Llt, Solve};
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};

use super::error::{HELD_OUT, ProbeError};
use crate::eval::accuracy::Accuracy;
use crate::eval::features::Features;

/// Rows that are converted at a time.
const ROWS: usize = 4096;

/// How features are scaled, as found on the training set.
#[derive(Clone)]
pub(super) struct Scaling {
    mean: Vec<f64>,
    /// 1 / standard deviation.
    inverse: Vec<f64>,
    /// Principal components of the scaled features, one a column, where these take their place.
    pub(super) components: Option<Mat<f32>>,
    pub(super) num_classes: usize,
}

impl Scaling {
    pub(super) fn new(train: &Features) -> Result<Self, ProbeError> {
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
    pub(super) fn rotated(&self, moments: &Moments) -> Result<(Self, Vec<f64>), ProbeError> {
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
    pub(super) fn split(&self, train: &Features, held_out: &[bool]) -> (Part, Part) {
        (
            self.part(train, |row| !held_out[row]),
            self.part(train, |row| held_out[row]),
        )
    }

    /// The scaled features of some rows.
    pub(super) fn part(&self, features: &Features, keep: impl Fn(usize) -> bool) -> Part {
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
pub(super) struct Part {
    pub(super) x: Vec<f32>,
    pub(super) classes: Vec<usize>,
    pub(super) columns: usize,
    pub(super) num_classes: usize,
}

impl Part {
    pub(super) fn len(&self) -> usize {
        self.classes.len()
    }

    pub(super) fn x(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.x, self.len(), self.columns)
    }

    /// `X W`, `[n, classes]`, row by row.
    pub(super) fn scores(&self, weights: &Mat<f32>) -> Vec<f32> {
        let mut scores = vec![0.0; self.len() * self.num_classes];
        let rows = MatMut::from_row_major_slice_mut(&mut scores, self.len(), self.num_classes);
        matmul(rows, Accum::Replace, self.x(), weights, 1.0, Par::rayon(0));
        scores
    }

    pub(super) fn accuracy(&self, weights: &Mat<f32>) -> Accuracy {
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
pub(super) struct Moments {
    features: Mat<f64>,
    targets: Mat<f64>,
}

impl Moments {
    pub(super) fn new(part: &Part) -> Self {
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
    pub(super) fn mixed(&self, share: f64, others: &Self) -> Self {
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

    pub(super) fn solve(&self, penalty: f64) -> Mat<f32> {
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
