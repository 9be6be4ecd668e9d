//! The flat form: a binary column of encoded images beside others, as img2dataset writes it (`jpg` beside captions and
//! sizes) and as many export it by hand (`image`, `bytes`, ...).
use arrow::array::{Array, ArrayRef};
use arrow::datatypes::Field;
use bytes::Bytes;

use crate::arrays::{binary_values, is_binary};
use crate::{RowError, SchemaError};

/// Names that a binary column with images usually has; any other must be named by `image_column`.
pub(crate) const USUAL_NAMES: [&str; 8] = [
    "image",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "bytes",
    "image_bytes",
    "content",
];

/// What the form reads, for messages.
pub(crate) const EXPECTED: &str = "a binary column";

/// Whether the column can be read in this form.
pub(crate) fn fits(field: &Field) -> bool {
    is_binary(field.data_type())
}

/// Whether the column is taken for images without being named.
pub(crate) fn recognise(field: &Field) -> bool {
    fits(field)
        && USUAL_NAMES
            .iter()
            .any(|name| field.name().eq_ignore_ascii_case(name))
}

/// The images of one column chunk.
pub(crate) fn images(
    array: &ArrayRef,
    column: &str,
) -> Result<Vec<Result<Bytes, RowError>>, SchemaError> {
    let values = binary_values(array).ok_or_else(|| SchemaError::BatchColumnType {
        column: column.to_owned(),
        found: array.data_type().to_string(),
        expected: EXPECTED,
    })?;
    Ok(values
        .into_iter()
        .map(|value| match value {
            None => Err(RowError::Null),
            Some(bytes) if bytes.is_empty() => Err(RowError::Empty),
            Some(bytes) => Ok(bytes),
        })
        .collect())
}
