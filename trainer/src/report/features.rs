//! What is said of the features, and of what a report lacks.
use super::accuracy::{Found, KINDS, is_better};
use super::sentence::Sentence;
use super::subject::Run;
use crate::console::words;

/// What the features are worth, in words.
pub(super) fn feature_sentences(runs: &[Run], found: &Found) -> Vec<Sentence> {
    let mut said = Vec::new();
    for (kind, score) in KINDS {
        for (run, measured) in runs.iter().zip(&found.runs) {
            let Some(measured) = measured else {
                continue;
            };
            let Some(best) = measured.newest_best(score) else {
                continue;
            };
            let (pixels, random) = (score(&measured.pixels), measured.random_best(score));
            let (mut better, mut equal, mut worse) = (Vec::new(), Vec::new(), Vec::new());
            let mut others = Vec::new();
            let baselines = [
                ("random weights", random.map(|(_, accuracy)| accuracy)),
                ("the pixels themselves", pixels),
            ];
            for (name, accuracy) in baselines {
                let Some(accuracy) = accuracy else {
                    continue;
                };
                others.push(format!("{name} {:.1} %", 100.0 * accuracy.share()));
                let list = if is_better(best.1, accuracy) {
                    &mut better
                } else if is_better(accuracy, best.1) {
                    &mut worse
                } else {
                    &mut equal
                };
                list.push(name);
            }
            let of = if runs.len() > 1 {
                format!("{}: ", run.name)
            } else {
                String::new()
            };
            let (low, high) = best.1.interval();
            let mut text = format!(
                "{of}{kind} on its features (layer {}, step {}) is right about {:.1} % of the test \
                 images (95 % interval {:.1} to {:.1}); {}; chance {:.1} %.",
                best.0,
                words::count(measured.newest_step()),
                100.0 * best.1.share(),
                100.0 * low,
                100.0 * high,
                others.join(", "),
                found.chance()
            );
            let verdicts = [
                (&better, "Better than", ""),
                (
                    &equal,
                    "No better than",
                    ", as far as so many images can tell",
                ),
                (&worse, "Worse than", ""),
            ];
            for (names, verdict, doubt) in verdicts {
                if !names.is_empty() {
                    text += &format!(" {verdict} {}{doubt}.", names.join(" and "));
                }
            }
            said.push(if equal.is_empty() && worse.is_empty() {
                Sentence::plain(text)
            } else {
                Sentence::caution(text)
            });
        }
    }
    said
}

/// What a report lacks, and how to have it.
pub(super) fn missing(runs: &[Run], has_sets: bool, has_maps: bool) -> Vec<Sentence> {
    let mut said = Vec::new();
    let waiting = runs.iter().filter(|run| run.checkpoints.is_empty());
    for run in waiting {
        let of = if runs.len() > 1 {
            format!("{}: ", run.name)
        } else {
            String::new()
        };
        let steps = run.recipe.train.steps;
        let every = run.recipe.checkpoint.every_steps;
        let first = every
            .filter(|every| *every > 0)
            .map_or_else(String::new, |every| {
                format!(", after step {}", words::count(every.min(steps)))
            });
        said.push(Sentence::plain(format!(
            "{of}There is no checkpoint yet. Accuracies and maps come with the first one{first}."
        )));
    }
    if runs.iter().all(|run| run.checkpoints.is_empty()) {
        return said;
    }
    if runs.iter().all(Run::is_classifier) {
        return said;
    }
    match (has_sets, has_maps) {
        (false, false) => said.push(Sentence::plain(
            "Curves alone are drawn. For the accuracy of its features and maps of what it \
             predicts, give labelled shards: --train and --test.",
        )),
        (false, true) => said.push(Sentence::plain(
            "For the accuracy of its features, give labelled shards: --train and --test.",
        )),
        _ => {}
    }
    said
}
