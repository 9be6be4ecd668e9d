//! The first directory of a TIFF structure, as TIFF files and EXIF blocks hold it: where its
//! entries lie and what their numbers are.
//!
//! Read as Pillow reads it: of a tag that comes twice the first counts, an entry of unknown type or
//! with more data than there are bytes is left out, and nothing is read behind one whose data lies
//! outside. Decodes no pixels.
use std::ops::Range;

use tiff::tags::Tag;

/// An entry whose data lies within the bytes.
#[derive(Debug)]
struct Entry {
    tag: u16,
    kind: u16,
    /// Where the entry itself lies.
    start: usize,
    data: Range<usize>,
}

/// Entries of a directory in the order of the file.
#[derive(Debug)]
pub(super) struct Directory<'a> {
    bytes: &'a [u8],
    is_big_endian: bool,
    entries: Vec<Entry>,
}

/// Bytes of one value of a type; `None` for types that TIFF does not have.
fn unit_bytes(kind: u16) -> Option<u64> {
    Some(match kind {
        1 | 2 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16 => 8,
        _ => return None,
    })
}

impl<'a> Directory<'a> {
    /// `None` where there is no TIFF structure. Broken entries are left out.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        // The magic number is also met in the other byte order.
        let (is_big_endian, is_big_tiff) = match bytes.get(..4)? {
            b"II\x2a\0" | b"II\0\x2a" => (false, false),
            b"MM\0\x2a" | b"MM\x2a\0" => (true, false),
            b"II\x2b\0" => (false, true),
            b"MM\0\x2b" => (true, true),
            _ => return None,
        };
        let mut directory = Self {
            bytes,
            is_big_endian,
            entries: Vec::new(),
        };
        let (offset_bytes, count_bytes, entry_bytes) =
            if is_big_tiff { (8, 8, 20) } else { (4, 2, 12) };
        let start = directory.unsigned(if is_big_tiff { 8 } else { 4 }, offset_bytes)?;
        let start = usize::try_from(start).ok()?;
        let count = directory.unsigned(start, count_bytes)?;
        let first = start + count_bytes;
        let mut claimed = 0u64;
        for start in (0..count).map_while(|index| {
            let distance = usize::try_from(index).ok()?.checked_mul(entry_bytes)?;
            let start = first.checked_add(distance)?;
            (start.checked_add(entry_bytes)? <= bytes.len()).then_some(start)
        }) {
            let tag = directory.unsigned(start, 2)? as u16;
            let kind = directory.unsigned(start + 2, 2)? as u16;
            let count = directory.unsigned(start + 4, offset_bytes)?;
            let value = start + 4 + offset_bytes;
            let (false, Some(unit)) = (
                directory.entries.iter().any(|entry| entry.tag == tag),
                unit_bytes(kind),
            ) else {
                continue;
            };
            let num_bytes = count.saturating_mul(unit);
            let mut place = value as u64;
            if num_bytes > offset_bytes as u64 {
                claimed = claimed.saturating_add(num_bytes);
                if claimed > bytes.len() as u64 {
                    continue;
                }
                place = directory.unsigned(value, offset_bytes)?;
                if place.saturating_add(num_bytes) > bytes.len() as u64 {
                    break;
                }
            }
            if num_bytes > 0 {
                let data = place as usize..(place + num_bytes) as usize;
                directory.entries.push(Entry {
                    tag,
                    kind,
                    start,
                    data,
                });
            }
        }
        Some(directory)
    }

    fn unsigned(&self, start: usize, num_bytes: usize) -> Option<u64> {
        let bytes = self.bytes.get(start..start.checked_add(num_bytes)?)?;
        let add = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        Some(if self.is_big_endian {
            bytes.iter().fold(0, add)
        } else {
            bytes.iter().rev().fold(0, add)
        })
    }

    fn entry(&self, tag: Tag) -> Option<&Entry> {
        let number = tag.to_u16();
        self.entries.iter().find(|entry| entry.tag == number)
    }

    /// Whether a tag is there.
    pub(super) fn has(&self, tag: Tag) -> bool {
        self.entry(tag).is_some()
    }

    /// Where a tag's entry lies: its number, its type, the count and the value or where that lies.
    pub(super) fn place_of(&self, tag: Tag) -> Option<usize> {
        self.entry(tag).map(|entry| entry.start)
    }

    /// Whether numbers have their most significant byte first.
    pub(super) fn is_big_endian(&self) -> bool {
        self.is_big_endian
    }

    /// A tag's data as it lies there.
    pub(super) fn data(&self, tag: Tag) -> Option<&'a [u8]> {
        self.entry(tag).map(|entry| &self.bytes[entry.data.clone()])
    }

    /// All values of a tag of unsigned integers; none where it is absent or of another type.
    pub(super) fn integers(&self, tag: Tag) -> impl Iterator<Item = u64> {
        let entry = self
            .entry(tag)
            .filter(|entry| matches!(entry.kind, 1 | 3 | 4 | 13 | 16));
        let unit = entry.and_then(|entry| unit_bytes(entry.kind)).unwrap_or(1) as usize;
        let data = entry.map_or(0..0, |entry| entry.data.clone());
        data.step_by(unit)
            .map_while(move |start| self.unsigned(start, unit))
    }

    /// The first value of a tag of numbers other than single unsigned bytes; `None` also where it
    /// is none.
    pub(super) fn number(&self, tag: Tag) -> Option<f64> {
        let &Entry { kind, ref data, .. } = self.entry(tag)?;
        let value = |start, num_bytes| self.unsigned(data.start + start, num_bytes);
        Some(match kind {
            3 | 13 | 16 | 4 => value(0, unit_bytes(kind)? as usize)? as f64,
            6 => f64::from(value(0, 1)? as i8),
            8 => f64::from(value(0, 2)? as i16),
            9 => f64::from(value(0, 4)? as i32),
            5 => value(0, 4)? as f64 / value(4, 4)? as f64,
            10 => f64::from(value(0, 4)? as i32) / f64::from(value(4, 4)? as i32),
            11 => f64::from(f32::from_bits(value(0, 4)? as u32)),
            12 => f64::from_bits(value(0, 8)?),
            _ => return None,
        })
    }
}
