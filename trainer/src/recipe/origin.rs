//! Where each value of a recipe was given, for messages: a line of its file, or a `--set`.
use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::dotted::dotted;
use crate::console::messages::{quoted, quoted_path};

/// Where a recipe comes from.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Origin {
    /// Name or path, as a shell takes it.
    pub(super) recipe: String,
    /// Line of each key of the file.
    lines: BTreeMap<String, usize>,
    /// The `--set` of each key that has one.
    pub(super) sets: BTreeMap<String, String>,
    /// What overrides have replaced, a line each.
    pub(super) replaced: Vec<String>,
}

impl Origin {
    /// Of a file's text; empty where it is no TOML.
    pub(super) fn new(path: &Path, text: &str) -> Self {
        let mut lines = BTreeMap::new();
        if let Ok(table) = DeTable::parse(text) {
            add_lines(text, "", table.get_ref(), &mut lines);
        }
        Self {
            recipe: quoted_path(path),
            lines,
            ..Self::default()
        }
    }

    /// Where a dotted key was given; the last `--set` of it, or of a section around it, counts.
    pub(super) fn of(&self, key: &str) -> String {
        let mut around = key;
        loop {
            if let Some(argument) = self.sets.get(around) {
                return format!("--set {}", quoted(argument));
            }
            let Some((section, _)) = around.rsplit_once('.') else {
                break;
            };
            around = section;
        }
        // A section is told from its values: those of overrides are the newer ones.
        let below = format!("{key}.");
        let within = self.sets.iter().filter(|(set, _)| set.starts_with(&below));
        let within = within.map(|(_, argument)| format!("--set {}", quoted(argument)));
        let within = within.collect::<Vec<_>>();
        if !within.is_empty() {
            return within.join(", ");
        }
        match self.lines.get(key) {
            Some(line) => format!("{}, line {line}", self.recipe),
            None => String::new(),
        }
    }
}

fn add_lines(text: &str, section: &str, table: &DeTable, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table {
        let key: &Spanned<_> = key;
        let dotted = dotted(section, key.get_ref());
        let line = 1 + text[..key.span().start].matches('\n').count();
        if let DeValue::Table(table) = value.get_ref() {
            add_lines(text, &dotted, table, lines);
        }
        lines.insert(dotted, line);
    }
}
