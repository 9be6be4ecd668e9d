//! Shares of right answers.
use serde::Serialize;

/// A share of right answers and its 95 % interval (Wilson's, which also holds near 0 and 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Accuracy {
    /// Right answers.
    pub right: usize,
    /// Questions.
    pub total: usize,
}

impl Accuracy {
    /// Counts the pairs that are equal.
    pub(crate) fn of(answers: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut accuracy = Self { right: 0, total: 0 };
        for (given, right) in answers {
            accuracy.right += usize::from(given == right);
            accuracy.total += 1;
        }
        accuracy
    }

    /// Share of right answers.
    pub(crate) fn share(self) -> f64 {
        self.right as f64 / self.total.max(1) as f64
    }

    /// Lower and upper end of the 95 % interval.
    pub(crate) fn interval(self) -> (f64, f64) {
        const Z: f64 = 1.959_963_984_540_054;
        let (p, n) = (self.share(), self.total.max(1) as f64);
        let centre = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        ((centre - half).max(0.0), (centre + half).min(1.0))
    }

    /// In per cent, as narrow as a table on a terminal needs it: the interval as the greater of its
    /// two sides, `41.2 ± 1.0`.
    pub(crate) fn narrow(self) -> String {
        let (share, (low, high)) = (self.share(), self.interval());
        let side = (share - low).max(high - share);
        format!("{:.1} \u{b1} {:.1}", 100.0 * share, 100.0 * side)
    }
}

/// In per cent, with the interval: `41.2 (40.2 to 42.2)`.
impl std::fmt::Display for Accuracy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (low, high) = self.interval();
        let text = format!(
            "{:.1} ({:.1} to {:.1})",
            100.0 * self.share(),
            100.0 * low,
            100.0 * high
        );
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_interval() {
        let half = Accuracy::of((0..100).map(|i| (i % 2, 0)));
        assert_eq!((half.right, half.total), (50, 100));
        let (low, high) = half.interval();
        assert!(
            (low - 0.4038).abs() < 1e-4 && (high - 0.5962).abs() < 1e-4,
            "{low} {high}"
        );
        assert_eq!(half.to_string(), "50.0 (40.4 to 59.6)");
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
