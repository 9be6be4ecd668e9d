//! The report as a page: one HTML file that holds its pictures, and Markdown beside them.
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::maps::{GAP, MapSheet};
use super::plots::Plot;
use crate::eval::ResultTable;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1340px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
p.lead { color: #555; margin-top: 0; } p { max-width: 62rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(560px, 1fr)); gap: 1.2rem; }
figure { margin: 0; } figure svg { width: 100%; height: auto; } figcaption { color: #555; font-size: .87rem; padding: 0 .6rem; }
table { border-collapse: collapse; } th, td { padding: .25rem .9rem .25rem 0; text-align: left; border-bottom: 1px solid #eee; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.maps { margin-bottom: 1.6rem; overflow-x: auto; } .maps img { display: block; }
.heads { display: grid; font-size: .85rem; color: #555; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .83rem; }";

/// Everything in a report.
#[derive(Debug)]
pub(super) struct Page {
    /// Name of the run.
    pub(super) title: String,
    /// Where it is, and how far.
    pub(super) lead: String,
    /// Facts about the run: name and value.
    pub(super) facts: Vec<(String, String)>,
    /// The curves.
    pub(super) plots: Vec<Plot>,
    /// Accuracies of every checkpoint and what they are compared with.
    pub(super) scores: ResultTable,
    /// What the accuracies are.
    pub(super) scores_caption: String,
    /// Columns of the maps.
    pub(super) map_columns: Vec<String>,
    /// The maps.
    pub(super) maps: Vec<MapSheet>,
    /// The recipe as it was run.
    pub(super) recipe: String,
}

const MAPS: &str = "Each row looks at one patch (white frame). Prediction: the cosine of the embedding predicted after that patch with \
    the embedding of every patch of the image, dark at 0 or less and bright at 1; a model that knows what comes next is bright at the next patch (red frame), \
    one that copies is bright at the white one. Attention: what the patch sees in that block, mean over heads, the greatest brightest; as in pretraining it sees \
    itself and what came before.";

fn png(sheet: &MapSheet) -> anyhow::Result<Vec<u8>> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    sheet
        .picture
        .write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

/// For each row of a sheet: how good its prediction is.
fn predictions(sheet: &MapSheet) -> String {
    let each = sheet.predictions.iter().map(|(cosine, rank)| {
        format!("cosine with the next patch {cosine:.2}, which is number {rank} in nearness")
    });
    each.collect::<Vec<_>>().join("; ")
}

impl Page {
    /// Writes `index.html`, `report.md` and the pictures into `folder`.
    pub(super) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
        };
        let mut plots = Vec::new();
        for plot in &self.plots {
            if let Some(svg) = plot.svg()? {
                write(&format!("{}.svg", plot.name), svg.as_bytes())?;
                plots.push((plot, svg));
            }
        }
        let mut maps = Vec::new();
        for (number, sheet) in self.maps.iter().enumerate() {
            let bytes = png(sheet)?;
            write(&map_name(number), &bytes)?;
            maps.push((sheet, bytes));
        }
        write(
            "index.html",
            self.html(&plots, &maps).into_string().as_bytes(),
        )?;
        write("report.md", self.markdown(&plots).as_bytes())
    }

    fn html(&self, plots: &[(&Plot, String)], maps: &[(&MapSheet, Vec<u8>)]) -> Markup {
        let number = |column: usize| if column > 0 { "number" } else { "" };
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (self.title) ": learning report" }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    h1 { (self.title) ": learning report" }
                    p.lead { (self.lead) }
                    table { @for (name, value) in &self.facts { tr { th { (name) } td { (value) } } } }
                    @if !self.scores.rows.is_empty() {
                        h2 { "Accuracy of frozen features" }
                        table {
                            tr { @for (i, name) in self.scores.header.iter().enumerate() { th class=(number(i)) { (name) } } }
                            @for row in &self.scores.rows {
                                tr { @for (i, cell) in row.iter().enumerate() { td class=(number(i)) { (cell) } } }
                            }
                        }
                        p { (self.scores_caption) }
                    }
                    h2 { "Curves" }
                    div.plots {
                        @for (plot, svg) in plots {
                            figure { (PreEscaped(svg)) figcaption { (plot.caption) } }
                        }
                    }
                    @if !maps.is_empty() {
                        h2 { "What it predicts and attends to" }
                        p { (MAPS) }
                        @for (number, (sheet, png)) in maps.iter().enumerate() {
                            div.maps {
                                div.heads style=(self.head_columns(sheet)) { @for name in &self.map_columns { span { (name) } } }
                                img src={ "data:image/png;base64," (STANDARD.encode(png)) } alt={ "maps of image " (number + 1) };
                                small { "From the top: " (predictions(sheet)) "." }
                            }
                        }
                    }
                    h2 { "Recipe as run" }
                    pre { (self.recipe) }
                }
            }
        }
    }

    /// Names of the columns as wide as the tiles below them.
    fn head_columns(&self, sheet: &MapSheet) -> String {
        let columns = self.map_columns.len().max(1) as u32;
        let width = (sheet.picture.width() + GAP) / columns - GAP;
        format!("column-gap: {GAP}px; grid-template-columns: repeat({columns}, {width}px)")
    }

    fn markdown(&self, plots: &[(&Plot, String)]) -> String {
        let mut text = format!("# {}: learning report\n\n{}\n\n", self.title, self.lead);
        for (name, value) in &self.facts {
            let _ = writeln!(text, "- {name}: {value}");
        }
        if !self.scores.rows.is_empty() {
            text += "\n## Accuracy of frozen features\n\n";
            let _ = writeln!(text, "{}\n\n{}", self.scores, self.scores_caption);
        }
        text += "\n## Curves\n";
        for (plot, _) in plots {
            let _ = writeln!(
                text,
                "\n![{}]({}.svg)\n\n{}",
                plot.title, plot.name, plot.caption
            );
        }
        if !self.maps.is_empty() {
            let _ = writeln!(text, "\n## What it predicts and attends to\n\n{MAPS}\n");
            let _ = writeln!(text, "Columns: {}.", self.map_columns.join(", "));
        }
        for (number, sheet) in self.maps.iter().enumerate() {
            let shown = predictions(sheet);
            let _ = writeln!(
                text,
                "\n![maps]({})\n\nFrom the top: {shown}.",
                map_name(number)
            );
        }
        let _ = write!(
            text,
            "\n## Recipe as run\n\n```toml\n{}\n```\n",
            self.recipe.trim_end()
        );
        text
    }
}

fn map_name(number: usize) -> String {
    format!("maps-{}.png", number + 1)
}
