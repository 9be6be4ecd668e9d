//! From fetched bytes to a proven `ShardBatch`: decompression and decoding, work for the CPU pool.
use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use bytes::{Buf, Bytes, BytesMut};
use nepa_schemas::{ColumnMapping, ShardBatch};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection, RowSelector};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

use super::footer::{ShardReader, unsupported};
use super::{PartBytes, PartInfo, pages};
use crate::DatasetError;
use crate::error::Place;

/// Reads the part and proves it.
pub(super) fn unpack(
    bytes: &PartBytes,
    reader: &ShardReader,
    mapping: &ColumnMapping,
    part: PartInfo,
    place: Place,
) -> Result<ShardBatch, DatasetError> {
    pages::check(bytes, reader, part, &place)?;
    let pieces = Pieces::new(bytes.pieces.clone(), reader.object.size);
    let batch = read(pieces, reader, part).map_err(|source| page_error(source, place.clone()))?;
    if batch.num_rows() != part.num_rows as usize {
        let (expected, found) = (u64::from(part.num_rows), batch.num_rows() as u64);
        return Err(DatasetError::RowCount {
            place,
            expected,
            found,
        });
    }
    let batch = ShardBatch::try_new(&batch, mapping).map_err(|source| DatasetError::Schema {
        place: place.clone(),
        source: Box::new(source.in_rows_from(part.first_row as usize)),
        leave_out: super::LeaveOut::Nothing,
    })?;
    let said = part.num_absent as usize;
    if said > 0 {
        let found = batch.absent_rows().take(said).count();
        if found < said {
            let (said, found) = (said as u64, found as u64);
            return Err(DatasetError::AbsentCount { place, said, found });
        }
    }
    Ok(batch)
}

fn read(pieces: Pieces, reader: &ShardReader, part: PartInfo) -> ParquetResult<RecordBatch> {
    let mut builder =
        ParquetRecordBatchReaderBuilder::new_with_metadata(pieces, reader.metadata.clone())
            .with_projection(reader.projection.clone())
            .with_row_groups(vec![part.row_group as usize])
            .with_batch_size(part.num_rows.max(1) as usize);
    let in_row_group = reader
        .metadata
        .metadata()
        .row_group(part.row_group as usize)
        .num_rows();
    if i64::from(part.num_rows) != in_row_group {
        // With the offset index, pages before and after the selected rows are not read.
        builder = builder.with_row_selection(RowSelection::from(vec![
            RowSelector::skip(part.first_row as usize),
            RowSelector::select(part.num_rows as usize),
        ]));
    }
    let batches = builder.build()?;
    let schema = arrow::array::RecordBatchReader::schema(&batches);
    let batches = batches.collect::<Result<Vec<_>, _>>()?;
    // One as a rule, none of an empty part.
    match <[RecordBatch; 1]>::try_from(batches) {
        Ok([batch]) => Ok(batch),
        Err(batches) => Ok(concat_batches(&schema, &batches)?),
    }
}

/// Tells damaged bytes (checksum) from what is not supported, and from bytes that make no sense.
fn page_error(source: ParquetError, place: Place) -> DatasetError {
    if source.to_string().contains("CRC") {
        DatasetError::PageChecksum { place, source }
    } else if let Some(feature) = unsupported(&source) {
        DatasetError::Unsupported { place, feature }
    } else {
        DatasetError::BadPage {
            place,
            source: Box::new(source),
        }
    }
}

/// The fetched pieces, addressed as the whole object.
#[derive(Debug)]
pub(super) struct Pieces {
    pieces: Vec<(u64, Bytes)>,
    size: u64,
}

impl Pieces {
    /// Pieces by their start, sorted, of an object of `size` bytes.
    pub(super) fn new(pieces: Vec<(u64, Bytes)>, size: u64) -> Self {
        Self { pieces, size }
    }

    /// The piece that holds `position`, from there to its end.
    fn from(&self, position: u64) -> Option<Bytes> {
        let after = self.pieces.partition_point(|(start, _)| *start <= position);
        let (start, bytes) = self.pieces.get(after.checked_sub(1)?)?;
        let offset = (position - start) as usize;
        (offset < bytes.len()).then(|| bytes.slice(offset..))
    }
}

impl Length for Pieces {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Pieces {
    type T = PieceReader;

    fn get_read(&self, start: u64) -> ParquetResult<PieceReader> {
        Ok(PieceReader {
            pieces: self.pieces.clone(),
            position: start,
            current: self.from(start).unwrap_or_default(),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let outside = || {
            ParquetError::EOF(format!(
                "a page at {start} of {length} bytes leaves its column chunk"
            ))
        };
        if length == 0 {
            return Ok(Bytes::new());
        }
        let first = self.from(start).ok_or_else(outside)?;
        // Copied, though it may lie in one piece: images are slices of their page, and must not keep all that was fetched with it.
        let mut joined = BytesMut::with_capacity(length.min(self.size as usize));
        joined.extend_from_slice(&first[..first.len().min(length)]);
        while joined.len() < length {
            let next = self.from(start + joined.len() as u64).ok_or_else(outside)?;
            joined.extend_from_slice(&next[..next.len().min(length - joined.len())]);
        }
        Ok(joined.freeze())
    }
}

/// Reads on through the pieces.
#[derive(Debug)]
pub(super) struct PieceReader {
    pieces: Vec<(u64, Bytes)>,
    position: u64,
    current: Bytes,
}

impl std::io::Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.current.is_empty() {
            let next = self
                .pieces
                .iter()
                .find(|(start, _)| *start == self.position);
            self.current = next.map(|(_, bytes)| bytes.clone()).unwrap_or_default();
        }
        let length = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..length]);
        self.position += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn pieces() -> Pieces {
        let piece = |text: &'static [u8]| Bytes::from_static(text);
        Pieces {
            pieces: vec![
                (10, piece(b"abc")),
                (13, piece(b"defg")),
                (30, piece(b"xyz")),
            ],
            size: 100,
        }
    }

    #[test]
    fn bytes_are_joined_across_pieces_and_refused_across_holes() {
        let pieces = pieces();
        assert_eq!(pieces.get_bytes(11, 2).unwrap().as_ref(), b"bc");
        assert_eq!(pieces.get_bytes(11, 5).unwrap().as_ref(), b"bcdef");
        assert!(pieces.get_bytes(16, 2).is_err());
        assert!(pieces.get_bytes(5, 1).is_err());
        assert!(pieces.get_bytes(0, 0).unwrap().is_empty());
    }

    #[test]
    fn reading_goes_on_to_the_next_piece_and_ends_at_a_hole() {
        let mut text = String::new();
        pieces()
            .get_read(12)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "cdefg");
    }
}
