//! The numbers at the axes of a plot.
use std::ops::Range;

use crate::console::words;

/// The powers of ten within a range, or with their doubles and quintuples where these are few.
pub(crate) fn powers(range: &Range<f64>) -> Vec<f64> {
    let first = range.start.log10().floor() as i32;
    let last = range.end.log10().ceil() as i32;
    let ticks = |of: &[f64]| {
        let all = (first..=last).flat_map(|power| of.iter().map(move |x| x * 10f64.powi(power)));
        all.filter(|at| range.contains(at)).collect::<Vec<_>>()
    };
    match ticks(&[1.0]) {
        few if few.len() < 3 => ticks(&[1.0, 2.0, 5.0]),
        enough => {
            let every = enough.len().div_ceil(6);
            enough.into_iter().step_by(every).collect()
        }
    }
}

/// Least and greatest.
pub(crate) fn bounds(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    values
        .filter(|value| value.is_finite())
        .fold(None, |range, value| {
            let Range { start, end } = range.unwrap_or(value..value);
            Some(start.min(value)..end.max(value))
        })
}

/// A count at an axis: `0`, `1,500`, `25 k`, `3.2 M`.
pub(crate) fn large(value: f64) -> String {
    let (value, unit) = match value {
        _ if value >= 1e9 => (value / 1e9, " G"),
        _ if value >= 1e6 => (value / 1e6, " M"),
        _ if value >= 1e4 => (value / 1e3, " k"),
        _ if value.fract() == 0.0 => return words::count(value as u64),
        _ => return words::small(value),
    };
    format!("{}{unit}", words::small(value))
}

/// A value at an axis.
pub(crate) fn tick(value: f64) -> String {
    // A sum of steps that should be 0 is nearly so.
    if value.abs() < 1e-12 {
        "0".to_owned()
    } else if value >= 1e3 {
        large(value)
    } else {
        words::small(value).replace('-', "−")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_at_axes() {
        let shown = [0.0, 12.0, 1500.0, 25_000.0, 3.2e6].map(large);
        assert_eq!(shown, ["0", "12", "1,500", "25 k", "3.2 M"]);
        let shown = [1e-17, 0.5, -0.75, 12.0, 0.0012, 3e-5, 2000.0].map(tick);
        assert_eq!(
            shown,
            ["0", "0.5", "−0.75", "12", "0.0012", "3e−5", "2,000"]
        );
        assert_eq!(powers(&(0.02..30.0)), [0.1, 1.0, 10.0]);
        assert_eq!(powers(&(0.4..30.0)), [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]);
    }
}
