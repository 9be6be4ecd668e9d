//! Column chunks whose pages carry checksums, so that bytes damaged in storage are told from bytes
//! packed wrongly.
//!
//! The crate `parquet` checks the checksums of pages it reads and writes none: its header is made,
//! and the field added.
use parquet::column::page::{CompressedPage, PageWriteSpec, PageWriter};
use parquet::errors::{ParquetError, Result};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};

/// A field whose number is one above the last field's, of type i32, in Thrift's compact protocol.
const NEXT_FIELD_I32: u8 = 0x15;
/// Fields of a page header before the checksum: kind and two sizes, all required.
const FIELDS_BEFORE: usize = 3;

/// Writes the pages of one column chunk into memory.
pub(super) struct ChecksummedPages<'a> {
    chunk: &'a mut Vec<u8>,
}

impl<'a> ChecksummedPages<'a> {
    /// Appends to `chunk`, which must be empty.
    pub(super) fn new(chunk: &'a mut Vec<u8>) -> Self {
        Self { chunk }
    }
}

impl PageWriter for ChecksummedPages<'_> {
    fn write_page(&mut self, page: CompressedPage) -> Result<PageWriteSpec> {
        let num_data_bytes = page.data().len();
        let checksum = crc32fast::hash(page.data());
        let mut written = TrackedWrite::new(Vec::with_capacity(num_data_bytes + 64));
        let mut spec = SerializedPageWriter::new(&mut written).write_page(page)?;
        let written = written.into_inner()?;
        let (header, data) = written.split_at(written.len() - num_data_bytes);
        let longer = with_checksum(header, checksum)?;
        let added = longer.len() - header.len();
        spec.offset = self.chunk.len() as u64;
        spec.uncompressed_size += added;
        spec.compressed_size += added;
        spec.bytes_written += added as u64;
        self.chunk.extend_from_slice(&longer);
        self.chunk.extend_from_slice(data);
        Ok(spec)
    }

    fn close(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Adds field 4, `crc`, to a page header.
fn with_checksum(header: &[u8], checksum: u32) -> Result<Vec<u8>> {
    let unexpected =
        || ParquetError::General("a page header is not of the form expected here".to_owned());
    let mut end = 0;
    for _ in 0..FIELDS_BEFORE {
        if header.get(end) != Some(&NEXT_FIELD_I32) {
            return Err(unexpected());
        }
        // The last byte of a variable-length integer is the one without the top bit.
        let length = header[end + 1..]
            .iter()
            .position(|byte| byte & 0x80 == 0)
            .ok_or_else(unexpected)?;
        end += length + 2;
    }
    // The upper half is the distance to the last field's number, which becomes smaller by one.
    let next = header
        .get(end)
        .filter(|next| **next >= 0x20)
        .ok_or_else(unexpected)?;
    let mut longer = header[..end].to_vec();
    longer.push(NEXT_FIELD_I32);
    let signed = checksum.cast_signed();
    let mut zigzag = ((signed << 1) ^ (signed >> 31)).cast_unsigned();
    while zigzag >= 0x80 {
        longer.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    longer.push(zigzag as u8);
    longer.push(next - 0x10);
    longer.extend_from_slice(&header[end + 1..]);
    Ok(longer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_put_between() {
        // Kind 0, sizes 3 and 300, then field 5, a structure.
        let header = [0x15, 0x00, 0x15, 0x06, 0x15, 0xd8, 0x04, 0x2c, 0x15, 0x02];
        let expected = [
            0x15, 0x00, 0x15, 0x06, 0x15, 0xd8, 0x04, 0x15, 0x01, 0x1c, 0x15, 0x02,
        ];
        assert_eq!(with_checksum(&header, u32::MAX).unwrap(), expected);
        assert!(with_checksum(&header[..6], 1).is_err());
        assert!(with_checksum(&expected, 1).is_err());
    }
}
