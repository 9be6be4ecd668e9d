//! Reads two labelled sets through any number of models and scores their features.
use candle_core::{Device, Tensor};
use comfy_table::{CellAlignment, Table, presets};
use nepa_model::Nepa;
use serde::Serialize;

use super::images::compare_classes;
use super::linear::LOGISTIC_FITS;
use super::{
    Accuracy, Classes, Features, ImageSet, Layer, LayerReader, LinearProbes, Pool, Probe,
    ReadOptions, classify, pixel_features,
};
use crate::console::progress::{Progress, Unit};

/// Side to which images are reduced before their pixels are features.
const PIXEL_SIDE: u32 = 32;

/// What is computed for each set of features.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scores {
    /// Nearest neighbours that vote; left out: none do.
    pub knn: Option<usize>,
    /// Whether ridge regression is fitted.
    pub ridge: bool,
    /// Whether logistic regression is fitted.
    pub logistic: bool,
}

impl Scores {
    /// Steps of computing them for one kind of features; linear probes have one in common.
    fn num_fits(self) -> u64 {
        let probes = u64::from(self.ridge || self.logistic) + u64::from(self.ridge);
        u64::from(self.knn.is_some()) + probes + u64::from(self.logistic) * LOGISTIC_FITS
    }
}

/// Features of the training and test images, of one kind.
#[derive(Debug)]
pub(crate) struct FeaturePair {
    /// What they are computed from, for people.
    pub source: String,
    /// Where in the model.
    pub layer: Option<Layer>,
    /// Of the images that classifiers see.
    pub train: Features,
    /// Of those that they are asked about.
    pub test: Features,
    /// Images of the training and of the test set that were left out, as they have no label.
    pub unlabelled: [u64; 2],
}

/// One row of the table of results.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measurement {
    /// What the features are computed from.
    pub source: String,
    /// Where in the model; none for pixels.
    pub layer: Option<String>,
    pub width: usize,
    pub knn: Option<Accuracy>,
    pub ridge: Option<Probe>,
    pub logistic: Option<Probe>,
}

impl Measurement {
    /// Source and layer, for people.
    pub(crate) fn name(&self) -> String {
        match &self.layer {
            Some(layer) => format!("{}, layer {layer}", self.source),
            None => self.source.clone(),
        }
    }
}

/// Measurements as people read them.
#[derive(Debug, Clone, Default)]
pub(crate) struct ResultTable {
    pub header: Vec<String>,
    /// One row a measurement.
    pub rows: Vec<Vec<String>>,
}

impl ResultTable {
    /// Accuracies in per cent with their intervals.
    pub(crate) fn new(measured: &[Measurement], scores: Scores) -> Self {
        Self::with_cells(measured, scores, &Accuracy::to_string)
    }

    /// As narrow as a terminal needs it, if each source has a short name; an interval is the
    /// greater of its two sides.
    pub(crate) fn narrow(measured: &[Measurement], scores: Scores) -> Self {
        let cell = |accuracy: &Accuracy| accuracy.narrow();
        let mut table = Self::with_cells(measured, scores, &cell);
        if scores.logistic {
            table.header.pop();
            table.header.push("logistic".to_owned());
        }
        table
    }

    fn with_cells(
        measured: &[Measurement],
        scores: Scores,
        cell: &dyn Fn(&Accuracy) -> String,
    ) -> Self {
        let mut header = ["features", "layer", "width"].map(str::to_owned).to_vec();
        header.extend(scores.knn.map(|k| format!("kNN (k = {k})")));
        header.extend(scores.ridge.then(|| "ridge".to_owned()));
        header.extend(scores.logistic.then(|| "logistic regression".to_owned()));
        let row = |row: &Measurement| {
            let layer = row.layer.as_deref().unwrap_or("-").to_owned();
            let probes = [row.ridge, row.logistic].map(|probe| probe.map(|probe| probe.accuracy));
            let cells = [row.knn].into_iter().chain(probes).flatten();
            let mut line = vec![row.source.clone(), layer, row.width.to_string()];
            line.extend(cells.map(|accuracy| cell(&accuracy)));
            line
        };
        Self {
            header,
            rows: measured.iter().map(row).collect(),
        }
    }
}

/// In Markdown.
impl std::fmt::Display for ResultTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut table = Table::new();
        table
            .load_style(presets::ASCII_MARKDOWN)
            .set_header(&self.header)
            .add_rows(&self.rows);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        f.write_str(&table.trim_fmt())
    }
}

impl FeaturePair {
    /// What is to be said about the labels that were read: images without one, and classes that
    /// training does not know. Fails if it knows none of the test set's.
    pub(crate) fn label_warnings(&self, classes: &Classes) -> anyhow::Result<Vec<String>> {
        let mut warnings = Vec::new();
        let sets = [("training", &self.train), ("test", &self.test)];
        for ((name, features), count) in sets.into_iter().zip(self.unlabelled) {
            if count > 0 {
                let all = features.len() as u64 + count;
                warnings.push(format!(
                    "{count} of {all} {name} images have no label (null, or a negative index) and \
                     are left out"
                ));
            }
        }
        let known = self.train.num_classes();
        warnings.extend(compare_classes(classes, known, self.test.classes())?);
        Ok(warnings)
    }

    /// Scores every kind of features, and tells how far it is.
    pub(crate) fn measure_all(pairs: &[Self], scores: Scores) -> anyhow::Result<Vec<Measurement>> {
        // A fit takes about as long as its features are wide; pixels are much wider than layers.
        let width = |pair: &Self| pair.train.width() as u64;
        let total = pairs.iter().map(width).sum::<u64>() * scores.num_fits();
        let unit = Unit::Count("feature fits");
        let progress = Progress::new("fitting classifiers", Some(total), unit);
        let measure =
            |pair: &Self| pair.measure_watched(scores, &|fits| progress.add(fits * width(pair)));
        pairs.iter().map(measure).collect()
    }

    /// Scores one kind of features.
    pub(crate) fn measure(&self, scores: Scores) -> anyhow::Result<Measurement> {
        self.measure_watched(scores, &|_| ())
    }

    fn measure_watched(&self, scores: Scores, done: &dyn Fn(u64)) -> anyhow::Result<Measurement> {
        let (train, test) = (&self.train, &self.test);
        let (mut ridge, mut logistic) = (None, None);
        let knn = scores.knn.map(|k| classify(train, test, k));
        done(u64::from(knn.is_some()));
        if scores.ridge || scores.logistic {
            let probes = LinearProbes::new(train, test)?;
            done(1);
            ridge = scores.ridge.then(|| probes.ridge());
            done(u64::from(scores.ridge));
            let fit = scores.logistic.then(|| probes.logistic_regression(done));
            logistic = fit.transpose()?;
        }
        Ok(Measurement {
            source: self.source.clone(),
            layer: self.layer.map(|layer| layer.to_string()),
            width: train.width(),
            knn,
            ridge,
            logistic,
        })
    }
}

/// Where the features of one set go.
type Side = fn(&mut FeaturePair) -> &mut Features;

/// Two labelled sets, and how they are looked at.
#[derive(Debug)]
pub(crate) struct Evaluation<'a> {
    /// Images that classifiers see.
    pub train: &'a ImageSet,
    /// Images that they are asked about.
    pub test: &'a ImageSet,
    /// How images are prepared.
    pub read: ReadOptions,
    /// What a token sees.
    pub causal: bool,
    /// Where features are taken.
    pub layers: &'a [Layer],
    /// How tokens become one feature.
    pub pool: Pool,
    /// Where models are.
    pub device: &'a Device,
}

impl Evaluation<'_> {
    /// Features of every layer of every model, in this order. Images are decoded once for all
    /// models.
    pub(crate) fn of_models(
        &self,
        models: &[(String, Nepa)],
        classes: &mut Classes,
    ) -> anyhow::Result<Vec<FeaturePair>> {
        let mut pairs = Vec::new();
        for (name, model) in models {
            for layer in self.layers {
                let empty = || Features::new(model.config().hidden_size);
                pairs.push(FeaturePair {
                    source: name.clone(),
                    layer: Some(*layer),
                    train: empty(),
                    test: empty(),
                    unlabelled: [0; 2],
                });
            }
        }
        let mut unlabelled = Vec::new();
        let readers = models
            .iter()
            .map(|(_, model)| LayerReader::new(model, self.causal));
        let mut readers: Vec<_> = readers.collect();
        let progress = self.progress("computing features");
        for (set, side) in self.sides() {
            let mut number = |label| Ok(classes.number(set, label));
            let left_out = set.read(self.read, Some(&mut number), |pixels, numbers| {
                progress.add(numbers.len() as u64);
                let pixels = pixels.to_device(self.device)?;
                let mut pairs = pairs.iter_mut();
                for reader in &mut readers {
                    let found = reader.features(&pixels, self.layers, self.pool)?;
                    for (rows, pair) in found.into_iter().zip(pairs.by_ref()) {
                        push_all(side(pair), &rows, numbers);
                    }
                }
                Ok(())
            })?;
            unlabelled.push(left_out.unlabelled);
        }
        for pair in &mut pairs {
            pair.unlabelled = [unlabelled[0], unlabelled[1]];
        }
        Ok(pairs)
    }

    /// The pixels as features.
    pub(crate) fn of_pixels(&self, classes: &mut Classes) -> anyhow::Result<FeaturePair> {
        let small = self.read.transform.size.min(PIXEL_SIDE);
        let read = ReadOptions {
            transform: self.read.transform.shrunk_to(small),
            ..self.read
        };
        let width = 3 * (small * small) as usize;
        let mut pair = FeaturePair {
            source: format!("pixels, {small} x {small}"),
            layer: None,
            train: Features::new(width),
            test: Features::new(width),
            unlabelled: [0; 2],
        };
        let progress = self.progress("reading pixels");
        for (index, (set, side)) in self.sides().into_iter().enumerate() {
            let push = |pixels: &Tensor, numbers: &[usize]| {
                progress.add(numbers.len() as u64);
                push_all(side(&mut pair), &pixel_features(pixels)?, numbers);
                Ok(())
            };
            let mut number = |label| Ok(classes.number(set, label));
            let left_out = set.read(read, Some(&mut number), push)?;
            pair.unlabelled[index] = left_out.unlabelled;
        }
        Ok(pair)
    }

    /// Says where the labels are, before anything is read; fails where there are none, or where no
    /// class can be in both sets.
    pub(crate) fn labels(&self) -> anyhow::Result<String> {
        Self::labels_of(self.train, self.test)
    }

    /// The same of two sets that are not looked at yet.
    pub(crate) fn labels_of(train_set: &ImageSet, test_set: &ImageSet) -> anyhow::Result<String> {
        let (train, test) = (train_set.labels()?, test_set.labels()?);
        train_set.check_same_spelling(test_set)?;
        Ok(if train == test {
            format!("labels: {train}")
        } else {
            format!("training labels: {train}\ntest labels: {test}")
        })
    }

    /// Tells how many images of both sets are read.
    fn progress(&self, what: &str) -> Progress {
        let limit = self.read.limit as u64;
        let total = self.train.len().min(limit) + self.test.len().min(limit);
        Progress::new(what, Some(total), Unit::Count("images"))
    }

    /// Both sets, and where their features go.
    fn sides(&self) -> [(&ImageSet, Side); 2] {
        [
            (self.train, |pair| &mut pair.train),
            (self.test, |pair| &mut pair.test),
        ]
    }
}

fn push_all(features: &mut Features, rows: &[Vec<f32>], classes: &[usize]) {
    for (row, class) in rows.iter().zip(classes) {
        features.push(row, *class);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// What progress adds up to is what it announces, whatever is asked for.
    #[test]
    fn every_fit_is_counted() {
        let mut features = Features::new(2);
        for row in 0..40 {
            let class = row % 2;
            features.push(
                &[class as f32 + 0.1 * (row % 7) as f32, (row % 5) as f32],
                class,
            );
        }
        let pair = FeaturePair {
            source: "numbers".to_owned(),
            layer: None,
            train: features.clone(),
            test: features,
            unlabelled: [0; 2],
        };
        for (knn, ridge, logistic) in [
            (Some(3), true, true),
            (None, true, true),
            (None, false, true),
            (None, true, false),
            (Some(3), false, false),
        ] {
            let scores = Scores {
                knn,
                ridge,
                logistic,
            };
            let done = Cell::new(0);
            let measured = pair.measure_watched(scores, &|fits| done.set(done.get() + fits));
            measured.expect("scores");
            assert_eq!(done.get(), scores.num_fits(), "{scores:?}");
        }
    }
}
