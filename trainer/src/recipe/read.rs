//! Reading a recipe: by its name or path, with `--set` over it, and what is wrong with it said in
//! the words of who wrote it. The one place that knows serde's messages.
use std::path::Path;

use nepa_model::NepaConfig;

use super::dotted::{dotted, get};
use super::error::RecipeError;
use super::finetune_rules::{MAY_DIFFER, change_model};
use super::keys::{listed_in, unknown_key};
use super::origin::Origin;
use super::{Recipe, ablation, built_in, model, overrides};
use crate::console::messages::nearest;

/// The section that makes a recipe one of fine-tuning.
const FINETUNE: &str = "finetune";
const MODEL: &str = "model";

/// A recipe as it is written, with `--set` over it. Of one that fine-tunes, the model is not known
/// before the weights are.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    table: toml::Table,
    origin: Origin,
}

impl Draft {
    /// Reads a recipe, built in or a file (`built_in::name_of` says which), and applies
    /// `--set key=value` arguments with dotted keys.
    pub(crate) fn read(recipe: &Path, sets: &[String]) -> Result<Self, RecipeError> {
        if let Some(name) = built_in::name_of(recipe) {
            let text = built_in::find(name)
                .ok_or_else(|| built_in::unknown(name))?
                .text;
            return Self::parse(text, recipe, sets);
        }
        let text = std::fs::read_to_string(recipe).map_err(|source| {
            let stem = recipe.file_stem().and_then(|stem| stem.to_str());
            let found = stem.and_then(built_in::find);
            RecipeError::Read {
                path: recipe.to_owned(),
                source,
                tip: Some(match found {
                    Some(found) => format!("the built-in recipe is called {}", found.name),
                    None => "`nepa recipes` lists the built-in ones".to_owned(),
                }),
            }
        })?;
        Self::parse(&text, recipe, sets)
    }

    /// As [`Draft::read`], of `text`; `path` is for messages.
    pub(crate) fn parse(text: &str, path: &Path, sets: &[String]) -> Result<Self, RecipeError> {
        let mut origin = Origin::new(path, text);
        let mut table: toml::Table = text.parse().map_err(|source| RecipeError::Syntax {
            recipe: origin.recipe.clone(),
            source: Box::new(source),
        })?;
        overrides::apply(&mut table, sets, &mut origin)?;
        Ok(Self { table, origin })
    }

    /// Whether it fine-tunes a classifier.
    pub(crate) fn is_finetuning(&self) -> bool {
        self.table.contains_key(FINETUNE)
    }

    /// The recipe of a pretraining run; one that fine-tunes is refused.
    pub(crate) fn pretraining(self) -> Result<Recipe, RecipeError> {
        if self.is_finetuning() {
            return Err(RecipeError::Finetunes {
                recipe: self.origin.recipe,
            });
        }
        self.convert()
    }

    /// The recipe of a fine-tuning run that begins with weights of that architecture; one that
    /// pretrains is refused.
    pub(crate) fn finetuning(self, base: &NepaConfig) -> Result<Recipe, RecipeError> {
        let mut recipe = self.check_finetuning()?;
        let changes = self.changes()?;
        let changed = change_model(base, &changes, |key, value, own| {
            let key = dotted(MODEL, key);
            RecipeError::Value {
                value: value.to_string(),
                rule: format!(
                    "the weights of --from have {own}, and only {} may differ from them",
                    MAY_DIFFER.join(", ")
                ),
                place: self.origin.of(&key),
                key,
                tip: None,
            }
        })?;
        let model = serde_json::from_value(changed.into());
        recipe.model = model.map_err(|error: serde_json::Error| RecipeError::Wrong {
            key: MODEL.to_owned(),
            message: error.to_string(),
            place: self.origin.of(MODEL),
            tip: None,
        })?;
        Ok(recipe)
    }

    /// Whether it is one that fine-tunes, and all but the model can be read: before weights are
    /// fetched that it does not suit.
    pub(crate) fn check_finetuning(&self) -> Result<Recipe, RecipeError> {
        self.check_finetunes()?;
        self.clone().with_stand_in()
    }

    /// What a recipe of either kind says beside its model, such as its data.
    pub(crate) fn without_model(self) -> Result<Recipe, RecipeError> {
        if self.is_finetuning() {
            return self.check_finetuning();
        }
        self.convert()
    }

    fn check_finetunes(&self) -> Result<(), RecipeError> {
        if self.is_finetuning() {
            return Ok(());
        }
        Err(RecipeError::Pretrains {
            recipe: self.origin.recipe.clone(),
        })
    }

    /// `[model]` of a recipe that fine-tunes.
    fn changes(&self) -> Result<serde_json::Map<String, serde_json::Value>, RecipeError> {
        let changes = match self.table.get(MODEL) {
            None => return Ok(serde_json::Map::new()),
            Some(toml::Value::Table(changes)) => changes,
            Some(value) => {
                return Err(RecipeError::Value {
                    key: MODEL.to_owned(),
                    value: value.to_string(),
                    rule: "it must be a section with keys".to_owned(),
                    place: self.origin.of(MODEL),
                    tip: None,
                });
            }
        };
        for key in changes.keys() {
            let key = dotted(MODEL, key);
            unknown_key(&key, &self.table, &self.origin).map_or(Ok(()), Err)?;
        }
        Ok(model::from_toml(changes))
    }

    /// With another recipe's model where its own is not known yet, so that all else is read.
    fn with_stand_in(mut self) -> Result<Recipe, RecipeError> {
        let mut model = built_in::sound_section(MODEL);
        for (key, value) in self.changes()? {
            if let Ok(value) = toml::Value::try_from(&value) {
                model.insert(key, value);
            }
        }
        self.table.insert(MODEL.to_owned(), model.into());
        self.convert()
    }

    fn convert(self) -> Result<Recipe, RecipeError> {
        let Self { table, origin } = self;
        let read: Result<Recipe, _> = table.clone().try_into();
        let mut recipe = read.map_err(|error| in_words(&error, &table, &origin))?;
        if let Some(key) = recipe.model.other.keys().next() {
            let key = dotted(MODEL, key);
            unknown_key(&key, &table, &origin).map_or(Ok(()), Err)?;
        }
        for key in ablation::OF_MODEL {
            let key = dotted(MODEL, key);
            if get(&table, &key).is_some() {
                unknown_key(&key, &table, &origin).map_or(Ok(()), Err)?;
            }
        }
        recipe.origin = origin;
        recipe.ablate_model();
        Ok(recipe)
    }
}

impl Recipe {
    /// Reads the recipe of a pretraining run, built in or a file, and applies `--set key=value`
    /// arguments with dotted keys.
    pub fn read(recipe: &Path, sets: &[String]) -> Result<Self, RecipeError> {
        Draft::read(recipe, sets)?.pretraining()
    }

    /// As [`Recipe::read`], of `text`; `path` is for messages.
    pub fn parse(text: &str, path: &Path, sets: &[String]) -> Result<Self, RecipeError> {
        Draft::parse(text, path, sets)?.pretraining()
    }

    /// What overrides have replaced in the recipe, a line each.
    pub fn replaced(&self) -> &[String] {
        &self.origin.replaced
    }
}

/// What serde says of a table, in words for people.
fn in_words(error: &toml::de::Error, table: &toml::Table, origin: &Origin) -> RecipeError {
    let message = error.message().trim();
    let shown = error.to_string();
    // Read from a table, an error shows the way to its place behind the message.
    let way = shown
        .trim_end()
        .rsplit_once("\nin `")
        .map_or("", |(_, way)| way.trim_end_matches('`'));
    let word = || message.split('`').nth(1).unwrap_or_default();
    if message.starts_with("unknown field") {
        let key = dotted(way, word());
        if let Some(error) = unknown_key(&key, table, origin) {
            return error;
        }
    }
    if message.starts_with("missing field") {
        let key = dotted(way, word());
        let place = match origin.sets.get(&key) {
            Some(_) => origin.of(&key),
            None => String::new(),
        };
        let tip = (!place.is_empty()).then(|| format!("--set {key}=VALUE"));
        return RecipeError::MissingKey {
            recipe: origin.recipe.clone(),
            key,
            place,
            tip,
        };
    }
    if message.starts_with("unknown variant") {
        let known = listed_in(message);
        let meant = nearest(word(), known.iter().map(String::as_str));
        let (key, _) = culprit(way, &format!("string {:?}", word()), table);
        return RecipeError::Value {
            value: format!("\"{}\"", word()),
            rule: format!("it must be {}", one_of(&known)),
            place: origin.of(&key),
            key,
            tip: meant.map(|meant| format!("did you mean \"{meant}\"?")),
        };
    }
    let invalid = ["invalid type: ", "invalid value: ", "invalid length "];
    let found = invalid
        .iter()
        .find_map(|kind| message.strip_prefix(kind))
        .and_then(|rest| rest.rsplit_once(", expected "));
    if let Some((found, expected)) = found {
        let (key, value) = culprit(way, found, table);
        let shown = value.map_or_else(|| found.to_owned(), ToString::to_string);
        return RecipeError::Value {
            place: origin.of(&key),
            tip: tip_for(&key, value, expected),
            rule: format!("it must be {}", kind(expected, value)),
            value: shown,
            key,
        };
    }
    let (message, tip) = match message.split_once("\ntip: ") {
        Some((message, tip)) => (message, Some(tip.to_owned())),
        None => (message, None),
    };
    RecipeError::Wrong {
        key: way.to_owned(),
        message: message.to_owned(),
        place: origin.of(way),
        tip,
    }
}

/// The value that an error is about, with its key. Where serde has read a section as a whole
/// (`data.augment`), it is the one below that is what was found.
fn culprit<'a>(
    way: &str,
    found: &str,
    table: &'a toml::Table,
) -> (String, Option<&'a toml::Value>) {
    let Some(value) = get(table, way) else {
        return (way.to_owned(), None);
    };
    if let toml::Value::Table(section) = value
        && found != "map"
    {
        let below = section.iter().find(|(_, value)| holds(value, found));
        if let Some((name, value)) = below {
            return (dotted(way, name), Some(value));
        }
    }
    (way.to_owned(), Some(value))
}

/// Whether a value, or one in its list, is what serde has found.
fn holds(value: &toml::Value, found: &str) -> bool {
    let in_list = |list: &Vec<toml::Value>| list.iter().any(|value| holds(value, found));
    as_serde(value) == found || value.as_array().is_some_and(in_list)
}

/// What serde calls a value.
fn as_serde(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => format!("string {text:?}"),
        toml::Value::Integer(number) => format!("integer `{number}`"),
        toml::Value::Float(number) => format!("floating point `{number:?}`"),
        toml::Value::Boolean(value) => format!("boolean `{value}`"),
        toml::Value::Array(_) => "sequence".to_owned(),
        toml::Value::Table(_) | toml::Value::Datetime(_) => "map".to_owned(),
    }
}

/// What a Rust type is to who writes a recipe.
fn kind(expected: &str, value: Option<&toml::Value>) -> String {
    let most = |most: u64| match value {
        Some(toml::Value::Integer(number)) if u64::try_from(*number).is_ok() => {
            format!("a whole number of at most {most}")
        }
        _ => "a whole number, 0 or more".to_owned(),
    };
    match expected {
        "u8" => most(u8::MAX.into()),
        "u16" => most(u16::MAX.into()),
        "u32" => most(u32::MAX.into()),
        "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" | "string or table" | "path string" => "text in quotes".to_owned(),
        "a sequence" => "a list".to_owned(),
        _ => {
            if let Some(length) = expected.strip_prefix("an array of length ") {
                return format!("a list of {length} numbers");
            }
            let words = ["struct", "map", "table", "enum"];
            if words.iter().any(|word| expected.contains(word)) {
                return "a section with keys".to_owned();
            }
            expected.to_owned()
        }
    }
}

/// How the value could be written, where that is plain.
fn tip_for(key: &str, value: Option<&toml::Value>, expected: &str) -> Option<String> {
    match value? {
        toml::Value::Float(number)
            if number.fract() == 0.0 && (0.0..1e15).contains(number) && is_whole(expected) =>
        {
            Some(format!("--set {key}={number}"))
        }
        toml::Value::String(text) if expected == "a sequence" => {
            Some(format!("--set '{key}=[\"{text}\"]'"))
        }
        _ => None,
    }
}

fn is_whole(expected: &str) -> bool {
    let digits = expected.trim_start_matches(['u', 'i']);
    digits == "size" || digits.parse::<u8>().is_ok()
}

/// `"a", "b" or "c"`.
fn one_of(words: &[String]) -> String {
    let quoted = words.iter().map(|word| format!("\"{word}\""));
    let mut quoted = quoted.collect::<Vec<_>>();
    let last = quoted.pop().unwrap_or_default();
    if quoted.is_empty() {
        last
    } else {
        format!("{} or {last}", quoted.join(", "))
    }
}
