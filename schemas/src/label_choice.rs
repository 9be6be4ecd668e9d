//! The one rule by which the labels are chosen: the option; else the column `label`, `labels` or
//! `class`; else the only class label of the metadata; else the only column under another usual
//! name; else a folder `label=...` of the path. What is ambiguous is left to people.
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};

use crate::column_path::{ColumnPath, describe, type_name};
use crate::hugging_face::Features;
use crate::{LabelColumn, SchemaError, hugging_face, label};

/// Columns and folders of these names come before all others.
const FIRST_NAMES: [&str; 3] = ["label", "labels", "class"];
/// Names that a label column has, too; any other must be named by `label_column`.
const OTHER_NAMES: [&str; 10] = [
    "cls",
    "target",
    "class_id",
    "class_label",
    "class_name",
    "label_id",
    "label_name",
    "category",
    "fine_label",
    "coarse_label",
];
/// Names of folders that are labels, as in `label=cat`.
const FOLDERS: [&str; 4] = ["label", "labels", "class", "cls"];
/// What Hive and Spark call the folder of rows without a value.
const NO_VALUE: &str = "__HIVE_DEFAULT_PARTITION__";

/// A folder `key=value` on the way to a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderKey {
    /// What stands before the `=`.
    pub key: String,
    /// What comes after it, decoded.
    pub value: String,
}

/// Why no labels are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoLabel {
    /// The option is the empty string.
    NotAsked,
    /// Nothing is called like a label.
    Absent {
        /// All columns, as `name: type`.
        columns: Vec<String>,
        /// Fields of structs that could be named.
        fields: Vec<String>,
    },
    /// Several could be meant.
    Ambiguous {
        /// Their names.
        candidates: Vec<String>,
    },
    /// The column that is called like a label holds something else.
    Unreadable {
        /// Its name.
        column: String,
        /// Its type.
        found: String,
        /// Fields of structs that could be named.
        fields: Vec<String>,
    },
}

impl NoLabel {
    /// Whether two shards lack labels for the same reason.
    pub(crate) fn reads_alike(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Absent { .. }, Self::Absent { .. }) => true,
            (Self::Unreadable { column: a, .. }, Self::Unreadable { column: b, .. }) => a == b,
            _ => self == other,
        }
    }
}

/// What is the matter, and what to do.
impl fmt::Display for NoLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name_one = |fields: &[String]| match fields {
            [] => "name another one with --label-column".to_owned(),
            [first, ..] => format!(
                "name a field of it ({}) with --label-column {first}",
                fields.join(", ")
            ),
        };
        match self {
            Self::NotAsked => write!(f, "no labels are read, as --label-column is empty"),
            Self::Absent { columns, fields } => {
                write!(
                    f,
                    "there is no label column: none is called {} or {}, the metadata names no class label, and no folder is called label=...; \
                     name one with --label-column",
                    FIRST_NAMES.join(", "),
                    OTHER_NAMES[..2].join(", "),
                )?;
                if let [first, ..] = &fields[..] {
                    write!(f, " (such as {first})")?;
                }
                write!(f, "; the columns are [{}]", columns.join(", "))
            }
            Self::Ambiguous { candidates } => write!(
                f,
                "several could be the label: {}; choose one with --label-column {}",
                candidates.join(", "),
                candidates[0]
            ),
            Self::Unreadable {
                column,
                found,
                fields,
            } => write!(
                f,
                "the column `{column}` is {found}, which is not read as a label (read are {}); {}",
                label::EXPECTED,
                name_one(fields)
            ),
        }
    }
}

/// The labels that `label_column` names: a column, a field of a struct by its dotted path, or the
/// key of a folder.
pub(crate) fn named(
    schema: &Schema,
    features: &Features,
    folders: &[FolderKey],
    name: &str,
) -> Result<LabelColumn, SchemaError> {
    if let Some((path, field)) = ColumnPath::find(schema, name) {
        return read(path, field, features).ok_or_else(|| SchemaError::UnreadableColumn {
            option: "label_column",
            column: name.to_owned(),
            found: type_name(field),
            expected: label::EXPECTED,
        });
    }
    // The innermost one, where several are called alike.
    let folder = folders.iter().rfind(|folder| folder.key == name);
    folder.map(of_folder).ok_or_else(|| {
        let keys = folders
            .iter()
            .map(|folder| format!("folder {}=", folder.key));
        SchemaError::MissingColumn {
            option: "label_column",
            column: name.to_owned(),
            columns: describe(schema).into_iter().chain(keys).collect(),
        }
    })
}

/// The labels where none are named.
pub(crate) fn automatic(
    schema: &Schema,
    features: &Features,
    folders: &[FolderKey],
) -> Result<LabelColumn, NoLabel> {
    let fields = schema.fields().iter().map(AsRef::as_ref);
    let called = |names: &'static [&str]| {
        let is_called = |field: &&Field| is_one_of(field.name(), names);
        fields.clone().filter(is_called).collect::<Vec<_>>()
    };
    let first = called(&FIRST_NAMES);
    if !first.is_empty() {
        return only(&first, features);
    }
    let is_class = |field: &&Field| {
        let path = ColumnPath::new(field.name());
        features.kind(&path) == Some("ClassLabel") && read(path, field, features).is_some()
    };
    let classes = fields.clone().filter(is_class).collect::<Vec<_>>();
    if !classes.is_empty() {
        return only(&classes, features);
    }
    let other = called(&OTHER_NAMES);
    let is_read = |field: &&&Field| read(ColumnPath::new(field.name()), field, features).is_some();
    let readable = other.iter().filter(is_read).copied().collect::<Vec<_>>();
    if !readable.is_empty() {
        return only(&readable, features);
    }
    let mut keys = folders
        .iter()
        .filter(|folder| is_one_of(&folder.key, &FOLDERS));
    match (keys.next(), keys.next()) {
        (Some(folder), None) => Ok(of_folder(folder)),
        (Some(a), Some(b)) => Err(NoLabel::Ambiguous {
            candidates: vec![a.key.clone(), b.key.clone()],
        }),
        (None, _) if !other.is_empty() => only(&other, features),
        (None, _) => Err(NoLabel::Absent {
            columns: describe(schema),
            fields: fields
                .flat_map(|field| label_fields(field, features))
                .collect(),
        }),
    }
}

/// The only one of these columns, if labels can be read from it.
fn only(fields: &[&Field], features: &Features) -> Result<LabelColumn, NoLabel> {
    let [field] = fields else {
        return Err(NoLabel::Ambiguous {
            candidates: fields.iter().map(|field| field.name().clone()).collect(),
        });
    };
    let path = ColumnPath::new(field.name());
    read(path, field, features).ok_or_else(|| NoLabel::Unreadable {
        column: field.name().clone(),
        found: type_name(field),
        fields: label_fields(field, features),
    })
}

fn read(path: ColumnPath, field: &Field, features: &Features) -> Option<LabelColumn> {
    let classes = features.kind(&path) == Some("ClassLabel");
    LabelColumn::fits(path, field, classes)
}

fn of_folder(folder: &FolderKey) -> LabelColumn {
    let class = (folder.value != NO_VALUE).then(|| Arc::from(folder.value.as_str()));
    LabelColumn::Folder {
        key: folder.key.clone(),
        class,
    }
}

/// Fields of a struct that could be named: all that can be read where the struct itself is called
/// like a label, else those that are.
fn label_fields(field: &Field, features: &Features) -> Vec<String> {
    fn collect(path: &ColumnPath, field: &Field, features: &Features, found: &mut Vec<String>) {
        let is_label = |name: &str| is_one_of(name, &FIRST_NAMES) || is_one_of(name, &OTHER_NAMES);
        let DataType::Struct(children) = field.data_type() else {
            let named = path.parts().iter().any(|name| is_label(name));
            if named && read(path.clone(), field, features).is_some() {
                found.push(path.to_string());
            }
            return;
        };
        for child in children {
            collect(&path.child(child.name()), child, features, found);
        }
    }
    let mut found = Vec::new();
    let is_image = hugging_face::fits(field.data_type()).is_some();
    if matches!(field.data_type(), DataType::Struct(_)) && !is_image {
        collect(&ColumnPath::new(field.name()), field, features, &mut found);
    }
    found
}

fn is_one_of(name: &str, names: &[&str]) -> bool {
    names.iter().any(|known| name.eq_ignore_ascii_case(known))
}
