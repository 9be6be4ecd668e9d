//! `[model]` of a recipe: the keys of the published `config.json`, with defaults of the recipe's own.
//!
//! The published class takes other values where a key is absent (`qk_norm` false, `patch_size` 16,
//! `pos_embed_rescale` 2.0), which hold for a `config.json`. TOML has no null, so a model without
//! LayerScale is `layerscale_value = "none"` here.
use nepa_model::NepaConfig;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

const LAYERSCALE: &str = "layerscale_value";
const NONE: &str = "none";

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<NepaConfig, D::Error> {
    let mut keys = Map::deserialize(deserializer)?;
    for (key, value) in [
        ("qk_norm", json!(true)),
        ("patch_size", json!(14)),
        ("pos_embed_rescale", Value::Null),
    ] {
        keys.entry(key).or_insert(value);
    }
    if let Some(value) = keys.get_mut(LAYERSCALE)
        && value == NONE
    {
        *value = Value::Null;
    }
    serde_json::from_value(Value::Object(keys)).map_err(D::Error::custom)
}

/// Keys of a `[model]` as those of a `config.json`, without any defaults.
pub(super) fn from_toml(keys: &toml::Table) -> Map<String, Value> {
    let keys = keys.iter().map(|(key, value)| {
        let value = match value.as_str() {
            Some(NONE) if key == LAYERSCALE => Value::Null,
            _ => serde_json::to_value(value).unwrap_or(Value::Null),
        };
        (key.clone(), value)
    });
    keys.collect()
}

pub(super) fn serialize<S: Serializer>(
    model: &NepaConfig,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let value = serde_json::to_value(model).map_err(S::Error::custom)?;
    let Value::Object(mut keys) = value else {
        return Err(S::Error::custom("a configuration is a table"));
    };
    keys.retain(|_, value| !value.is_null());
    if model.layerscale_value.is_none() {
        keys.insert(LAYERSCALE.to_owned(), json!(NONE));
    }
    keys.serialize(serializer)
}
