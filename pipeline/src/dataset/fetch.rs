//! Which bytes are asked for, in which requests: neighbouring columns and row groups as one, large ranges in parts.
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use object_store::{GetOptions, GetRange, ObjectStore};
use tokio::sync::Semaphore;

use super::counters::HeldBytes;
use super::footer::ShardReader;
use super::{Dataset, Deliver, IoConfig};
use crate::DatasetError;
use crate::error::Place;
use crate::store::classify;

/// The fetched column chunks of one row group; holds its share of the byte budget until dropped.
#[derive(Debug)]
pub struct RowGroupBytes {
    pub(super) shard: u32,
    pub(super) row_group: u32,
    /// Pieces by their start in the object, sorted, together covering the row group's column chunks.
    pub(super) pieces: Vec<(u64, Bytes)>,
    /// Shared with the row groups that were fetched in the same requests, whose bytes lie in the same buffers.
    _held: Arc<HeldBytes>,
}

impl RowGroupBytes {
    /// Index of the shard.
    pub fn shard(&self) -> u32 {
        self.shard
    }

    /// Index of the row group in the shard.
    pub fn row_group(&self) -> u32 {
        self.row_group
    }

    /// Number of bytes in memory, gaps included.
    pub fn num_bytes(&self) -> u64 {
        self.pieces
            .iter()
            .map(|(_, bytes)| bytes.len() as u64)
            .sum()
    }
}

/// Row groups of one shard that are fetched together, and the ranges that hold them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub shard: u32,
    pub row_groups: Vec<u32>,
    pub ranges: Vec<Range<u64>>,
}

impl Run {
    fn num_bytes(&self) -> u64 {
        self.ranges
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    }
}

/// Puts neighbours of the list that lie close together in one shard into one run. Only neighbours of the list: whoever
/// consumes in its order must never hold back the budget for something later.
pub(super) fn plan(
    row_groups: &[(u32, u32)],
    chunks: impl Fn(u32, u32) -> Vec<Range<u64>>,
    io: &IoConfig,
) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &(shard, row_group) in row_groups {
        let ranges = coalesce(chunks(shard, row_group), io.coalesce_gap_bytes);
        if let Some(last) = runs.last_mut()
            && last.shard == shard
            && last.num_bytes() < io.request_bytes
            && let (Some(before), Some(next)) = (last.ranges.last(), ranges.first())
            && next.start >= before.end
            && next.start - before.end <= io.coalesce_gap_bytes
        {
            last.row_groups.push(row_group);
            let joined = last.ranges.drain(..).chain(ranges).collect();
            last.ranges = coalesce(joined, io.coalesce_gap_bytes);
        } else {
            runs.push(Run {
                shard,
                row_groups: vec![row_group],
                ranges,
            });
        }
    }
    runs
}

/// Joins sorted ranges whose gaps are at most `gap`.
fn coalesce(ranges: Vec<Range<u64>>, gap: u64) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => {
                last.end = last.end.max(range.end);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// Cuts a range into parts of nearly the same size, at most `request_bytes` each.
fn split(range: &Range<u64>, request_bytes: u64) -> Vec<Range<u64>> {
    let length = range.end - range.start;
    let parts = length.div_ceil(request_bytes.max(1)).max(1);
    (0..parts)
        .map(|part| range.start + length * part / parts..range.start + length * (part + 1) / parts)
        .collect()
}

/// Runs one `fetch`: takes the budget in the order of the list, then lets the requests go side by side.
pub(super) async fn run_all(dataset: Arc<Dataset>, runs: Vec<Run>, deliver: Deliver) {
    let mut tasks = tokio::task::JoinSet::new();
    for run in runs {
        let held = dataset.budget.take(run.num_bytes()).await;
        let dataset = Arc::clone(&dataset);
        let deliver = Arc::clone(&deliver);
        tasks.spawn(async move { run_one(&dataset, &run, held, &deliver).await });
        while tasks.try_join_next().is_some() {}
    }
    // Dropping the set would abort what is still in flight; cancelling this future shall do that, finishing shall not.
    while tasks.join_next().await.is_some() {}
}

async fn run_one(dataset: &Dataset, run: &Run, held: Arc<HeldBytes>, deliver: &Deliver) {
    let reader = &dataset.readers[run.shard as usize];
    let parts: Vec<_> = run
        .ranges
        .iter()
        .flat_map(|range| split(range, dataset.io.request_bytes))
        .collect();
    let fetched = try_join_all(
        parts
            .iter()
            .map(|part| read_part(reader, part.clone(), &dataset.requests)),
    )
    .await;
    match fetched {
        Ok(buffers) => {
            let row_groups: Vec<_> = run
                .row_groups
                .iter()
                .map(|&row_group| RowGroupBytes {
                    shard: run.shard,
                    row_group,
                    pieces: pieces_of(&reader.chunks[row_group as usize], &parts, &buffers),
                    _held: Arc::clone(&held),
                })
                .collect();
            // From here on only the consumer holds the bytes and their budget.
            drop((buffers, held));
            for bytes in row_groups {
                deliver(bytes.shard, bytes.row_group, Ok(bytes));
            }
        }
        Err(error) => {
            drop(held);
            let mut error = Some(error);
            for &row_group in &run.row_groups {
                // An error is not cloneable: the first row group carries it, the others say which one that was.
                let error = error.take().unwrap_or_else(|| DatasetError::SameRequest {
                    place: dataset.place(run.shard, row_group),
                    first: run.row_groups[0],
                });
                deliver(run.shard, row_group, Err(error));
            }
        }
    }
}

/// What of `parts` one row group needs.
fn pieces_of(chunks: &[Range<u64>], parts: &[Range<u64>], buffers: &[Bytes]) -> Vec<(u64, Bytes)> {
    let Some(start) = chunks.first().map(|range| range.start) else {
        return Vec::new();
    };
    let end = chunks.iter().map(|range| range.end).max().unwrap_or(start);
    let mut pieces = Vec::new();
    for (part, buffer) in parts.iter().zip(buffers) {
        let from = part.start.max(start);
        let to = part.end.min(end);
        if from < to {
            let slice = buffer.slice((from - part.start) as usize..(to - part.start) as usize);
            pieces.push((from, slice));
        }
    }
    pieces
}

/// One request, bound to the very object whose footer was read.
async fn read_part(
    reader: &ShardReader,
    range: Range<u64>,
    requests: &Semaphore,
) -> Result<Bytes, DatasetError> {
    if range.is_empty() {
        return Ok(Bytes::new());
    }
    let _slot = requests
        .acquire()
        .await
        .expect("the semaphore of requests is never closed");
    let guard = reader.counting.request();
    let object = &reader.object;
    let place = Place {
        object: object.url.clone(),
        bytes: Some(range.clone()),
        ..Place::default()
    };
    let expected = || match &reader.e_tag {
        Some(e_tag) => format!("ETag {e_tag}"),
        None => format!(
            "{} bytes, as last modified when the data set was opened",
            object.size
        ),
    };
    let replaced = || DatasetError::Replaced {
        place: place.clone(),
        expected: expected(),
    };
    let fail = |error: &object_store::Error| match classify(
        error,
        &object.location,
        place.clone(),
        reader.attempts,
    ) {
        DatasetError::Replaced { .. } => replaced(),
        other => other,
    };
    let options = GetOptions {
        range: Some(GetRange::Bounded(range.clone())),
        if_match: reader.e_tag.clone(),
        ..GetOptions::default()
    };
    let answer = object
        .store
        .get_opts(&object.path, options)
        .await
        .map_err(|error| fail(&error))?;
    // A server may not know If-Match, and has then told us by its headers what it sends.
    let same_version = match (&reader.e_tag, &answer.meta.e_tag) {
        (Some(ours), Some(theirs)) => ours == theirs,
        _ => answer.meta.last_modified.timestamp_millis() == reader.last_modified_ms,
    };
    if !same_version || answer.meta.size != object.size {
        return Err(replaced());
    }
    if answer.range != range {
        let what = crate::error::UnexpectedRange {
            asked: range,
            got: answer.range.clone(),
        };
        return Err(DatasetError::WrongRange {
            place,
            source: crate::error::StoreCause::new(&what),
        });
    }
    let bytes = answer.bytes().await.map_err(|error| fail(&error))?;
    guard.received(bytes.len() as u64);
    if bytes.len() as u64 != range.end - range.start {
        let got = range.start..range.start + bytes.len() as u64;
        let what = crate::error::UnexpectedRange { asked: range, got };
        return Err(DatasetError::WrongRange {
            place,
            source: crate::error::StoreCause::new(&what),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_joined_over_small_gaps_only() {
        assert_eq!(
            coalesce(vec![0..10, 15..20, 40..50], 5),
            vec![0..20, 40..50]
        );
        assert_eq!(coalesce(vec![0..10, 10..20], 0), vec![0..20]);
        assert!(coalesce(Vec::new(), 5).is_empty());
    }

    #[test]
    fn parts_cover_a_range_exactly() {
        for (length, size) in [(0u64, 4u64), (1, 4), (4, 4), (5, 4), (1003, 100), (7, 1)] {
            let parts = split(&(100..100 + length), size);
            assert_eq!(parts.first().unwrap().start, 100);
            assert_eq!(parts.last().unwrap().end, 100 + length);
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(
                parts.iter().all(|part| part.end - part.start <= size),
                "{parts:?}"
            );
        }
    }

    #[test]
    fn only_neighbours_of_the_list_share_a_run() {
        let chunks = |_: u32, row_group: u32| {
            let start = 4 + u64::from(row_group) * 100;
            vec![start..start + 60, start + 62..start + 100]
        };
        let io = IoConfig {
            coalesce_gap_bytes: 8,
            request_bytes: 250,
            ..IoConfig::default()
        };
        let runs = plan(
            &[(0, 0), (0, 1), (1, 2), (0, 2), (0, 1), (0, 5)],
            chunks,
            &io,
        );
        let shapes: Vec<_> = runs
            .iter()
            .map(|run| (run.shard, run.row_groups.clone()))
            .collect();
        assert_eq!(
            shapes,
            [
                (0, vec![0, 1]),
                (1, vec![2]),
                (0, vec![2]),
                (0, vec![1]),
                (0, vec![5])
            ]
        );
        assert_eq!(runs[0].ranges, vec![4..204]);
        // A run stops growing at the size of a request.
        let runs = plan(&[(0, 0), (0, 1), (0, 2), (0, 3)], chunks, &io);
        assert_eq!(
            runs.iter()
                .map(|run| run.row_groups.len())
                .collect::<Vec<_>>(),
            [3, 1]
        );
    }
}
