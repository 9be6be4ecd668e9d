//! Which curves a report has, and how those of several runs lie over each other.
use super::history::Step;
use super::subject::Run;
use super::top1;
use crate::console::words;
use crate::page::Plot;
use crate::page::{Curve, piece_of};

/// The curves of all runs, each over the others.
pub(super) fn curves(runs: &[Run]) -> Vec<Plot> {
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
    let of_some = |is_shown: fn(&Run) -> bool, value: fn(&Step) -> f64| {
        let shown = runs.iter().enumerate().filter(|(_, run)| is_shown(run));
        let curves = shown.map(|(number, run)| {
            let values = run.history.0.iter().map(|step| (x(step), value(step)));
            Curve::line(&run.name, number, piece, values)
        });
        curves.collect::<Vec<_>>()
    };
    let of_runs = |value| of_some(|_| true, value);
    let of_pretraining = |value| of_some(|run| !run.is_classifier(), value);
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
    let mut plots = top1::plots(runs);
    plots.extend([
        plot(
            "loss",
            "Loss",
            "Minus the mean cosine of the predicted with the next embedding; −1 is perfect.",
            false,
            of_pretraining(|step| step.loss),
        ),
        plot(
            "classifier-loss",
            "Loss of the classifier",
            "Mean cross-entropy with the labels of the batch, mixed and smoothed as the recipe has \
             it.",
            false,
            of_some(Run::is_classifier, |step| step.loss),
        ),
    ]);
    if let [run] = runs
        && !run.is_classifier()
    {
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
            of_pretraining(share),
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
    plots.retain(|plot| !plot.curves.is_empty());
    plots
}
