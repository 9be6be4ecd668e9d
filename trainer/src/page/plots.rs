//! Curves as SVG. They are drawn for a narrow screen and scale; a style sheet that knows
//! [`super::curve::COLOURS`] draws them anew for a dark one.
use std::fmt::Write as _;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::curve::{Curve, Point, Style};
use super::ticks::{bounds, large, powers, tick};

/// Width of a plot and height of its axes, in units that are a pixel each where it is 420 wide.
const SIZE: (u32, u32) = (420, 240);
/// The backend knows whole pixels only, so a unit is several of them.
const FINE: u32 = 4;
/// A row of the legend, and the title, in units.
const ROW: u32 = 20;
const FONT: &str = "sans-serif";
/// The plotting library takes 1.24 of what the font's size then is.
const TEXT: u32 = 15 * FINE;
const GREY: RGBColor = RGBColor(85, 85, 85);
const GRID: RGBColor = RGBColor(225, 225, 225);
const EPOCH: RGBColor = RGBColor(190, 190, 190);

/// Curves over optimiser steps, or over images.
#[derive(Debug, Clone)]
pub(crate) struct Plot {
    /// File name without extension.
    pub(crate) name: String,
    /// What is drawn, with its unit.
    pub(crate) title: String,
    /// What it means, in a sentence.
    pub(crate) caption: String,
    /// What the x axis counts.
    pub(crate) x_axis: &'static str,
    /// Whether the y axis is logarithmic where values differ by much.
    pub(crate) logarithmic: bool,
    /// Whether the band of each curve is drawn.
    pub(crate) bands: bool,
    /// Places of faint vertical lines.
    pub(crate) epochs: Vec<f64>,
    pub(crate) curves: Vec<Curve>,
}

/// Where the axes of a picture lie: the values at its ends, and their places in the picture.
#[derive(Debug, Clone)]
pub(crate) struct Axes {
    pub(crate) x: Range<f64>,
    pub(crate) y: Range<f64>,
    pub(crate) across: Range<i32>,
    pub(crate) down: Range<i32>,
    pub(crate) logarithmic: bool,
}

#[derive(Debug)]
pub(crate) struct Drawing {
    /// What is within the `svg` element.
    pub(crate) content: String,
    /// Width and height, for `viewBox`.
    pub(crate) size: (u32, u32),
    pub(crate) axes: Axes,
}

impl Plot {
    /// The axes and curves; none if there is nothing to draw.
    pub(crate) fn draw(&self) -> anyhow::Result<Option<Drawing>> {
        self.draw_at(0, 0)
    }

    /// A picture that stands for itself, with title and legend, for light and dark screens.
    pub(crate) fn svg(&self, style: &str) -> anyhow::Result<Option<String>> {
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

#[cfg(test)]
mod tests {
    use super::super::curve::{PIECES, piece_of};
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
    fn legends_wrap() {
        let names = ["a", "b", &"long ".repeat(30), "c"];
        let curves = names.map(|name| Curve::level(name.to_owned(), 0, 0.0));
        let rows = legend_rows(&curves);
        assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1, 1]);
        assert!(rows[1][0].2.starts_with('…'));
    }
}
