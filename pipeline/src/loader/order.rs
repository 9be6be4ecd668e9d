//! The order of samples: a pure function of (sizes of the parts, which of their rows hold images,
//! seed, epoch), entered at any position.
//!
//! All parts of an epoch (row groups, or pieces of large ones) are permuted over all shards;
//! consecutive ones form a window of bounded bytes; all samples of a window are permuted together.
//! So samples mix over shards and within row groups, and memory stays bounded.
use crate::random::{Purpose, epoch_stream, shuffle};
use crate::{PartId, SampleId, Shard};

/// Fewest samples in a window of an epoch that has as many, so that a bad sample finds others to
/// replace it.
const MIN_WINDOW_SAMPLES: u64 = 16;

/// The first window of a run; each later one may be twice as large, up to the full size. So a run
/// starts before a full window has come.
const FIRST_WINDOW_BYTES: u64 = 16 << 20;

/// A part of a shard as the order sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub id: PartId,
    pub row_group: u32,
    pub first_row: u32,
    pub num_rows: u32,
    /// Rows that hold an image. Which ones they are is known when the part is unpacked.
    pub num_samples: u32,
    pub memory_bytes: u64,
}

impl Part {
    /// The sample in one of its rows.
    pub(super) fn sample(&self, row: u32) -> SampleId {
        SampleId {
            shard: self.id.shard,
            row_group: self.row_group,
            row: self.first_row + row,
        }
    }

    /// As many samples as it has, by its first rows: those that it has only where no row is without
    /// an image.
    pub(super) fn first_samples(&self) -> impl Iterator<Item = SampleId> + use<> {
        let part = *self;
        (0..part.num_samples).map(move |row| part.sample(row))
    }
}

/// All parts with samples, in the order of the data set.
pub(super) fn parts(shards: &[Shard]) -> Vec<Part> {
    let mut all = Vec::new();
    for (shard, content) in (0..).zip(shards) {
        for (part, info) in (0..).zip(&content.parts) {
            if info.num_samples() > 0 {
                all.push(Part {
                    id: PartId { shard, part },
                    row_group: info.row_group,
                    first_row: info.first_row,
                    num_rows: info.num_rows,
                    num_samples: info.num_samples(),
                    memory_bytes: info.memory_bytes.max(info.fetch_bytes),
                });
            }
        }
    }
    all
}

/// Parts whose samples are mixed with each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Window {
    /// Number of the window in its epoch.
    pub index: u64,
    /// Samples of the epoch before this window.
    pub start: u64,
    pub parts: Vec<Part>,
}

impl Window {
    pub(super) fn num_samples(&self) -> u64 {
        let counts = self.parts.iter().map(|part| u64::from(part.num_samples));
        counts.sum()
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
    /// The windows of `epoch`. One that would hold more than `window_bytes` with the next part ends
    /// before it, unless it has too few samples; the last of the epoch joins the one before it if
    /// it has too few. The first windows of epoch 0 are smaller.
    pub(super) fn new(
        parts: &[Part],
        seed: u64,
        epoch: u64,
        shuffled: bool,
        window_bytes: u64,
    ) -> Self {
        let mut parts = parts.to_vec();
        if shuffled {
            shuffle(
                &mut epoch_stream(seed, epoch, u64::MAX, Purpose::Order),
                &mut parts,
            );
        }
        let mut windows: Vec<Window> = Vec::new();
        let (mut start, mut bytes, mut samples) = (0, 0, 0);
        let mut limit = if epoch == 0 {
            window_bytes.min(FIRST_WINDOW_BYTES)
        } else {
            window_bytes
        };
        for part in parts {
            let fits = part.memory_bytes.saturating_add(bytes) <= limit;
            match windows.last_mut() {
                Some(window) if fits || samples < MIN_WINDOW_SAMPLES => window.parts.push(part),
                last => {
                    if last.is_some() {
                        limit = limit.saturating_mul(2).min(window_bytes);
                    }
                    (bytes, samples) = (0, 0);
                    windows.push(Window {
                        index: windows.len() as u64,
                        start,
                        parts: vec![part],
                    });
                }
            }
            bytes = part.memory_bytes.saturating_add(bytes);
            samples += u64::from(part.num_samples);
            start += u64::from(part.num_samples);
        }
        if samples < MIN_WINDOW_SAMPLES
            && windows.len() > 1
            && let Some(last) = windows.pop()
            && let Some(window) = windows.last_mut()
        {
            window.parts.extend(last.parts);
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

    /// The window that holds the `position`-th sample of the epoch, or the number of windows at its
    /// end.
    pub(super) fn window_at(&self, position: u64) -> usize {
        self.windows
            .partition_point(|window| window.start + window.num_samples() <= position)
    }

    /// The samples of a window, in order. `of_part` gives those of a part in the order of the file,
    /// `num_samples` of them.
    pub(super) fn samples<S: Iterator<Item = SampleId>>(
        &self,
        window: &Window,
        of_part: impl FnMut(&Part) -> S,
    ) -> Vec<SampleId> {
        let mut samples: Vec<SampleId> = window.parts.iter().flat_map(of_part).collect();
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

    fn sizes(seed: u64) -> Vec<Part> {
        let mut rng = epoch_stream(seed, 0, 0, Purpose::Replace);
        (0..37)
            .map(|i| Part {
                id: PartId {
                    shard: i / 5,
                    part: i % 5,
                },
                row_group: i % 5,
                first_row: 0,
                num_rows: 50,
                num_samples: 1 + crate::random::below(&mut rng, 40) as u32,
                memory_bytes: 1 + crate::random::below(&mut rng, 100),
            })
            .collect()
    }

    fn all(order: &EpochOrder) -> Vec<SampleId> {
        order
            .windows
            .iter()
            .flat_map(|window| order.samples(window, Part::first_samples))
            .collect()
    }

    #[test]
    fn every_sample_comes_exactly_once() {
        for seed in 0..50 {
            let groups = sizes(seed);
            let order = EpochOrder::new(&groups, seed, 3, true, 150);
            let samples = all(&order);
            let total: u64 = groups
                .iter()
                .map(|group| u64::from(group.num_samples))
                .sum();
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
                let groups = &window.parts;
                let bytes = |groups: &[Part]| -> u64 {
                    groups.iter().map(|group| group.memory_bytes).sum()
                };
                let rows = |groups: &[Part]| -> u64 {
                    groups
                        .iter()
                        .map(|group| u64::from(group.num_samples))
                        .sum()
                };
                assert!(rows(groups) >= MIN_WINDOW_SAMPLES, "seed {seed}");
                // Only for want of samples is a window larger; the last one may have taken a short
                // rest in.
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
        let groups = [3, 2, 1].map(|num_rows| Part {
            id: PartId {
                shard: 0,
                part: num_rows,
            },
            row_group: num_rows,
            first_row: 0,
            num_rows,
            num_samples: num_rows,
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
        let groups: Vec<Part> = (0..8)
            .map(|i| Part {
                id: PartId { shard: i, part: 0 },
                row_group: 0,
                first_row: 0,
                num_rows: 100,
                num_samples: 100,
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

    #[test]
    fn a_run_begins_with_small_windows() {
        let groups: Vec<Part> = (0..400)
            .map(|i| Part {
                id: PartId { shard: i, part: 0 },
                row_group: 0,
                first_row: 0,
                num_rows: 100,
                num_samples: 100,
                memory_bytes: 8 << 20,
            })
            .collect();
        let sizes = |epoch, window_bytes| -> Vec<usize> {
            let order = EpochOrder::new(&groups, 7, epoch, true, window_bytes);
            order
                .windows
                .iter()
                .map(|window| window.parts.len())
                .collect()
        };
        assert_eq!(sizes(0, 1 << 30)[..6], [2, 4, 8, 16, 32, 64]);
        assert_eq!(sizes(0, 1 << 30)[6], 128);
        assert_eq!(sizes(1, 1 << 30)[0], 128);
        assert_eq!(sizes(0, 8 << 20), [1; 400]);
    }
}
