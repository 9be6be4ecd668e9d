//! Top-1 of several runs beside each other, and over their steps.
use super::evaluations::{of_images, shown, top1};
use super::sentence::Sentence;
use super::subject::Run;
use crate::logs::{self, EvalRecord};
use crate::page::Plot;
use crate::page::{Curve, Point, Style};

/// One kind of weights of an evaluation.
type Kind = fn(&EvalRecord) -> Option<logs::Accuracy>;

/// The kinds, by names for people.
const KINDS: [(&str, Kind); 2] = [
    ("moving average", |record| record.ema),
    ("raw weights", |record| Some(record.raw)),
];

/// What the best is chosen by.
fn chosen(record: &EvalRecord) -> Option<logs::Accuracy> {
    record.ema.or(Some(record.raw))
}

/// The best top-1 of several runs, the greatest first.
pub(super) fn comparison(runs: &[Run]) -> Option<Sentence> {
    let best = runs.iter().filter_map(|run| {
        let best = run.evaluations.best()?;
        Some((run, top1(best)))
    });
    let mut best = best.collect::<Vec<_>>();
    if best.len() < 2 {
        return None;
    }
    best.sort_by(|a, b| b.1.share().total_cmp(&a.1.share()));
    let each = best
        .iter()
        .map(|(run, accuracy)| format!("{} {}", run.name, shown(*accuracy)));
    let each = each.collect::<Vec<_>>().join(", ");
    Some(Sentence::plain(format!(
        "Best top-1 on the test images, with 95 % intervals of their sample: {each}. The best is \
         chosen by the same images, which makes it a little too good."
    )))
}

/// Top-1 and loss over steps: of one run both kinds of weights, of several the kind that the best
/// is chosen by.
pub(super) fn plots(runs: &[Run]) -> Vec<Plot> {
    let curves = |value: fn(&EvalRecord, logs::Accuracy) -> Point| {
        let curve = |run: &Run, name: &str, colour, kind: Kind| {
            let records = run.evaluations.0.iter();
            let points = records.filter_map(|record| Some(value(record, kind(record)?)));
            let points = points.collect::<Vec<_>>();
            (!points.is_empty()).then(|| Curve {
                name: name.to_owned(),
                colour,
                style: Style::Marked,
                points,
            })
        };
        match runs {
            [run] => KINDS
                .into_iter()
                .enumerate()
                .filter_map(|(colour, (name, kind))| curve(run, name, colour, kind))
                .collect::<Vec<_>>(),
            _ => runs
                .iter()
                .enumerate()
                .filter_map(|(colour, run)| curve(run, &run.name, colour, chosen))
                .collect(),
        }
    };
    let of_top1 = curves(|record, found| {
        let (low, high) = of_images(record, found.top1).interval();
        Point {
            x: record.step as f64,
            y: 100.0 * found.top1,
            range: 100.0 * low..100.0 * high,
        }
    });
    let of_loss = curves(|record, found| Point {
        x: record.step as f64,
        y: found.loss,
        range: found.loss..found.loss,
    });
    let plot = |name: &str, title: &str, caption: &str, curves: Vec<Curve>| {
        (!curves.is_empty()).then(|| Plot {
            name: name.to_owned(),
            title: title.to_owned(),
            caption: caption.to_owned(),
            x_axis: "optimiser step",
            logarithmic: false,
            bands: true,
            epochs: Vec::new(),
            curves,
        })
    };
    let plots = [
        plot(
            "top1",
            "Top-1 on the test images, %",
            "Share of test images whose class has the greatest logit, with 95 % intervals of their \
             sample.",
            of_top1,
        ),
        plot(
            "eval-loss",
            "Loss on the test images",
            "Mean cross-entropy with the labels as they are: neither mixed nor smoothed.",
            of_loss,
        ),
    ];
    plots.into_iter().flatten().collect()
}
