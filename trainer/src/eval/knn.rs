//! Nearest-neighbour classification of frozen features: the k training features of greatest cosine
//! vote for their class, each with its cosine as weight (negative ones count as nothing); ties go
//! to the class with the smaller index.
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

use super::{Accuracy, Features};

/// Questions in one matrix multiplication.
const QUESTIONS: usize = 128;

/// Classifies every test feature by its `k` nearest training features.
pub(crate) fn classify(train: &Features, test: &Features, k: usize) -> Accuracy {
    assert_eq!(train.width(), test.width(), "features of one kind");
    let (width, num_classes) = (train.width(), train.num_classes());
    let (known, questions) = (unit_rows(train), unit_rows(test));
    let known = MatRef::from_row_major_slice(&known, train.len(), width);
    // Column q: the cosines of question q.
    let mut cosines = Mat::<f32>::zeros(train.len(), QUESTIONS);
    let answers = questions.chunks(QUESTIONS * width).flat_map(|questions| {
        let count = questions.len() / width;
        let questions = MatRef::from_row_major_slice(questions, count, width);
        let mut cosines = cosines.as_mut().subcols_mut(0, count);
        matmul(
            cosines.as_mut(),
            Accum::Replace,
            known,
            questions.transpose(),
            1.0,
            Par::rayon(0),
        );
        let vote = |question: usize| {
            let cosines = cosines.as_ref().col(question);
            let cosines = cosines.try_as_col_major().expect("a column of its own");
            let known = cosines.as_slice().iter().zip(train.classes());
            vote(
                known.map(|(cosine, class)| (*cosine, *class)).collect(),
                k,
                num_classes,
            )
        };
        (0..count).into_par_iter().map(vote).collect::<Vec<_>>()
    });
    Accuracy::of(answers.zip(test.classes().iter().copied()))
}

/// The rows of `features`, scaled to unit length.
fn unit_rows(features: &Features) -> Vec<f32> {
    let mut values = features.values().to_vec();
    for row in values.chunks_exact_mut(features.width()) {
        let length = row.iter().map(|value| value * value).sum::<f32>().sqrt();
        for value in row {
            *value /= length.max(1e-12);
        }
    }
    values
}

/// The class that the `k` greatest cosines vote for.
fn vote(mut nearest: Vec<(f32, usize)>, k: usize, num_classes: usize) -> usize {
    let k = k.min(nearest.len());
    if k == 0 {
        return usize::MAX;
    }
    // Equal cosines in the order of classes, so that the answer does not depend on the selection's
    // own order.
    let order = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    nearest.select_nth_unstable_by(k - 1, order);
    nearest[..k].sort_unstable_by(order);
    let mut votes = vec![0.0f64; num_classes];
    for (cosine, class) in &nearest[..k] {
        votes[*class] += f64::from(cosine.max(0.0));
    }
    let mut winner = 0;
    for (class, vote) in votes.iter().enumerate() {
        if *vote > votes[winner] {
            winner = class;
        }
    }
    winner
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_decide_by_weight() {
        let mut train = Features::new(2);
        for (angle, class) in [(0.0f32, 0), (0.1, 0), (1.5, 1), (1.6, 1), (1.7, 1)] {
            train.push(&[3.0 * angle.cos(), 3.0 * angle.sin()], class);
        }
        let mut test = Features::new(2);
        for (angle, class) in [(0.05f32, 0), (1.55, 1), (0.2, 0), (0.3, 1)] {
            test.push(&[angle.cos(), angle.sin()], class);
        }
        // The last one is near class 0: three of four are right.
        assert_eq!(classify(&train, &test, 3), Accuracy { right: 3, total: 4 });
        // All five vote: weights 0.97 and 0.99 against 0.24, 0.15 and 0.05.
        assert_eq!(classify(&train, &test, 20).right, 3);
        assert_eq!(classify(&train, &test, 0).right, 0);
    }

    #[test]
    fn more_questions_than_fit_one_product() {
        let mut train = Features::new(2);
        train.push(&[1.0, 0.0], 0);
        train.push(&[0.0, 1.0], 1);
        let mut test = Features::new(2);
        for question in 0..=3 * QUESTIONS {
            let class = question % 2;
            test.push(&[1.0 - class as f32, class as f32], class);
        }
        assert_eq!(classify(&train, &test, 1).right, test.len());
    }
}
