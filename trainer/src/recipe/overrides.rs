//! `--set KEY=VALUE`: one value of a recipe over the one that it gives.
//!
//! A key that gives the same thing as another one (epochs and steps) takes its place, and the
//! program says so. `none` unsets a key.
use super::dotted::{get, insert, remove};
use super::error::RecipeError;
use super::keys::unknown_key;
use super::origin::Origin;

/// Keys of which a recipe has one: they give the same thing.
const ALTERNATIVES: [[&str; 2]; 5] = [
    ["train.epochs", "train.steps"],
    ["train.base_lr", "train.lr"],
    ["train.warmup_fraction", "train.warmup_steps"],
    ["data.urls", "data.mixture"],
    ["finetune.classes", "finetune.num_classes"],
];
/// What unsets a key.
const UNSET: &str = "none";

/// Applies the overrides in their order; `origin` learns of them.
pub(super) fn apply(
    table: &mut toml::Table,
    sets: &[String],
    origin: &mut Origin,
) -> Result<(), RecipeError> {
    for argument in sets {
        let (key, value) = parse(argument)?;
        let place = |key: &str, origin: &mut Origin| {
            origin.sets.insert(key.to_owned(), argument.clone());
        };
        let Some(value) = value else {
            let there = remove(table, &key).is_some();
            place(&key, origin);
            if !there {
                unknown_key(&key, table, origin).map_or(Ok(()), Err)?;
            }
            continue;
        };
        for alternatives in ALTERNATIVES {
            let Some(own) = alternatives.iter().position(|one| *one == key) else {
                continue;
            };
            let other = alternatives[1 - own];
            if let Some(first) = origin
                .sets
                .get(other)
                .filter(|_| get(table, other).is_some())
            {
                return Err(RecipeError::Contradiction {
                    first: first.clone(),
                    second: argument.clone(),
                });
            }
            if let Some(old) = remove(table, other).filter(|old| !is_empty(old)) {
                origin.replaced.push(format!(
                    "{key} = {value} takes the place of the recipe's {other} = {old}"
                ));
            }
        }
        insert(table, &key, value).ok_or_else(|| RecipeError::Set {
            argument: argument.clone(),
            problem: "the key leads through a value that is no section",
        })?;
        place(&key, origin);
    }
    Ok(())
}

/// The dotted key, and the value where it is not [`UNSET`].
fn parse(argument: &str) -> Result<(String, Option<toml::Value>), RecipeError> {
    let wrong = |problem| RecipeError::Set {
        argument: argument.to_owned(),
        problem,
    };
    let (key, value) = argument
        .split_once('=')
        .ok_or_else(|| wrong("there is no `=`"))?;
    let parts = key.split('.').map(str::trim).collect::<Vec<_>>();
    if parts.iter().any(|part| part.is_empty()) {
        return Err(wrong("the key is empty"));
    }
    let value = value.trim();
    Ok((parts.join("."), (value != UNSET).then(|| read(value))))
}

/// As TOML; as a number where only TOML wants it written otherwise (`.5`), and as text where it is
/// neither (`--set device=cpu`).
fn read(value: &str) -> toml::Value {
    let parsed = format!("value = {value}").parse::<toml::Table>().ok();
    if let Some(value) = parsed.and_then(|mut parsed| parsed.remove("value")) {
        return value;
    }
    let looks_like_number = value.starts_with(['.', '-', '+', '0', '1', '2', '3', '4', '5'])
        || value.starts_with(['6', '7', '8', '9']);
    match value.parse::<f64>() {
        Ok(number) if looks_like_number => toml::Value::Float(number),
        _ => toml::Value::String(value.to_owned()),
    }
}

fn is_empty(value: &toml::Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}
