//! The keys that a recipe may have, as its types know them.
use nepa_model::NepaConfig;

use super::dotted::{dotted, get};
use super::error::RecipeError;
use super::origin::Origin;
use super::{Recipe, built_in};
use crate::console::messages::nearest;

/// Sections of a recipe, the top first.
pub(super) const SECTIONS: [&str; 15] = [
    "",
    "model",
    "data",
    "data.augment",
    "data.normalize",
    "train",
    "optimizer",
    "finetune",
    "finetune.mix",
    "finetune.eval",
    "ablation",
    "checkpoint",
    "log",
    "loader",
    "io",
];
/// What other programs call things, and where they are here.
const ELSEWHERE: [(&str, &str); 16] = [
    ("accumulation", "train.micro_batch"),
    ("batch_size", "train.batch"),
    ("batchsize", "train.batch"),
    ("gradient_accumulation_steps", "train.micro_batch"),
    ("learning_rate", "train.lr"),
    ("max_epochs", "train.epochs"),
    ("max_steps", "train.steps"),
    ("num_epochs", "train.epochs"),
    ("num_workers", "loader.decode_threads"),
    ("output", "the flag --out"),
    ("output_dir", "the flag --out"),
    ("resume", "the flag --resume"),
    ("total_steps", "train.steps"),
    ("use_mask_token", "ablation.mask_ratio"),
    ("use_rope", "ablation.rope"),
    ("workers", "loader.decode_threads"),
];
/// A key that no section has.
const NO_KEY: &str = "no such key";

/// The keys of a section; of `data.augment` those of its kind in `table`.
pub(super) fn keys_of(section: &str, table: &toml::Table) -> Vec<String> {
    let base = built_in::sound();
    let model = Recipe::parse(base, "".as_ref(), &[]).map(|recipe| recipe.model);
    if let ("model", Ok(model)) = (section, model) {
        return keys_of_model(model);
    }
    let mut probe: toml::Table = base.parse().unwrap_or_default();
    if let (Some(augment), Some(data)) = (
        get(table, "data.augment").filter(|value| value.is_table()),
        probe.get_mut("data").and_then(toml::Value::as_table_mut),
    ) {
        data.insert("augment".to_owned(), augment.clone());
    }
    let mut place = &mut probe;
    for part in section.split('.').filter(|part| !part.is_empty()) {
        let entry = place
            .entry(part)
            .or_insert_with(|| toml::Value::Table(toml::Table::new()));
        match entry.as_table_mut() {
            Some(table) => place = table,
            None => return Vec::new(),
        }
    }
    place.insert(NO_KEY.to_owned(), toml::Value::Boolean(true));
    match probe.try_into::<Recipe>() {
        Err(error) => listed_in(error.message()),
        Ok(_) => Vec::new(),
    }
}

/// The words in backquotes behind `expected` in serde's message.
pub(super) fn listed_in(message: &str) -> Vec<String> {
    let known = message.split_once(", expected ");
    let known = known.map_or("", |(_, known)| known);
    known
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// An architecture's own keys are known to the model alone.
fn keys_of_model(mut model: NepaConfig) -> Vec<String> {
    model.other.clear();
    model.layerscale_value = Some(0.0);
    model.pos_embed_rescale = Some(1.0);
    model.pos_embed_shift = Some(0.0);
    model.pos_embed_jitter = Some(1.0);
    match toml::Value::try_from(&model) {
        Ok(toml::Value::Table(known)) => known.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

/// The error for a dotted key, unless there is such a key.
pub(super) fn unknown_key(key: &str, table: &toml::Table, origin: &Origin) -> Option<RecipeError> {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let known = keys_of(section, table);
    if known.iter().any(|known| known == name) {
        return None;
    }
    let similar = || {
        let found = nearest(name, known.iter().map(String::as_str))?;
        Some(dotted(section, found))
    };
    let elsewhere = || {
        let word = name.to_lowercase().replace('-', "_");
        let found = ELSEWHERE.iter().find(|(other, _)| *other == word)?;
        Some(found.1.to_owned())
    };
    let in_other_section = || {
        SECTIONS.iter().find_map(|other| {
            let known = keys_of(other, table);
            let known = known.iter().any(|known| known == name);
            known.then(|| dotted(other, name))
        })
    };
    let tip = elsewhere().or_else(in_other_section).or_else(similar);
    Some(RecipeError::UnknownKey {
        key: key.to_owned(),
        place: origin.of(key),
        tip: tip.map(|tip| format!("did you mean {tip}?")),
        section: section.to_owned(),
        known,
    })
}

/// The recipe's key that a flag of the command line was probably meant to be.
pub(crate) fn key_like_flag(flag: &str) -> Option<String> {
    let name = flag.trim_start_matches('-').replace('-', "_");
    let elsewhere = ELSEWHERE.iter().find(|(other, _)| *other == name);
    if let Some((_, key)) = elsewhere.filter(|(_, key)| key.contains('.')) {
        return Some((*key).to_owned());
    }
    let table = toml::Table::new();
    let has = |section: &&&str| keys_of(section, &table).contains(&name);
    let section = SECTIONS.iter().find(has)?;
    Some(dotted(section, &name))
}
