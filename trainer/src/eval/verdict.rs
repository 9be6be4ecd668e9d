//! What a table of accuracies means, in a sentence: whether training has made features better than
//! chance, than random weights, and than the pixels themselves.
use std::cmp::Ordering;

use super::{Accuracy, Measurement, Source};

/// A row of the table and what its features are computed from.
type Row<'a> = (Source, &'a Measurement);

/// Says what the rows mean, or nothing where none is of trained weights. `trivial` is the share of
/// right answers of who always gives the same one.
pub(crate) fn verdict(rows: &[Row], trivial: f64) -> Option<String> {
    let score = Score::best_of(rows)?;
    let trained = score.best(rows, &[Source::Raw, Source::Ema])?;
    let random = score.best(rows, &[Source::Random]);
    let pixels = score.best(rows, &[Source::Pixels]);
    let (by, own) = (score.name(), percent(trained.accuracy));
    let features = match trained.layer {
        Some(layer) => format!("the features of layer {layer} after training ({own})"),
        None => format!("the features after training ({own})"),
    };
    if trained.accuracy.interval().0 <= trivial {
        return Some(format!(
            "By {by}, {features} tell these classes no better than always the same answer would \
             ({:.1} %).",
            100.0 * trivial
        ));
    }
    let against = |other: &Best| compare(trained.accuracy, other.accuracy);
    let of_random = random
        .as_ref()
        .map(|random| format!("random weights ({})", percent(random.accuracy)));
    let of_pixels = pixels
        .as_ref()
        .map(|pixels| format!("pixels ({})", percent(pixels.accuracy)));
    let text = match (random.as_ref().map(against), pixels.as_ref().map(against)) {
        (Some(Ordering::Greater), Some(Ordering::Greater)) => format!(
            "{features} are better than {} and than {}: training has taught the model something \
             about these classes.",
            of_pixels?, of_random?
        ),
        (Some(Ordering::Greater), Some(Ordering::Equal)) => format!(
            "{features} are better than those of {}, but no better than the {}: what they tell of \
             these classes, the pixels themselves tell as well.",
            of_random?, of_pixels?
        ),
        (Some(Ordering::Greater), Some(Ordering::Less)) => format!(
            "{features} are better than those of {}, but worse than the {}: the pixels themselves \
             tell more of these classes.",
            of_random?, of_pixels?
        ),
        (Some(Ordering::Greater), None) => format!(
            "{features} are better than those of {}; pixels were not compared.",
            of_random?
        ),
        (Some(order), pixels) => {
            let relation = no_better(order);
            let also = match pixels.zip(of_pixels) {
                Some((Ordering::Greater, pixels)) => format!(", though better than the {pixels}"),
                Some((order, pixels)) => format!(", and {} than the {pixels}", no_better(order)),
                None => String::new(),
            };
            format!(
                "{features} are {relation} than those of {}{also}: for these classes, training \
                 has brought nothing yet.",
                of_random?
            )
        }
        (None, Some(Ordering::Greater)) => format!(
            "{features} are better than {}; random weights were not compared.",
            of_pixels?
        ),
        (None, Some(order)) => format!(
            "{features} are {} than the {}.",
            no_better(order),
            of_pixels?
        ),
        (None, None) => format!(
            "{features} tell these classes better than always the same answer would ({:.1} %); \
             neither pixels nor random weights were compared.",
            100.0 * trivial
        ),
    };
    Some(format!("By {by}, {text}"))
}

/// Of two accuracies, which is greater by more than chance explains: whether the 95 % interval of
/// their difference (Newcombe's, of the intervals of both) leaves out 0.
fn compare(a: Accuracy, b: Accuracy) -> Ordering {
    let difference = a.share() - b.share();
    let reach = |up: Accuracy, down: Accuracy| {
        (up.share() - up.interval().0).hypot(down.interval().1 - down.share())
    };
    if difference > reach(a, b) {
        Ordering::Greater
    } else if -difference > reach(b, a) {
        Ordering::Less
    } else {
        Ordering::Equal
    }
}

fn no_better(order: Ordering) -> &'static str {
    if order == Ordering::Less {
        "worse"
    } else {
        "no better"
    }
}

fn percent(accuracy: Accuracy) -> String {
    format!("{:.1} %", 100.0 * accuracy.share())
}

/// The best row of some sources.
struct Best<'a> {
    accuracy: Accuracy,
    layer: Option<&'a str>,
}

/// What the rows are compared by: the strongest classifier that was asked for.
#[derive(Clone, Copy)]
enum Score {
    Logistic,
    Ridge,
    Knn,
}

impl Score {
    fn best_of(rows: &[Row]) -> Option<Self> {
        let all = [Self::Logistic, Self::Ridge, Self::Knn];
        all.into_iter()
            .find(|score| rows.iter().any(|(_, row)| score.of(row).is_some()))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Logistic => "logistic regression",
            Self::Ridge => "ridge regression",
            Self::Knn => "nearest neighbours",
        }
    }

    /// Accuracy on the test set, and by which images a layer is chosen: those that were held out of
    /// training, as the best of many on the test set would be so by luck, too.
    fn of(self, row: &Measurement) -> Option<(Accuracy, Accuracy)> {
        let probe = match self {
            Self::Logistic => row.logistic?,
            Self::Ridge => row.ridge?,
            Self::Knn => return row.knn.map(|accuracy| (accuracy, accuracy)),
        };
        Some((probe.accuracy, probe.held_out))
    }

    fn best<'a>(self, rows: &[Row<'a>], sources: &[Source]) -> Option<Best<'a>> {
        let mut best: Option<(f64, Best)> = None;
        for (source, row) in rows {
            let Some((accuracy, choice)) = self.of(row).filter(|_| sources.contains(source)) else {
                continue;
            };
            let layer = row.layer.as_deref();
            if best.as_ref().is_none_or(|(most, _)| choice.share() > *most) {
                best = Some((choice.share(), Best { accuracy, layer }));
            }
        }
        best.map(|(_, best)| best)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Probe;
    use super::*;

    /// A row of 400 questions, by logistic regression.
    fn row(source: Source, right: usize) -> (Source, Measurement) {
        let accuracy = Accuracy { right, total: 400 };
        let probe = Probe {
            accuracy,
            penalty: 1.0,
            held_out: accuracy,
            converged: true,
        };
        let measured = Measurement {
            source: source.to_string(),
            layer: (source != Source::Pixels).then(|| "2".to_owned()),
            width: 96,
            knn: Some(Accuracy {
                right: 399,
                total: 400,
            }),
            ridge: None,
            logistic: Some(probe),
        };
        (source, measured)
    }

    fn said(rows: &[(Source, usize)]) -> String {
        let rows = rows.iter().map(|&(source, right)| row(source, right));
        let rows = rows.collect::<Vec<_>>();
        let rows = rows.iter().map(|(source, row)| (*source, row));
        verdict(&rows.collect::<Vec<_>>(), 0.1).unwrap_or_default()
    }

    #[test]
    fn features_are_compared_with_pixels_and_random_weights() {
        use Source::{Ema, Pixels, Random, Raw};
        // The quickstart's figures: 53.5 % as pixels, from 25.8 %.
        let equal = said(&[(Pixels, 214), (Random, 103), (Ema, 214)]);
        assert_eq!(
            equal,
            "By logistic regression, the features of layer 2 after training (53.5 %) are better \
             than those of random weights (25.8 %), but no better than the pixels (53.5 %): what \
             they tell of these classes, the pixels themselves tell as well."
        );
        let better = said(&[(Pixels, 166), (Random, 118), (Ema, 200)]);
        assert!(
            better.contains("are better than pixels (41.5 %) and than random weights (29.5 %)")
        );
        let worse = said(&[(Pixels, 300), (Random, 103), (Ema, 214)]);
        assert!(
            worse.contains("but worse than the pixels (75.0 %)"),
            "{worse}"
        );
        let nothing = said(&[(Pixels, 214), (Random, 103), (Ema, 105)]);
        assert!(
            nothing.contains("no better than those of random weights (25.8 %), and worse than")
                && nothing.ends_with("training has brought nothing yet."),
            "{nothing}"
        );
        let spoiled = said(&[(Random, 200), (Raw, 105)]);
        assert!(
            spoiled.contains("are worse than those of random weights"),
            "{spoiled}"
        );
        let chance = said(&[(Pixels, 214), (Random, 45), (Ema, 48)]);
        assert!(
            chance.contains("(12.0 %) tell these classes no better than always"),
            "{chance}"
        );
        let alone = said(&[(Raw, 214)]);
        assert!(
            alone.contains("neither pixels nor random weights"),
            "{alone}"
        );
        assert_eq!(said(&[(Pixels, 214), (Random, 103)]), "");
    }

    /// Of 400 images, 4.75 points are within what chance explains, 8 are not.
    #[test]
    fn small_differences_are_none() {
        let compare = |a, b| {
            let of = |right| Accuracy { right, total: 400 };
            compare(of(a), of(b))
        };
        assert_eq!(compare(219, 200), Ordering::Equal);
        assert_eq!(compare(200, 219), Ordering::Equal);
        assert_eq!(compare(232, 200), Ordering::Greater);
        assert_eq!(compare(200, 232), Ordering::Less);
        assert_eq!(compare(400, 0), Ordering::Greater);
        assert_eq!(compare(0, 0), Ordering::Equal);
    }

    /// A layer is chosen by the images that were held out, not by the test set.
    #[test]
    fn the_layer_is_not_chosen_on_the_test_set() {
        let (source, lucky) = row(Source::Ema, 250);
        let (_, mut sound) = row(Source::Ema, 240);
        sound.layer = Some("3".to_owned());
        sound.logistic.as_mut().expect("a probe").held_out.right = 300;
        let said = verdict(&[(source, &lucky), (source, &sound)], 0.1).expect("a sentence");
        assert!(said.contains("layer 3 after training (60.0 %)"), "{said}");
    }
}
