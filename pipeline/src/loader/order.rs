//! The order of the samples of a lane: a pure function of (sizes of the parts, which of their rows
//! hold images, seed, epoch, lane), entered at any position.
//!
//! All parts of a lane (row groups, or pieces of large ones) are permuted over all shards in each
//! epoch; consecutive ones form a window of bounded bytes; all samples of a window are permuted
//! together. So samples mix over shards and within row groups, and memory stays bounded.
use super::lane::Lane;
use super::part::Part;
use crate::SampleId;
use crate::random::{Purpose, lane_stream, shuffle};

/// Fewest samples in a window of an epoch that has as many, so that a bad sample finds others to
/// replace it.
const MIN_WINDOW_SAMPLES: u64 = 16;

/// The first windows of a run, of all lanes together; each later one may be twice as large, up to
/// the full size. So a run starts before a full window has come.
const FIRST_WINDOW_BYTES: u64 = 16 << 20;

/// Parts whose samples are mixed with each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Window {
    /// Number of the window in its lane's epoch.
    pub index: u64,
    /// Samples of the lane's epoch before this window.
    pub start: u64,
    pub parts: Vec<Part>,
}

impl Window {
    pub(super) fn num_samples(&self) -> u64 {
        let counts = self.parts.iter().map(|part| u64::from(part.num_samples));
        counts.sum()
    }
}

/// The order of one epoch of a lane.
#[derive(Debug)]
pub(super) struct EpochOrder {
    seed: u64,
    epoch: u64,
    lane: Lane,
    shuffled: bool,
    pub windows: Vec<Window>,
}

impl EpochOrder {
    /// The windows of `epoch` of a lane that has these parts. One that would hold more than the
    /// lane's share of `window_bytes` with the next part ends before it, unless it has too few
    /// samples; the last of the epoch joins the one before it if it has too few. The first windows
    /// of epoch 0 are smaller.
    pub(super) fn new(
        parts: &[Part],
        seed: u64,
        epoch: u64,
        shuffled: bool,
        window_bytes: u64,
        lane: Lane,
    ) -> Self {
        let mut parts = parts.to_vec();
        if shuffled {
            let mut rng = lane_stream(seed, epoch, lane.index, u64::MAX, Purpose::Order);
            shuffle(&mut rng, &mut parts);
        }
        let window_bytes = window_bytes / lane.of;
        let mut windows: Vec<Window> = Vec::new();
        let (mut start, mut bytes, mut samples) = (0, 0, 0);
        let mut limit = if epoch == 0 {
            window_bytes.min(FIRST_WINDOW_BYTES / lane.of)
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
            lane,
            shuffled,
            windows,
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The window that holds the `position`-th sample of the lane's epoch, or the number of windows
    /// at its end.
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
            let (lane, index) = (self.lane.index, window.index);
            let mut rng = lane_stream(self.seed, self.epoch, lane, index, Purpose::Order);
            shuffle(&mut rng, &mut samples);
        }
        samples
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::lane::deal;
    use super::*;
    use crate::PartId;
    use crate::random::epoch_stream;

    /// The order of one lane that has everything.
    fn order_of(
        parts: &[Part],
        seed: u64,
        epoch: u64,
        shuffled: bool,
        window_bytes: u64,
    ) -> EpochOrder {
        EpochOrder::new(parts, seed, epoch, shuffled, window_bytes, Lane::WHOLE)
    }

    fn sizes(seed: u64) -> Vec<Part> {
        let mut rng = epoch_stream(seed, 0, 0, Purpose::Replace);
        (0..37)
            .map(|i| {
                let num_samples = 1 + crate::random::below(&mut rng, 40) as u32;
                Part {
                    id: PartId {
                        shard: i / 5,
                        part: i % 5,
                    },
                    row_group: i % 5,
                    first_row: 0,
                    num_rows: 50,
                    num_present: num_samples,
                    skipped: 0,
                    num_samples,
                    memory_bytes: 1 + crate::random::below(&mut rng, 100),
                }
            })
            .collect()
    }

    /// A whole part of so many rows, all of them samples.
    fn part(shard: u32, part: u32, num_rows: u32, memory_bytes: u64) -> Part {
        Part {
            id: PartId { shard, part },
            row_group: part,
            first_row: 0,
            num_rows,
            num_present: num_rows,
            skipped: 0,
            num_samples: num_rows,
            memory_bytes,
        }
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
            let order = order_of(&groups, seed, 3, true, 150);
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
            let order = order_of(&sizes(seed), seed, 0, true, 150);
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
        let groups = [3, 2, 1].map(|num_rows| part(0, num_rows, num_rows, 1000));
        let order = order_of(&groups, 1, 0, true, 10);
        assert_eq!(order.windows.len(), 1);
        assert_eq!(all(&order).len(), 6);
    }

    #[test]
    fn seed_and_epoch_decide() {
        let groups = sizes(1);
        let order = |seed, epoch| all(&order_of(&groups, seed, epoch, true, 500));
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        let natural = all(&order_of(&groups, 1, 0, false, 500));
        assert!(natural.is_sorted());
    }

    /// Digests of the ids, from a program of its own in another language that has the order as it
    /// was before there were lanes.
    #[test]
    fn one_lane_has_the_order_that_there_was_before_lanes() {
        let digest = |samples: Vec<SampleId>| {
            let numbers = samples
                .iter()
                .flat_map(|id| [id.shard, id.row_group, id.row]);
            numbers.fold(0xcbf2_9ce4_8422_2325_u64, |hash, number| {
                (hash ^ u64::from(number)).wrapping_mul(0x100_0000_01b3)
            })
        };
        for (seed, epoch, expected) in [
            (1, 0, 0x08f1_eab2_6e97_4f0e),
            (1, 1, 0x6c8d_3b24_0ea7_ef58),
            (2, 0, 0xb24e_e968_3d15_0cbf),
        ] {
            let parts = Lane::WHOLE.cut(&deal(sizes(seed), seed, true, 1));
            let order = order_of(&parts, seed, epoch, true, 500);
            assert_eq!(digest(all(&order)), expected, "seed {seed}, epoch {epoch}");
        }
    }

    /// The orders of all lanes.
    fn lanes_of(seed: u64, epoch: u64, shuffled: bool, of: u64) -> Vec<EpochOrder> {
        let dealt = deal(sizes(seed), seed, shuffled, of);
        let lanes = (0..of).map(|index| Lane { index, of });
        let order = |lane: Lane| {
            let parts = lane.cut(&dealt);
            EpochOrder::new(&parts, seed, epoch, shuffled, 500, lane)
        };
        lanes.map(order).collect()
    }

    #[test]
    fn every_sample_comes_exactly_once_over_the_lanes() {
        for seed in 0..30 {
            for of in [2, 3, 8] {
                for (epoch, shuffled) in [(0, true), (3, true), (3, false)] {
                    let orders = lanes_of(seed, epoch, shuffled, of);
                    let samples: Vec<SampleId> = orders.iter().flat_map(all).collect();
                    let total: u64 = sizes(seed).iter().map(|p| u64::from(p.num_samples)).sum();
                    assert_eq!(samples.len() as u64, total, "seed {seed}, {of} lanes");
                    let distinct: HashSet<_> = samples.iter().collect();
                    assert_eq!(distinct.len(), samples.len(), "seed {seed}, {of} lanes");
                    for (order, index) in orders.iter().zip(0..) {
                        let share = Lane { index, of }.share(total);
                        assert_eq!(all(order).len() as u64, share);
                        // Each window has others to stand in for a bad sample.
                        let windows = &order.windows;
                        let least = share.min(MIN_WINDOW_SAMPLES);
                        assert!(windows.iter().all(|w| w.num_samples() >= least));
                    }
                }
            }
        }
    }

    #[test]
    fn a_lane_keeps_its_samples_and_has_windows_of_its_share() {
        let (first, second) = (lanes_of(1, 1, true, 4), lanes_of(1, 2, true, 4));
        for (lane, (first, second)) in first.iter().zip(&second).enumerate() {
            let (mut one, mut other) = (all(first), all(second));
            assert_ne!(one, other, "another order in each epoch");
            one.sort_unstable();
            other.sort_unstable();
            assert_eq!(one, other, "the same samples in lane {lane}");
            let last = first.windows.last();
            for window in &first.windows {
                let bytes = |parts: &[Part]| parts.iter().map(|p| p.memory_bytes).sum::<u64>();
                let samples = |parts: &[Part]| parts.iter().map(|p| p.num_samples).sum::<u32>();
                let before = &window.parts[..window.parts.len() - 1];
                let few = u64::from(samples(before)) < MIN_WINDOW_SAMPLES;
                assert!(bytes(&window.parts) <= 125 || few || last == Some(window));
            }
        }
        // Lanes of equal parts are shuffled by numbers of their own.
        let parts: Vec<Part> = (0..4).map(|i| part(i, 0, 100, 10)).collect();
        let order = |index| EpochOrder::new(&parts, 1, 0, true, 1 << 20, Lane { index, of: 2 });
        assert_ne!(all(&order(0)), all(&order(1)));
    }

    #[test]
    fn samples_mix_over_shards_and_within_row_groups() {
        let groups: Vec<Part> = (0..8).map(|i| part(i, 0, 100, 10)).collect();
        let samples = all(&order_of(&groups, 7, 0, true, 40));
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
        let groups: Vec<Part> = (0..400).map(|i| part(i, 0, 100, 8 << 20)).collect();
        let sizes = |epoch, window_bytes| -> Vec<usize> {
            let order = order_of(&groups, 7, epoch, true, window_bytes);
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
