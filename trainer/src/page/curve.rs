//! Curves: points with their ranges, by means of pieces of a run's steps, and their colours.
use std::ops::Range;

use plotters::style::RGBColor;

/// A curve is drawn by means of at most this many pieces.
pub(crate) const PIECES: usize = 150;
/// Told apart with any kind of colour vision: with Machado's model (2009) of each, any two of the
/// first four are at least 26 apart in CIE Lab, and of all 19. `page.css` and `picture.css` have
/// those that take their place on a dark screen.
pub(crate) const COLOURS: [RGBColor; 7] = [
    RGBColor(3, 95, 193),
    RGBColor(224, 117, 0),
    RGBColor(47, 118, 72),
    RGBColor(150, 78, 125),
    RGBColor(94, 51, 64),
    RGBColor(123, 107, 25),
    RGBColor(48, 155, 181),
];

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A line through means, in a band from the least to the greatest value.
    Line,
    /// A line with a mark and an interval at each point.
    Marked,
    /// Dashed, at one height: something to compare with.
    Level,
}

/// A place on a curve.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    pub(crate) x: f64,
    pub(crate) y: f64,
    /// The least and the greatest of what `y` is the mean of, or its interval.
    pub(crate) range: Range<f64>,
}

#[derive(Debug, Clone)]
pub(crate) struct Curve {
    /// Name in the legend.
    pub(crate) name: String,
    /// Number of its colour.
    pub(crate) colour: usize,
    pub(crate) style: Style,
    /// In the order of x.
    pub(crate) points: Vec<Point>,
}

impl Curve {
    /// A line through the means of `piece` values each; what is not finite is left out.
    pub(crate) fn line(
        name: &str,
        colour: usize,
        piece: usize,
        values: impl Iterator<Item = (f64, f64)>,
    ) -> Self {
        let (mut points, mut values) = (Vec::new(), values.peekable());
        while values.peek().is_some() {
            let (mut count, mut x, mut y) = (0.0, 0.0, 0.0);
            let mut range = f64::INFINITY..f64::NEG_INFINITY;
            for (at, value) in values.by_ref().take(piece.max(1)) {
                if value.is_finite() {
                    (count, x, y) = (count + 1.0, x + at, y + value);
                    range = range.start.min(value)..range.end.max(value);
                }
            }
            if count > 0.0 {
                let (x, y) = (x / count, y / count);
                points.push(Point { x, y, range });
            }
        }
        Self {
            name: name.to_owned(),
            colour,
            style: Style::Line,
            points,
        }
    }

    /// A dashed line at one height.
    pub(crate) fn level(name: String, colour: usize, y: f64) -> Self {
        let points = vec![Point {
            x: f64::NAN,
            y,
            range: y..y,
        }];
        Self {
            name,
            colour,
            style: Style::Level,
            points,
        }
    }

    pub(crate) fn colour(&self) -> RGBColor {
        COLOURS[self.colour % COLOURS.len()]
    }

    /// As it is written in a picture: `#0072B2`.
    pub(crate) fn colour_name(&self) -> String {
        let RGBColor(r, g, b) = self.colour();
        format!("#{r:02X}{g:02X}{b:02X}")
    }
}

/// How many of so many values are drawn as one.
pub(crate) fn piece_of(values: usize) -> usize {
    values.div_ceil(PIECES).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_a_mean_with_its_range() {
        let values = [3.0, 1.0, f64::NAN, 4.0, f64::NAN, f64::INFINITY];
        let values = values.into_iter().enumerate();
        let curve = Curve::line("a", 0, 2, values.map(|(x, y)| (x as f64, y)));
        let point = |x, y, range| Point { x, y, range };
        assert_eq!(
            curve.points,
            [point(0.5, 2.0, 1.0..3.0), point(3.0, 4.0, 4.0..4.0)]
        );
        assert_eq!(
            [0, 1, 150, 151, 1_000_000].map(piece_of),
            [1, 1, 1, 2, 6667]
        );
    }
}
