//! The order of samples: a pure function of (sizes of the row groups, seed, epoch), entered at any position.
//!
//! All row groups of an epoch are permuted over all shards; consecutive ones form a window of bounded bytes; all samples
//! of a window are permuted together. So samples mix over shards and within row groups, and memory stays bounded.
use crate::random::{Purpose, epoch_stream, shuffle};
use crate::{SampleId, Shard};

/// Fewest samples in a window of an epoch that has as many, so that a bad sample finds others to replace it.
const MIN_WINDOW_SAMPLES: u64 = 16;

/// A row group as the order sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "the names are those of SampleId")]
pub(super) struct RowGroup {
    pub shard: u32,
    pub row_group: u32,
    pub num_rows: u32,
    pub memory_bytes: u64,
}

/// All row groups with rows, in the order of the data set.
pub(super) fn row_groups(shards: &[Shard]) -> Vec<RowGroup> {
    let mut all = Vec::new();
    for (shard, info) in shards.iter().enumerate() {
        for (row_group, info) in info.row_groups.iter().enumerate() {
            if info.num_rows > 0 {
                all.push(RowGroup {
                    shard: shard as u32,
                    row_group: row_group as u32,
                    num_rows: info.num_rows,
                    memory_bytes: info.memory_bytes.max(info.fetch_bytes),
                });
            }
        }
    }
    all
}

/// Row groups whose samples are mixed with each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Window {
    /// Number of the window in its epoch.
    pub index: u64,
    /// Samples of the epoch before this window.
    pub start: u64,
    pub row_groups: Vec<RowGroup>,
}

impl Window {
    pub(super) fn num_samples(&self) -> u64 {
        self.row_groups
            .iter()
            .map(|row_group| u64::from(row_group.num_rows))
            .sum()
    }
}

/// The order of one epoch.
#[derive(Debug)]
pub(super) struct EpochOrder {
    seed: u64,
    epoch: u64,
    shuffled: bool,
    pub windows: Vec<Window>,
}

impl EpochOrder {
    /// The windows of `epoch`. One that would hold more than `window_bytes` with the next row group ends before it, unless
    /// it has too few samples; the last of the epoch joins the one before it if it has too few.
    pub(super) fn new(
        row_groups: &[RowGroup],
        seed: u64,
        epoch: u64,
        shuffled: bool,
        window_bytes: u64,
    ) -> Self {
        let mut row_groups = row_groups.to_vec();
        if shuffled {
            shuffle(
                &mut epoch_stream(seed, epoch, u64::MAX, Purpose::Order),
                &mut row_groups,
            );
        }
        let mut windows: Vec<Window> = Vec::new();
        let (mut start, mut bytes, mut samples) = (0, 0, 0);
        for row_group in row_groups {
            let fits = bytes + row_group.memory_bytes <= window_bytes;
            match windows.last_mut() {
                Some(window) if fits || samples < MIN_WINDOW_SAMPLES => {
                    window.row_groups.push(row_group);
                }
                _ => {
                    (bytes, samples) = (0, 0);
                    windows.push(Window {
                        index: windows.len() as u64,
                        start,
                        row_groups: vec![row_group],
                    });
                }
            }
            bytes += row_group.memory_bytes;
            samples += u64::from(row_group.num_rows);
            start += u64::from(row_group.num_rows);
        }
        if samples < MIN_WINDOW_SAMPLES
            && windows.len() > 1
            && let Some(last) = windows.pop()
            && let Some(window) = windows.last_mut()
        {
            window.row_groups.extend(last.row_groups);
        }
        Self {
            seed,
            epoch,
            shuffled,
            windows,
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The window that holds the `position`-th sample of the epoch, or the number of windows at its end.
    pub(super) fn window_at(&self, position: u64) -> usize {
        self.windows
            .partition_point(|window| window.start + window.num_samples() <= position)
    }

    /// The samples of a window, in order.
    pub(super) fn samples(&self, window: &Window) -> Vec<SampleId> {
        let mut samples: Vec<SampleId> = window
            .row_groups
            .iter()
            .flat_map(|group| {
                (0..group.num_rows).map(|row| SampleId {
                    shard: group.shard,
                    row_group: group.row_group,
                    row,
                })
            })
            .collect();
        if self.shuffled {
            shuffle(
                &mut epoch_stream(self.seed, self.epoch, window.index, Purpose::Order),
                &mut samples,
            );
        }
        samples
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn sizes(seed: u64) -> Vec<RowGroup> {
        let mut rng = epoch_stream(seed, 0, 0, Purpose::Replace);
        (0..37)
            .map(|i| RowGroup {
                shard: i / 5,
                row_group: i % 5,
                num_rows: 1 + crate::random::below(&mut rng, 40) as u32,
                memory_bytes: 1 + crate::random::below(&mut rng, 100),
            })
            .collect()
    }

    fn all(order: &EpochOrder) -> Vec<SampleId> {
        order
            .windows
            .iter()
            .flat_map(|window| order.samples(window))
            .collect()
    }

    #[test]
    fn every_sample_comes_exactly_once() {
        for seed in 0..50 {
            let groups = sizes(seed);
            let order = EpochOrder::new(&groups, seed, 3, true, 150);
            let samples = all(&order);
            let total: u64 = groups.iter().map(|group| u64::from(group.num_rows)).sum();
            assert_eq!(samples.len() as u64, total, "seed {seed}");
            assert_eq!(
                samples.iter().collect::<HashSet<_>>().len() as u64,
                total,
                "seed {seed}"
            );
        }
    }

    #[test]
    fn windows_are_bounded_and_found_by_position() {
        for seed in 0..50 {
            let order = EpochOrder::new(&sizes(seed), seed, 0, true, 150);
            let last = order.windows.last().unwrap();
            for (i, window) in order.windows.iter().enumerate() {
                let groups = &window.row_groups;
                let bytes = |groups: &[RowGroup]| -> u64 {
                    groups.iter().map(|group| group.memory_bytes).sum()
                };
                let rows = |groups: &[RowGroup]| -> u64 {
                    groups.iter().map(|group| u64::from(group.num_rows)).sum()
                };
                assert!(rows(groups) >= MIN_WINDOW_SAMPLES, "seed {seed}");
                // Only for want of samples is a window larger; the last one may have taken a short rest in.
                let before = &groups[..groups.len() - 1];
                assert!(
                    bytes(groups) <= 150 || rows(before) < MIN_WINDOW_SAMPLES || window == last,
                    "seed {seed}"
                );
                assert_eq!(order.window_at(window.start), i);
                assert_eq!(order.window_at(window.start + window.num_samples() - 1), i);
            }
            assert_eq!(
                order.window_at(last.start + last.num_samples()),
                order.windows.len()
            );
        }
    }

    #[test]
    fn an_epoch_with_few_samples_is_one_window() {
        let groups = [3, 2, 1].map(|num_rows| RowGroup {
            shard: 0,
            row_group: num_rows,
            num_rows,
            memory_bytes: 1000,
        });
        let order = EpochOrder::new(&groups, 1, 0, true, 10);
        assert_eq!(order.windows.len(), 1);
        assert_eq!(all(&order).len(), 6);
    }

    #[test]
    fn seed_and_epoch_decide() {
        let groups = sizes(1);
        let order = |seed, epoch| all(&EpochOrder::new(&groups, seed, epoch, true, 500));
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        let natural = all(&EpochOrder::new(&groups, 1, 0, false, 500));
        assert!(natural.is_sorted());
    }

    #[test]
    fn samples_mix_over_shards_and_within_row_groups() {
        let groups: Vec<RowGroup> = (0..8)
            .map(|i| RowGroup {
                shard: i,
                row_group: 0,
                num_rows: 100,
                memory_bytes: 10,
            })
            .collect();
        let samples = all(&EpochOrder::new(&groups, 7, 0, true, 40));
        let shards: HashSet<u32> = samples[..64].iter().map(|id| id.shard).collect();
        assert_eq!(
            shards.len(),
            4,
            "a window of four row groups shows all four in its first samples"
        );
        let neighbours = samples.windows(2).filter(|pair| {
            pair[0].shard == pair[1].shard && pair[0].row.abs_diff(pair[1].row) == 1
        });
        assert!(
            neighbours.count() < 20,
            "rows that lie side by side are torn apart"
        );
    }
}
