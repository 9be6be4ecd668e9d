//! The evaluations of a run that fine-tunes a classifier: `evals.jsonl`, and what is said of it.
use super::history::whole_lines;
use super::sentence::Sentence;
use crate::console::words;
use crate::eval::Accuracy;
use crate::logs::EvalRecord;
use crate::output::EVALS;

/// All evaluations of a run so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Evaluations(pub(super) Vec<EvalRecord>);

/// A share of the images of an evaluation.
pub(super) fn of_images(record: &EvalRecord, share: f64) -> Accuracy {
    Accuracy {
        right: (share * record.images as f64).round() as usize,
        total: record.images as usize,
    }
}

/// Top-1 of the weights that the best is chosen by.
pub(super) fn top1(record: &EvalRecord) -> Accuracy {
    of_images(record, record.top1())
}

/// In per cent, with its 95 % interval.
pub(super) fn shown(accuracy: Accuracy) -> String {
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
        Ok(Self(whole_lines(text, EVALS, place)?))
    }

    /// The one with the greatest top-1, the first of several.
    pub(super) fn best(&self) -> Option<&EvalRecord> {
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
