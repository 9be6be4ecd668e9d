//! The learning report of runs: curves, accuracy of their features over time, and pictures of what
//! they predict and attend to. Called by `nepa report`.
mod accuracy;
mod facts;
mod history;
mod maps;
mod page;
mod plots;

use std::path::Path;

use anyhow::Context;
use candle_core::Device;
use nepa_model::Nepa;
use nepa_pipeline::{IoRuntime, redact, shown_url};

use self::accuracy::Found;
use self::history::{History, Step};
use self::maps::{MapSheet, columns, draw_sheet};
use self::page::{Maps, Page};
use self::plots::{Curve, Plot, piece_of};
use crate::eval::{ImageSet, Layer, Pool, Pretrained, ReadOptions, ResultTable, Scores, Source};
use crate::output::RunCopy;
use crate::recipe::ResolvedRecipe;
use crate::words;

/// What a report shows besides its curves.
#[derive(Debug)]
pub struct ReportOptions<'a> {
    /// Labelled sets, for training classifiers and for testing them; left out: no accuracies.
    pub sets: Option<(&'a ImageSet, &'a ImageSet)>,
    /// Whether a token sees only what came before.
    pub causal: bool,
    /// How tokens become one feature.
    pub pool: Pool,
    /// The same, for people.
    pub tokens: String,
    /// What is computed.
    pub scores: Scores,
    /// Trained weights or their moving average.
    pub weights: Source,
    /// Images of which maps are drawn, and how many; left out: none.
    pub maps: Option<(&'a ImageSet, usize)>,
    /// Where models are.
    pub device: &'a Device,
}

/// A run as it was fetched.
#[derive(Debug)]
pub struct Subject {
    /// Path or URL as it was given.
    pub place: String,
    /// What it holds.
    pub copy: RunCopy,
    /// Its newest checkpoint, if it was wanted and there is one.
    pub newest: Option<Newest>,
}

/// The newest checkpoint of a run.
#[derive(Debug)]
pub struct Newest {
    /// The checkpoint.
    pub pretrained: Pretrained,
    /// How images are prepared for it.
    pub read: ReadOptions,
    /// Where features are taken.
    pub layers: Vec<Layer>,
}

/// A run as it is shown.
#[derive(Debug)]
struct Run {
    name: String,
    place: String,
    recipe: ResolvedRecipe,
    recipe_text: String,
    history: History,
    /// Steps of all checkpoints.
    checkpoints: Vec<u64>,
}

/// Writes the report of one or several runs into `folder`.
pub fn write_report(
    subjects: &[Subject],
    options: &ReportOptions<'_>,
    runtime: &IoRuntime,
    folder: &Path,
) -> anyhow::Result<()> {
    let places = subjects
        .iter()
        .map(|subject| redact(&shown_url(&subject.place)));
    let places = places.collect::<Vec<_>>();
    let names = distinct_names(&places);
    let runs = subjects.iter().zip(names).zip(places);
    let runs = runs.map(|((subject, name), place)| {
        let copy = &subject.copy;
        let recipe = toml::from_str(&copy.recipe);
        Ok(Run {
            name,
            recipe: recipe.with_context(|| format!("the recipe.toml of {place} cannot be read"))?,
            recipe_text: copy.recipe.clone(),
            history: History::parse(&copy.metrics, &place)?,
            checkpoints: copy.steps.clone(),
            place,
        })
    });
    let runs = runs.collect::<anyhow::Result<Vec<Run>>>()?;
    // Loaded now: a run that goes on may remove them meanwhile.
    let load = |subject: &Subject| {
        let newest = subject.newest.as_ref().filter(|_| options.maps.is_some());
        let load = |newest: &Newest| {
            newest
                .pretrained
                .model(options.weights, None, options.device)
        };
        newest.map(load).transpose()
    };
    let drawn = subjects.iter().map(load).collect::<Result<Vec<_>, _>>()?;
    let mut page = page(&runs);
    let has_checkpoints = subjects.iter().any(|subject| subject.newest.is_some());
    if let Some(sets) = options.sets.filter(|_| has_checkpoints) {
        let found = Found::measure(subjects, &runs, sets, options, runtime)?;
        page.plots.splice(0..0, found.plots(&runs));
        page.said.extend(facts::feature_sentences(&runs, &found));
        (page.scores, page.scores_caption) = found.table(&runs, options);
    }
    let missing = facts::missing(&runs, options.sets.is_some(), options.maps.is_some());
    page.said.extend(missing);
    if let Some((images, count)) = options.maps {
        for ((subject, run), model) in subjects.iter().zip(&runs).zip(drawn) {
            let (Some(model), Some(newest)) = (model, &subject.newest) else {
                continue;
            };
            page.maps.push(Maps {
                run: run.name.clone(),
                columns: columns(model.config()),
                sheets: draw_maps(&model, images, newest.read, count)?,
            });
        }
    }
    page.write(folder)
}

/// Everything that needs no checkpoint.
fn page(runs: &[Run]) -> Page {
    let first = &runs[0];
    let (title, lead, said, settings);
    if let [run] = runs {
        title = format!("{}: learning report", run.recipe.name);
        let step = run.history.last().map_or(0, |last| last.step);
        let (step, steps) = (words::count(step), words::count(run.recipe.train.steps));
        lead = format!("{}, step {step} of {steps}", run.place);
        said = facts::sentences(run);
        settings = Vec::new();
    } else {
        let names = runs.iter().map(|run| &*run.name).collect::<Vec<_>>();
        title = format!("{}: learning reports", names.join(", "));
        let places = runs
            .iter()
            .map(|run| format!("{}: {}", run.name, run.place));
        lead = places.collect::<Vec<_>>().join("; ");
        said = facts::comparison(runs);
        settings = facts::differences(runs);
    }
    let same_recipe = runs.iter().all(|run| run.recipe_text == first.recipe_text);
    let recipes = runs.iter().take(if same_recipe { 1 } else { runs.len() });
    Page {
        title,
        lead,
        said,
        names: runs.iter().map(|run| run.name.clone()).collect(),
        facts: facts::fact_table(runs),
        settings,
        plots: curves(runs),
        scores: ResultTable::default(),
        scores_caption: String::new(),
        maps: Vec::new(),
        recipes: recipes
            .map(|run| (run.name.clone(), run.recipe_text.clone()))
            .collect(),
    }
}

/// Names that tell runs apart: of each path or URL as few of its last parts as it takes. Where the
/// same is given twice, a number is added.
fn distinct_names(places: &[String]) -> Vec<String> {
    let parts = places.iter().map(|place| {
        let local = !place.contains("://");
        let whole = std::path::absolute(place).ok().filter(|_| local);
        let whole = whole.map_or_else(|| place.clone(), |path| path.display().to_string());
        let parts = whole.split('/').filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect::<Vec<_>>()
    });
    let parts = parts.collect::<Vec<_>>();
    let ending =
        |parts: &Vec<String>, count: usize| parts[parts.len().saturating_sub(count)..].join("/");
    let longest = parts.iter().map(Vec::len).max().unwrap_or(1).max(1);
    let names = |count| {
        parts
            .iter()
            .map(|parts| ending(parts, count))
            .collect::<Vec<_>>()
    };
    // What is given twice has one name, however long.
    let is_distinct = |names: &[String]| {
        let all = || names.iter().zip(&parts);
        all().all(|(name, of)| all().all(|(other, its)| name != other || of == its))
    };
    let mut found = (1..=longest).map(names).find(|names| is_distinct(names));
    let found = found.get_or_insert_with(|| names(1));
    let seen = found.clone();
    for (number, name) in found.iter_mut().enumerate() {
        let before = seen[..number].iter().filter(|other| *other == name).count();
        if before > 0 {
            *name = format!("{name} ({})", before + 1);
        }
    }
    std::mem::take(found)
}

/// The curves of all runs, each over the others.
fn curves(runs: &[Run]) -> Vec<Plot> {
    /// With more runs, bands would hide each other.
    const BANDS: usize = 3;
    /// With more epochs, their lines would.
    const EPOCHS: usize = 20;
    let batches = runs.iter().map(|run| run.recipe.train.batch);
    let over_images = batches
        .clone()
        .any(|batch| batch != runs[0].recipe.train.batch);
    let piece = piece_of(
        runs.iter()
            .map(|run| run.history.0.len())
            .max()
            .unwrap_or(0),
    );
    let bands = runs.len() <= BANDS;
    let x = |step: &Step| {
        if over_images {
            step.samples as f64
        } else {
            step.step as f64
        }
    };
    let mut epochs = Vec::new();
    if let [run] = runs {
        let starts = run
            .history
            .0
            .windows(2)
            .filter(|two| two[1].epoch > two[0].epoch);
        epochs = starts.map(|two| x(&two[1])).collect();
        epochs.truncate(EPOCHS + 1);
        if epochs.len() > EPOCHS {
            epochs.clear();
        }
    }
    let mut drawn = String::new();
    if piece > 1 {
        drawn += &format!(" Line: mean of {} steps", words::count(piece as u64));
        drawn += if bands {
            "; band: the least to the greatest of them."
        } else {
            "."
        };
    }
    if !epochs.is_empty() {
        drawn += " Upright lines: a new epoch begins.";
    }
    if over_images {
        drawn += " Over images, as the runs have different batches.";
    }
    let of_runs = |value: fn(&Step) -> f64| {
        let curves = runs.iter().enumerate().map(|(number, run)| {
            let values = run.history.0.iter().map(|step| (x(step), value(step)));
            Curve::line(&run.name, number, piece, values)
        });
        curves.collect::<Vec<_>>()
    };
    let plot = |name: &str, title: &str, caption: &str, logarithmic, curves| Plot {
        name: name.to_owned(),
        title: title.to_owned(),
        caption: format!("{caption}{drawn}"),
        x_axis: if over_images {
            "images"
        } else {
            "optimiser step"
        },
        logarithmic,
        bands,
        epochs: epochs.clone(),
        curves,
    };
    let share: fn(&Step) -> f64 = |step| 100.0 * step.copy_win;
    let mut plots = vec![plot(
        "loss",
        "Loss",
        "Minus the mean cosine of the predicted with the next embedding; −1 is perfect.",
        false,
        of_runs(|step| step.loss),
    )];
    if let [run] = runs {
        let steps = &run.history.0;
        let curve = |name, colour, value: fn(&Step) -> f64| {
            let values = steps.iter().map(|step| (x(step), value(step)));
            Curve::line(name, colour, piece, values)
        };
        plots.push(plot(
            "copying",
            "Copying: mean cosine of the prediction",
            "A model that repeats its input is nearer to the current embedding than to the next.",
            false,
            vec![
                curve("with the next", 0, |step| step.cos_target),
                curve("with the current", 1, |step| step.cos_previous),
            ],
        ));
    }
    plots.extend([
        plot(
            "copy-share",
            "Copying: positions nearer to the current, %",
            "Share of positions whose prediction is nearer to the current embedding than to the \
             next one.",
            false,
            of_runs(share),
        ),
        plot(
            "gradient-norm",
            "Gradient norm",
            "Global norm before clipping.",
            true,
            of_runs(|step| step.grad_norm),
        ),
        plot(
            "learning-rate",
            "Learning rate",
            "Of each optimiser step.",
            false,
            of_runs(|step| step.lr),
        ),
        plot(
            "speed",
            "Images a second",
            "Over whole steps, waiting for data included.",
            false,
            of_runs(|step| step.images_per_second),
        ),
        plot(
            "waiting",
            "Time spent waiting for data, %",
            "Of the time of each step.",
            false,
            of_runs(|step| 100.0 * step.data_wait_ms / (step.data_wait_ms + step.step_ms)),
        ),
    ]);
    plots
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_runs_apart() {
        let names = |places: &[&str]| {
            let places = places.iter().map(|place| (*place).to_owned());
            distinct_names(&places.collect::<Vec<_>>())
        };
        assert_eq!(names(&["runs/a", "/tmp/b/"]), ["a", "b"]);
        assert_eq!(names(&["s3://x/1/run", "/tmp/2/run"]), ["1/run", "2/run"]);
        assert_eq!(names(&["/a/1/run", "/b/1/run"]), ["a/1/run", "b/1/run"]);
        assert_eq!(names(&["/a", "/b/a"]), ["a", "b/a"]);
        assert_eq!(names(&["/a/run", "/b", "/a/run/"]), ["run", "b", "run (2)"]);
    }
}
