//! Nearest-neighbour classification of frozen features: the k training features of greatest cosine vote for their class, each with
//! its cosine as weight (negative ones count as nothing); ties go to the class with the smaller index. Called by `nepa eval`.

/// Rows of unit length, `[N, D]`, with their classes.
#[derive(Debug, Clone, Default)]
pub struct Features {
    values: Vec<f32>,
    width: usize,
    classes: Vec<usize>,
}

impl Features {
    /// An empty set of features of that width.
    pub fn new(width: usize) -> Self {
        Self {
            values: Vec::new(),
            width,
            classes: Vec::new(),
        }
    }

    /// Adds one feature, scaled to unit length.
    pub fn push(&mut self, feature: &[f32], class: usize) {
        assert_eq!(feature.len(), self.width, "features of one model");
        let length = feature
            .iter()
            .map(|value| value * value)
            .sum::<f32>()
            .sqrt()
            .max(1e-12);
        self.values
            .extend(feature.iter().map(|value| value / length));
        self.classes.push(class);
    }

    /// Number of features.
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// Number of classes, as seen here.
    pub fn num_classes(&self) -> usize {
        self.classes.iter().max().map_or(0, |class| class + 1)
    }
}

/// A share of right answers and its 95 % interval (Wilson's, which also holds near 0 and 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accuracy {
    /// Right answers.
    pub right: usize,
    /// Questions.
    pub total: usize,
}

impl Accuracy {
    /// Share of right answers.
    pub fn share(self) -> f64 {
        self.right as f64 / self.total.max(1) as f64
    }

    /// Lower and upper end of the 95 % interval.
    pub fn interval(self) -> (f64, f64) {
        const Z: f64 = 1.959_963_984_540_054;
        let (p, n) = (self.share(), self.total.max(1) as f64);
        let centre = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        ((centre - half).max(0.0), (centre + half).min(1.0))
    }
}

/// Classifies every test feature by its `k` nearest training features; the work is shared by `threads` threads.
pub fn classify(train: &Features, test: &Features, k: usize, threads: usize) -> Accuracy {
    let total = test.len();
    let rows: Vec<usize> = (0..total).collect();
    let share = total.div_ceil(threads.max(1)).max(1);
    let right = std::thread::scope(|scope| {
        let workers: Vec<_> = rows
            .chunks(share)
            .map(|rows| {
                scope.spawn(move || {
                    rows.iter()
                        .filter(|row| predict(train, test, **row, k) == test.classes[**row])
                        .count()
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic in a worker"))
            .sum()
    });
    Accuracy { right, total }
}

fn predict(train: &Features, test: &Features, row: usize, k: usize) -> usize {
    let width = train.width;
    let question = &test.values[row * width..(row + 1) * width];
    let mut nearest: Vec<(f32, usize)> = train
        .values
        .chunks_exact(width)
        .zip(&train.classes)
        .map(|(feature, class)| (dot(question, feature), *class))
        .collect();
    let k = k.min(nearest.len());
    if k == 0 {
        return usize::MAX;
    }
    // Equal cosines in the order of classes, so that the answer does not depend on the selection's own order.
    let order = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    nearest.select_nth_unstable_by(k - 1, order);
    nearest[..k].sort_unstable_by(order);
    let mut votes = vec![0.0f64; train.num_classes()];
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

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f32 = a_chunks
        .remainder()
        .iter()
        .zip(b_chunks.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (x, y) in a_chunks.zip(b_chunks) {
        for i in 0..8 {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().sum::<f32>() + tail
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
        // The last one is near class 0: three of four are right, whatever the number of threads.
        for threads in [1, 3, 9] {
            assert_eq!(
                classify(&train, &test, 3, threads),
                Accuracy { right: 3, total: 4 }
            );
        }
        // All five vote: weights 0.97 and 0.99 against 0.24, 0.15 and 0.05.
        assert_eq!(classify(&train, &test, 20, 1).right, 3);
    }

    #[test]
    fn wilson_interval() {
        let (low, high) = Accuracy {
            right: 50,
            total: 100,
        }
        .interval();
        assert!(
            (low - 0.4038).abs() < 1e-4 && (high - 0.5962).abs() < 1e-4,
            "{low} {high}"
        );
        let (low, high) = Accuracy {
            right: 0,
            total: 20,
        }
        .interval();
        assert!(
            low.abs() < 1e-12 && (high - 0.1611).abs() < 1e-3,
            "{low} {high}"
        );
    }
}
