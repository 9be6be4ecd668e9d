//! The header of a page: how large the page is, stored and unpacked, and how many values it claims.
//! The crate `parquet` reads it and does not show it.
//!
//! It is a structure in Thrift's compact protocol; what is not needed here is skipped.
use std::io::{self, Read};

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Dictionary,
    Other,
}

/// What is needed of a page's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub kind: Kind,
    pub unpacked_bytes: u64,
    pub stored_bytes: u64,
    /// Values that the page claims, nulls included.
    pub num_values: u64,
    /// Parquet's number of the encoding.
    encoding: i64,
    /// Bytes of the header itself.
    pub length: u64,
}

const WRONG_TYPE: &str = "a field of a page header has a wrong type";

/// `DELTA_LENGTH_BYTE_ARRAY` and `DELTA_BYTE_ARRAY`.
const WITH_LENGTHS: std::ops::RangeInclusive<i64> = 6..=7;

impl Header {
    /// Reads the header that `input` begins with.
    pub(super) fn read(input: &mut impl Read) -> io::Result<Self> {
        let mut compact = Compact { input, length: 0 };
        let mut header = Self {
            kind: Kind::Other,
            unpacked_bytes: 0,
            stored_bytes: 0,
            num_values: 0,
            encoding: 0,
            length: 0,
        };
        let mut field = 0;
        while let Some(wire) = compact.field(&mut field)? {
            match (field, wire) {
                (1, Wire::Int) => {
                    header.kind = match compact.int()? {
                        0 | 3 => Kind::Data,
                        2 => Kind::Dictionary,
                        _ => Kind::Other,
                    };
                }
                (2, Wire::Int) => header.unpacked_bytes = compact.size()?,
                (3, Wire::Int) => header.stored_bytes = compact.size()?,
                (5 | 7 | 8, Wire::Struct) => header.read_details(&mut compact, field)?,
                // Other readers might take it for what it should be.
                (1..=3 | 5 | 7 | 8, _) => return Err(invalid(WRONG_TYPE)),
                _ => compact.skip(wire, 0)?,
            }
        }
        header.length = compact.length;
        Ok(header)
    }

    /// The structure of a data page, a dictionary page or a data page of the second version.
    fn read_details(&mut self, compact: &mut Compact<'_, impl Read>, kind: i64) -> io::Result<()> {
        let encoding = if kind == 8 { 4 } else { 2 };
        let mut field = 0;
        while let Some(wire) = compact.field(&mut field)? {
            match wire {
                Wire::Int if field == 1 => self.num_values = compact.size()?,
                Wire::Int if field == encoding => self.encoding = compact.int()?,
                _ if field == 1 || field == encoding => return Err(invalid(WRONG_TYPE)),
                _ => compact.skip(wire, 0)?,
            }
        }
        Ok(())
    }

    /// Whether the values' lengths stand apart, so that they say how long the values are, and not
    /// how long the page is.
    pub(super) fn has_lengths(&self) -> bool {
        WITH_LENGTHS.contains(&self.encoding)
    }
}

/// How a field is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    /// A truth value, which the field's type holds.
    Bool,
    Byte,
    Int,
    Double,
    Binary,
    List,
    Map,
    Struct,
}

/// Structures within structures that are followed.
const MOST_DEEP: u32 = 8;

struct Compact<'a, R> {
    input: &'a mut R,
    length: u64,
}

impl<R: Read> Compact<'_, R> {
    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        self.length += 1;
        Ok(byte[0])
    }

    fn unsigned(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(invalid("a number of a page header does not end"))
    }

    fn int(&mut self) -> io::Result<i64> {
        let value = self.unsigned()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    fn size(&mut self) -> io::Result<u64> {
        u64::try_from(self.int()?).map_err(|_| invalid("a size in a page header is negative"))
    }

    /// The next field's type, with `number` made its number; `None` at the structure's end.
    fn field(&mut self, number: &mut i64) -> io::Result<Option<Wire>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        let step = i64::from(byte >> 4);
        *number = if step == 0 {
            self.int()?
        } else {
            number.saturating_add(step)
        };
        wire(byte & 0x0f).map(Some)
    }

    fn skip(&mut self, wire: Wire, depth: u32) -> io::Result<()> {
        if depth > MOST_DEEP {
            return Err(invalid("a page header is nested too deeply"));
        }
        match wire {
            Wire::Bool => Ok(()),
            Wire::Byte => self.byte().map(drop),
            Wire::Int => self.unsigned().map(drop),
            Wire::Double => self.skip_bytes(8),
            Wire::Binary => {
                let length = self.unsigned()?;
                self.skip_bytes(length)
            }
            Wire::List => {
                let start = self.byte()?;
                let count = match start >> 4 {
                    15 => self.unsigned()?,
                    count => u64::from(count),
                };
                self.skip_elements(count, &[start & 0x0f], depth)
            }
            Wire::Map => match self.unsigned()? {
                0 => Ok(()),
                count => {
                    let types = self.byte()?;
                    self.skip_elements(count, &[types >> 4, types & 0x0f], depth)
                }
            },
            Wire::Struct => {
                let mut number = 0;
                while let Some(wire) = self.field(&mut number)? {
                    self.skip(wire, depth + 1)?;
                }
                Ok(())
            }
        }
    }

    fn skip_elements(&mut self, count: u64, types: &[u8], depth: u32) -> io::Result<()> {
        for _ in 0..count {
            for &kind in types {
                match wire(kind)? {
                    // In a list it has a byte of its own.
                    Wire::Bool => self.byte().map(drop)?,
                    wire => self.skip(wire, depth + 1)?,
                }
            }
        }
        Ok(())
    }

    fn skip_bytes(&mut self, length: u64) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut *self.input).take(length), &mut io::sink())?;
        self.length += skipped;
        if skipped < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

fn wire(kind: u8) -> io::Result<Wire> {
    Ok(match kind {
        1 | 2 => Wire::Bool,
        3 => Wire::Byte,
        4..=6 => Wire::Int,
        7 => Wire::Double,
        8 => Wire::Binary,
        9 | 10 => Wire::List,
        11 => Wire::Map,
        12 => Wire::Struct,
        _ => return Err(invalid("a page header has a field of an unknown type")),
    })
}

fn invalid(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data page of 300 bytes in 3, of 7 values in `DELTA_BYTE_ARRAY`, with statistics that are
    /// skipped.
    const DATA: [u8; 22] = [
        0x15, 0x00, 0x15, 0xd8, 0x04, 0x15, 0x06, 0x2c, 0x15, 0x0e, 0x15, 0x0e, 0x15, 0x06, 0x15,
        0x06, 0x1c, 0x18, 0x01, 0xff, 0x00, 0x00,
    ];

    #[test]
    fn a_header_is_read_to_its_end() {
        let mut header = DATA.to_vec();
        header.push(0x00);
        header.extend_from_slice(b"data");
        let read = Header::read(&mut header.as_slice()).unwrap();
        assert_eq!(
            (read.kind, read.unpacked_bytes, read.stored_bytes),
            (Kind::Data, 300, 3)
        );
        assert_eq!((read.num_values, read.length), (7, header.len() as u64 - 4));
        assert!(read.has_lengths());
    }

    #[test]
    fn a_header_that_ends_early_or_lies_is_refused() {
        for end in 0..DATA.len() {
            assert!(Header::read(&mut &DATA[..end]).is_err(), "{end}");
        }
        let as_text = [0x15, 0x00, 0x18, 0x01, 0x00, 0x00];
        assert!(Header::read(&mut as_text.as_slice()).is_err());
        let negative = [0x15, 0x00, 0x15, 0x01, 0x00];
        assert!(Header::read(&mut negative.as_slice()).is_err());
        // Structures without end, a list of nothing and of very many.
        let deep = [0x1c; 1000];
        assert!(Header::read(&mut deep.as_slice()).is_err());
        let endless = [0x19, 0xf5, 0xff, 0xff, 0xff, 0xff, 0x7f, 0x00];
        assert!(Header::read(&mut endless.as_slice()).is_err());
    }
}
