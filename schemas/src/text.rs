//! Images in string columns: base64 (bare, or as a `data:` URL), or bytes in a column that is
//! wrongly annotated as text.
use std::collections::HashMap;

use arrow::array::{Array, ArrayRef};
use base64::Engine;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

use crate::arrays::{binary_values, string_value};
use crate::column_path::name_of;
use crate::{RowError, SchemaError};

/// Padding is often left out.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const ALPHABETS: [GeneralPurpose; 2] = [
    GeneralPurpose::new(&STANDARD, LENIENT),
    GeneralPurpose::new(&URL_SAFE, LENIENT),
];
/// Characters that show what a value is.
const SHOWN: usize = 32;

/// The images of one column chunk.
pub(crate) fn images(
    array: &ArrayRef,
    column: &str,
) -> Result<Vec<Result<Bytes, RowError>>, SchemaError> {
    let is_string = crate::arrays::is_string(array.data_type());
    let values = if is_string {
        let value = |row| string_value(array, row);
        let copied = |value: &str| Bytes::copy_from_slice(value.as_bytes());
        (0..array.len()).map(|row| value(row).map(copied)).collect()
    } else {
        binary_values(array).ok_or_else(|| SchemaError::BatchColumnType {
            column: column.to_owned(),
            found: name_of(array.data_type()),
            expected: "a string column",
        })?
    };
    let image = |value: Bytes| match (TextKind::of(&value), value) {
        (_, value) if value.is_empty() => Err(RowError::Empty),
        (TextKind::Image(_), value) => Ok(value),
        (TextKind::Other, value) => Ok(decoded(&value).unwrap_or(value)),
        (TextKind::Base64(_), value) => decoded(&value).ok_or(RowError::NotBase64),
        (TextKind::Url, value) => Err(RowError::PathOnly {
            path: String::from_utf8_lossy(&value).into_owned(),
        }),
    };
    // What a dictionary repeats is the same slice each time, and decoded once.
    let mut known = HashMap::new();
    let mut once = |value: Option<Bytes>| {
        let value = value.ok_or(RowError::Null)?;
        let slice = (value.as_ptr() as usize, value.len());
        let (_, image) = known
            .entry(slice)
            .or_insert_with(|| (value.clone(), image(value)));
        image.clone()
    };
    Ok(values.into_iter().map(&mut once).collect())
}

/// The bytes that base64 stands for, if it is base64.
fn decoded(value: &[u8]) -> Option<Bytes> {
    let value = payload(value);
    let is_space = |byte: &u8| byte.is_ascii_whitespace();
    let stripped: Vec<u8>;
    let value = if value.iter().any(is_space) {
        stripped = value
            .iter()
            .copied()
            .filter(|byte| !is_space(byte))
            .collect();
        &stripped
    } else {
        value
    };
    let mut tried = ALPHABETS
        .iter()
        .filter_map(|engine| engine.decode(value).ok());
    tried.next().map(Bytes::from)
}

/// What comes after the head of a `data:` URL; all of any other text.
fn payload(value: &[u8]) -> &[u8] {
    if !value.starts_with(b"data:") {
        return value;
    }
    let comma = value.iter().position(|&byte| byte == b',');
    comma.map_or(value, |comma| &value[comma + 1..])
}

/// What a string value seems to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextKind {
    /// An encoded image of this format, not text at all.
    Image(&'static str),
    /// An image of this format in base64.
    Base64(&'static str),
    /// A URL.
    Url,
    /// Neither.
    Other,
}

impl TextKind {
    /// Judges by the first bytes.
    pub(crate) fn of(value: &[u8]) -> Self {
        if let Some(format) = image_format(value) {
            return Self::Image(format);
        }
        let start: Vec<u8> = payload(value)
            .iter()
            .copied()
            .filter(|byte| !byte.is_ascii_whitespace())
            .take(24)
            .collect();
        // Whole groups of four characters.
        let whole = &start[..start.len() / 4 * 4];
        if let Some(format) = decoded(whole).and_then(|bytes| image_format(&bytes)) {
            return Self::Base64(format);
        }
        let is_url = value.windows(3).take(12).any(|bytes| bytes == b"://");
        if is_url { Self::Url } else { Self::Other }
    }
}

/// The format of an encoded image, by its first bytes.
fn image_format(start: &[u8]) -> Option<&'static str> {
    let begins = |magic: &[u8]| start.starts_with(magic);
    match start {
        _ if begins(b"\xff\xd8\xff") => Some("JPEG"),
        _ if begins(b"\x89PNG\r\n") => Some("PNG"),
        _ if begins(b"GIF8") => Some("GIF"),
        _ if begins(b"II*\0") || begins(b"MM\0*") => Some("TIFF"),
        _ if begins(b"RIFF") && start.get(8..12) == Some(b"WEBP") => Some("WebP"),
        _ if begins(b"BM") && start.get(6..10) == Some(&[0; 4]) => Some("BMP"),
        _ => None,
    }
}

/// What is wrong with a string column that is called like one of images, by one of its values, and
/// what to do.
pub(crate) fn advice(column: &str, value: Option<&[u8]>) -> String {
    let read = format!("name it with --image-column {column} (image_column), and it is read");
    let download = "download the images first (for example with img2dataset, output_format=parquet) and read the shards that it writes";
    let Some(value) = value else {
        return format!(
            ": if they are images (in base64, or bytes that are wrongly annotated as text), {read}; if they are URLs, {download}"
        );
    };
    match TextKind::of(value) {
        TextKind::Image(format) => format!(
            ", and the values look like {format} files that are wrongly annotated as text: {read}"
        ),
        TextKind::Base64(format) => {
            format!(", and the values look like {format} in base64: {read}")
        }
        TextKind::Url => format!(", and the values are URLs ({}): {download}", shown(value)),
        TextKind::Other => format!(
            " of images (a value begins with {}): write the bytes of the images into the shards",
            shown(value)
        ),
    }
}

/// The beginning of a value, quoted.
fn shown(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    let start: String = text.chars().take(SHOWN).collect();
    let more = if text.chars().count() > SHOWN {
        "..."
    } else {
        ""
    };
    format!("\"{}{more}\"", start.escape_debug())
}
