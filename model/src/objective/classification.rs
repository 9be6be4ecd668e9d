//! Classification: the cross-entropy of the logits with a target for each class, as mixing images
//! (arXiv 1710.09412, 1905.04899) and smoothing labels make them.
use rayon::prelude::*;

use super::objective::Objective;
use crate::ModelError;
use crate::real::Real;
use crate::step::Step;
use crate::step::device::Device;

/// What a micro-batch of labelled images says of a classifier.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ClassificationReport {
    /// `-mean over images of sum_k target_k log softmax(logits)_k`.
    pub loss: f64,
    /// Images whose greatest logit is that of their greatest target, the first of equal ones.
    pub correct: usize,
    /// All images.
    pub images: usize,
}

/// The objective, for one micro-batch of B images and K classes.
#[derive(Debug, Clone)]
pub struct Classification<'a> {
    /// `[B, K]`.
    targets: &'a [f32],
    report: Option<ClassificationReport>,
}

impl<'a> Classification<'a> {
    /// Of targets `[B, K]`, a distribution over the classes for each image.
    pub fn new(targets: &'a [f32]) -> Self {
        Self {
            targets,
            report: None,
        }
    }
}

/// One image: its loss, whether its class is right; its logits become the gradient of `share` times
/// the loss.
fn cross_entropy<T: Real>(logits: &mut [T], targets: &[f32], share: f64) -> (f64, bool) {
    let value = |logit: &T| logit.to_f64();
    let right = first_greatest(logits.iter().map(value))
        == first_greatest(targets.iter().map(|t| f64::from(*t)));
    let most = logits.iter().map(value).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (value(logit) - most).exp()).sum();
    let log_sum = most + sum.ln();
    let whole: f64 = targets.iter().map(|target| f64::from(*target)).sum();
    let mut loss = 0.0;
    for (logit, target) in logits.iter_mut().zip(targets) {
        let (log_probability, target) = (value(logit) - log_sum, f64::from(*target));
        loss -= target * log_probability;
        *logit = T::from_f64(share * (whole * log_probability.exp() - target));
    }
    (loss, right)
}

/// The place of the greatest value, the first of equal ones.
fn first_greatest(values: impl Iterator<Item = f64>) -> usize {
    let later = |best: (usize, f64), (place, value)| {
        if value > best.1 { (place, value) } else { best }
    };
    values.enumerate().fold((0, f64::NEG_INFINITY), later).0
}

impl<D: Device> Objective<D> for Classification<'_> {
    type Report = ClassificationReport;

    fn backward(&mut self, step: &mut Step<D>, share: f64) -> Result<(), D::Error> {
        let found = step.classify()?;
        let mut d_logits = found.logits().to_vec();
        if self.targets.len() != d_logits.len() {
            return Err(D::Error::from(ModelError::Step {
                reason: "a classifier needs a target of each of its classes for each image",
            }));
        }
        let images = step.shape().images;
        let classes = d_logits.len() / images;
        let of_image = share / images as f64;
        let each: Vec<(f64, bool)> = d_logits
            .par_chunks_exact_mut(classes)
            .zip(self.targets.par_chunks_exact(classes))
            .map(|(logits, targets)| cross_entropy(logits, targets, of_image))
            .collect();
        self.report = Some(ClassificationReport {
            loss: each.iter().map(|(loss, _)| loss).sum::<f64>() / images as f64,
            correct: each.iter().filter(|(_, right)| *right).count(),
            images,
        });
        step.classify_backward(&found, &d_logits)
    }

    fn report(&mut self, _: &mut Step<D>) -> Result<ClassificationReport, D::Error> {
        self.report.take().ok_or_else(|| {
            D::Error::from(ModelError::Step {
                reason: "there was no backward pass",
            })
        })
    }
}
