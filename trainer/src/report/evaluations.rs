//! The evaluations of runs that fine-tune a classifier: `evals.jsonl`, its curves and what is said
//! of it.
use anyhow::Context;

use super::curve::{Curve, Point, Style};
use super::plots::Plot;
use super::sentence::Sentence;
use super::subject::Run;
use crate::console::words;
use crate::eval::Accuracy;
use crate::logs::{self, EvalRecord};
use crate::output::EVALS;

/// All evaluations of a run so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Evaluations(pub(super) Vec<EvalRecord>);

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

/// A share of the images of an evaluation.
fn of_images(record: &EvalRecord, share: f64) -> Accuracy {
    Accuracy {
        right: (share * record.images as f64).round() as usize,
        total: record.images as usize,
    }
}

/// Top-1 of the weights that the best is chosen by.
fn top1(record: &EvalRecord) -> Accuracy {
    of_images(record, record.top1())
}

/// In per cent, with its 95 % interval.
fn shown(accuracy: Accuracy) -> String {
    let (low, high) = accuracy.interval();
    format!(
        "{:.1} % ({:.1} to {:.1})",
        100.0 * accuracy.share(),
        100.0 * low,
        100.0 * high
    )
}

impl Evaluations {
    /// Reads the lines of an `evals.jsonl`; a last line without its end is left out.
    pub(super) fn parse(text: &str, place: &str) -> anyhow::Result<Self> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let record = |(number, line): (usize, &str)| {
            serde_json::from_str(line).with_context(|| {
                format!(
                    "line {} of {EVALS} in {place} cannot be read; without that line the report \
                     can be drawn",
                    number + 1
                )
            })
        };
        let records = whole.lines().enumerate().map(record);
        Ok(Self(records.collect::<anyhow::Result<_>>()?))
    }

    /// The one with the greatest top-1, the first of several.
    fn best(&self) -> Option<&EvalRecord> {
        self.0.iter().reduce(|best, record| {
            if record.top1() > best.top1() {
                record
            } else {
                best
            }
        })
    }

    /// The best and the last for a table: `54.0 % (53.0 to 55.0) at step 780; at last 53.1 %`.
    pub(super) fn fact(&self) -> Option<String> {
        let (best, last) = (self.best()?, self.0.last()?);
        let mut fact = format!("{} at step {}", shown(top1(best)), words::count(best.step));
        if best.step != last.step {
            fact += &format!("; at last {:.1} %", 100.0 * last.top1());
        }
        Some(fact)
    }

    /// What was found, of one run.
    pub(super) fn sentence(&self) -> Option<Sentence> {
        let (best, last) = (self.best()?, self.0.last()?);
        let weights = if best.ema.is_some() {
            "the moving average"
        } else {
            "the weights"
        };
        let mut text = format!(
            "Of {} {weights} names the right class at {} of step {}",
            words::counted(best.images, "test image"),
            shown(top1(best)),
            words::count(best.step),
        );
        text += &if best.step == last.step {
            ", its last evaluation and its best.".to_owned()
        } else {
            let share = 100.0 * last.top1();
            format!(
                ", its best evaluation; at step {}, the last, at {share:.1} %.",
                words::count(last.step)
            )
        };
        Some(Sentence::plain(text))
    }
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
