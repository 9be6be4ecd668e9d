//! Which data set is read, or which mixture of several, and which of its columns.
use std::fmt;

use nepa_schemas::SchemaOptions;
use serde::{Deserialize, Serialize};

use crate::store::{Location, shown_url};
use crate::{DatasetError, StoreError};

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
    /// Path or URL of the index of what `urls` and `split` name ([`crate::Dataset::indexes`]), so
    /// that neither a listing nor a footer is asked for. What has come to the folders since it was
    /// written is not read, and what was replaced is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
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
    /// As [`DatasetConfig::index`], of this data set alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<String>,
}

/// Where a data set was opened from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Origin {
    /// URLs without secrets.
    pub(super) urls: Vec<String>,
    pub(super) split: Option<String>,
    /// Its index, without secrets, if it has one.
    pub(super) index: Option<String>,
}

impl Origin {
    /// That of a data set which is to be opened.
    pub(super) fn of(source: &MixtureSource) -> Result<Self, StoreError> {
        let urls = source.urls.iter();
        let urls = urls.map(|url| Ok(Location::parse(url)?.display()));
        Ok(Self {
            urls: urls.collect::<Result<_, StoreError>>()?,
            split: source.split.clone(),
            index: source.index.as_deref().map(shown_url),
        })
    }
}

/// For messages.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.urls.join(", "))?;
        match &self.split {
            Some(split) => write!(f, " (split {split})"),
            None => Ok(()),
        }
    }
}

/// The data sets that a configuration asks for.
pub(super) fn sources_of(config: &DatasetConfig) -> Result<Vec<MixtureSource>, DatasetError> {
    if config.mixture.is_empty() {
        return Ok(vec![MixtureSource {
            urls: config.urls.clone(),
            weight: 1.0,
            schema: config.schema.clone(),
            split: config.split.clone(),
            index: config.index.clone(),
        }]);
    }
    if !config.urls.is_empty() {
        return Err(DatasetError::UrlsBesideMixture {
            urls: config.urls.clone(),
        });
    }
    if let Some(index) = &config.index {
        return Err(DatasetError::IndexBesideMixture {
            index: shown_url(index),
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
