//! Putting a report together and writing it.
use std::path::Path;

use anyhow::Context;
use nepa_model::Nepa;
use nepa_pipeline::{IoRuntime, redact, shown_url};

use super::accuracy::Found;
use super::curves::curves;
use super::evaluations::Evaluations;
use super::facts;
use super::features;
use super::history::History;
use super::maps::{MapSheet, columns, draw_sheet};
use super::names::distinct_names;
use super::page::{Maps, Page};
use super::settings;
use super::subject::{Newest, ReportOptions, Run, Subject};
use crate::console::words;
use crate::eval::{ImageSet, ReadOptions, ResultTable};

/// Writes the report of one or several runs into `folder`.
pub(crate) fn write_report(
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
            evaluations: Evaluations::parse(&copy.evals, &place)?,
            checkpoints: copy.steps.clone(),
            place,
        })
    });
    let runs = runs.collect::<anyhow::Result<Vec<Run>>>()?;
    // Loaded now: a run that goes on may remove them meanwhile.
    let load = |subject: &Subject| {
        let newest = subject.newest.as_ref().filter(|_| options.maps.is_some());
        let load = |newest: &Newest| options.weights.model(&newest.weights, None, options.device);
        newest.map(load).transpose()
    };
    let drawn = subjects.iter().map(load).collect::<Result<Vec<_>, _>>()?;
    let mut page = page(&runs);
    let has_checkpoints = subjects.iter().any(|subject| subject.newest.is_some());
    if let Some(sets) = options.sets.filter(|_| has_checkpoints) {
        let found = Found::measure(subjects, &runs, sets, options, runtime)?;
        page.plots.splice(0..0, found.plots(&runs));
        page.said.extend(features::feature_sentences(&runs, &found));
        (page.scores, page.scores_caption) = found.table(&runs, options);
    }
    let missing = features::missing(&runs, options.sets.is_some(), options.maps.is_some());
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
        settings = settings::differences(runs);
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
