//! One HTML file that holds its pictures, style and script, for small and large, light and dark
//! screens and for paper.
use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, RgbImage};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::curve::{COLOURS, Style};
use super::plots::{Drawing, Plot};
use crate::console::words;

const PAGE_STYLE: &str = include_str!("page.css");
const PLOT_STYLE: &str = include_str!("plot.css");
/// For a picture by itself, without the page's colours.
const PICTURE_STYLE: &str = include_str!("picture.css");
const SCRIPT: &str = include_str!("hover.js");

/// The whole file; `style` is added to that of all pages.
pub(crate) fn document(title: &str, style: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(PAGE_STYLE)) (PreEscaped(PLOT_STYLE)) (PreEscaped(style)) }
            }
            body {
                (body)
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

/// The style of a picture in a file of its own.
pub(crate) fn picture_style() -> String {
    format!("{PICTURE_STYLE}{PLOT_STYLE}")
}

/// A picture as PNG.
pub(crate) fn png(picture: &RgbImage) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

/// A picture within a page.
pub(crate) fn data_url(picture: &RgbImage) -> anyhow::Result<String> {
    /// Photographs of a larger side are compressed, so that the page stays small.
    const SHARP: u32 = 128;
    if picture.width() <= SHARP {
        let bytes = STANDARD.encode(png(picture)?);
        return Ok(format!("data:image/png;base64,{bytes}"));
    }
    let pixels = turbojpeg::Image {
        pixels: &picture.as_raw()[..],
        width: picture.width() as usize,
        pitch: 3 * picture.width() as usize,
        height: picture.height() as usize,
        format: turbojpeg::PixelFormat::RGB,
    };
    let bytes = turbojpeg::compress(pixels, 88, turbojpeg::Subsamp::None)?;
    Ok(format!(
        "data:image/jpeg;base64,{}",
        STANDARD.encode(&bytes)
    ))
}

/// A plot in the page, with what the script needs to know.
pub(crate) fn figure(plot: &Plot, drawing: &Drawing) -> Markup {
    let axes = &drawing.axes;
    let ends = |values: &std::ops::Range<f64>, pixels: &std::ops::Range<i32>| {
        format!(
            "{:e} {:e} {} {}",
            values.start, values.end, pixels.start, pixels.end
        )
    };
    let (width, height) = drawing.size;
    let one = plot.curves.len() == 1;
    html! {
        figure data-x=(ends(&axes.x, &axes.across)) data-y=(ends(&axes.y, &axes.down))
            data-log[axes.logarithmic] data-axis=(plot.x_axis) {
            h3 { (plot.title) }
            ul.key {
                @for curve in &plot.curves {
                    li.level[curve.style == Style::Level] data-colour=(curve.colour_name()) {
                        @if !one {
                            i style={ "color: var(--s" (curve.colour % COLOURS.len()) ")" } {}
                            (curve.name)
                        }
                        output {}
                    }
                }
                li.note.at {}
            }
            svg.plot viewBox={ "0 0 " (width) " " (height) } role="img"
                aria-label=(described(plot)) {
                (PreEscaped(&drawing.content))
            }
            figcaption { (plot.caption) }
        }
    }
}

/// A plot for those who do not see it: where each curve begins and ends.
fn described(plot: &Plot) -> String {
    let each = plot.curves.iter().filter_map(|curve| {
        let (first, last) = (curve.points.first()?, curve.points.last()?);
        let (from, to) = (words::small(first.y), words::small(last.y));
        Some(match curve.style {
            Style::Level => format!("{}: {from}", curve.name),
            _ => format!("{}: from {from} to {to}", curve.name),
        })
    });
    let each = each.collect::<Vec<_>>().join("; ");
    format!("{} over {}. {each}.", plot.title, plot.x_axis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_colour_has_a_rule_and_a_dark_form() {
        for (number, colour) in COLOURS.into_iter().enumerate() {
            let name = format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2);
            let rule = format!("[stroke=\"{name}\"] {{ stroke: var(--s{number}); }}");
            assert!(PLOT_STYLE.contains(&rule), "{rule}");
            for style in [PAGE_STYLE, PICTURE_STYLE] {
                assert_eq!(style.matches(&format!("--s{number}: ")).count(), 2);
                assert!(style.contains(&format!("--s{number}: {};", name.to_lowercase())));
            }
        }
    }
}
