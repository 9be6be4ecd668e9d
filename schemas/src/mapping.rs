//! What is read of a shard: which column holds the images and which the labels. Automatic where
//! only one choice makes sense; otherwise an error that names the candidates and the option to set.
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef, Schema};
use serde::{Deserialize, Serialize};

use crate::column_path::{ColumnPath, UNSUPPORTED, describe};
use crate::hugging_face::Features;
use crate::label_choice::{self, FolderKey, NoLabel};
use crate::{ImageColumn, ImageForm, LabelColumn, SchemaError, image};

/// Column choices by hand; `None` means automatic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SchemaOptions {
    /// Name of the image column; of a field inside of structs, its names joined by dots.
    pub image_column: Option<String>,
    /// Name of the label column (of a field inside of structs, its names joined by dots), or what
    /// stands before the `=` in the names of folders; the empty string means: read no label.
    pub label_column: Option<String>,
    /// Names of further top-level columns, of any type, that are read along with the images and
    /// given as Arrow arrays. Not part of a recipe.
    #[serde(skip)]
    pub extra_columns: Vec<String>,
}

/// The decision for one schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnMapping {
    /// The image column; or several whose names differ in the format alone, of which each row's
    /// first that is not null is read.
    pub images: Vec<ImageColumn>,
    /// The labels, or why there are none.
    pub label: Result<LabelColumn, NoLabel>,
    /// Class names from the `huggingface` metadata, by label index.
    pub class_names: Option<Vec<String>>,
    /// The columns of [`SchemaOptions::extra_columns`], in their order.
    pub extra: Vec<FieldRef>,
}

impl ColumnMapping {
    /// Decides from an Arrow schema (with the file's key-value metadata in `schema.metadata()`).
    ///
    /// Labels are optional: where it is not clear which column holds them, none is read, and
    /// [`ColumnMapping::label`] says why.
    pub fn resolve(schema: &Schema, options: &SchemaOptions) -> Result<Self, SchemaError> {
        Self::resolve_in_folders(schema, options, &[])
    }

    /// The same for a shard below such folders, from the outermost on, which can be labels where no
    /// column is.
    pub fn resolve_in_folders(
        schema: &Schema,
        options: &SchemaOptions,
        folders: &[FolderKey],
    ) -> Result<Self, SchemaError> {
        let features = Features::of(schema);
        let images = match &options.image_column {
            Some(name) => image::named(schema, name)?,
            None => image::automatic(schema, &features)?,
        };
        let label = match options.label_column.as_deref() {
            Some("") => Err(NoLabel::NotAsked),
            Some(name) => Ok(label_choice::named(schema, &features, folders, name)?),
            None => label_choice::automatic(schema, &features, folders),
        };
        let class_names = match &label {
            Ok(LabelColumn::Column { path, .. }) => features.class_names(path),
            _ => None,
        };
        let is_index = label.as_ref().is_ok_and(LabelColumn::is_index);
        let extra = options.extra_columns.iter();
        let extra = extra.map(|name| extra_column(schema, name));
        Ok(Self {
            images,
            label,
            class_names: class_names.filter(|_| is_index),
            extra: extra.collect::<Result<_, _>>()?,
        })
    }

    /// The columns to read, without those of lists: `image.bytes`, `image.path`, `label`.
    pub fn leaf_paths(&self) -> Vec<ColumnPath> {
        let mut paths: Vec<_> = self
            .images
            .iter()
            .flat_map(ImageColumn::leaf_paths)
            .collect();
        if let Ok(LabelColumn::Column { path, .. }) = &self.label {
            paths.push(path.clone());
        }
        for field in &self.extra {
            push_leaf_paths(field, &ColumnPath::new(field.name()), &mut paths);
        }
        paths
    }

    /// Columns of strings whose bytes are to be read as they are.
    pub fn text_columns(&self) -> Vec<ColumnPath> {
        let text = self
            .images
            .iter()
            .filter(|column| column.form == ImageForm::Text);
        text.map(|column| column.path.clone()).collect()
    }

    /// Whether no row of the shard holds an image, as its columns of images are of no type.
    pub fn is_empty(&self) -> bool {
        self.images.iter().all(|column| column.empty)
    }

    /// In what two shards of one data set read differently, so that a sample would mean different
    /// things; `None` if they go together.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let (a, b) = (&self.images[0], &other.images[0]);
        if a.path != b.path && !image::alternatives(a, b) {
            return Some(format!(
                "the images are in {a} in the one and in {b} in the other"
            ));
        }
        let alike = match (&self.label, &other.label) {
            (Ok(a), Ok(b)) => a.reads_alike(b),
            (Err(a), Err(b)) => a.reads_alike(b),
            _ => false,
        };
        if !alike {
            let [a, b] = [self, other].map(ColumnMapping::short_label);
            return Some(format!(
                "the labels are {a} in the one and {b} in the other"
            ));
        }
        for (a, b) in self.extra.iter().zip(&other.extra) {
            if a.data_type() != b.data_type() {
                let (a, b, name) = (a.data_type(), b.data_type(), a.name());
                return Some(format!("`{name}` is {a} in the one and {b} in the other"));
            }
        }
        let (a, b) = (self.class_names.as_ref()?, other.class_names.as_ref()?);
        match a.iter().zip(b).position(|(a, b)| a != b) {
            Some(class) => Some(format!(
                "class {class} is `{}` in the one and `{}` in the other",
                a[class], b[class]
            )),
            None if a.len() == b.len() => None,
            None => Some(format!(
                "the one has {} classes and the other {}",
                a.len(),
                b.len()
            )),
        }
    }

    fn short_label(&self) -> String {
        match &self.label {
            Ok(label) => format!("in {label} ({})", label.type_name()),
            Err(NoLabel::Absent { .. } | NoLabel::NotAsked) => "missing".to_owned(),
            Err(NoLabel::Ambiguous { candidates }) => {
                format!("in one of {}", candidates.join(", "))
            }
            Err(NoLabel::Unreadable { column, found, .. }) => {
                format!("not readable (`{column}`, {found})")
            }
        }
    }
}

/// A further column that is read as it is.
fn extra_column(schema: &Schema, name: &str) -> Result<FieldRef, SchemaError> {
    let option = "extra_columns";
    let fields = schema.fields();
    let Some(field) = fields.iter().find(|field| field.name() == name) else {
        return Err(SchemaError::MissingColumn {
            option,
            column: name.to_owned(),
            columns: describe(schema),
        });
    };
    match field.metadata().get(UNSUPPORTED) {
        None => Ok(Arc::clone(field)),
        Some(found) => Err(SchemaError::UnreadableColumn {
            option,
            column: name.to_owned(),
            found: found.clone(),
            expected: "a type that Arrow has",
        }),
    }
}

/// The values below a column, lists adding no name.
fn push_leaf_paths(field: &FieldRef, path: &ColumnPath, paths: &mut Vec<ColumnPath>) {
    match field.data_type() {
        DataType::Struct(fields) => {
            for field in fields {
                push_leaf_paths(field, &path.child(field.name()), paths);
            }
        }
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::FixedSizeList(element, _)
        | DataType::Map(element, _) => push_leaf_paths(element, path, paths),
        _ => paths.push(path.clone()),
    }
}

/// The images, for people.
impl fmt::Display for ColumnMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<_> = self.images.iter().map(ToString::to_string).collect();
        write!(f, "images in {}", columns.join(" or "))?;
        if columns.len() > 1 {
            write!(f, ", each row's first that is not null")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "mapping_tests.rs"]
mod tests;
