//! The form of Hugging Face `datasets`: `struct<bytes, path>` for an image, and the `huggingface`
//! entry of the schema's metadata, which says what each column means and how the classes are
//! called.
use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Schema};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::arrays::{binary_values, is_binary, is_string, string_value};
use crate::column_path::{ColumnPath, name_of};
use crate::{RowError, SchemaError};

/// The entry of a schema's metadata that is read; no other is.
pub const METADATA_KEY: &str = "huggingface";

/// What the form reads, for messages.
pub(crate) const EXPECTED: &str = "struct<bytes: binary, path: string>";

/// The meanings that the metadata gives to the columns; empty without metadata. Metadata that
/// cannot be read says nothing: it only helps to choose, and the columns are proven by their types.
#[derive(Debug, Default)]
pub(crate) struct Features(BTreeMap<String, Value>);

#[derive(Deserialize)]
struct Metadata {
    info: Info,
}

#[derive(Deserialize)]
struct Info {
    features: BTreeMap<String, Value>,
}

impl Features {
    /// Reads the `huggingface` entry.
    pub(crate) fn of(schema: &Schema) -> Self {
        schema
            .metadata()
            .get(METADATA_KEY)
            .and_then(|text| serde_json::from_str::<Metadata>(text).ok())
            .map(|metadata| Self(metadata.info.features))
            .unwrap_or_default()
    }

    /// The feature's type of a column, or of the elements of a list, such as `Image` or
    /// `ClassLabel`.
    pub(crate) fn kind(&self, column: &ColumnPath) -> Option<&str> {
        self.feature(column)?.get("_type")?.as_str()
    }

    /// The names of a `ClassLabel` column, by index.
    pub(crate) fn class_names(&self, column: &ColumnPath) -> Option<Vec<String>> {
        let feature = self.feature(column)?;
        if feature.get("_type")?.as_str()? != "ClassLabel" {
            return None;
        }
        let names = feature.get("names")?.as_array()?.iter();
        names.map(|name| name.as_str().map(str::to_owned)).collect()
    }

    fn feature(&self, column: &ColumnPath) -> Option<&Value> {
        let (root, fields) = column.parts().split_first()?;
        let root = element(self.0.get(root)?);
        fields
            .iter()
            .try_fold(root, |feature, field| feature.get(field).map(element))
    }
}

/// The feature of a list's elements, however the version of `datasets` writes lists; any other
/// feature itself.
fn element(feature: &Value) -> &Value {
    let is_list = |kind: &Value| matches!(kind.as_str(), Some("Sequence" | "List" | "LargeList"));
    let inner = match feature {
        Value::Array(elements) => elements.first(),
        _ => feature
            .get("feature")
            .filter(|_| feature.get("_type").is_some_and(is_list)),
    };
    inner.map_or(feature, element)
}

/// The `huggingface` metadata of shards with an image column and, if they have one, a label column
/// of type int64: of indices into the names of classes, or of plain numbers.
pub fn metadata(image_column: &str, label: Option<(&str, Option<&[String]>)>) -> String {
    let mut features = json!({ image_column: { "_type": "Image" } });
    if let Some((column, names)) = label {
        features[column] = match names {
            Some(names) => json!({ "names": names, "_type": "ClassLabel" }),
            None => json!({ "dtype": "int64", "_type": "Value" }),
        };
    }
    json!({ "info": { "features": features } }).to_string()
}

/// Whether images can be read from such a type in this form, and if so, whether it has a `path`.
/// Where no row of a shard has bytes, these may be of no type.
pub(crate) fn fits(data_type: &DataType) -> Option<bool> {
    let DataType::Struct(children) = data_type else {
        return None;
    };
    let bytes = children.iter().find(|child| child.name() == "bytes")?;
    let path = children.iter().find(|child| child.name() == "path");
    let has_path = path.is_some_and(|path| is_string(path.data_type()));
    let no_bytes = bytes.data_type().is_null() && path.is_some();
    (is_binary(bytes.data_type()) || no_bytes).then_some(has_path)
}

/// The images of one column chunk.
pub(crate) fn images(
    array: &ArrayRef,
    column: &str,
    has_path: bool,
) -> Result<Vec<Result<Bytes, RowError>>, SchemaError> {
    let wrong = |column: String, found: &DataType, expected| SchemaError::BatchColumnType {
        column,
        found: name_of(found),
        expected,
    };
    let image = array
        .as_struct_opt()
        .ok_or_else(|| wrong(column.to_owned(), array.data_type(), EXPECTED))?;
    let bytes = image
        .column_by_name("bytes")
        .ok_or_else(|| SchemaError::BatchLacksColumn {
            column: format!("{column}.bytes"),
        })?;
    let values = if bytes.data_type().is_null() {
        vec![None; bytes.len()]
    } else {
        binary_values(bytes)
            .ok_or_else(|| wrong(format!("{column}.bytes"), bytes.data_type(), "binary"))?
    };
    // Only for messages.
    let paths = image.column_by_name("path").filter(|_| has_path);
    let path = |row| {
        paths
            .and_then(|paths| string_value(paths, row))
            .filter(|path| !path.is_empty())
    };
    Ok(values
        .into_iter()
        .enumerate()
        .map(|(row, value)| match (value, path(row)) {
            _ if image.is_null(row) => Err(RowError::Null),
            (None, Some(path)) => Err(RowError::PathOnly {
                path: path.to_owned(),
            }),
            (None, None) => Err(RowError::Null),
            (Some(bytes), _) if bytes.is_empty() => Err(RowError::Empty),
            (Some(bytes), _) => Ok(bytes),
        })
        .collect())
}
