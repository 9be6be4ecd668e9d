//! Accuracy of frozen features while training goes on: of every checkpoint, of the random weights
//! that it began with, and of the pixels.
use std::collections::BTreeMap;

use nepa_model::Nepa;
use nepa_pipeline::{IoConfig, IoRuntime};

use super::subject::{ReportOptions, Run, Subject};
use crate::checkpoint::MANIFEST;
use crate::console::words;
use crate::eval::{
    Accuracy, Classes, Evaluation, FeaturePair, ImageSet, Measurement, ResultTable, Source,
};
use crate::page::Plot;
use crate::page::{Curve, Point, Style};
use crate::weights;

/// What one classifier found.
pub(super) type Score = fn(&Measurement) -> Option<Accuracy>;

/// The classifiers, by names for people.
pub(super) const KINDS: [(&str, Score); 3] = [
    ("Logistic regression", |m| {
        m.logistic.map(|probe| probe.accuracy)
    }),
    ("Ridge regression", |m| m.ridge.map(|probe| probe.accuracy)),
    ("A vote of nearest neighbours", |m| m.knn),
];

/// Whether one share is greater than another beyond chance, at 95 %.
pub(super) fn is_better(a: Accuracy, b: Accuracy) -> bool {
    let variance = |accuracy: Accuracy| {
        let share = accuracy.share();
        share * (1.0 - share) / accuracy.total.max(1) as f64
    };
    a.share() - b.share() > 1.96 * (variance(a) + variance(b)).sqrt()
}

/// What was measured of one run.
#[derive(Debug)]
pub(super) struct OfRun {
    pub(super) pixels: Measurement,
    /// Step and one measurement a layer; the random weights are at step 0.
    pub(super) models: Vec<(u64, Vec<Measurement>)>,
}

impl OfRun {
    /// Layer and accuracy of the best layer of the newest checkpoint.
    pub(super) fn newest_best(&self, score: Score) -> Option<(String, Accuracy)> {
        best(&self.models.last().filter(|(step, _)| *step > 0)?.1, score)
    }

    /// The same of the random weights.
    pub(super) fn random_best(&self, score: Score) -> Option<(String, Accuracy)> {
        best(
            &self.models.first().filter(|(step, _)| *step == 0)?.1,
            score,
        )
    }

    pub(super) fn newest_step(&self) -> u64 {
        self.models.last().map_or(0, |(step, _)| *step)
    }
}

fn best(layers: &[Measurement], score: Score) -> Option<(String, Accuracy)> {
    let scored = layers.iter().filter_map(|layer| {
        let name = layer.layer.clone().unwrap_or_default();
        Some((name, score(layer)?))
    });
    scored.max_by(|a, b| a.1.share().total_cmp(&b.1.share()))
}

/// What was measured of all runs.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// None of a run without checkpoints.
    pub(super) runs: Vec<Option<OfRun>>,
    /// Images of the training and of the test set.
    pub(super) images: [usize; 2],
    /// Classes of the training set.
    pub(super) classes: usize,
    /// What is to be said about labels.
    pub(super) warnings: Vec<String>,
}

impl Found {
    /// In per cent.
    pub(super) fn chance(&self) -> f64 {
        100.0 / self.classes.max(1) as f64
    }

    /// Measures all checkpoints of all runs; what several runs have in common is measured once.
    pub(super) fn measure(
        subjects: &[Subject],
        runs: &[Run],
        sets: (&ImageSet, &ImageSet),
        options: &ReportOptions<'_>,
        runtime: &IoRuntime,
    ) -> anyhow::Result<Self> {
        let mut found = Self::default();
        let mut classes = Classes::default();
        let (mut of_pixels, mut of_random) = (BTreeMap::new(), BTreeMap::new());
        for (subject, run) in subjects.iter().zip(runs) {
            let Some(newest) = &subject.newest else {
                found.runs.push(None);
                continue;
            };
            let evaluation = Evaluation {
                train: sets.0,
                test: sets.1,
                read: newest.read,
                causal: options.causal,
                layers: &newest.layers,
                pool: options.pool,
                device: options.device,
            };
            let read = format!("{:?}", newest.read);
            let pixels = if let Some(pixels) = of_pixels.get(&read) {
                Clone::clone(pixels)
            } else {
                tracing::info!("features: pixels");
                let pair = evaluation.of_pixels(&mut classes)?;
                found.images = [pair.train.len(), pair.test.len()];
                found.classes = pair.train.num_classes();
                found.warnings = pair.label_warnings(&classes)?;
                let pixels = pair.measure(options.scores)?;
                of_pixels.insert(read.clone(), pixels.clone());
                pixels
            };
            let mut of_model = |name: &str, what: &str, model: Nepa| {
                tracing::info!("features: {what}");
                let models = [(name.to_owned(), model)];
                let pairs = evaluation.of_models(&models, &mut classes)?;
                FeaturePair::measure_all(&pairs, options.scores)
            };
            let config = newest.weights.config();
            let random = format!("{read} {config:?} {} {:?}", run.recipe.seed, newest.layers);
            let random = if let Some(measured) = of_random.get(&random) {
                Clone::clone(measured)
            } else {
                let model = Source::Random.model(&newest.weights, None, options.device)?;
                let name = Source::Random.to_string();
                let measured = of_model(&name, &name, model)?;
                of_random.insert(random, measured.clone());
                measured
            };
            let mut models = vec![(0, random)];
            for (step, checkpoint) in &subject.copy.checkpoints {
                let place = checkpoint.to_string_lossy();
                let model = weights::open(&place, &IoConfig::default(), runtime)
                    .map_err(anyhow::Error::from)
                    .and_then(|opened| options.weights.model(&opened, None, options.device));
                match model {
                    Ok(model) => {
                        let name = format!("{}, step {step}", options.weights);
                        let what = format!("{}, step {step}", run.name);
                        models.push((*step, of_model(&name, &what, model)?));
                    }
                    Err(_) if !checkpoint.join(MANIFEST).exists() => tracing::warn!(
                        "{}: step {step} is left out: the run has removed its checkpoint",
                        run.name
                    ),
                    Err(error) => return Err(error),
                }
            }
            found.runs.push(Some(OfRun { pixels, models }));
        }
        Ok(found)
    }

    /// A plot for each classifier: a curve a layer, or, of several runs, a plot for each layer,
    /// too, and a curve a run.
    pub(super) fn plots(&self, runs: &[Run]) -> Vec<Plot> {
        let mut plots = Vec::new();
        for (kind, title, score) in [
            ("knn", "Nearest neighbours", KINDS[2].1),
            ("ridge", "Ridge regression", KINDS[1].1),
            ("logistic", "Logistic regression", KINDS[0].1),
        ] {
            if runs.len() == 1 {
                let layers = self.layers().into_iter().enumerate();
                let curves = layers.filter_map(|(colour, layer)| {
                    self.curve(0, &layer, score, format!("layer {layer}"), colour)
                });
                let curves = curves.collect::<Vec<_>>();
                plots.extend(self.plot(kind, title, None, score, curves));
                continue;
            }
            for layer in self.layers() {
                let curves = runs.iter().enumerate();
                let curves = curves.filter_map(|(number, run)| {
                    self.curve(number, &layer, score, run.name.clone(), number)
                });
                let curves = curves.collect::<Vec<_>>();
                plots.extend(self.plot(kind, title, Some(&layer), score, curves));
            }
        }
        plots
    }

    fn layers(&self) -> Vec<String> {
        let mut layers = Vec::<String>::new();
        let models = self.runs.iter().flatten().flat_map(|run| &run.models);
        for measured in models.flat_map(|(_, measured)| measured) {
            let layer = measured.layer.clone().unwrap_or_default();
            if !layers.contains(&layer) {
                layers.push(layer);
            }
        }
        layers
    }

    fn curve(
        &self,
        run: usize,
        layer: &str,
        score: Score,
        name: String,
        colour: usize,
    ) -> Option<Curve> {
        let models = &self.runs[run].as_ref()?.models;
        let points = models.iter().filter_map(|(step, measured)| {
            let of_layer = |m: &&Measurement| m.layer.as_deref() == Some(layer);
            let accuracy = score(measured.iter().find(of_layer)?)?;
            let (low, high) = accuracy.interval();
            Some(Point {
                x: *step as f64,
                y: 100.0 * accuracy.share(),
                range: 100.0 * low..100.0 * high,
            })
        });
        let points = points.collect::<Vec<_>>();
        (!points.is_empty()).then_some(Curve {
            name,
            colour,
            style: Style::Marked,
            points,
        })
    }

    fn plot(
        &self,
        kind: &str,
        title: &str,
        layer: Option<&str>,
        score: Score,
        mut curves: Vec<Curve>,
    ) -> Option<Plot> {
        if curves.is_empty() {
            return None;
        }
        let pixels = self
            .runs
            .iter()
            .flatten()
            .filter_map(|run| score(&run.pixels));
        let mut shares = pixels
            .map(|pixels| 100.0 * pixels.share())
            .collect::<Vec<_>>();
        // Runs that see images alike have the same line.
        shares.dedup();
        for share in shares {
            curves.push(Curve::level("pixels".to_owned(), 4, share));
        }
        let of_layer = layer.map_or_else(String::new, |layer| format!(", layer {layer}"));
        let suffix = layer.map_or_else(String::new, |layer| format!("-{layer}"));
        Some(Plot {
            name: format!("accuracy-{kind}{suffix}"),
            title: format!("{title}{of_layer}: accuracy, %"),
            caption: format!(
                "Of every checkpoint that was kept, with 95 % intervals; step 0 has the random \
                 weights that the run began with. Chance is {:.1} %.",
                self.chance()
            ),
            x_axis: "optimiser step",
            logarithmic: false,
            bands: true,
            epochs: Vec::new(),
            curves,
        })
    }

    /// All accuracies, and what they are.
    pub(super) fn table(&self, runs: &[Run], options: &ReportOptions<'_>) -> (ResultTable, String) {
        let mut rows = Vec::<Measurement>::new();
        for (run, measured) in runs.iter().zip(&self.runs) {
            let Some(measured) = measured else {
                continue;
            };
            let pixels = std::iter::once(&measured.pixels);
            for (number, row) in pixels
                .chain(measured.models.iter().flat_map(|(_, rows)| rows))
                .enumerate()
            {
                let mut row = row.clone();
                let same = |other: &Measurement| {
                    number == 0
                        && other.source == row.source
                        && other.knn == row.knn
                        && KINDS.iter().all(|(_, score)| score(other) == score(&row))
                };
                if rows.iter().any(same) {
                    continue;
                }
                if number > 0 && runs.len() > 1 {
                    row.source = format!("{}: {}", run.name, row.source);
                }
                rows.push(row);
            }
        }
        let mut caption = format!(
            "In %, with 95 % intervals; {} training and {} test images, {} classes, chance \
             {:.1} %; {}.",
            words::count(self.images[0] as u64),
            words::count(self.images[1] as u64),
            self.classes,
            self.chance(),
            options.tokens
        );
        for warning in &self.warnings {
            caption.extend([" Note: ", warning, "."]);
        }
        (ResultTable::new(&rows, options.scores), caption)
    }
}
