//! Which column holds the images and which the labels.
//! Automatic where only one choice makes sense; otherwise an error that names the candidates and the option to set.
use arrow::datatypes::{Field, Schema};
use serde::{Deserialize, Serialize};

use crate::arrays::{is_binary, is_string};
use crate::hugging_face::Features;
use crate::{LabelColumn, SchemaError, flat, hugging_face, label};

/// Column choices by hand; `None` means automatic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchemaOptions {
    /// Name of the image column.
    pub image_column: Option<String>,
    /// Name of the label column; the empty string means: read no label.
    pub label_column: Option<String>,
}

/// How the image column stores its bytes. The kind of binary (32 or 64 bit offsets, views) makes no difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageColumn {
    /// `struct<bytes, path>`, as Hugging Face `datasets` writes it.
    HuggingFace {
        /// Name of the struct column.
        column: String,
        /// Whether there is a `path`.
        has_path: bool,
    },
    /// A binary column.
    Flat {
        /// Name of the column.
        column: String,
    },
}

impl ImageColumn {
    /// Name of the top-level column.
    pub fn column(&self) -> &str {
        match self {
            Self::HuggingFace { column, .. } | Self::Flat { column } => column,
        }
    }

    /// All forms: the column read as images, if its type allows that.
    fn fits(field: &Field) -> Option<Self> {
        let column = || field.name().clone();
        hugging_face::fits(field)
            .map(|has_path| Self::HuggingFace {
                column: column(),
                has_path,
            })
            .or_else(|| flat::fits(field).then(|| Self::Flat { column: column() }))
    }

    /// All forms: the column, if it is taken for images without being named.
    fn recognise(field: &Field, features: &Features) -> Option<Self> {
        let recognised =
            hugging_face::recognise(field, features).is_some() || flat::recognise(field);
        Self::fits(field).filter(|_| recognised)
    }
}

/// The decision for one schema: equal mappings read alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnMapping {
    /// The image column.
    pub image: ImageColumn,
    /// The label column, if any.
    pub label: Option<LabelColumn>,
    /// Columns that could hold the label, where none was chosen because there are several.
    pub label_candidates: Vec<String>,
    /// Class names from the `huggingface` metadata, by label index.
    pub class_names: Option<Vec<String>>,
}

impl ColumnMapping {
    /// Decides from an Arrow schema (with the file's key-value metadata in `schema.metadata()`).
    ///
    /// Labels are optional: where several columns could hold them and none is the obvious one, none is read and
    /// [`ColumnMapping::label_candidates`] lists them.
    pub fn resolve(schema: &Schema, options: &SchemaOptions) -> Result<Self, SchemaError> {
        let features = Features::of(schema);
        let image = match &options.image_column {
            Some(name) => named_image(schema, name)?,
            None => automatic_image(schema, &features)?,
        };
        let (label, label_candidates) = match options.label_column.as_deref() {
            Some("") => (None, Vec::new()),
            Some(name) => (Some(named_label(schema, name)?), Vec::new()),
            None => automatic_label(schema, &features),
        };
        let class_names = match &label {
            Some(LabelColumn::Index { column }) => features.class_names(column),
            _ => None,
        };
        Ok(Self {
            image,
            label,
            label_candidates,
            class_names,
        })
    }

    /// Dotted Parquet leaf paths to read, such as `image.bytes`, `image.path`, `label`.
    pub fn leaf_paths(&self) -> Vec<String> {
        let mut paths = match &self.image {
            ImageColumn::HuggingFace { column, has_path } => {
                let path = has_path.then(|| format!("{column}.path"));
                std::iter::once(format!("{column}.bytes"))
                    .chain(path)
                    .collect()
            }
            ImageColumn::Flat { column } => vec![column.clone()],
        };
        paths.extend(self.label.as_ref().map(|label| label.column().to_owned()));
        paths
    }
}

impl std::fmt::Display for ColumnMapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.image {
            ImageColumn::HuggingFace { column, .. } => {
                write!(f, "images in `{column}` (struct<bytes, path>)")?;
            }
            ImageColumn::Flat { column } => write!(f, "images in `{column}` (binary)")?,
        }
        match (&self.label, &self.class_names) {
            (None, _) if self.label_candidates.is_empty() => write!(f, ", no labels"),
            (None, _) => write!(
                f,
                ", no labels (candidates: {})",
                self.label_candidates.join(", ")
            ),
            (Some(LabelColumn::Name { column }), _) => write!(f, ", labels in `{column}` (names)"),
            (Some(LabelColumn::Index { column }), None) => {
                write!(f, ", labels in `{column}` (indices)")
            }
            (Some(LabelColumn::Index { column }), Some(names)) => {
                write!(
                    f,
                    ", labels in `{column}` (indices of {} named classes)",
                    names.len()
                )
            }
        }
    }
}

fn named_image(schema: &Schema, name: &str) -> Result<ImageColumn, SchemaError> {
    let field = named(schema, "image_column", name)?;
    ImageColumn::fits(field).ok_or_else(|| {
        if is_string(field.data_type()) {
            return SchemaError::UrlOnly {
                column: name.to_owned(),
            };
        }
        SchemaError::UnreadableColumn {
            option: "image_column",
            column: name.to_owned(),
            found: field.data_type().to_string(),
            expected: "binary, or struct<bytes: binary, path: string>",
        }
    })
}

fn automatic_image(schema: &Schema, features: &Features) -> Result<ImageColumn, SchemaError> {
    let fields = schema.fields();
    let mut candidates = fields
        .iter()
        .filter_map(|field| ImageColumn::recognise(field, features))
        .collect::<Vec<_>>();
    // Where the metadata says which columns are images, no other one is a candidate.
    let is_image = |column: &ImageColumn| features.kind(column.column()) == Some("Image");
    if candidates.iter().any(is_image) {
        candidates.retain(is_image);
    }
    match candidates.len() {
        1 => Ok(candidates.remove(0)),
        0 => Err(match fields.iter().find(|field| looks_like_url(field)) {
            Some(field)
                if !fields
                    .iter()
                    .any(|field| ImageColumn::fits(field).is_some()) =>
            {
                SchemaError::UrlOnly {
                    column: field.name().clone(),
                }
            }
            _ => SchemaError::NoImageColumn {
                columns: describe(schema),
                binary_columns: fields
                    .iter()
                    .filter(|field| is_binary(field.data_type()))
                    .map(|field| field.name().clone())
                    .collect(),
            },
        }),
        _ => Err(SchemaError::AmbiguousImageColumn {
            candidates: candidates
                .iter()
                .map(|column| column.column().to_owned())
                .collect(),
        }),
    }
}

/// A string column under a name that stands for images by URL or path.
fn looks_like_url(field: &Field) -> bool {
    let name = field.name().to_ascii_lowercase();
    let usual = [
        "image",
        "img",
        "path",
        "file",
        "filename",
        "file_name",
        "filepath",
        "file_path",
        "key",
    ];
    is_string(field.data_type())
        && (name.contains("url")
            || name.contains("uri")
            || name.contains("image_")
            || usual.contains(&name.as_str()))
}

fn named_label(schema: &Schema, name: &str) -> Result<LabelColumn, SchemaError> {
    let field = named(schema, "label_column", name)?;
    LabelColumn::fits(field).ok_or_else(|| SchemaError::UnreadableColumn {
        option: "label_column",
        column: name.to_owned(),
        found: field.data_type().to_string(),
        expected: label::EXPECTED,
    })
}

/// The only class label of the metadata; else the column `label`; else the only column under a usual name.
fn automatic_label(schema: &Schema, features: &Features) -> (Option<LabelColumn>, Vec<String>) {
    let fields = schema.fields();
    let of_metadata =
        |field: &&std::sync::Arc<Field>| features.kind(field.name()) == Some("ClassLabel");
    let mut candidates = fields
        .iter()
        .filter(of_metadata)
        .filter_map(|f| LabelColumn::fits(f))
        .collect::<Vec<_>>();
    if candidates.is_empty() {
        candidates = fields
            .iter()
            .filter_map(|field| LabelColumn::recognise(field))
            .collect();
    }
    let obvious = candidates
        .iter()
        .position(|label| label.column() == "label");
    match (candidates.len(), obvious) {
        (1, _) => (candidates.pop(), Vec::new()),
        (_, Some(index)) => (Some(candidates.swap_remove(index)), Vec::new()),
        _ => (
            None,
            candidates
                .iter()
                .map(|label| label.column().to_owned())
                .collect(),
        ),
    }
}

fn named<'a>(
    schema: &'a Schema,
    option: &'static str,
    name: &str,
) -> Result<&'a Field, SchemaError> {
    let columns = || describe(schema);
    schema
        .field_with_name(name)
        .map_err(|_| SchemaError::MissingColumn {
            option,
            column: name.to_owned(),
            columns: columns(),
        })
}

fn describe(schema: &Schema) -> Vec<String> {
    schema
        .fields()
        .iter()
        .map(|field| format!("{}: {}", field.name(), field.data_type()))
        .collect()
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
