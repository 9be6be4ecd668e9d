//! The report as a page: one HTML file that holds its pictures, style and script, for small and
//! large, light and dark screens and for paper; and Markdown beside it.
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use comfy_table::{Table, presets};
use maud::{Markup, html};

use super::maps::{INK, MapRow, MapSheet};
use super::sentence::Sentence;
use crate::console::words;
use crate::eval::ResultTable;
use crate::page::{Drawing, Plot, data_url, document, figure, picture_style, png};

#[derive(Debug)]
pub(super) struct Page {
    /// What is reported on.
    pub(super) title: String,
    /// Where it is, and how far.
    pub(super) lead: String,
    /// What happened, in sentences.
    pub(super) said: Vec<Sentence>,
    pub(super) names: Vec<String>,
    /// A row a fact: its name, then a value for each run.
    pub(super) facts: Vec<Vec<String>>,
    /// The same of the settings that differ between the runs.
    pub(super) settings: Vec<Vec<String>>,
    pub(super) plots: Vec<Plot>,
    /// Accuracies of every checkpoint and what they are compared with.
    pub(super) scores: ResultTable,
    /// What the accuracies are.
    pub(super) scores_caption: String,
    /// The maps of each run that has some.
    pub(super) maps: Vec<Maps>,
    /// Names of runs, and the recipes as they were run.
    pub(super) recipes: Vec<(String, String)>,
}

/// Maps of one run.
#[derive(Debug)]
pub(super) struct Maps {
    pub(super) run: String,
    pub(super) columns: Vec<String>,
    pub(super) sheets: Vec<MapSheet>,
}

const MAPS: &str = "Each row looks at one patch (white frame). Prediction: the cosine of the \
    embedding predicted after that patch with the embedding of every patch of the image, dark at \
    0 or less and bright at 1; a model that knows what comes next is bright at the next patch (red \
    frame), one that copies is bright at the white one. Attention: what the patch sees in that \
    block, mean over heads, the greatest brightest; as in pretraining it sees itself and what came \
    before.";

/// For each row of a sheet: how good its prediction is.
fn predictions(sheet: &MapSheet) -> String {
    let each = sheet.rows.iter().map(|MapRow { cosine, rank, .. }| {
        format!("cosine with the next patch {cosine:.2}, which is number {rank} in nearness")
    });
    let each = each.collect::<Vec<_>>().join("; ").replace('-', "−");
    format!("From the top: {each}.")
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
            if let Some(drawing) = plot.draw()? {
                plots.push((plot, drawing));
                let picture = plot.svg(&picture_style())?;
                write(&picture_name(plot), picture.unwrap_or_default().as_bytes())?;
            }
        }
        let sheets = self.maps.iter().flat_map(|maps| &maps.sheets);
        for (number, sheet) in sheets.enumerate() {
            write(&map_name(number), &png(&sheet.picture())?)?;
        }
        write("index.html", self.html(&plots)?.into_string().as_bytes())?;
        write("report.md", self.markdown(&plots).as_bytes())
    }

    fn is_comparison(&self) -> bool {
        self.names.len() > 1
    }

    fn html(&self, plots: &[(&Plot, Drawing)]) -> anyhow::Result<Markup> {
        let mut maps = Vec::new();
        let mut number = 0;
        for of_run in &self.maps {
            let mut sheets = Vec::new();
            for sheet in &of_run.sheets {
                number += 1;
                sheets.push((number, sheet, sheet_svg(number, sheet, &of_run.columns)?));
            }
            maps.push((of_run, sheets));
        }
        let of_accuracy = |plot: &Plot| plot.name.starts_with("accuracy");
        let plots = |accuracy: bool| {
            let chosen = plots
                .iter()
                .filter(|(plot, _)| of_accuracy(plot) == accuracy);
            html! { div.plots { @for (plot, drawing) in chosen { (figure(plot, drawing)) } } }
        };
        let body = html! {
            h1 { (self.title) }
            p.lead { (self.lead) }
            ul.said {
                @for sentence in &self.said {
                    @if sentence.caution { li.caution { b { "Note: " } (sentence.text) } }
                    @else { li { (sentence.text) } }
                }
            }
            (self.side_table("What was done", &self.facts))
            @if self.is_comparison() {
                h2 { "Settings that differ" }
                @if self.settings.is_empty() { p { "The recipes are the same." } }
                @else { (self.side_table("Settings that differ", &self.settings)) }
            }
            @if !self.scores.rows.is_empty() {
                h2 { "Accuracy of frozen features" }
                (plots(true))
                div style="height: 1.2rem" {}
                (score_table(&self.scores))
                p.note { (self.scores_caption) }
            }
            h2 { "Curves" }
            @if self.facts_only() { p { "There is no step to draw yet." } }
            (plots(false))
            @if maps.iter().any(|(_, sheets)| !sheets.is_empty()) {
                h2 { "What it predicts and attends to" }
                p { (MAPS) }
            }
            @for (of_run, sheets) in &maps {
                @if self.is_comparison() { h3 { (of_run.run) } }
                @for (number, sheet, svg) in sheets {
                    figure.maps style=(max_width(&of_run.columns)) {
                        div.heads aria-hidden="true" {
                            @for name in &of_run.columns { span { (name) } }
                        }
                        (svg)
                        figcaption { "Image " (number) ". " (predictions(sheet)) }
                    }
                }
            }
            h2 { "Recipe as run" }
            @for (name, recipe) in &self.recipes {
                details {
                    summary {
                        @if self.recipes.len() > 1 { (name) ": " }
                        (words::counted(recipe.lines().count() as u64, "line")) " of TOML"
                    }
                    pre tabindex="0" { (recipe) }
                }
            }
        };
        Ok(document(&self.title, "", &body))
    }

    /// Whether no run has done a step.
    fn facts_only(&self) -> bool {
        let has_points = |plot: &Plot| plot.curves.iter().any(|curve| !curve.points.is_empty());
        !self.plots.iter().any(has_points)
    }

    /// Rows with a name and a value for each run.
    fn side_table(&self, label: &str, rows: &[Vec<String>]) -> Markup {
        html! {
            div.scroll role="region" tabindex="0" aria-label=(label) {
                table.side[self.is_comparison()] {
                    @if self.is_comparison() {
                        thead {
                            tr { th {} @for name in &self.names { th scope="col" { (name) } } }
                        }
                    }
                    tbody {
                        @for row in rows {
                            tr {
                                th scope="row" { (row[0]) }
                                @for value in &row[1..] { td { (value) } }
                            }
                        }
                    }
                }
            }
        }
    }

    fn side_markdown(&self, rows: &[Vec<String>]) -> String {
        if !self.is_comparison() {
            let lines = rows.iter().map(|row| format!("- {}: {}\n", row[0], row[1]));
            return lines.collect();
        }
        let mut table = Table::new();
        table
            .load_style(presets::ASCII_MARKDOWN)
            .set_header(std::iter::once(String::new()).chain(self.names.iter().cloned()));
        table.add_rows(rows);
        format!("{}\n", table.trim_fmt())
    }

    fn markdown(&self, plots: &[(&Plot, Drawing)]) -> String {
        let mut text = format!("# {}\n\n{}\n\n", self.title, self.lead);
        for sentence in &self.said {
            let note = if sentence.caution { "**Note:** " } else { "" };
            let _ = writeln!(text, "- {note}{}", sentence.text);
        }
        let _ = write!(text, "\n## Facts\n\n{}", self.side_markdown(&self.facts));
        if self.is_comparison() {
            text += "\n## Settings that differ\n\n";
            text += &if self.settings.is_empty() {
                "The recipes are the same.\n".to_owned()
            } else {
                self.side_markdown(&self.settings)
            };
        }
        if !self.scores.rows.is_empty() {
            text += "\n## Accuracy of frozen features\n\n";
            let _ = writeln!(text, "{}\n\n{}", self.scores, self.scores_caption);
        }
        text += "\n## Curves\n";
        if self.facts_only() {
            text += "\nThere is no step to draw yet.\n";
        }
        for (plot, _) in plots {
            let (title, name) = (&plot.title, picture_name(plot));
            let _ = writeln!(text, "\n![{title}]({name})\n\n{}", plot.caption);
        }
        let mut number = 0;
        for of_run in &self.maps {
            if number == 0 {
                let _ = writeln!(text, "\n## What it predicts and attends to\n\n{MAPS}");
            }
            if self.is_comparison() {
                let _ = writeln!(text, "\n### {}", of_run.run);
            }
            let _ = writeln!(text, "\nColumns: {}.", of_run.columns.join(", "));
            for sheet in &of_run.sheets {
                let (name, shown) = (map_name(number), predictions(sheet));
                let _ = writeln!(text, "\n![maps]({name})\n\n{shown}");
                number += 1;
            }
        }
        text += "\n## Recipe as run\n";
        for (name, recipe) in &self.recipes {
            if self.recipes.len() > 1 {
                let _ = write!(text, "\n### {name}\n");
            }
            let _ = write!(text, "\n```toml\n{}\n```\n", recipe.trim_end());
        }
        text
    }
}

fn score_table(scores: &ResultTable) -> Markup {
    let number = |column: usize| if column > 0 { "number" } else { "" };
    html! {
        div.scroll role="region" tabindex="0" aria-label="Accuracies" {
            table.scores {
                thead {
                    tr {
                        @for (i, name) in scores.header.iter().enumerate() {
                            th scope="col" class=(number(i)) { (name) }
                        }
                    }
                }
                tbody {
                    @for row in &scores.rows {
                        tr {
                            @for (i, cell) in row.iter().enumerate() {
                                td class=(number(i)) { (cell) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Side of a tile, and the gap between two, in a sheet.
const TILE: usize = 100;
const GAP: usize = 4;

/// No tile is shown much larger than it has pixels.
fn max_width(columns: &[String]) -> String {
    format!("max-width: {}px", 170 * columns.len())
}

/// The tiles of one image: the photo is there once, each map is a few pixels over it.
fn sheet_svg(number: usize, sheet: &MapSheet, columns: &[String]) -> anyhow::Result<Markup> {
    let step = TILE + GAP;
    let (width, height) = (step * columns.len() - GAP, step * sheet.rows.len() - GAP);
    let cell = TILE as f64 / sheet.side as f64;
    let frame = |patch: usize, colour: &str| {
        let line = (cell / 8.0).clamp(0.8, 2.0);
        let at = |place: usize| format!("{:.2}", place as f64 * cell + line / 2.0);
        html! {
            rect x=(at(patch % sheet.side)) y=(at(patch / sheet.side)) fill="none"
                width=(format!("{:.2}", cell - line)) height=(format!("{:.2}", cell - line))
                stroke=(colour) stroke-width=(format!("{line:.2}")) {}
        }
    };
    let mut tiles = Vec::new();
    for (row, seen) in sheet.rows.iter().enumerate() {
        for column in 0..columns.len() {
            let heat = match column {
                0 => None,
                _ => Some(data_url(&sheet.heat(&seen.maps[column - 1]))?),
            };
            tiles.push((
                format!("translate({} {})", column * step, row * step),
                seen,
                column,
                heat,
            ));
        }
    }
    let photo = format!("photo-{number}");
    let of_photo = format!("#{photo}");
    let label = format!(
        "Image {number}: {}. {}",
        columns.join(", "),
        predictions(sheet)
    );
    Ok(html! {
        svg viewBox={ "0 0 " (width) " " (height) } role="img" aria-label=(label) {
            defs { image id=(photo) width=(TILE) height=(TILE) href=(data_url(&sheet.photo)?) {} }
            @for (place, seen, column, heat) in &tiles {
                g transform=(place) {
                    @if let Some(heat) = heat {
                        use class="grey" href=(of_photo) {}
                        image width=(TILE) height=(TILE) opacity=(INK) href=(heat) {}
                    } @else {
                        use href=(of_photo) {}
                    }
                    @if *column < 2 { (frame(seen.patch + 1, "#ff2828")) }
                    (frame(seen.patch, "#ffffff"))
                }
            }
        }
    })
}

fn picture_name(plot: &Plot) -> String {
    format!("{}.svg", plot.name)
}

fn map_name(number: usize) -> String {
    format!("maps-{}.png", number + 1)
}
