//! What the pages of a part will take when they are unpacked, found before that is done: from their
//! headers and, where an encoding leaves out what values share, from the lengths of the values. So
//! a file that lies costs its fetched bytes and no more. Called by `unpack`.
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use parquet::column::page::{Page, PageReader};
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;

use super::footer::unsupported;
use super::pieces::Pieces;
use super::shard::ROW_BYTES;
use super::{Part, Shard};
use crate::DatasetError;
use crate::Place;

mod header;
mod lengths;

use header::{Header, Kind};
use lengths::LengthError;

/// A part may unpack to so many times what the footer says; not all writers count alike.
const TIMES: u64 = 4;
/// And to so many bytes more.
const MORE_BYTES: u64 = 16 << 20;

/// What is wrong with the pages of a column chunk.
enum Fault {
    /// They unpack to at least so many bytes.
    Larger(u64),
    /// They hold another number of rows.
    Rows(u64),
    /// They make no sense.
    Damaged(Box<dyn std::error::Error + Send + Sync>),
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Damaged(error.into())
    }
}

/// Refuses a part that would take much more memory than its footer says.
pub(super) fn check(
    pieces: &[(u64, Bytes)],
    shard: &Shard,
    part: &Part,
    place: &Place,
) -> Result<(), DatasetError> {
    let metadata = shard.metadata.metadata();
    let row_group = metadata.row_group(part.row_group as usize);
    let pieces = Arc::new(Pieces::new(pieces.to_vec(), shard.size));
    for (leaf, column) in row_group.columns().iter().enumerate() {
        if !shard.reading.projection.leaf_included(leaf) {
            continue;
        }
        let pages = Pages {
            pieces: &pieces,
            column,
            leaf,
            part,
            metadata,
            ranges: &part.ranges,
        };
        pages.check().map_err(|fault| {
            let place = place.clone();
            match fault {
                Fault::Larger(found) => DatasetError::UnpacksLarger {
                    place,
                    column: column.column_path().string(),
                    found,
                    said: part.memory_bytes,
                },
                Fault::Rows(found) => DatasetError::RowCount {
                    place,
                    expected: u64::from(part.num_rows),
                    found,
                },
                Fault::Damaged(source) => match unsupported(source.as_ref()) {
                    Some(feature) => DatasetError::Unsupported { place, feature },
                    None => DatasetError::BadPage { place, source },
                },
            }
        })?;
    }
    Ok(())
}

/// The pages of one column chunk that a part is read from.
struct Pages<'a> {
    pieces: &'a Arc<Pieces>,
    column: &'a ColumnChunkMetaData,
    leaf: usize,
    part: &'a Part,
    metadata: &'a ParquetMetaData,
    /// What was fetched of all columns.
    ranges: &'a [Range<u64>],
}

impl Pages<'_> {
    fn check(&self) -> Result<(), Fault> {
        let mut total = Total {
            bytes: 0,
            most: TIMES
                .saturating_mul(self.part.memory_bytes)
                .saturating_add(MORE_BYTES),
        };
        let (mut rows, mut shortened) = (0u64, false);
        for start in self.starts()? {
            let header = Header::read(&mut self.pieces.get_read(start)?)?;
            total.add(header.unpacked_bytes.max(header.stored_bytes))?;
            match header.kind {
                // Each takes at least a byte; most take four and more.
                Kind::Dictionary if header.num_values > header.unpacked_bytes => {
                    return Err("its dictionary claims more values than it has bytes".into());
                }
                Kind::Dictionary | Kind::Other => {}
                Kind::Data => {
                    rows = header.num_values.saturating_add(rows);
                    shortened |= header.has_lengths();
                }
            }
        }
        // Where a row has several values, or none, its pages do not say how many rows they hold.
        if self.column.column_descr().max_rep_level() == 0 {
            let expected = u64::from(self.part.num_rows);
            let whole = self.is_whole();
            if (whole && rows != expected) || rows < expected {
                return Err(Fault::Rows(rows));
            }
        } else {
            total.add(rows.saturating_mul(ROW_BYTES))?;
        }
        if shortened {
            self.check_lengths(&mut total)?;
        }
        Ok(())
    }

    /// Whether the part is a row group.
    fn is_whole(&self) -> bool {
        let row_group = self.metadata.row_group(self.part.row_group as usize);
        i64::from(self.part.num_rows) == row_group.num_rows()
    }

    /// Where each page begins, as the reader will find it.
    fn starts(&self) -> Result<Vec<u64>, Fault> {
        let (start, length) = self.column.byte_range();
        let chunk = start..start + length;
        if let Some(locations) = self.locations() {
            let pages = locations
                .iter()
                .filter_map(|page| u64::try_from(page.offset).ok());
            let dictionary = pages.clone().next().filter(|&first| first > chunk.start);
            let fetched = |&page: &u64| self.ranges.iter().any(|range| range.contains(&page));
            return Ok(dictionary
                .map(|_| chunk.start)
                .into_iter()
                .chain(pages.filter(fetched))
                .collect());
        }
        let (mut starts, mut next) = (Vec::new(), chunk.start);
        while next < chunk.end {
            starts.push(next);
            let header = Header::read(&mut self.pieces.get_read(next)?)?;
            next += header.length + header.stored_bytes;
        }
        Ok(starts)
    }

    fn locations(&self) -> Option<&[parquet::file::page_index::offset_index::PageLocation]> {
        let index = self.metadata.page_index()?;
        let locations = index.page_locations(self.part.row_group as usize, self.leaf)?;
        (!locations.is_empty()).then_some(locations)
    }

    /// Counts the values whose pages hold them shortened, a page in memory at a time.
    fn check_lengths(&self, total: &mut Total) -> Result<(), Fault> {
        let locations = self.locations();
        let fetched = |page: usize| {
            locations.is_none_or(|locations| {
                let offset = locations.get(page).map(|page| page.offset as u64);
                offset.is_some_and(|start| self.ranges.iter().any(|range| range.contains(&start)))
            })
        };
        let mut pages = SerializedPageReader::new(
            Arc::clone(self.pieces),
            self.column,
            self.part.num_rows as usize,
            locations.map(<[_]>::to_vec),
        )?;
        let mut number = 0;
        while let Some(next) = pages.peek_next_page()? {
            if !next.is_dict && !fetched(number) {
                pages.skip_next_page()?;
                number += 1;
                continue;
            }
            let Some(page) = pages.get_next_page()? else {
                break;
            };
            if page.is_data_page() {
                number += 1;
                self.check_page(&page, total)?;
            }
        }
        Ok(())
    }

    fn check_page(&self, page: &Page, total: &mut Total) -> Result<(), Fault> {
        let descriptor = self.column.column_descr();
        let values = lengths::values(page, descriptor.max_rep_level(), descriptor.max_def_level())
            .ok_or("its levels leave the page")?;
        let most = u64::from(page.num_values());
        // The reader addresses the values of a page with 32 bits.
        let room = total.most.saturating_sub(total.bytes).min(i32::MAX as u64);
        match lengths::total(values, page.encoding(), most, room) {
            Ok(bytes) => total.add(bytes),
            Err(LengthError::Larger(bytes)) => Err(Fault::Larger(total.bytes + bytes)),
            Err(error @ LengthError::Damaged(_)) => Err(error.to_string().into()),
        }
    }
}

/// Bytes so far, and how many there may be.
struct Total {
    bytes: u64,
    most: u64,
}

impl Total {
    fn add(&mut self, bytes: u64) -> Result<(), Fault> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.most {
            return Err(Fault::Larger(self.bytes));
        }
        Ok(())
    }
}
