//! Labels: which columns can hold them, and their values as class indices or names.
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Field, UInt64Type};

use crate::SchemaError;
use crate::arrays::{is_string, string_value};

/// Names that a label column usually has; any other must be named by `label_column`.
const USUAL_NAMES: [&str; 13] = [
    "label",
    "labels",
    "class",
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

/// What is read as a label, for messages.
pub(crate) const EXPECTED: &str = "integers, strings, or a dictionary of either";

/// A label as it stands in the shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Label {
    /// A class index.
    Index(i64),
    /// A class name (string and dictionary columns).
    Name(Arc<str>),
}

/// How the label column stores its labels. The width of integers and the kind of strings make no difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelColumn {
    /// Class indices.
    Index {
        /// Name of the column.
        column: String,
    },
    /// Class names.
    Name {
        /// Name of the column.
        column: String,
    },
}

impl LabelColumn {
    /// Name of the column.
    pub fn column(&self) -> &str {
        match self {
            Self::Index { column } | Self::Name { column } => column,
        }
    }

    /// The column read as labels, if its type allows that.
    pub(crate) fn fits(field: &Field) -> Option<Self> {
        let column = field.name().clone();
        match value_type(field.data_type()) {
            value if value.is_integer() => Some(Self::Index { column }),
            value if is_string(value) => Some(Self::Name { column }),
            _ => None,
        }
    }

    /// The column, if it is taken for labels without being named.
    pub(crate) fn recognise(field: &Field) -> Option<Self> {
        let usual = USUAL_NAMES
            .iter()
            .any(|name| field.name().eq_ignore_ascii_case(name));
        Self::fits(field).filter(|_| usual)
    }
}

/// The type of the values, through a dictionary.
fn value_type(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => values,
        other => other,
    }
}

/// Labels of one row group, typed.
#[derive(Debug, Clone)]
pub(crate) enum Labels {
    /// Class indices.
    Index(Int64Array),
    /// Class names; equal ones share one string.
    Name(Arc<[Option<Arc<str>>]>),
}

impl Labels {
    /// Proves a column chunk.
    pub(crate) fn try_new(array: &ArrayRef, mapping: &LabelColumn) -> Result<Self, SchemaError> {
        let column = mapping.column();
        let values = value_type(array.data_type()).clone();
        let (fits, expected) = match mapping {
            LabelColumn::Index { .. } => (values.is_integer(), "integers"),
            LabelColumn::Name { .. } => (is_string(&values), "strings"),
        };
        if !fits {
            let found = array.data_type().to_string();
            return Err(SchemaError::BatchColumnType {
                column: column.to_owned(),
                found,
                expected,
            });
        }
        // A dictionary of the same value type always unfolds; of the widths, only u64 can fail to fit, checked before.
        let unfolded = cast(array, &values).expect("a dictionary unfolds to its own value type");
        if let LabelColumn::Name { .. } = mapping {
            let mut known = HashMap::<&str, Arc<str>>::new();
            let name = |row| {
                string_value(&unfolded, row)
                    .map(|name| known.entry(name).or_insert_with(|| Arc::from(name)).clone())
            };
            return Ok(Self::Name((0..unfolded.len()).map(name).collect()));
        }
        if let Some(wide) = unfolded.as_primitive_opt::<UInt64Type>() {
            let too_large = |(row, value): (usize, Option<u64>)| {
                Some((row, value.filter(|v| i64::try_from(*v).is_err())?))
            };
            if let Some((row, value)) = wide.iter().enumerate().find_map(too_large) {
                return Err(SchemaError::LabelRange {
                    column: column.to_owned(),
                    row,
                    value,
                });
            }
        }
        let strict = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        let indices =
            cast_with_options(&unfolded, &DataType::Int64, &strict).expect("all values fit i64");
        Ok(Self::Index(indices.as_primitive().clone()))
    }

    /// The label in `row`, or `None` where it is null.
    pub(crate) fn get(&self, row: usize) -> Option<Label> {
        match self {
            Self::Index(indices) => indices
                .is_valid(row)
                .then(|| Label::Index(indices.value(row))),
            Self::Name(names) => names[row].clone().map(Label::Name),
        }
    }
}
