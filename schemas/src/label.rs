//! Labels: which types can hold them, and their values as class indices or names. Which column is
//! taken is decided in `label_choice`.
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, UInt64Type};
use arrow::record_batch::RecordBatch;

use crate::SchemaError;
use crate::arrays::{is_string, string_value};
use crate::column_path::{ColumnPath, UNSUPPORTED, name_of, type_name};
use crate::image::{element_type, list_parts};

/// What is read as a label, for messages.
pub(crate) const EXPECTED: &str = "integers, whole floats, booleans, strings, a dictionary of these, a one-hot list, or a list of one of these";

/// A label as it stands in the shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Label {
    /// A class index.
    Index(i64),
    /// A class name (string and dictionary columns, folders).
    Name(Arc<str>),
}

/// As it is written: 3, or `cat`.
impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => write!(f, "`{name}`"),
        }
    }
}

/// Where a shard's labels are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LabelColumn {
    /// In a column.
    Column {
        /// Where it lies.
        path: ColumnPath,
        /// How its values are read.
        form: LabelForm,
        /// Its type, for people: `int64`.
        type_name: String,
    },
    /// In the path: every image below a folder `label=cat` is a `cat`.
    Folder {
        /// What stands before the `=`.
        key: String,
        /// The class of this shard; none where its folder says that there is none.
        class: Option<Arc<str>>,
    },
}

/// How a column's values are read as labels. The width of numbers and the kind of strings make no
/// difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelForm {
    /// The values themselves.
    pub value: LabelValue,
    /// Whether a row holds a list of them.
    pub list: LabelList,
}

/// What a label is, or an element of a list of labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelValue {
    /// A class index.
    Integer,
    /// A class index as a whole number; NaN is no label.
    Float,
    /// False is class 0, true is class 1; in a list, one-hot.
    Bool,
    /// A class name.
    Name,
    /// Always null: no row of the shard has a label.
    Null,
}

/// Whether labels are in lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelList {
    /// They are not.
    No,
    /// A list of one label, or one-hot.
    OneOrOneHot,
    /// A list of one label: the metadata or the type says that its elements are classes.
    One,
}

impl LabelColumn {
    /// The column read as labels, if its type allows that. `classes`: whether the metadata calls
    /// its values classes.
    pub(crate) fn fits(path: ColumnPath, field: &Field, classes: bool) -> Option<Self> {
        let (element, is_list) = element_type(field.data_type());
        let value = match value_type(element) {
            DataType::Null if !field.metadata().contains_key(UNSUPPORTED) => LabelValue::Null,
            DataType::Boolean => LabelValue::Bool,
            value if value.is_integer() => LabelValue::Integer,
            value if value.is_floating() => LabelValue::Float,
            value if is_string(value) => LabelValue::Name,
            _ => return None,
        };
        let list = match value {
            _ if !is_list => LabelList::No,
            LabelValue::Name => LabelList::One,
            _ if classes => LabelList::One,
            _ => LabelList::OneOrOneHot,
        };
        Some(Self::Column {
            path,
            form: LabelForm { value, list },
            type_name: type_name(field),
        })
    }

    /// Whether labels are class indices, which metadata may give names to.
    pub fn is_index(&self) -> bool {
        match self {
            Self::Column { form, .. } => form.value != LabelValue::Name,
            Self::Folder { .. } => false,
        }
    }

    /// Whether there are labels at all: a column of nulls alone may be of no type.
    pub fn has_values(&self) -> bool {
        match self {
            Self::Column { form, .. } => form.value != LabelValue::Null,
            Self::Folder { class, .. } => class.is_some(),
        }
    }

    /// The type of the labels, for people: int64.
    pub fn type_name(&self) -> &str {
        match self {
            Self::Column { type_name, .. } => type_name,
            Self::Folder { .. } => "names",
        }
    }

    /// Whether a label of the one means the same as an equal one of the other.
    pub(crate) fn reads_alike(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Folder { key: a, .. }, Self::Folder { key: b, .. }) => a == b,
            (
                Self::Column { path: a, form, .. },
                Self::Column {
                    path: b,
                    form: second,
                    ..
                },
            ) => {
                let empty = form.value == LabelValue::Null || second.value == LabelValue::Null;
                a == b && (empty || self.is_index() == other.is_index())
            }
            _ => false,
        }
    }
}

/// Where it is, for people: column `label`.
impl fmt::Display for LabelColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Column { path, .. } => write!(f, "column `{path}`"),
            Self::Folder { key, .. } => write!(f, "folders `{key}=...`"),
        }
    }
}

/// The type of the values, through a dictionary.
fn value_type(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => values,
        other => other,
    }
}

/// Labels of some rows; equal names share one string.
pub(crate) type Labels = Arc<[Option<Label>]>;

/// Proves the labels of a batch.
pub(crate) fn labels(batch: &RecordBatch, column: &LabelColumn) -> Result<Labels, SchemaError> {
    let (path, form) = match column {
        LabelColumn::Folder { class, .. } => {
            let label = class.clone().map(Label::Name);
            return Ok(std::iter::repeat_n(label, batch.num_rows()).collect());
        }
        LabelColumn::Column { path, form, .. } => (path, form),
    };
    let (array, nulls) = path.of_batch(batch)?;
    let nulls = NullBuffer::union(nulls.as_ref(), array.nulls());
    let is_null = |row: usize| nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
    let wrong_type = || SchemaError::BatchColumnType {
        column: path.to_string(),
        found: name_of(array.data_type()),
        expected: match form {
            LabelForm {
                list: LabelList::No,
                value,
            } => value.expected(),
            _ => "lists of labels",
        },
    };
    let bad = |(row, value, problem): (usize, String, &'static str)| SchemaError::LabelValue {
        column: path.to_string(),
        row,
        value,
        problem,
    };
    if form.list == LabelList::No {
        let values = values(array, form.value).ok_or_else(wrong_type)?;
        let label = |(row, value): (usize, Value)| {
            if is_null(row) {
                return Ok(None);
            }
            value.label().map_err(|(value, why)| bad((row, value, why)))
        };
        return values.into_iter().enumerate().map(label).collect();
    }
    let (elements, ranges) = list_parts(array).ok_or_else(wrong_type)?;
    let elements = values(&elements, form.value).ok_or_else(wrong_type)?;
    let rows: Vec<&[Value]> = ranges
        .into_iter()
        .enumerate()
        .map(|(row, range)| {
            if is_null(row) {
                &[][..]
            } else {
                &elements[range]
            }
        })
        .collect();
    let one_hot = (form.list == LabelList::OneOrOneHot).then(|| one_hot(&rows, form.value));
    if let Some(Some(labels)) = one_hot {
        return Ok(labels);
    }
    let label = |(row, values): (usize, &&[Value])| match values {
        [] => Ok(None),
        [value] => value
            .clone()
            .label()
            .map_err(|(value, why)| bad((row, value, why))),
        several => {
            let count = several.len();
            Err(bad((row, format!("a list of {count}"), MULTI_LABEL)))
        }
    };
    rows.iter().enumerate().map(label).collect()
}

const MULTI_LABEL: &str = "multi-label data is not supported, only lists of one label and one-hot lists (a single 1, all else 0)";
const WHOLE: &str = "a class index is a whole number";
const RANGE: &str = "a class index fits 64 bits with a sign";

/// The labels of one-hot lists: all of one length, each with a single 1 among zeros. `None` if they
/// are no such lists.
fn one_hot(rows: &[&[Value]], value: LabelValue) -> Option<Labels> {
    let length = rows.iter().find(|row| !row.is_empty())?.len();
    // A list of one number is a label; a list of one truth value says nothing else than one-hot
    // does.
    if length == 1 && value != LabelValue::Bool {
        return None;
    }
    let place = |row: &&[Value]| -> Option<Option<Label>> {
        if row.is_empty() {
            return Some(None);
        }
        let is_one = |value: &&Value| matches!(value, Value::Integer(1)) || value.is_float(1.0);
        let is_zero = |value: &&Value| matches!(value, Value::Integer(0)) || value.is_float(0.0);
        let zeros = row.iter().filter(is_zero).count();
        let hot = row.iter().position(|value| is_one(&value))?;
        (row.len() == length && zeros + 1 == length).then_some(Some(Label::Index(hot as i64)))
    };
    rows.iter().map(place).collect()
}

/// A value of a column, before it is proven to be a label.
#[derive(Debug, Clone)]
enum Value {
    Null,
    Integer(i64),
    /// Beyond 64 bits with a sign.
    Large(u64),
    Float(f64),
    Name(Arc<str>),
}

impl Value {
    #[expect(clippy::float_cmp, reason = "one-hot lists hold exactly 0 and 1")]
    fn is_float(&self, number: f64) -> bool {
        matches!(self, Self::Float(value) if *value == number)
    }

    /// The label; a negative index says that there is none. The error: the value, and what is wrong
    /// with it.
    fn label(self) -> Result<Option<Label>, (String, &'static str)> {
        /// Beyond, not every whole number is a float.
        const LARGEST: f64 = (1u64 << 53) as f64;
        match self {
            Self::Null => Ok(None),
            Self::Integer(index) => Ok((index >= 0).then_some(Label::Index(index))),
            Self::Large(value) => Err((value.to_string(), RANGE)),
            Self::Float(value) if value.is_nan() => Ok(None),
            Self::Float(value) if value.fract() != 0.0 => Err((value.to_string(), WHOLE)),
            Self::Float(value) if value.abs() > LARGEST => Err((value.to_string(), RANGE)),
            Self::Float(value) => Ok((value >= 0.0).then_some(Label::Index(value as i64))),
            Self::Name(name) => Ok(Some(Label::Name(name))),
        }
    }
}

impl LabelValue {
    fn expected(self) -> &'static str {
        match self {
            Self::Integer => "integers",
            Self::Float => "floats",
            Self::Bool => "booleans",
            Self::Name => "strings",
            Self::Null => "nulls",
        }
    }
}

/// All values of an array; `None` if it is of another type than was decided.
fn values(array: &ArrayRef, form: LabelValue) -> Option<Vec<Value>> {
    let unfolded = match array.data_type() {
        // A dictionary always unfolds to its own value type.
        DataType::Dictionary(_, values) => cast(array, values).ok()?,
        _ => array.clone(),
    };
    let rows = 0..unfolded.len();
    let found = unfolded.data_type();
    let fits = match form {
        LabelValue::Integer => found.is_integer(),
        LabelValue::Float => found.is_floating(),
        LabelValue::Bool => *found == DataType::Boolean,
        LabelValue::Name => is_string(found),
        LabelValue::Null => found.is_null(),
    };
    if !fits {
        return None;
    }
    let or_null = |value: Option<Value>| value.unwrap_or(Value::Null);
    Some(match form {
        LabelValue::Null => rows.map(|_| Value::Null).collect(),
        LabelValue::Name => {
            let mut known = HashMap::<&str, Arc<str>>::new();
            let mut name = |name| known.entry(name).or_insert_with(|| Arc::from(name)).clone();
            rows.map(|row| {
                or_null(string_value(&unfolded, row).map(|text| Value::Name(name(text))))
            })
            .collect()
        }
        LabelValue::Bool => {
            let truths = unfolded.as_boolean().iter();
            truths
                .map(|truth| or_null(truth.map(|truth| Value::Integer(i64::from(truth)))))
                .collect()
        }
        LabelValue::Float => {
            let floats = cast(&unfolded, &DataType::Float64).ok()?;
            let floats = floats.as_primitive::<Float64Type>().iter();
            floats
                .map(|float| or_null(float.map(Value::Float)))
                .collect()
        }
        LabelValue::Integer if *found == DataType::UInt64 => {
            let whole = |value| i64::try_from(value).map_or(Value::Large(value), Value::Integer);
            let numbers = unfolded.as_primitive::<UInt64Type>().iter();
            numbers.map(|number| or_null(number.map(whole))).collect()
        }
        LabelValue::Integer => {
            let numbers = cast(&unfolded, &DataType::Int64).ok()?;
            let numbers = numbers.as_primitive::<Int64Type>().iter();
            numbers
                .map(|number| or_null(number.map(Value::Integer)))
                .collect()
        }
    })
}
