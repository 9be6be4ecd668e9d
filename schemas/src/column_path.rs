//! Where a column lies, and what its type is called in messages. Names are kept apart: a name may
//! itself hold dots.
use std::fmt;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;

use crate::SchemaError;

/// Metadata of a field that stands for a column of a type which cannot be read; the value says why.
pub const UNSUPPORTED: &str = "nepa.unsupported";
/// Columns that a message lists.
const LISTED: usize = 12;

/// The name of a top-level column, then those of the fields inside of structs. Lists add no name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ColumnPath(Vec<String>);

impl ColumnPath {
    /// A top-level column.
    pub fn new(column: impl Into<String>) -> Self {
        Self(vec![column.into()])
    }

    /// A field inside of this column.
    #[must_use]
    pub fn child(&self, field: impl Into<String>) -> Self {
        let mut parts = self.0.clone();
        parts.push(field.into());
        Self(parts)
    }

    /// The names.
    pub fn parts(&self) -> &[String] {
        &self.0
    }

    /// Finds what people name: a top-level column of exactly this name; else a field inside of
    /// structs, its names joined by dots.
    pub(crate) fn find<'a>(schema: &'a Schema, name: &str) -> Option<(Self, &'a Field)> {
        if let Ok(field) = schema.field_with_name(name) {
            return Some((Self::new(name), field));
        }
        schema.fields().iter().find_map(|field| {
            let rest = name.strip_prefix(field.name().as_str())?;
            below(Self::new(field.name()), field, rest.strip_prefix('.')?)
        })
    }

    /// Takes the column out of a batch, with the nulls of the structs that it lies in.
    pub(crate) fn of_batch<'a>(
        &self,
        batch: &'a RecordBatch,
    ) -> Result<(&'a ArrayRef, Option<NullBuffer>), SchemaError> {
        let lacks = |depth: usize| SchemaError::BatchLacksColumn {
            column: self.0[..=depth].join("."),
        };
        let mut array = batch.column_by_name(&self.0[0]).ok_or_else(|| lacks(0))?;
        let mut nulls = None;
        for (depth, name) in self.0.iter().enumerate().skip(1) {
            let parent = array.as_struct_opt().ok_or_else(|| lacks(depth))?;
            nulls = NullBuffer::union(nulls.as_ref(), parent.nulls());
            array = parent.column_by_name(name).ok_or_else(|| lacks(depth))?;
        }
        Ok((array, nulls))
    }
}

/// With dots between the names.
impl fmt::Display for ColumnPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

fn below<'a>(path: ColumnPath, field: &'a Field, name: &str) -> Option<(ColumnPath, &'a Field)> {
    let DataType::Struct(children) = field.data_type() else {
        return None;
    };
    children.iter().find_map(|child| {
        let rest = name.strip_prefix(child.name().as_str())?;
        let path = path.child(child.name());
        if rest.is_empty() {
            return Some((path, child.as_ref()));
        }
        below(path, child, rest.strip_prefix('.')?)
    })
}

/// The type's name as people of the field write it.
pub(crate) fn type_name(field: &Field) -> String {
    match field.metadata().get(UNSUPPORTED) {
        Some(why) => format!("a type that cannot be read ({why})"),
        None => name_of(field.data_type()),
    }
}

/// The same of a type alone.
pub(crate) fn name_of(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "bool".to_owned(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "binary".to_owned(),
        DataType::Dictionary(_, values) => name_of(values),
        DataType::Struct(fields) => {
            let shown = fields.iter().take(LISTED).map(|field| described(field));
            let more = if fields.len() > LISTED { ", ..." } else { "" };
            format!("struct<{}{more}>", shown.collect::<Vec<_>>().join(", "))
        }
        DataType::List(element)
        | DataType::LargeList(element)
        | DataType::FixedSizeList(element, _)
        | DataType::ListView(element)
        | DataType::LargeListView(element) => format!("list<{}>", type_name(element)),
        DataType::Map(_, _) => "map".to_owned(),
        DataType::Timestamp(_, _) => "timestamp".to_owned(),
        other => other.to_string().to_ascii_lowercase(),
    }
}

fn described(field: &Field) -> String {
    format!("{}: {}", field.name(), type_name(field))
}

/// The columns as `name: type`, the first dozen of them.
pub(crate) fn describe(schema: &Schema) -> Vec<String> {
    let all: Vec<_> = schema
        .fields()
        .iter()
        .map(|field| described(field))
        .collect();
    listed(&all)
}

/// The first dozen, and how many more there are.
pub(crate) fn listed(all: &[String]) -> Vec<String> {
    let mut listed: Vec<_> = all
        .iter()
        .take(LISTED)
        .map(|text| shortened(text))
        .collect();
    if all.len() > LISTED {
        listed.push(format!("and {} more", all.len() - LISTED));
    }
    listed
}

/// A message is for reading.
fn shortened(text: &str) -> String {
    const MOST: usize = 100;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
