//! Arrow's several binary and string arrays as one: values by row, without copying what is longer
//! than a view's inline part. Called by the image forms; knows no schema.
use arrow::array::{Array, ArrayRef, AsArray, ByteView, GenericByteArray};
use arrow::buffer::Buffer;
use arrow::datatypes::{ArrowNativeType, BinaryType, ByteArrayType, DataType, LargeBinaryType};
use bytes::Bytes;

/// Views of at most this length hold their value themselves.
const MAX_INLINE: usize = 12;

/// Whether `data_type` is one of the binary types.
pub(crate) fn is_binary(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView
    )
}

/// Whether `data_type` is one of the string types.
pub(crate) fn is_string(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View
    )
}

/// The values of a binary array, each a slice of the array's own buffers; nulls are `None`.
/// `None` if the array is of no binary type.
pub(crate) fn binary_values(array: &ArrayRef) -> Option<Vec<Option<Bytes>>> {
    match array.data_type() {
        DataType::Binary => Some(offset_values(array.as_bytes::<BinaryType>())),
        DataType::LargeBinary => Some(offset_values(array.as_bytes::<LargeBinaryType>())),
        DataType::BinaryView => {
            let array = array.as_binary_view();
            let buffers = array.data_buffers().iter().map(shared).collect::<Vec<_>>();
            let value = |row: usize| {
                let view = ByteView::from(array.views()[row]);
                let length = view.length as usize;
                if length <= MAX_INLINE {
                    return Bytes::copy_from_slice(array.value(row));
                }
                let start = view.offset as usize;
                buffers[view.buffer_index as usize].slice(start..start + length)
            };
            Some(
                (0..array.len())
                    .map(|row| array.is_valid(row).then(|| value(row)))
                    .collect(),
            )
        }
        _ => None,
    }
}

fn offset_values<T: ByteArrayType>(array: &GenericByteArray<T>) -> Vec<Option<Bytes>> {
    let values = shared(array.values());
    let range = |row: usize| {
        let offset = |i: usize| array.value_offsets()[i].as_usize();
        offset(row)..offset(row + 1)
    };
    (0..array.len())
        .map(|row| array.is_valid(row).then(|| values.slice(range(row))))
        .collect()
}

/// The buffer's memory under another counted pointer.
fn shared(buffer: &Buffer) -> Bytes {
    Bytes::from_owner(buffer.clone())
}

/// The string in `row`, or `None` where it is null or the array is of no string type.
pub(crate) fn string_value(array: &ArrayRef, row: usize) -> Option<&str> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::Utf8 => Some(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Some(array.as_string::<i64>().value(row)),
        DataType::Utf8View => Some(array.as_string_view().value(row)),
        _ => None,
    }
}
