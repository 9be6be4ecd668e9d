//! Which data set is read, or which mixture of several, and which of its columns.
use nepa_schemas::SchemaOptions;
use serde::{Deserialize, Serialize};

use crate::DatasetError;

/// Which data set, or which mixture of several.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatasetConfig {
    /// URLs, local paths, prefixes or globs.
    pub urls: Vec<String>,
    /// Column choices.
    #[serde(flatten)]
    pub schema: SchemaOptions,
    /// Reads the shards of one split alone, as their names or folders say it: `train`,
    /// `validation`, `test`, or any word of theirs. All shards without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Whether each [`crate::DatasetWarning`] is an error.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub strict: bool,
    /// Instead of `urls`: several data sets that are read together, each with its share of every
    /// batch.
    pub mixture: Vec<MixtureSource>,
}

/// One data set of a mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MixtureSource {
    /// URLs, local paths, prefixes or globs.
    pub urls: Vec<String>,
    /// Its share of every batch, relative to the other weights.
    pub weight: f64,
    /// Column choices.
    #[serde(flatten)]
    pub schema: SchemaOptions,
    /// As [`DatasetConfig::split`], which holds where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
}

/// The data sets that a configuration asks for.
pub(super) fn sources_of(config: &DatasetConfig) -> Result<Vec<MixtureSource>, DatasetError> {
    if config.mixture.is_empty() {
        return Ok(vec![MixtureSource {
            urls: config.urls.clone(),
            weight: 1.0,
            schema: config.schema.clone(),
            split: config.split.clone(),
        }]);
    }
    if !config.urls.is_empty() {
        return Err(DatasetError::UrlsBesideMixture {
            urls: config.urls.clone(),
        });
    }
    for source in &config.mixture {
        if !(source.weight.is_finite() && source.weight > 0.0) {
            return Err(DatasetError::MixtureWeight {
                urls: source.urls.clone(),
                weight: source.weight,
            });
        }
    }
    let mut sources = config.mixture.clone();
    for source in &mut sources {
        source.split = source.split.take().or_else(|| config.split.clone());
    }
    Ok(sources)
}
