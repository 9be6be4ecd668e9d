//! The learning report of a run: curves, accuracy of its features over time, and pictures of what it predicts and attends to. Called by
//! `nepa report`.
mod maps;
mod page;
mod plots;

use std::path::Path;

use anyhow::Context;
use candle_core::Device;
use nepa_model::Nepa;
use nepa_pipeline::IoRuntime;

use self::maps::{MapSheet, columns, draw_sheet};
use self::page::Page;
use self::plots::{Curve, Plot, Style};
use crate::checkpoint::MANIFEST;
use crate::eval::{
    Accuracy, Classes, Evaluation, ImageSet, Measurement, Pretrained, ReadOptions, ResultTable,
    Scores, Source,
};
use crate::metrics::{StepMetrics, parse_metrics};
use crate::output::RunCopy;
use crate::recipe::ResolvedRecipe;

/// What a report shows besides its curves.
#[derive(Debug)]
pub struct ReportOptions<'a> {
    /// Labelled sets for the accuracy of features; left out: none.
    pub evaluation: Option<Evaluation<'a>>,
    /// What is computed on them.
    pub scores: Scores,
    /// How the tokens become a feature, for people.
    pub tokens: String,
    /// Trained weights or their moving average.
    pub weights: Source,
    /// Images of which maps are drawn, and how many; left out: none.
    pub maps: Option<(&'a ImageSet, ReadOptions, usize)>,
    /// Where models are.
    pub device: &'a Device,
}

/// Writes the report of a run into `folder`; `newest` is its newest checkpoint.
pub fn write_report(
    run: &RunCopy,
    place: &str,
    newest: &Pretrained,
    options: &ReportOptions<'_>,
    runtime: &IoRuntime,
    folder: &Path,
) -> anyhow::Result<()> {
    let recipe: ResolvedRecipe =
        toml::from_str(&run.recipe).context("the run's recipe.toml cannot be read")?;
    let metrics = parse_metrics(&run.metrics).context("the run's metrics.jsonl cannot be read")?;
    let last = metrics.last().context("the run has not done a step yet")?;
    let mut page = Page {
        title: recipe.name.clone(),
        lead: format!("{place}, step {} of {}", last.step, recipe.train.steps),
        facts: facts(&recipe, &metrics, last),
        plots: curves(&metrics),
        scores: ResultTable::default(),
        scores_caption: String::new(),
        map_columns: columns(&recipe.model),
        maps: Vec::new(),
        recipe: run.recipe.clone(),
    };
    // Loaded now: a run that goes on may remove it meanwhile.
    let load = || newest.model(options.weights, None, options.device);
    let drawn = options.maps.is_some().then(load).transpose()?;
    if let Some(evaluation) = &options.evaluation {
        let mut progress = Progress::new(evaluation, options);
        progress.pixels()?;
        let random = newest.model(Source::Random, None, options.device)?;
        progress.model(0, "random weights", random)?;
        for (step, checkpoint) in &run.checkpoints {
            let name = format!("{}, step {step}", options.weights);
            let model = Pretrained::open(&checkpoint.to_string_lossy(), runtime)
                .and_then(|opened| opened.model(options.weights, None, options.device));
            match model {
                Ok(model) => progress.model(*step, &name, model)?,
                Err(_) if !checkpoint.join(MANIFEST).exists() => {
                    tracing::warn!("step {step} is left out: the run has removed its checkpoint");
                }
                Err(error) => return Err(error),
            }
        }
        progress.finish(&mut page);
    }
    if let (Some(model), Some((images, read, count))) = (drawn, options.maps) {
        page.maps = draw_maps(&model, images, read, count)?;
    }
    page.write(folder)
}

fn facts(
    recipe: &ResolvedRecipe,
    metrics: &[StepMetrics],
    last: &StepMetrics,
) -> Vec<(String, String)> {
    let model = &recipe.model;
    let milliseconds = |value: fn(&StepMetrics) -> f64| metrics.iter().map(value).sum::<f64>();
    let (stepping, waiting) = (
        milliseconds(|m| m.step_ms),
        milliseconds(|m| m.data_wait_ms),
    );
    let mut rates = metrics
        .iter()
        .map(|m| m.images_per_second)
        .collect::<Vec<_>>();
    rates.sort_by(f64::total_cmp);
    let weights = nepa_model::ParamSpec::all(model)
        .iter()
        .map(nepa_model::ParamSpec::len)
        .sum::<usize>();
    let fact = |name: &str, value: String| (name.to_owned(), value);
    vec![
        fact(
            "Model",
            format!(
                "{:.2} million weights: width {}, {} blocks, {} heads; {} px in patches of {} px",
                weights as f64 / 1e6,
                model.hidden_size,
                model.num_hidden_layers,
                model.num_attention_heads,
                model.image_size,
                model.patch_size
            ),
        ),
        fact(
            "Training",
            format!(
                "batch {}, peak learning rate {:.2e} after {} steps of warm-up, weight decay {}, moving average {}, seed {}",
                recipe.train.batch,
                recipe.train.lr,
                recipe.train.warmup_steps,
                recipe.optimizer.weight_decay,
                recipe
                    .optimizer
                    .ema_decay
                    .map_or_else(|| "none".to_owned(), |decay| decay.to_string()),
                recipe.seed
            ),
        ),
        fact(
            "Seen",
            format!(
                "{} images, {:.1} epochs of {}",
                last.samples,
                last.samples as f64 / recipe.num_samples.max(1) as f64,
                recipe.num_samples
            ),
        ),
        fact(
            "Speed",
            format!(
                "median {:.0} images a second on {}; {:.1} minutes of steps, {:.1} % of the time spent waiting for data",
                rates[rates.len() / 2],
                recipe.device,
                (stepping + waiting) / 60e3,
                100.0 * waiting / (stepping + waiting)
            ),
        ),
        fact(
            "Now",
            format!(
                "loss {:.4}; cosine with the next embedding {:.3}, with the current {:.3}; the current is nearer at {:.1} % of positions",
                last.loss,
                last.cos_target,
                last.cos_previous,
                100.0 * last.copy_win
            ),
        ),
    ]
}

fn curves(metrics: &[StepMetrics]) -> Vec<Plot> {
    let curve = |name: &str, value: fn(&StepMetrics) -> f64| {
        Curve::line(name, metrics.iter().map(|m| (m.step as f64, value(m))))
    };
    let plot = |name, title, caption, logarithmic, curves| Plot {
        name,
        title,
        caption,
        logarithmic,
        curves,
    };
    vec![
        plot(
            "loss",
            "Loss",
            "Minus the mean cosine of the predicted with the next embedding; -1 is perfect.",
            false,
            vec![curve("loss", |m| m.loss)],
        ),
        plot(
            "copying",
            "Copy diagnostics",
            "A model that repeats its input has a higher cosine with the current embedding than with the next; the share counts the positions where that is so.",
            false,
            vec![
                curve("cosine with next", |m| m.cos_target),
                curve("cosine with current", |m| m.cos_previous),
                curve("share nearer to current", |m| m.copy_win),
            ],
        ),
        plot(
            "learning-rate",
            "Learning rate",
            "Of each optimiser step.",
            false,
            vec![curve("learning rate", |m| m.lr)],
        ),
        plot(
            "gradient-norm",
            "Gradient norm",
            "Global norm before clipping.",
            true,
            vec![curve("gradient norm", |m| m.grad_norm)],
        ),
        plot(
            "speed",
            "Images a second",
            "Over whole steps, waiting for data included.",
            false,
            vec![curve("images a second", |m| m.images_per_second)],
        ),
    ]
}

/// What one classifier found.
type Score = fn(&Measurement) -> Option<Accuracy>;

/// Accuracies while training goes on.
struct Progress<'a> {
    evaluation: &'a Evaluation<'a>,
    options: &'a ReportOptions<'a>,
    classes: Classes,
    pixels: Option<Measurement>,
    /// Step and one measurement a layer.
    models: Vec<(u64, Vec<Measurement>)>,
    images: [usize; 2],
    /// Classes of the training set.
    known_classes: usize,
    /// What the caption says about labels.
    warnings: Vec<String>,
}

impl<'a> Progress<'a> {
    fn new(evaluation: &'a Evaluation<'a>, options: &'a ReportOptions<'a>) -> Self {
        Self {
            evaluation,
            options,
            classes: Classes::default(),
            pixels: None,
            models: Vec::new(),
            images: [0, 0],
            known_classes: 0,
            warnings: Vec::new(),
        }
    }

    fn pixels(&mut self) -> anyhow::Result<()> {
        let pair = self.evaluation.of_pixels(&mut self.classes)?;
        self.images = [pair.train.len(), pair.test.len()];
        self.known_classes = pair.train.num_classes();
        self.warnings = pair.label_warnings(&self.classes)?;
        self.pixels = Some(pair.measure(self.options.scores)?);
        Ok(())
    }

    fn model(&mut self, step: u64, name: &str, model: Nepa) -> anyhow::Result<()> {
        tracing::info!("features of {name}");
        let models = [(name.to_owned(), model)];
        let pairs = self.evaluation.of_models(&models, &mut self.classes)?;
        let measured = pairs.iter().map(|pair| pair.measure(self.options.scores));
        self.models
            .push((step, measured.collect::<Result<_, _>>()?));
        Ok(())
    }

    fn finish(self, page: &mut Page) {
        let kinds: [(&str, Score); 3] = [
            ("kNN", |m| m.knn),
            ("ridge", |m| m.ridge.map(|probe| probe.accuracy)),
            ("logistic", |m| m.logistic.map(|probe| probe.accuracy)),
        ];
        let mut curves = Vec::new();
        for (kind, value) in kinds {
            for (index, layer) in self.evaluation.layers.iter().enumerate() {
                let points = self.models.iter().filter_map(|(step, measured)| {
                    let accuracy = value(&measured[index])?;
                    let (low, high) = accuracy.interval();
                    Some((
                        *step as f64,
                        100.0 * accuracy.share(),
                        100.0 * low..100.0 * high,
                    ))
                });
                let points = points.collect::<Vec<_>>();
                if !points.is_empty() {
                    let name = format!("{kind}, layer {layer}");
                    curves.push(Curve {
                        name,
                        style: Style::Marked,
                        points,
                    });
                }
            }
            if let Some(accuracy) = self.pixels.as_ref().and_then(value) {
                let level = Curve::line(
                    &format!("{kind}, pixels"),
                    [(0.0, 100.0 * accuracy.share())],
                );
                curves.push(Curve {
                    style: Style::Level,
                    ..level
                });
            }
        }
        page.plots.insert(
            0,
            Plot {
                name: "accuracy",
                title: "Accuracy of frozen features, %",
                caption: "Of every checkpoint that was kept, with 95 % intervals; step 0 has the random weights that the run began with.",
                logarithmic: false,
                curves,
            },
        );
        let models = self.models.iter().flat_map(|(_, rows)| rows);
        let rows = self.pixels.iter().chain(models).cloned();
        page.scores = ResultTable::new(&rows.collect::<Vec<_>>(), self.options.scores);
        page.scores_caption = format!(
            "In %, with 95 % intervals; {} training and {} test images, {} classes, chance {:.1} %; {}.",
            self.images[0],
            self.images[1],
            self.known_classes,
            100.0 / self.known_classes.max(1) as f64,
            self.options.tokens
        );
        for warning in &self.warnings {
            page.scores_caption.extend([" Note: ", warning, "."]);
        }
    }
}

/// Maps of images spread over the first 1,000 of the set.
fn draw_maps(
    model: &Nepa,
    images: &ImageSet,
    read: ReadOptions,
    count: usize,
) -> anyhow::Result<Vec<MapSheet>> {
    const AMONG: usize = 1000;
    let (mut sheets, mut at) = (Vec::new(), 0);
    let among = (images.len() as usize).min(AMONG);
    let stride = (among / count.max(1)).max(1);
    let read = ReadOptions {
        limit: stride * count,
        ..read
    };
    images.read(read, None, |pixels, _| {
        for row in 0..pixels.dim(0)? {
            if (at + row) % stride == 0 && sheets.len() < count {
                let image = pixels.get(row)?.to_device(model.vars[0].device())?;
                sheets.push(draw_sheet(model, &image, &read.normalize)?);
            }
        }
        at += pixels.dim(0)?;
        Ok(())
    })?;
    Ok(sheets)
}
