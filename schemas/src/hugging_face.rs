//! The form of Hugging Face `datasets`: `struct<bytes, path>` for an image, and the `huggingface` entry of the schema's
//! metadata, which says what each column means and how the classes are called.
use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use crate::arrays::{binary_values, is_binary, is_string, string_value};
use crate::{RowError, SchemaError};

/// What the form reads, for messages.
pub(crate) const EXPECTED: &str = "struct<bytes: binary, path: string>";

/// The meanings that the metadata gives to the columns; empty without metadata. Metadata that cannot be read says nothing:
/// it only helps to choose, and the columns are proven by their types.
#[derive(Debug, Default)]
pub(crate) struct Features(BTreeMap<String, serde_json::Value>);

#[derive(Deserialize)]
struct Metadata {
    info: Info,
}

#[derive(Deserialize)]
struct Info {
    features: BTreeMap<String, serde_json::Value>,
}

impl Features {
    /// Reads the `huggingface` entry.
    pub(crate) fn of(schema: &Schema) -> Self {
        schema
            .metadata()
            .get("huggingface")
            .and_then(|text| serde_json::from_str::<Metadata>(text).ok())
            .map(|metadata| Self(metadata.info.features))
            .unwrap_or_default()
    }

    /// The feature's type of a column, such as `Image` or `ClassLabel`.
    pub(crate) fn kind(&self, column: &str) -> Option<&str> {
        self.0.get(column)?.get("_type")?.as_str()
    }

    /// The names of a `ClassLabel` column, by index.
    pub(crate) fn class_names(&self, column: &str) -> Option<Vec<String>> {
        let names = self
            .0
            .get(column)
            .filter(|_| self.kind(column) == Some("ClassLabel"))?
            .get("names")?;
        names
            .as_array()?
            .iter()
            .map(|name| name.as_str().map(str::to_owned))
            .collect()
    }
}

/// The `huggingface` metadata of shards with an image column and, if there are classes, a class label column.
pub fn metadata(image_column: &str, classes: Option<(&str, &[String])>) -> String {
    let mut features = json!({ image_column: { "_type": "Image" } });
    if let Some((label_column, names)) = classes {
        features[label_column] = json!({ "names": names, "_type": "ClassLabel" });
    }
    json!({ "info": { "features": features } }).to_string()
}

/// Whether the column can be read in this form, and if so, whether it has a `path`.
pub(crate) fn fits(field: &Field) -> Option<bool> {
    let DataType::Struct(children) = field.data_type() else {
        return None;
    };
    let bytes = children.iter().find(|child| child.name() == "bytes")?;
    let path = children.iter().find(|child| child.name() == "path");
    is_binary(bytes.data_type()).then(|| path.is_some_and(|path| is_string(path.data_type())))
}

/// Whether the column is taken for images without being named. Audio and video features have the same type.
pub(crate) fn recognise(field: &Field, features: &Features) -> Option<bool> {
    fits(field).filter(|_| matches!(features.kind(field.name()), None | Some("Image")))
}

/// The images of one column chunk.
pub(crate) fn images(
    array: &ArrayRef,
    column: &str,
    has_path: bool,
) -> Result<Vec<Result<Bytes, RowError>>, SchemaError> {
    let wrong = |column: String, found: &DataType, expected| SchemaError::BatchColumnType {
        column,
        found: found.to_string(),
        expected,
    };
    let image = array
        .as_struct_opt()
        .ok_or_else(|| wrong(column.to_owned(), array.data_type(), EXPECTED))?;
    let child = |name: &str| {
        let column = format!("{column}.{name}");
        image
            .column_by_name(name)
            .ok_or(SchemaError::BatchLacksColumn { column })
    };
    let bytes = child("bytes")?;
    let values = binary_values(bytes)
        .ok_or_else(|| wrong(format!("{column}.bytes"), bytes.data_type(), "binary"))?;
    let paths = if has_path { Some(child("path")?) } else { None };
    if let Some(paths) = paths.filter(|paths| !is_string(paths.data_type())) {
        return Err(wrong(format!("{column}.path"), paths.data_type(), "string"));
    }
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
