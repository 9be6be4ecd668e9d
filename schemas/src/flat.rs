//! The flat form: a binary column of encoded images beside others, as img2dataset writes it (`jpg`
//! beside captions and sizes) and as many export it by hand (`image`, `bytes`, ...).
use arrow::array::{Array, ArrayRef};
use bytes::Bytes;

use crate::arrays::binary_values;
use crate::column_path::name_of;
use crate::{RowError, SchemaError};

/// Names that a binary column with images usually has; any other must be named by `image_column`.
pub(crate) const USUAL_NAMES: [&str; 12] = [
    "image",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "gif",
    "bmp",
    "tif",
    "tiff",
    "bytes",
    "image_bytes",
    "content",
];

/// Of these, the names of formats, in the order in which the columns of one row are asked.
const FORMATS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];

/// What the form reads, for messages.
pub(crate) const EXPECTED: &str = "a binary column";

/// Whether a binary column of this name is taken for images without being named: `image`, `jpg`,
/// and `input.jpg`.
pub(crate) fn is_usual(name: &str) -> bool {
    let mut usual = USUAL_NAMES.iter();
    usual.any(|usual| name.eq_ignore_ascii_case(usual)) || format_of(name).is_some()
}

/// Where a column's name is a format, or ends in one after a dot: what stands before it, and the
/// format's place in the order. Columns that differ in the format alone hold the same images, each
/// row in one of them.
pub(crate) fn format_of(name: &str) -> Option<(&str, usize)> {
    let (stem, format) = name.rsplit_once('.').unwrap_or(("", name));
    let place = FORMATS
        .iter()
        .position(|known| format.eq_ignore_ascii_case(known))?;
    Some((stem, place))
}

/// The images of one column chunk. One that holds nothing but nulls may be of no type.
pub(crate) fn images(
    array: &ArrayRef,
    column: &str,
) -> Result<Vec<Result<Bytes, RowError>>, SchemaError> {
    if array.data_type().is_null() {
        return Ok(vec![Err(RowError::Null); array.len()]);
    }
    let values = binary_values(array).ok_or_else(|| SchemaError::BatchColumnType {
        column: column.to_owned(),
        found: name_of(array.data_type()),
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
