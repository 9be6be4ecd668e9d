//! The number that people publish: how often a classifier is right on labelled images. Called by
//! `nepa eval top1` and, each epoch, by fine-tuning.
use std::cell::Cell;
use std::cmp::Ordering;

use anyhow::{bail, ensure};
use candle_core::{Device, Tensor};
use nepa_model::{NepaConfig, Weights};
use serde::Serialize;

use super::classifier::Classifier;
use super::{Accuracy, ClassMatch, LeftOut, ReadOptions};
use crate::console::progress::{Progress, Unit};

/// Answers that count in the second accuracy.
const TOP: usize = 5;

/// A labelled set, and how a classifier sees it.
#[derive(Debug)]
pub(crate) struct Top1<'a> {
    /// How images are prepared.
    pub read: ReadOptions,
    /// Where the classifier is.
    pub device: &'a Device,
}

/// What was found of all weights that were asked for.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Top1Report {
    /// In the order of the weights.
    pub weights: Vec<Top1Scores>,
    /// Images that say nothing, as they have no label, or no pixels.
    pub left_out: LeftOut,
    /// Images whose label the model has no class for; they count as wrong.
    pub without_class: u64,
}

/// How good one classifier is.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Top1Scores {
    /// Images whose class has the greatest logit.
    pub top1: Accuracy,
    /// Those whose class is among the five greatest; none of a model of fewer classes.
    pub top5: Option<Accuracy>,
    /// Mean cross-entropy, in nats, of the images whose label is a class of the model.
    pub loss: f64,
    /// One entry a class that an image has, by number.
    pub classes: Vec<ClassScores>,
}

/// The same of the images of one class.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ClassScores {
    /// Its number in the model.
    pub class: usize,
    pub name: Option<String>,
    pub images: usize,
    pub top1_right: usize,
    pub top5_right: Option<usize>,
}

impl Top1<'_> {
    /// Asks a classifier with each of `weights` for the class of every image, and decodes each
    /// image once. The last, incomplete batch counts as all others.
    ///
    /// # Errors
    /// Images or labels cannot be read, no image has a class of the model, or a logit is not
    /// finite.
    pub(crate) fn evaluate(
        &self,
        config: &NepaConfig,
        weights: &[&Weights],
        classes: &mut ClassMatch<'_>,
    ) -> anyhow::Result<Top1Report> {
        let total = classes.set().len().min(self.read.limit as u64);
        let progress = Progress::new("classifying", Some(total), Unit::Count("images"));
        let watch = |done, _| {
            progress.set(done);
            true
        };
        let report = self.evaluate_while(config, weights, classes, &watch)?;
        Ok(report.expect("it goes on to the end"))
    }

    /// As [`Self::evaluate`]; none as soon as `go_on`, which is told how many images are done, of
    /// how many, says no.
    pub(crate) fn evaluate_while(
        &self,
        config: &NepaConfig,
        weights: &[&Weights],
        classes: &mut ClassMatch<'_>,
        go_on: &dyn Fn(u64, u64) -> bool,
    ) -> anyhow::Result<Option<Top1Report>> {
        let set = classes.set();
        let classifiers = weights.iter().copied();
        let classifiers = classifiers.map(|weights| Classifier::new(config, weights, self.device));
        let mut classifiers = classifiers.collect::<Result<Vec<_>, _>>()?;
        let mut tallies = vec![Tally::new(classes.num_classes()); weights.len()];
        let (total, done) = (set.len().min(self.read.limit as u64), Cell::new(0));
        let mut number = |label| Ok(classes.class_of(label)?.unwrap_or(usize::MAX));
        let each = |pixels: &Tensor, numbers: &[usize]| {
            for (classifier, tally) in classifiers.iter_mut().zip(&mut tallies) {
                for (logits, class) in classifier.logits(pixels)?.iter().zip(numbers) {
                    tally.add(logits, *class)?;
                }
            }
            done.set(done.get() + numbers.len() as u64);
            Ok(())
        };
        let go_on = || go_on(done.get(), total);
        let left_out = set.read_while(self.read, Some(&mut number), each, go_on)?;
        let Some(left_out) = left_out else {
            return Ok(None);
        };
        let weights = tallies.iter().map(|tally| tally.scores(classes));
        let report = Top1Report {
            weights: weights.collect(),
            left_out,
            without_class: classes.num_unknown(),
        };
        if let (Some(scores), Some(warning)) = (report.weights.first(), classes.warning())
            && scores.top1.total as u64 == report.without_class
        {
            bail!(
                "{}: no image has a class of the model: {warning}",
                set.place()
            );
        }
        Ok(Some(report))
    }
}

/// Counts of one classifier.
#[derive(Debug, Clone)]
struct Tally {
    /// For each class: images, and those with the right answer first, and among the first.
    classes: Vec<[usize; 3]>,
    /// Images of no class of the model.
    without_class: usize,
    loss: f64,
}

impl Tally {
    fn new(num_classes: usize) -> Self {
        Self {
            classes: vec![[0; 3]; num_classes],
            without_class: 0,
            loss: 0.0,
        }
    }

    /// Adds an image with its logits; a class beyond them is none of the model's.
    fn add(&mut self, logits: &[f32], class: usize) -> anyhow::Result<()> {
        ensure!(
            logits.iter().all(|logit| logit.is_finite()),
            "the model's output is not finite: its weights are damaged, or of another architecture"
        );
        let Some(&own) = logits.get(class) else {
            self.without_class += 1;
            return Ok(());
        };
        // Of equal logits the first counts as the greatest, as in PyTorch's argmax.
        let before = |(other, logit): (usize, &f32)| match logit.partial_cmp(&own) {
            Some(Ordering::Equal) => other < class,
            order => order == Some(Ordering::Greater),
        };
        let rank = logits
            .iter()
            .enumerate()
            .filter(|pair| before(*pair))
            .count();
        let counts = &mut self.classes[class];
        counts[0] += 1;
        counts[1] += usize::from(rank == 0);
        counts[2] += usize::from(rank < TOP);
        self.loss += cross_entropy(logits, class);
        Ok(())
    }

    fn scores(&self, names: &ClassMatch<'_>) -> Top1Scores {
        let sum = |at: usize| self.classes.iter().map(|counts| counts[at]).sum::<usize>();
        let with_class = sum(0);
        let total = with_class + self.without_class;
        let accuracy = |right| Accuracy { right, total };
        let has_top5 = self.classes.len() >= TOP;
        let seen = self.classes.iter().enumerate();
        let seen = seen.filter(|(_, counts)| counts[0] > 0);
        let classes = seen.map(|(class, counts)| ClassScores {
            class,
            name: names.name(class).map(str::to_owned),
            images: counts[0],
            top1_right: counts[1],
            top5_right: has_top5.then_some(counts[2]),
        });
        Top1Scores {
            top1: accuracy(sum(1)),
            top5: has_top5.then(|| accuracy(sum(2))),
            loss: self.loss / with_class.max(1) as f64,
            classes: classes.collect(),
        }
    }
}

/// `-log softmax(logits)[class]`.
fn cross_entropy(logits: &[f32], class: usize) -> f64 {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = |logit: f32| f64::from(logit) - f64::from(greatest);
    let sum: f64 = logits.iter().map(|logit| shifted(*logit).exp()).sum();
    sum.ln() - shifted(logits[class])
}

/// `softmax(logits)`.
pub(crate) fn probabilities(logits: &[f32]) -> Vec<f64> {
    let of = |class| (-cross_entropy(logits, class)).exp();
    (0..logits.len()).map(of).collect()
}
