//! Curves as SVG.
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

/// Size of a plot, in pixels.
const SIZE: (u32, u32) = (660, 330);
/// Width of the legend beside the curves.
const LEGEND: u32 = 190;
/// Curves with more points are drawn by means of this many pieces.
const POINTS: usize = 400;
const FONT: &str = "sans-serif";
const GREY: RGBColor = RGBColor(110, 110, 110);
/// Told apart with any kind of colour vision (Okabe and Ito 2008), strongest first.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// A line through the mean of each piece of the curve.
    Line,
    /// A line with a mark and an interval at each point.
    Marked,
    /// Dashed, at one height: something to compare with.
    Level,
}

/// One curve.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    /// Name in the legend.
    pub(super) name: String,
    /// How it is drawn.
    pub(super) style: Style,
    /// x, y, and for marked ones the interval of y.
    pub(super) points: Vec<(f64, f64, Range<f64>)>,
}

impl Curve {
    /// A plain line.
    pub(super) fn line(name: &str, points: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let points = points.into_iter().map(|(x, y)| (x, y, y..y));
        Self {
            name: name.to_owned(),
            style: Style::Line,
            points: points.collect(),
        }
    }
}

/// Curves over optimiser steps.
#[derive(Debug, Clone)]
pub(super) struct Plot {
    /// File name without extension.
    pub(super) name: &'static str,
    /// What is drawn.
    pub(super) title: &'static str,
    /// What it means, in a sentence.
    pub(super) caption: &'static str,
    /// Whether the y axis is logarithmic where values differ by much.
    pub(super) logarithmic: bool,
    /// The curves.
    pub(super) curves: Vec<Curve>,
}

impl Plot {
    /// The plot as SVG; none if there is nothing to draw.
    pub(super) fn svg(&self) -> anyhow::Result<Option<String>> {
        let curves = self.curves.iter().map(Curve::thinned).collect::<Vec<_>>();
        let finite = |value: &f64| value.is_finite() && (!self.logarithmic || *value > 0.0);
        let all = || curves.iter().flat_map(|curve| &curve.points);
        let x = bounds(all().map(|(x, ..)| *x));
        let y = bounds(
            all()
                .flat_map(|(_, y, interval)| [*y, interval.start, interval.end])
                .filter(finite),
        );
        let (Some(x), Some(y)) = (x, y) else {
            return Ok(None);
        };
        let mut text = String::new();
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        if self.logarithmic && y.end > 30.0 * y.start {
            let y = (y.start * 0.9)..(y.end * 1.1);
            self.draw(&area, &curves, x, y.log_scale())?;
        } else {
            let margin = 0.06 * (y.end - y.start).max(1e-9 * y.end.abs()).max(1e-12);
            self.draw(&area, &curves, x, (y.start - margin)..(y.end + margin))?;
        }
        area.present()?;
        drop(area);
        Ok(Some(text))
    }

    fn draw<Y>(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        curves: &[Curve],
        x: Range<f64>,
        y: Y,
    ) -> anyhow::Result<()>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        area.fill(&WHITE)?;
        let beside = if curves.len() > 1 { LEGEND } else { 0 };
        let (left, right) = area.split_horizontally(SIZE.0 - beside);
        let mut chart = ChartBuilder::on(&left)
            .caption(self.title, (FONT, 17))
            .margin(10)
            .margin_right(18)
            .x_label_area_size(34)
            .y_label_area_size(58)
            .build_cartesian_2d(x.clone(), y)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(RGBColor(225, 225, 225))
            .light_line_style(TRANSPARENT)
            .axis_style(GREY)
            .x_desc("optimiser step")
            .axis_desc_style((FONT, 13))
            .label_style((FONT, 12))
            .x_labels(8)
            .y_labels(7)
            .x_label_formatter(&|step| format_number(*step))
            .y_label_formatter(&|value| format_number(*value))
            .draw()?;
        for (curve, colour) in curves.iter().zip(COLOURS.into_iter().cycle()) {
            let points = match curve.style {
                Style::Level => {
                    let y = curve.points.first().map_or(f64::NAN, |(_, y, _)| *y);
                    let ends = [(x.start, y), (x.end, y)];
                    let dashes = DashedLineSeries::new(ends, 6, 4, colour.stroke_width(1));
                    chart.draw_series(dashes)?;
                    continue;
                }
                Style::Line | Style::Marked => curve.points.iter().map(|(x, y, _)| (*x, *y)),
            };
            chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
            if curve.style == Style::Marked {
                chart.draw_series(points.map(|at| Circle::new(at, 3, colour.filled())))?;
                let whiskers = curve.points.iter().map(|(x, _, interval)| {
                    PathElement::new([(*x, interval.start), (*x, interval.end)], colour)
                });
                chart.draw_series(whiskers)?;
            }
        }
        if beside > 0 {
            draw_legend(&right, curves)?;
        }
        Ok(())
    }
}

/// Names of the curves, one below the other.
fn draw_legend(area: &DrawingArea<SVGBackend<'_>, Shift>, curves: &[Curve]) -> anyhow::Result<()> {
    for (index, (curve, colour)) in curves.iter().zip(COLOURS.into_iter().cycle()).enumerate() {
        let y = 48 + 20 * index as i32;
        let dash = |x| PathElement::new([(x, y), (x + 6, y)], colour.stroke_width(2));
        if curve.style == Style::Level {
            area.draw(&dash(2))?;
            area.draw(&dash(12))?;
        } else {
            area.draw(&PathElement::new([(2, y), (18, y)], colour.stroke_width(2)))?;
        }
        area.draw(&Text::new(curve.name.clone(), (24, y - 6), (FONT, 12)))?;
    }
    Ok(())
}

impl Curve {
    /// The same curve with at most [`POINTS`] points: means of equal pieces.
    fn thinned(&self) -> Self {
        let piece = self.points.len().div_ceil(POINTS).max(1);
        if self.style != Style::Line || piece == 1 {
            return self.clone();
        }
        let mean = |points: &[(f64, f64, Range<f64>)]| {
            let count = points.len() as f64;
            let x = points.iter().map(|(x, ..)| x).sum::<f64>() / count;
            let y = points.iter().map(|(_, y, _)| y).sum::<f64>() / count;
            (x, y, y..y)
        };
        Self {
            points: self.points.chunks(piece).map(mean).collect(),
            ..self.clone()
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

/// Short, with as many digits as it takes to tell neighbours apart.
fn format_number(value: f64) -> String {
    let size = value.abs();
    if size >= 1e6 {
        format!("{:.1}M", value / 1e6)
    } else if size >= 1e4 {
        format!("{:.0}k", value / 1e3)
    } else if size >= 100.0 || value == 0.0 {
        format!("{value:.0}")
    } else if size >= 0.01 {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:.1e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(curves: Vec<Curve>, logarithmic: bool) -> Plot {
        Plot {
            name: "loss",
            title: "Loss",
            caption: "",
            logarithmic,
            curves,
        }
    }

    #[test]
    fn curves_become_lines_and_names() {
        let falling = Curve::line(
            "train < test",
            (0..5000).map(|x| (f64::from(x), 1.0 / f64::from(x + 1))),
        );
        let level = Curve {
            style: Style::Level,
            ..Curve::line("random weights", [(0.0, 0.5)])
        };
        let marked = Curve {
            style: Style::Marked,
            points: vec![(0.0, 0.2, 0.1..0.3), (5000.0, 0.4, 0.3..0.5)],
            name: "probe".to_owned(),
        };
        for logarithmic in [false, true] {
            let curves = vec![falling.clone(), level.clone(), marked.clone()];
            let svg = plot(curves, logarithmic)
                .svg()
                .expect("draws")
                .expect("something");
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            assert!(
                svg.contains("random weights") && svg.contains("train &lt; test"),
                "{svg}"
            );
            assert_eq!(svg.matches("<circle").count(), 2);
            let longest = svg.lines().map(|line| line.matches(',').count()).max();
            assert!(longest.is_some_and(|points| (100..=POINTS + 10).contains(&points)));
        }
        assert!(plot(Vec::new(), false).svg().expect("draws").is_none());
        let broken = Curve::line("nan", [(0.0, f64::NAN)]);
        assert!(plot(vec![broken], false).svg().expect("draws").is_none());
        let flat = Curve::line("flat", [(0.0, 1.0), (1.0, 1.0)]);
        assert!(plot(vec![flat], false).svg().expect("draws").is_some());
    }

    #[test]
    fn numbers() {
        let shown = [0.0, 0.5, -0.75, 12.0, 0.0012, 1500.0, 25_000.0, 3.2e6].map(format_number);
        assert_eq!(
            shown,
            ["0", "0.5", "-0.75", "12", "1.2e-3", "1500", "25k", "3.2M"]
        );
    }
}
