//! Curves as SVG. They are drawn for a narrow screen and scale; a style sheet that knows
//! [`COLOURS`] draws them anew for a dark one.
use std::fmt::Write as _;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::console::words;

/// Width of a plot and height of its axes, in units that are a pixel each where it is 420 wide.
const SIZE: (u32, u32) = (420, 240);
/// The backend knows whole pixels only, so a unit is several of them.
const FINE: u32 = 4;
/// A row of the legend, and the title, in units.
const ROW: u32 = 20;
/// A curve is drawn by means of at most this many pieces.
const PIECES: usize = 150;
const FONT: &str = "sans-serif";
/// The plotting library takes 1.24 of what the font's size then is.
const TEXT: u32 = 15 * FINE;
const GREY: RGBColor = RGBColor(85, 85, 85);
const GRID: RGBColor = RGBColor(225, 225, 225);
const EPOCH: RGBColor = RGBColor(190, 190, 190);
/// Told apart with any kind of colour vision: with Machado's model (2009) of each, any two of the
/// first four are at least 26 apart in CIE Lab, and of all 19. `page.css` and `picture.css` have
/// those that take their place on a dark screen.
pub(super) const COLOURS: [RGBColor; 7] = [
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
pub(super) enum Style {
    /// A line through means, in a band from the least to the greatest value.
    Line,
    /// A line with a mark and an interval at each point.
    Marked,
    /// Dashed, at one height: something to compare with.
    Level,
}

/// A place on a curve.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: f64,
    /// The least and the greatest of what `y` is the mean of, or its interval.
    pub(super) range: Range<f64>,
}

#[derive(Debug, Clone)]
pub(super) struct Curve {
    /// Name in the legend.
    pub(super) name: String,
    /// Number of its colour.
    pub(super) colour: usize,
    pub(super) style: Style,
    /// In the order of x.
    pub(super) points: Vec<Point>,
}

impl Curve {
    /// A line through the means of `piece` values each; what is not finite is left out.
    pub(super) fn line(
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
    pub(super) fn level(name: String, colour: usize, y: f64) -> Self {
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

    fn colour(&self) -> RGBColor {
        COLOURS[self.colour % COLOURS.len()]
    }

    /// As it is written in a picture: `#0072B2`.
    pub(super) fn colour_name(&self) -> String {
        let RGBColor(r, g, b) = self.colour();
        format!("#{r:02X}{g:02X}{b:02X}")
    }
}

/// How many of so many values are drawn as one.
pub(super) fn piece_of(values: usize) -> usize {
    values.div_ceil(PIECES).max(1)
}

/// Curves over optimiser steps, or over images.
#[derive(Debug, Clone)]
pub(super) struct Plot {
    /// File name without extension.
    pub(super) name: String,
    /// What is drawn, with its unit.
    pub(super) title: String,
    /// What it means, in a sentence.
    pub(super) caption: String,
    /// What the x axis counts.
    pub(super) x_axis: &'static str,
    /// Whether the y axis is logarithmic where values differ by much.
    pub(super) logarithmic: bool,
    /// Whether the band of each curve is drawn.
    pub(super) bands: bool,
    /// Places of faint vertical lines.
    pub(super) epochs: Vec<f64>,
    pub(super) curves: Vec<Curve>,
}

/// Where the axes of a picture lie: the values at its ends, and their places in the picture.
#[derive(Debug, Clone)]
pub(super) struct Axes {
    pub(super) x: Range<f64>,
    pub(super) y: Range<f64>,
    pub(super) across: Range<i32>,
    pub(super) down: Range<i32>,
    pub(super) logarithmic: bool,
}

#[derive(Debug)]
pub(super) struct Drawing {
    /// What is within the `svg` element.
    pub(super) content: String,
    /// Width and height, for `viewBox`.
    pub(super) size: (u32, u32),
    pub(super) axes: Axes,
}

impl Plot {
    /// The axes and curves; none if there is nothing to draw.
    pub(super) fn draw(&self) -> anyhow::Result<Option<Drawing>> {
        self.draw_at(0, 0)
    }

    /// A picture that stands for itself, with title and legend, for light and dark screens.
    pub(super) fn svg(&self, style: &str) -> anyhow::Result<Option<String>> {
        let rows = legend_rows(&self.curves);
        let below = if self.curves.len() > 1 { rows.len() } else { 0 };
        let Some(drawing) = self.draw_at(ROW + 4, ROW * below as u32)? else {
            return Ok(None);
        };
        let (width, height) = drawing.size;
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" \
             viewBox=\"0 0 {width} {height}\" width=\"{}\" height=\"{}\" role=\"img\">\n\
             <style>{style}</style>\n\
             <rect class=\"paper\" fill=\"#FFFFFF\" width=\"{width}\" height=\"{height}\"/>\n",
            width * 3 / 2 / FINE,
            height * 3 / 2 / FINE,
        );
        let mut write = |x: u32, y: u32, words: &str| {
            let _ = writeln!(
                text,
                "<text x=\"{}\" y=\"{}\" font-family=\"{FONT}\" font-size=\"{}\" \
                 fill=\"#555555\">{}</text>",
                x * FINE,
                y * FINE,
                12 * FINE,
                escaped(words)
            );
        };
        write(8, 16, &self.title);
        let mut marks = String::new();
        for (row, curves) in rows.iter().enumerate().take(below) {
            let y = height / FINE - ROW * (below - row) as u32 + 13;
            for (x, curve, name) in curves {
                write(x + 24, y, name);
                let dash = if curve.style == Style::Level { 24 } else { 0 };
                let _ = writeln!(
                    marks,
                    "<path d=\"M{} {}h{}\" stroke=\"{}\" stroke-width=\"12\" \
                     stroke-dasharray=\"{dash}\"/>",
                    x * FINE,
                    (y - 4) * FINE,
                    18 * FINE,
                    curve.colour_name()
                );
            }
        }
        let _ = writeln!(text, "{marks}{}</svg>", drawing.content);
        Ok(Some(text))
    }

    fn draw_at(&self, above: u32, below: u32) -> anyhow::Result<Option<Drawing>> {
        let drawable = |y: &f64| y.is_finite() && (!self.logarithmic || *y > 0.0);
        let all = || self.curves.iter().flat_map(|curve| &curve.points);
        let with_bands = |point: &Point| {
            if self.bands {
                [point.y, point.range.start, point.range.end]
            } else {
                [point.y; 3]
            }
        };
        let x = bounds(all().map(|point| point.x));
        let y = bounds(all().flat_map(with_bands).filter(drawable));
        let (Some(x), Some(y)) = (x, y) else {
            return Ok(None);
        };
        // One step is a point in the middle.
        let x = if x.end > x.start {
            x
        } else {
            x.start - 0.5..x.end + 0.5
        };
        let logarithmic = self.logarithmic && y.end > 30.0 * y.start;
        let y = if logarithmic {
            (y.start * 0.9)..(y.end * 1.1)
        } else {
            let size = y.start.abs().max(y.end.abs());
            let margin = 0.05 * (y.end - y.start).max(1e-6 * size).max(1e-12);
            (y.start - margin)..(y.end + margin)
        };
        let size = (SIZE.0 * FINE, (SIZE.1 + above + below) * FINE);
        let mut text = String::new();
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        let (_, rest) = area.split_vertically(above * FINE);
        let (axes, _) = rest.split_vertically(SIZE.1 * FINE);
        let (across, down) = if logarithmic {
            let key_points = powers(&y);
            let scale = y.clone().log_scale().with_key_points(key_points);
            self.draw_curves(&axes, x.clone(), &y, scale)?
        } else {
            self.draw_curves(&axes, x.clone(), &y, y.clone())?
        };
        area.present()?;
        drop((axes, rest, area));
        // The element itself is written by whoever shows it.
        let begin = text.find('>').map_or(0, |at| at + 1);
        let end = text.rfind("</svg>").unwrap_or(text.len());
        Ok(Some(Drawing {
            content: text[begin..end].to_owned(),
            size,
            axes: Axes {
                x,
                y,
                across,
                down,
                logarithmic,
            },
        }))
    }

    fn draw_curves<Y>(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        x: Range<f64>,
        bounds: &Range<f64>,
        y: Y,
    ) -> anyhow::Result<(Range<i32>, Range<i32>)>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let mut chart = ChartBuilder::on(area)
            .margin(6 * FINE)
            .margin_right(14 * FINE)
            .x_label_area_size(36 * FINE)
            .y_label_area_size(46 * FINE)
            .build_cartesian_2d(x.clone(), y)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID.stroke_width(FINE))
            .light_line_style(TRANSPARENT)
            .axis_style(GREY.stroke_width(FINE))
            .set_all_tick_mark_size(4 * FINE)
            .x_desc(self.x_axis)
            .axis_desc_style((FONT, TEXT).into_font().color(&GREY))
            .label_style((FONT, TEXT).into_font().color(&GREY))
            .x_labels(5)
            .y_labels(6)
            .x_label_formatter(&|step| large(*step))
            .y_label_formatter(&|value| tick(*value))
            .draw()?;
        for at in &self.epochs {
            let ends = [(*at, bounds.start), (*at, bounds.end)];
            chart.draw_series([PathElement::new(ends, EPOCH.stroke_width(FINE))])?;
        }
        for curve in self.curves.iter().filter(|_| self.bands) {
            if curve.style == Style::Line {
                let upper = curve.points.iter().map(|point| (point.x, point.range.end));
                let lower = curve
                    .points
                    .iter()
                    .map(|point| (point.x, point.range.start));
                let around = upper.chain(lower.rev()).collect::<Vec<_>>();
                chart.draw_series([Polygon::new(around, curve.colour().mix(0.18))])?;
            }
        }
        for curve in &self.curves {
            let colour = curve.colour();
            if curve.style == Style::Level {
                let y = curve.points.first().map_or(f64::NAN, |point| point.y);
                let (dash, gap) = (7 * FINE, 5 * FINE);
                let line = [(x.start, y), (x.end, y)];
                let style = colour.stroke_width(3 * FINE / 2);
                chart.draw_series(DashedLineSeries::new(line, dash, gap, style))?;
                continue;
            }
            let points = curve.points.iter().map(|point| (point.x, point.y));
            chart.draw_series(LineSeries::new(
                points.clone(),
                colour.stroke_width(2 * FINE),
            ))?;
            if curve.style == Style::Marked || curve.points.len() == 1 {
                let marks = points.map(|at| Circle::new(at, 3 * FINE, colour.filled()));
                chart.draw_series(marks)?;
            }
            if curve.style == Style::Marked {
                let whiskers = curve.points.iter().map(|Point { x, range, .. }| {
                    let ends = [(*x, range.start), (*x, range.end)];
                    PathElement::new(ends, colour.stroke_width(FINE))
                });
                chart.draw_series(whiskers)?;
            }
        }
        Ok(chart.plotting_area().get_pixel_range())
    }
}

/// Rows of a legend: where a name begins, the curve, and the name, short enough.
fn legend_rows(curves: &[Curve]) -> Vec<Vec<(u32, &Curve, String)>> {
    /// Characters of the longest name that is shown whole, and units for each.
    const LONGEST: usize = 52;
    const CHARACTER: u32 = 7;
    let (mut rows, mut x) = (Vec::<Vec<_>>::new(), SIZE.0);
    for curve in curves {
        let mut name = curve.name.clone();
        let length = name.chars().count();
        if length > LONGEST {
            let end = name.chars().skip(length - LONGEST + 1);
            name = std::iter::once('…').chain(end).collect();
        }
        let width = 36 + CHARACTER * name.chars().count() as u32;
        if x + width > SIZE.0 {
            rows.push(Vec::new());
            x = 8;
        }
        let row = rows.last_mut().expect("a row was just begun");
        row.push((x, curve, name));
        x += width;
    }
    rows
}

fn escaped(text: &str) -> String {
    maud::html! { (text) }.into_string()
}

/// The powers of ten within a range, or with their doubles and quintuples where these are few.
fn powers(range: &Range<f64>) -> Vec<f64> {
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
fn bounds(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    values
        .filter(|value| value.is_finite())
        .fold(None, |range, value| {
            let Range { start, end } = range.unwrap_or(value..value);
            Some(start.min(value)..end.max(value))
        })
}

/// A count at an axis: `0`, `1,500`, `25 k`, `3.2 M`.
fn large(value: f64) -> String {
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
fn tick(value: f64) -> String {
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

    fn plot(curves: Vec<Curve>, logarithmic: bool) -> Plot {
        Plot {
            name: "loss".to_owned(),
            title: "Loss".to_owned(),
            caption: String::new(),
            x_axis: "optimiser step",
            logarithmic,
            bands: true,
            epochs: Vec::new(),
            curves,
        }
    }

    fn line(name: &str, values: impl Iterator<Item = (f64, f64)>) -> Curve {
        Curve::line(name, 0, 1, values)
    }

    #[test]
    fn curves_become_lines_and_names() {
        let values = (0..5000).map(|x| (f64::from(x), 1.0 / f64::from(x + 1)));
        let falling = Curve::line("train < test", 0, piece_of(5000), values);
        let level = Curve::level("random weights".to_owned(), 1, 0.5);
        let points = [(0.0, 0.2, 0.1..0.3), (5000.0, 0.4, 0.3..0.5)];
        let marked = Curve {
            style: Style::Marked,
            points: points.map(|(x, y, range)| Point { x, y, range }).to_vec(),
            name: "probe".to_owned(),
            colour: 2,
        };
        for logarithmic in [false, true] {
            let curves = vec![falling.clone(), level.clone(), marked.clone()];
            let svg = plot(curves, logarithmic).svg("").unwrap().unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            assert!(
                svg.contains("random weights") && svg.contains("train &lt; test"),
                "{svg}"
            );
            assert_eq!(svg.matches("<circle").count(), 2);
            assert_eq!(svg.matches("<polygon").count(), 1, "the band");
            let longest = svg.lines().map(|line| line.matches(',').count()).max();
            assert!(longest.is_some_and(|points| (100..=2 * PIECES + 10).contains(&points)));
        }
        let drawn = |curve: Curve| plot(vec![curve], false).draw().unwrap().is_some();
        assert!(plot(Vec::new(), false).draw().unwrap().is_none());
        assert!(!drawn(line("nan", [(0.0, f64::NAN)].into_iter())));
        assert!(drawn(line("flat", [(0.0, 1.0), (1.0, 1.0)].into_iter())));
        assert!(drawn(line("one", [(1.0, 1.0)].into_iter())));
    }

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

    #[test]
    fn legends_wrap() {
        let names = ["a", "b", &"long ".repeat(30), "c"];
        let curves = names.map(|name| Curve::level(name.to_owned(), 0, 0.0));
        let rows = legend_rows(&curves);
        assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1]);
        assert!(rows[1][0].2.starts_with('…'));
    }

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
