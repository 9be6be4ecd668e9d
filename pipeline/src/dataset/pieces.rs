//! Fetched pieces of an object, read as if they were the whole of it.
use bytes::{Buf, Bytes, BytesMut};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

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
        // Copied, though it may lie in one piece: images are slices of their page, and must not
        // keep all that was fetched with it.
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
