//! Which column holds the images and which the labels.
use serde::{Deserialize, Serialize};

use crate::SchemaError;

/// Column choices by hand; `None` means automatic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchemaOptions {
    /// Name of the image column.
    pub image_column: Option<String>,
    /// Name of the label column; the empty string means: read no label.
    pub label_column: Option<String>,
}

/// How the image column stores its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageColumn {}

/// How the label column stores its labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelColumn {}

/// The decision for one schema: equal mappings read alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnMapping {
    /// The image column.
    pub image: ImageColumn,
    /// The label column, if any.
    pub label: Option<LabelColumn>,
    /// Class names from the `huggingface` metadata, by label index.
    pub class_names: Option<Vec<String>>,
}

impl ColumnMapping {
    /// Decides from an Arrow schema (with the file's key-value metadata in `schema.metadata()`).
    pub fn resolve(_schema: &arrow::datatypes::Schema, _options: &SchemaOptions) -> Result<Self, SchemaError> {
        unimplemented!()
    }

    /// Dotted Parquet leaf paths to read, such as `image.bytes`, `image.path`, `label`.
    pub fn leaf_paths(&self) -> Vec<String> {
        unimplemented!()
    }
}
