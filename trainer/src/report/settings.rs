//! Settings in which the recipes of several runs differ.
use std::collections::BTreeMap;

use super::subject::Run;
use crate::console::words;

/// The keys of the recipes that are not the same everywhere: a row a key, a column a run.
pub(super) fn differences(runs: &[Run]) -> Vec<Vec<String>> {
    let settings = runs.iter().map(|run| {
        let mut flat = BTreeMap::new();
        if let Ok(recipe) = run.recipe_text.parse::<toml::Table>() {
            flatten("", &toml::Value::Table(recipe), &mut flat);
        }
        // The shards' fingerprint tells people nothing; that data differ is said in words.
        flat.remove("dataset");
        flat
    });
    let settings = settings.collect::<Vec<_>>();
    let mut keys = settings.iter().flat_map(BTreeMap::keys).collect::<Vec<_>>();
    keys.sort();
    keys.dedup();
    keys.retain(|key| {
        settings
            .iter()
            .any(|flat| flat.get(*key) != settings[0].get(*key))
    });
    let row = |key: &String| {
        let value = |flat: &BTreeMap<String, String>| flat.get(key).cloned();
        let values = settings
            .iter()
            .map(|flat| value(flat).unwrap_or_else(|| "–".to_owned()));
        std::iter::once(key.clone()).chain(values).collect()
    };
    keys.into_iter().map(row).collect()
}

fn flatten(prefix: &str, value: &toml::Value, flat: &mut BTreeMap<String, String>) {
    /// Characters of a value; the beginning says little where it is a path.
    const LONGEST: usize = 60;
    let shown = match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let dot = if prefix.is_empty() { "" } else { "." };
                flatten(&format!("{prefix}{dot}{key}"), value, flat);
            }
            return;
        }
        toml::Value::Float(value) => words::small(*value),
        toml::Value::Integer(value) => match u64::try_from(*value) {
            Ok(value) => words::count(value),
            Err(_) => value.to_string(),
        },
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let length = shown.chars().count();
    let shown = if length > LONGEST {
        format!(
            "…{}",
            shown.chars().skip(length - LONGEST + 1).collect::<String>()
        )
    } else {
        shown
    };
    flat.insert(prefix.to_owned(), shown);
}
