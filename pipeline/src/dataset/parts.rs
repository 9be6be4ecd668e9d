//! Which rows of a large row group are fetched together: those of some pages, found by the file's offset index.
//!
//! Without such an index a row group can only be read whole. Called when a shard's footer is read.
use std::ops::Range;

use parquet::arrow::ProjectionMask;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::page_index::offset_index::PageLocation;

use super::PartInfo;
use super::footer::Layout;

/// Splits row groups that take more than `part_bytes`, as far as their pages are known and lie in order.
pub(super) fn split(
    (row_groups, chunks): Layout,
    metadata: &ParquetMetaData,
    projection: &ProjectionMask,
    part_bytes: u64,
) -> Layout {
    let (mut parts, mut part_chunks) = (Vec::new(), Vec::new());
    for (info, chunks) in row_groups.into_iter().zip(chunks) {
        let found = (info.memory_bytes > part_bytes)
            .then(|| parts_of(info, metadata, projection, part_bytes))
            .flatten();
        if let Some((more, more_chunks)) = found {
            parts.extend(more);
            part_chunks.extend(more_chunks);
        } else {
            parts.push(info);
            part_chunks.push(chunks);
        }
    }
    (parts, part_chunks)
}

/// A column chunk and its pages.
struct Column {
    chunk: Range<u64>,
    pages: Vec<Page>,
}

struct Page {
    bytes: Range<u64>,
    first_row: u32,
}

/// The parts of one row group; `None` where it has to be read whole.
fn parts_of(
    info: PartInfo,
    metadata: &ParquetMetaData,
    projection: &ProjectionMask,
    part_bytes: u64,
) -> Option<Layout> {
    let index = metadata.page_index()?;
    let row_group = metadata.row_group(info.row_group as usize);
    let columns = (0..row_group.num_columns())
        .filter(|&leaf| projection.leaf_included(leaf))
        .map(|leaf| {
            let pages = index.page_locations(info.row_group as usize, leaf)?;
            column(row_group, leaf, pages, info.num_rows)
        })
        .collect::<Option<Vec<_>>>()?;
    // The images decide; all else is small beside them.
    let largest = columns
        .iter()
        .max_by_key(|column| column.chunk.end - column.chunk.start)?;
    let stored = largest.chunk.end - largest.chunk.start;
    let memory_of = |pages: Range<u64>| {
        let share = (pages.end - pages.start) as f64 / stored.max(1) as f64;
        (share * info.memory_bytes as f64) as u64
    };
    // First rows of the parts: a part ends before the page that would make it too large.
    let mut starts = vec![(0, largest.pages.first()?.bytes.start)];
    for page in &largest.pages[1..] {
        let start = starts.last().expect("it began with one").1;
        if memory_of(start..page.bytes.end) > part_bytes {
            starts.push((page.first_row, page.bytes.start));
        }
    }
    let ends = starts[1..]
        .iter()
        .copied()
        .chain([(info.num_rows, largest.chunk.end)]);
    let parts = starts.iter().zip(ends).map(|(&start, end)| {
        let rows = start.0..end.0;
        let mut chunks: Vec<_> = columns
            .iter()
            .flat_map(|column| column.ranges(&rows))
            .collect();
        chunks.sort_by_key(|range| range.start);
        let part = PartInfo {
            first_row: rows.start,
            num_rows: rows.end - rows.start,
            fetch_bytes: chunks.iter().map(|range| range.end - range.start).sum(),
            memory_bytes: memory_of(start.1..end.1),
            ..info
        };
        (part, chunks)
    });
    Some(parts.unzip())
}

/// The pages of a column chunk, if they are what they should be: in order, inside of the chunk, the first at row 0.
fn column(
    row_group: &RowGroupMetaData,
    leaf: usize,
    locations: &[PageLocation],
    num_rows: u32,
) -> Option<Column> {
    let (start, length) = row_group.column(leaf).byte_range();
    let chunk = start..start.checked_add(length)?;
    let mut pages: Vec<Page> = Vec::with_capacity(locations.len());
    for location in locations {
        let start = u64::try_from(location.offset).ok()?;
        let end = start.checked_add(u64::try_from(location.compressed_page_size).ok()?)?;
        let first_row = u32::try_from(location.first_row_index).ok()?;
        let follows = pages.last().map_or(first_row == 0, |page| {
            start >= page.bytes.end && first_row > page.first_row
        });
        if !follows || start < chunk.start || end > chunk.end || first_row >= num_rows {
            return None;
        }
        pages.push(Page {
            bytes: start..end,
            first_row,
        });
    }
    (!pages.is_empty()).then_some(Column { chunk, pages })
}

impl Column {
    /// What has to be read for `rows`: the pages that hold them, and what comes before all pages, a dictionary.
    fn ranges(&self, rows: &Range<u32>) -> Vec<Range<u64>> {
        let first = self
            .pages
            .partition_point(|page| page.first_row <= rows.start)
            - 1;
        let last = self.pages.partition_point(|page| page.first_row < rows.end) - 1;
        let pages = self.pages[first].bytes.start..self.pages[last].bytes.end;
        let dictionary = self.chunk.start..self.pages[0].bytes.start;
        if dictionary.is_empty() {
            vec![pages]
        } else {
            vec![dictionary, pages]
        }
    }
}
