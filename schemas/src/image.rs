//! Which column holds the images, in which form, and the images of a batch.
use std::fmt;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use crate::arrays::{is_binary, is_string};
use crate::column_path::{ColumnPath, UNSUPPORTED, describe, type_name};
use crate::hugging_face::Features;
use crate::{RowError, SchemaError, flat, hugging_face, text};

/// How a column stores the bytes of images. The kind of binary (32 or 64 bit offsets, views) makes
/// no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageForm {
    /// `struct<bytes, path>`, as Hugging Face `datasets` writes it.
    HuggingFace {
        /// Whether there is a `path` that messages can name.
        has_path: bool,
    },
    /// Binary.
    Flat,
    /// Strings: base64, or a binary column that is annotated as text. Read only where it is named.
    Text,
}

/// A column with images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageColumn {
    /// Where it lies.
    pub path: ColumnPath,
    /// How it stores images.
    pub form: ImageForm,
    /// Whether a row holds a list of images, the first of which is read.
    pub list: bool,
    /// Whether no row of this shard holds an image: the bytes are of no type.
    pub empty: bool,
}

impl ImageColumn {
    /// The column read as images, if its type allows that.
    fn fits(path: ColumnPath, field: &Field) -> Option<Self> {
        let (element, list) = element_type(field.data_type());
        let (form, empty) = match element {
            DataType::Struct(children) => {
                let has_path = hugging_face::fits(element)?;
                let mut bytes = children.iter().filter(|child| child.name() == "bytes");
                let empty = bytes.any(|bytes| bytes.data_type().is_null());
                (ImageForm::HuggingFace { has_path }, empty)
            }
            DataType::Null if !field.metadata().contains_key(UNSUPPORTED) => {
                (ImageForm::Flat, true)
            }
            element if is_binary(element) => (ImageForm::Flat, false),
            element if is_string(element) => (ImageForm::Text, false),
            _ => return None,
        };
        Some(Self {
            path,
            form,
            list,
            empty,
        })
    }

    /// A top-level column, if it is taken for images without being named. Audio and video features
    /// have the same type.
    fn recognise(field: &Field, features: &Features) -> Option<Self> {
        let column = Self::fits(ColumnPath::new(field.name()), field)?;
        let name = field.name();
        let usual = || {
            let one = name.strip_suffix(['s', 'S']).filter(|_| column.list);
            flat::is_usual(name) || one.is_some_and(flat::is_usual)
        };
        let recognised = match (column.form, features.kind(&column.path)) {
            (ImageForm::Text, _) => false,
            (_, Some(kind)) if kind != "Value" => kind == "Image",
            (ImageForm::HuggingFace { .. }, kind) => kind.is_none(),
            (ImageForm::Flat, _) => usual(),
        };
        recognised.then_some(column)
    }

    /// The columns to read, lists adding no name: the bytes first.
    pub(crate) fn leaf_paths(&self) -> Vec<ColumnPath> {
        match self.form {
            ImageForm::HuggingFace { has_path } => {
                let path = has_path.then(|| self.path.child("path"));
                [self.path.child("bytes")].into_iter().chain(path).collect()
            }
            ImageForm::Flat | ImageForm::Text => vec![self.path.clone()],
        }
    }

    /// The column's images in a batch.
    pub(crate) fn images(&self, batch: &RecordBatch) -> Result<Images, SchemaError> {
        let (array, nulls) = self.path.of_batch(batch)?;
        let column = self.path.to_string();
        let of_array = |array: &ArrayRef| match self.form {
            ImageForm::HuggingFace { has_path } => hugging_face::images(array, &column, has_path),
            ImageForm::Flat => flat::images(array, &column),
            ImageForm::Text => text::images(array, &column),
        };
        let is_null =
            |row: usize, nulls: &Option<NullBuffer>| nulls.as_ref().is_some_and(|n| n.is_null(row));
        let Some((elements, ranges)) = list_parts(array) else {
            let mut images = of_array(array)?;
            for (row, image) in images.iter_mut().enumerate() {
                if is_null(row, &nulls) {
                    *image = Err(RowError::Null);
                }
            }
            return Ok(Images {
                images,
                left_out: 0,
            });
        };
        let elements = of_array(&elements)?;
        let nulls = NullBuffer::union(nulls.as_ref(), array.nulls());
        let mut left_out = 0;
        let mut first = |(row, range): (usize, std::ops::Range<usize>)| {
            if is_null(row, &nulls) || range.is_empty() {
                return Err(RowError::Null);
            }
            left_out += range.len() as u64 - 1;
            elements[range.start].clone()
        };
        let images = ranges.into_iter().enumerate().map(&mut first).collect();
        Ok(Images { images, left_out })
    }
}

/// The images of a column's rows.
pub(crate) struct Images {
    pub images: Vec<Result<Bytes, RowError>>,
    /// Images of lists beyond the first of each.
    pub left_out: u64,
}

/// For people: `image` (struct<bytes, path>).
impl fmt::Display for ImageColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.form {
            _ if self.empty => "no values in this shard",
            ImageForm::HuggingFace { has_path: true } => "struct<bytes, path>",
            ImageForm::HuggingFace { has_path: false } => "struct<bytes>",
            ImageForm::Flat => "binary",
            ImageForm::Text => "base64 or bytes in a string column",
        };
        if self.list {
            write!(
                f,
                "`{}` (list<{form}>, the first image of each list)",
                self.path
            )
        } else {
            write!(f, "`{}` ({form})", self.path)
        }
    }
}

/// The type of a list's elements and whether it is one.
pub(crate) fn element_type(data_type: &DataType) -> (&DataType, bool) {
    match data_type {
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::FixedSizeList(element, _) => (element.data_type(), true),
        other => (other, false),
    }
}

/// The elements of a list array, and which of them belong to each row.
pub(crate) fn list_parts(array: &ArrayRef) -> Option<(ArrayRef, Vec<std::ops::Range<usize>>)> {
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets().windows(2);
            let ranges = offsets.map(|pair| pair[0] as usize..pair[1] as usize);
            Some((list.values().clone(), ranges.collect()))
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let offsets = list.value_offsets().windows(2);
            let ranges = offsets.map(|pair| pair[0] as usize..pair[1] as usize);
            Some((list.values().clone(), ranges.collect()))
        }
        DataType::FixedSizeList(_, length) => {
            let length = *length as usize;
            let list = array.as_fixed_size_list();
            let ranges = (0..list.len()).map(|row| row * length..(row + 1) * length);
            Some((list.values().clone(), ranges.collect()))
        }
        _ => None,
    }
}

/// The column that `image_column` names.
pub(crate) fn named(schema: &Schema, name: &str) -> Result<Vec<ImageColumn>, SchemaError> {
    let (path, field) =
        ColumnPath::find(schema, name).ok_or_else(|| SchemaError::MissingColumn {
            option: "image_column",
            column: name.to_owned(),
            columns: describe(schema),
        })?;
    let unreadable = || SchemaError::UnreadableColumn {
        option: "image_column",
        column: name.to_owned(),
        found: type_name(field),
        expected: "binary, struct<bytes: binary, path: string>, a list of either, or strings in base64",
    };
    Ok(vec![ImageColumn::fits(path, field).ok_or_else(unreadable)?])
}

/// The only column that looks like images, or those that differ in the format alone (`jpg` and
/// `png`), of which a row fills one.
pub(crate) fn automatic(
    schema: &Schema,
    features: &Features,
) -> Result<Vec<ImageColumn>, SchemaError> {
    let fields = schema.fields();
    let mut candidates = fields
        .iter()
        .filter_map(|field| ImageColumn::recognise(field, features))
        .collect::<Vec<_>>();
    // Each of these says more than what comes after it.
    prefer(&mut candidates, |column| {
        features.kind(&column.path) == Some("Image")
    });
    prefer(&mut candidates, |column| !column.empty);
    prefer(&mut candidates, |column| !column.list);
    if candidates.is_empty() {
        return Err(nothing_found(schema));
    }
    if candidates.len() > 1
        && !candidates
            .iter()
            .all(|other| alternatives(&candidates[0], other))
    {
        return Err(SchemaError::AmbiguousImageColumn {
            candidates: candidates.iter().map(|c| c.path.to_string()).collect(),
        });
    }
    candidates.sort_by_key(|column| format(column).map(|(_, place)| place));
    Ok(candidates)
}

fn prefer(candidates: &mut Vec<ImageColumn>, better: impl Fn(&ImageColumn) -> bool) {
    if candidates.iter().any(&better) {
        candidates.retain(better);
    }
}

/// Whether two columns are named alike but for the format.
pub(crate) fn alternatives(a: &ImageColumn, b: &ImageColumn) -> bool {
    let stem = |column| format(column).map(|(stem, _)| stem.to_owned());
    stem(a).is_some() && stem(a) == stem(b)
}

fn format(column: &ImageColumn) -> Option<(&str, usize)> {
    flat::format_of(column.path.parts().last()?)
}

/// Why there are no images, by what there is instead.
fn nothing_found(schema: &Schema) -> SchemaError {
    let strings = || {
        let fields = schema.fields().iter();
        fields.filter(|field| is_string(element_type(field.data_type()).0))
    };
    let named = |parts: &[&str]| {
        let holds = |field: &&std::sync::Arc<Field>| {
            let name = field.name().to_ascii_lowercase();
            parts.iter().any(|part| name.contains(part))
        };
        strings().find(holds).map(|field| field.name().clone())
    };
    let binary = binary_columns(schema);
    if binary.is_empty() {
        if let Some(field) = strings().find(|field| flat::is_usual(field.name())) {
            return SchemaError::TextColumn {
                column: field.name().clone(),
                value: None,
            };
        }
        if let Some(column) = named(&["url", "uri"]) {
            return SchemaError::UrlOnly { column };
        }
        if let Some(column) = named(&["path", "file", "image", "img"]) {
            return SchemaError::PathsOnly { column };
        }
    }
    SchemaError::NoImageColumn {
        columns: describe(schema),
        binary_columns: binary,
    }
}

/// Columns and fields of structs that `image_column` could name.
fn binary_columns(schema: &Schema) -> Vec<String> {
    fn collect(path: &ColumnPath, field: &Field, found: &mut Vec<String>) {
        match (ImageColumn::fits(path.clone(), field), field.data_type()) {
            (Some(column), _) if column.form != ImageForm::Text && !column.empty => {
                found.push(path.to_string());
            }
            (None, DataType::Struct(children)) => {
                for child in children {
                    collect(&path.child(child.name()), child, found);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    for field in schema.fields() {
        collect(&ColumnPath::new(field.name()), field, &mut found);
    }
    found
}
