//! Which bytes are asked for, in which requests: neighbouring columns and parts as one, large
//! ranges in several requests.
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;

use super::{Dataset, PartBytes};
use crate::store::{Cache, HeldBytes, IoConfig, Provider};
#[cfg(not(nepa_interleavings))]
use crate::sync::{Receiver, unbounded};
use crate::{DatasetError, PartId};

/// What became of a part that was asked for. Parts that were fetched in one request share its
/// error.
pub(crate) type FetchedPart = Result<PartBytes, Arc<DatasetError>>;

/// Is told once of each part, on an I/O thread; must not block.
pub(crate) type Deliver = Arc<dyn Fn(PartId, FetchedPart) + Send + Sync>;

/// A fetch in progress. Dropping it stops what is still waiting or in flight.
#[cfg(not(nepa_interleavings))]
#[derive(Debug)]
pub(crate) struct FetchTask {
    /// Aborts its task when dropped.
    _task: tokio::task::JoinSet<()>,
}

#[cfg(not(nepa_interleavings))]
impl FetchTask {
    /// Starts to fetch `parts` and delivers each as it comes, on an I/O thread.
    pub(crate) fn new(dataset: &Arc<Dataset>, parts: &[PartId], deliver: Deliver) -> Self {
        let ranges = |id: PartId| dataset.part(id).ranges.clone();
        let runs = plan(parts, ranges, &dataset.io.config);
        let mut task = tokio::task::JoinSet::new();
        let all = run_all(Arc::clone(dataset), runs, deliver);
        dataset.io.runtime.spawn_in(&mut task, all);
        Self { _task: task }
    }
}

#[cfg(not(nepa_interleavings))]
impl Dataset {
    /// Fetches the columns of `parts`, concurrently within the limits, and gives them in the order
    /// in which they come. The budget of [`crate::IoConfig::max_bytes`] is taken in the order of
    /// the list, so whoever consumes in that order never waits for bytes that its own later parts
    /// hold.
    pub fn fetch(self: &Arc<Self>, parts: &[PartId]) -> Fetch {
        Fetch::new(self, parts)
    }
}

/// Parts as they come; see [`Dataset::fetch`]. Dropping it stops what is still waiting or in
/// flight.
#[cfg(not(nepa_interleavings))]
#[derive(Debug)]
pub struct Fetch {
    arrived: Receiver<(PartId, FetchedPart)>,
    _task: FetchTask,
}

#[cfg(not(nepa_interleavings))]
impl Fetch {
    pub(super) fn new(dataset: &Arc<Dataset>, parts: &[PartId]) -> Self {
        let (sender, arrived) = unbounded();
        // Nobody listens to a fetch that was dropped.
        let deliver = move |id, fetched| drop(sender.send((id, fetched)));
        Self {
            arrived,
            _task: FetchTask::new(dataset, parts, Arc::new(deliver)),
        }
    }
}

#[cfg(not(nepa_interleavings))]
impl Iterator for Fetch {
    type Item = (PartId, Result<PartBytes, Arc<DatasetError>>);

    /// Waits for the next part; `None` when all have come.
    fn next(&mut self) -> Option<Self::Item> {
        self.arrived.recv().ok()
    }
}

/// Parts of one shard that are fetched together, and the ranges that hold them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub shard: u32,
    pub parts: Vec<u32>,
    pub ranges: Vec<Range<u64>>,
}

impl Run {
    fn part(&self, part: u32) -> PartId {
        PartId {
            shard: self.shard,
            part,
        }
    }

    fn num_bytes(&self) -> u64 {
        self.ranges
            .iter()
            .map(|range| range.end - range.start)
            .sum()
    }
}

/// Puts neighbours of the list that lie close together in one shard into one run. Only neighbours
/// of the list: whoever consumes in its order must never hold back the budget for something later.
pub(super) fn plan(
    parts: &[PartId],
    ranges_of: impl Fn(PartId) -> Vec<Range<u64>>,
    io: &IoConfig,
) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &id in parts {
        let PartId { shard, part } = id;
        let ranges = coalesce(ranges_of(id), io.coalesce_gap_bytes);
        if let Some(last) = runs.last_mut()
            && last.shard == shard
            && last.num_bytes() < io.request_bytes
            && let (Some(before), Some(next)) = (last.ranges.last(), ranges.first())
            && next.start >= before.end
            && next.start - before.end <= io.coalesce_gap_bytes
        {
            last.parts.push(part);
            let joined = last.ranges.drain(..).chain(ranges).collect();
            last.ranges = coalesce(joined, io.coalesce_gap_bytes);
        } else {
            runs.push(Run {
                shard,
                parts: vec![part],
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

/// Cuts a range into requests of nearly the same size, at most `request_bytes` each.
fn split(range: &Range<u64>, request_bytes: u64) -> Vec<Range<u64>> {
    let length = range.end - range.start;
    let count = length.div_ceil(request_bytes.max(1)).max(1);
    (0..count)
        .map(|i| range.start + length * i / count..range.start + length * (i + 1) / count)
        .collect()
}

/// Runs one `fetch`: takes the budget in the order of the list, then lets the requests go side by
/// side.
pub(super) async fn run_all(dataset: Arc<Dataset>, runs: Vec<Run>, deliver: Deliver) {
    let mut tasks = tokio::task::JoinSet::new();
    for run in runs {
        let held = dataset.io.budget.take(run.num_bytes()).await;
        let dataset = Arc::clone(&dataset);
        let deliver = Arc::clone(&deliver);
        tasks.spawn(async move { run_one(&dataset, &run, held, &deliver).await });
        while tasks.try_join_next().is_some() {}
    }
    // Dropping the set would abort what is still in flight; cancelling this future shall do that,
    // finishing shall not.
    while tasks.join_next().await.is_some() {}
}

async fn run_one(dataset: &Arc<Dataset>, run: &Run, held: Arc<HeldBytes>, deliver: &Deliver) {
    let cached = cached(dataset, run).await;
    let bytes = |(part, pieces)| PartBytes {
        shards: Arc::clone(&dataset.shards),
        id: run.part(part),
        pieces,
        _held: Arc::clone(&held),
    };
    if cached.iter().all(Option::is_some) {
        let pieces = cached.into_iter().flatten();
        let parts: Vec<_> = run.parts.iter().copied().zip(pieces).map(bytes).collect();
        drop(held);
        for bytes in parts {
            deliver(bytes.id, Ok(bytes));
        }
        return;
    }
    let io = &dataset.io;
    let shard = &dataset.shards[run.shard as usize];
    let requests: Vec<_> = run
        .ranges
        .iter()
        .flat_map(|range| split(range, io.config.request_bytes))
        .collect();
    let asked = requests.iter();
    let asked = asked.map(|range| io.requests.read(&shard.object, range.clone()));
    match try_join_all(asked).await {
        Ok(buffers) => {
            let pieces = |&part: &u32| {
                let ranges = &shard.parts[part as usize].ranges;
                (part, pieces_of(ranges, &requests, &buffers))
            };
            let parts: Vec<_> = run.parts.iter().map(pieces).map(bytes).collect();
            keep(dataset, &parts, &cached).await;
            // From here on only the consumer holds the bytes and their budget.
            drop((buffers, held));
            for bytes in parts {
                deliver(bytes.id, Ok(bytes));
            }
        }
        Err(error) => {
            drop(held);
            let error = Arc::new(dataset.read_error(run.shard, error));
            for &part in &run.parts {
                deliver(run.part(part), Err(Arc::clone(&error)));
            }
        }
    }
}

/// The cache, where a shard's parts are kept in it, and the URL and the version that they are of.
fn cache_of(dataset: &Dataset, shard: u32) -> Option<(Arc<Cache>, String, String)> {
    let cache = dataset.io.cache.as_ref()?;
    let object = &dataset.shards[shard as usize].object;
    if object.listed.location.provider == Provider::Local {
        return None;
    }
    Some((
        Arc::clone(cache),
        object.listed.url.clone(),
        object.version(),
    ))
}

/// The pieces of each part of a run that the cache holds.
async fn cached(dataset: &Dataset, run: &Run) -> Vec<Option<Vec<(u64, Bytes)>>> {
    let Some((cache, url, version)) = cache_of(dataset, run.shard) else {
        return vec![None; run.parts.len()];
    };
    let ranges_of = |&part: &u32| dataset.part(run.part(part)).ranges.clone();
    let ranges: Vec<_> = run.parts.iter().map(ranges_of).collect();
    let count = ranges.len();
    let read = move || -> Vec<_> {
        let read = |ranges: &Vec<Range<u64>>| cache.read(&url, &version, ranges);
        ranges.iter().map(read).collect()
    };
    // A reader that panicked or was cancelled has found nothing.
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|_| vec![None; count])
}

/// Puts the parts that the cache did not hold into it.
async fn keep(dataset: &Dataset, parts: &[PartBytes], cached: &[Option<Vec<(u64, Bytes)>>]) {
    let Some(shard) = parts.first().map(|bytes| bytes.id.shard) else {
        return;
    };
    let Some((cache, url, version)) = cache_of(dataset, shard) else {
        return;
    };
    let entries: Vec<_> = parts
        .iter()
        .zip(cached)
        .filter(|(_, cached)| cached.is_none())
        .map(|(bytes, _)| (dataset.part(bytes.id).ranges.clone(), bytes.pieces.clone()))
        .collect();
    let write = move || {
        for (ranges, pieces) in entries {
            let bytes = cut_out(&ranges, &pieces);
            cache.write(&url, &version, &ranges, &bytes);
        }
    };
    // Whatever goes wrong there, the parts are here.
    let _ = tokio::task::spawn_blocking(write).await;
}

/// The bytes of `ranges`, one after the other, which sorted `pieces` cover.
fn cut_out(ranges: &[Range<u64>], pieces: &[(u64, Bytes)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for range in ranges {
        for (start, piece) in pieces {
            let from = range.start.max(*start);
            let to = range.end.min(start + piece.len() as u64);
            if from < to {
                bytes.extend_from_slice(&piece[(from - start) as usize..(to - start) as usize]);
            }
        }
    }
    bytes
}

/// What of `requests` one part needs.
fn pieces_of(
    chunks: &[Range<u64>],
    requests: &[Range<u64>],
    buffers: &[Bytes],
) -> Vec<(u64, Bytes)> {
    let Some(start) = chunks.first().map(|range| range.start) else {
        return Vec::new();
    };
    let end = chunks.iter().map(|range| range.end).max().unwrap_or(start);
    let mut pieces = Vec::new();
    for (range, buffer) in requests.iter().zip(buffers) {
        let from = range.start.max(start);
        let to = range.end.min(end);
        if from < to {
            let slice = buffer.slice((from - range.start) as usize..(to - range.start) as usize);
            pieces.push((from, slice));
        }
    }
    pieces
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
    fn requests_cover_a_range_exactly() {
        for (length, size) in [(0u64, 4u64), (1, 4), (4, 4), (5, 4), (1003, 100), (7, 1)] {
            let requests = split(&(100..100 + length), size);
            assert_eq!(requests.first().unwrap().start, 100);
            assert_eq!(requests.last().unwrap().end, 100 + length);
            assert!(requests.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(
                requests.iter().all(|range| range.end - range.start <= size),
                "{requests:?}"
            );
        }
    }

    #[test]
    fn only_neighbours_of_the_list_share_a_run() {
        let ranges = |id: PartId| {
            let start = 4 + u64::from(id.part) * 100;
            vec![start..start + 60, start + 62..start + 100]
        };
        let io = IoConfig {
            coalesce_gap_bytes: 8,
            request_bytes: 250,
            ..IoConfig::default()
        };
        let ids = |parts: &[(u32, u32)]| -> Vec<PartId> {
            let id = |&(shard, part)| PartId { shard, part };
            parts.iter().map(id).collect()
        };
        let list = ids(&[(0, 0), (0, 1), (1, 2), (0, 2), (0, 1), (0, 5)]);
        let runs = plan(&list, ranges, &io);
        let shapes: Vec<_> = runs
            .iter()
            .map(|run| (run.shard, run.parts.clone()))
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
        let runs = plan(&ids(&[(0, 0), (0, 1), (0, 2), (0, 3)]), ranges, &io);
        assert_eq!(
            runs.iter().map(|run| run.parts.len()).collect::<Vec<_>>(),
            [3, 1]
        );
    }
}
