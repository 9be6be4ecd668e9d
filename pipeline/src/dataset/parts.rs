//! Which rows of a large row group are fetched together: those of some pages, found by the file's
//! offset index.
//!
//! Without such an index a row group can only be read whole. Called when a shard's footer is read.
use std::ops::Range;

use parquet::arrow::ProjectionMask;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::page_index::offset_index::PageLocation;

use super::Part;
use super::shard::ROW_BYTES;

/// Whether a row group is to be read in parts, if it can be.
pub(super) fn is_large(info: &Part, part_bytes: u64) -> bool {
    info.memory_bytes > part_bytes && info.num_samples() > 0
}

/// Splits large row groups, as far as their pages are known and lie in order. `image` is the column
/// of the images, whose nulls are counted.
pub(super) fn split(
    row_groups: Vec<Part>,
    metadata: &ParquetMetaData,
    projection: &ProjectionMask,
    image: Option<usize>,
    part_bytes: u64,
) -> Vec<Part> {
    let mut parts = Vec::new();
    for row_group in row_groups {
        let found = is_large(&row_group, part_bytes)
            .then(|| parts_of(&row_group, metadata, projection, image, part_bytes))
            .flatten();
        parts.extend(found.unwrap_or_else(|| vec![row_group]));
    }
    parts
}

/// A column chunk and its pages.
struct Column {
    leaf: usize,
    chunk: Range<u64>,
    pages: Vec<Page>,
}

struct Page {
    bytes: Range<u64>,
    first_row: u32,
}

/// A row group with rows without an image is read whole up to so many parts' size where its pages
/// do not count them: then it is known how many samples it has. pyarrow leaves out the column index
/// of long values.
const WHOLE: u64 = 4;

/// The parts of one row group; `None` where it has to be read whole.
fn parts_of(
    info: &Part,
    metadata: &ParquetMetaData,
    projection: &ProjectionMask,
    image: Option<usize>,
    part_bytes: u64,
) -> Option<Vec<Part>> {
    let index = metadata.page_index()?;
    let row_group = metadata.row_group(info.row_group as usize);
    let columns = (0..row_group.num_columns())
        .filter(|&leaf| projection.leaf_included(leaf))
        .map(|leaf| {
            let pages = index.page_locations(info.row_group as usize, leaf)?;
            column(row_group, leaf, pages, info.num_rows)
        })
        .collect::<Option<Vec<_>>>()?;
    // The images decide; all else is small beside them. Where rows without an image are counted,
    // they are counted by the images' pages.
    let counted = image.filter(|_| info.num_absent > 0).and_then(|leaf| {
        let column = columns.iter().find(|column| column.leaf == leaf)?;
        let nulls = index
            .column_index(info.row_group as usize, leaf)?
            .null_counts()?;
        Some((column, nulls_before(nulls, column, info)?))
    });
    if info.num_absent > 0 && counted.is_none() && info.memory_bytes / WHOLE <= part_bytes {
        return None;
    }
    let largest = match &counted {
        Some((column, _)) => column,
        None => columns
            .iter()
            .max_by_key(|column| column.chunk.end - column.chunk.start)?,
    };
    let absent_in = |rows: &Range<u32>| -> u32 {
        // Without a count a row without an image is found when it is met.
        counted.as_ref().map_or(0, |(column, before)| {
            let before = |row| before[column.pages.partition_point(|page| page.first_row < row)];
            before(rows.end) - before(rows.start)
        })
    };
    let stored = largest.chunk.end - largest.chunk.start;
    let memory_of = |pages: Range<u64>| {
        let share = (pages.end - pages.start) as f64 / stored.max(1) as f64;
        (share * info.memory_bytes as f64) as u64
    };
    // Each part holds the dictionary. As writers make it, it is small beside a part, and does not
    // count.
    let dictionary_bytes = memory_of(largest.dictionary());
    let dictionary_bytes = Some(dictionary_bytes).filter(|&bytes| bytes > part_bytes / 4);
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
        let mut ranges: Vec<_> = columns
            .iter()
            .flat_map(|column| column.ranges(&rows))
            .collect();
        ranges.sort_by_key(|range| range.start);
        let num_rows = rows.end - rows.start;
        let pages_bytes = memory_of(start.1..end.1);
        let memory_bytes = pages_bytes
            .max(dictionary_bytes.unwrap_or(0))
            .max(u64::from(num_rows) * ROW_BYTES);
        Part {
            first_row: rows.start,
            num_rows,
            num_absent: absent_in(&rows),
            fetch_bytes: ranges.iter().map(|range| range.end - range.start).sum(),
            memory_bytes,
            counted_by_values: info.counted_by_values || memory_bytes > pages_bytes,
            row_group: info.row_group,
            ranges,
        }
    });
    Some(parts.collect())
}

/// How many nulls lie before each page and, last, in all; `None` if that is not what the footer
/// counts.
fn nulls_before(nulls: &[i64], column: &Column, info: &Part) -> Option<Vec<u32>> {
    let mut before = vec![0u32];
    for (page, nulls) in nulls.iter().enumerate() {
        let first_row = column.pages.get(page)?.first_row;
        let next = column.pages.get(page + 1);
        let rows = next.map_or(info.num_rows, |page| page.first_row) - first_row;
        let nulls = u32::try_from(*nulls).ok().filter(|&nulls| nulls <= rows)?;
        before.push(before.last()?.checked_add(nulls)?);
    }
    let all = before.len() == column.pages.len() + 1 && before.last() == Some(&info.num_absent);
    all.then_some(before)
}

/// The pages of a column chunk, if they are what they should be: in order, inside of the chunk, the
/// first at row 0.
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
    (!pages.is_empty()).then_some(Column { leaf, chunk, pages })
}

impl Column {
    /// What lies before all pages.
    fn dictionary(&self) -> Range<u64> {
        self.chunk.start..self.pages[0].bytes.start
    }

    /// What has to be read for `rows`: the pages that hold them, and what comes before all pages, a
    /// dictionary.
    fn ranges(&self, rows: &Range<u32>) -> Vec<Range<u64>> {
        let first = self
            .pages
            .partition_point(|page| page.first_row <= rows.start)
            - 1;
        let last = self.pages.partition_point(|page| page.first_row < rows.end) - 1;
        let pages = self.pages[first].bytes.start..self.pages[last].bytes.end;
        let dictionary = self.dictionary();
        if dictionary.is_empty() {
            vec![pages]
        } else {
            vec![dictionary, pages]
        }
    }
}
