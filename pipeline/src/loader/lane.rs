//! Lanes: equal shares of a data set, each shuffled and read by itself, so that a rank fetches its
//! own lanes and nothing else, and batches are the same for every number of ranks.
//!
//! The parts are permuted once and cut into as many ranges as there are lanes, of the same number
//! of samples to within one. A lane has the same samples in every epoch, so what a rank's local
//! cache holds is of use in the next one; only a part in which a range begins or ends is read for
//! two lanes.
use std::ops::Range;

use super::part::Part;
use crate::random::{Purpose, epoch_stream, shuffle};

/// Takes the place of an epoch in the random stream of the deal.
const NO_EPOCH: u64 = u64::MAX;

/// One of the lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lane {
    pub index: u64,
    /// Number of lanes.
    pub of: u64,
}

impl Lane {
    /// The whole data set.
    #[cfg(test)]
    pub(super) const WHOLE: Self = Self { index: 0, of: 1 };

    /// How many of `num_samples` it has. The shares of all lanes add up to them, and differ by one
    /// at most.
    pub(super) fn share(self, num_samples: u64) -> u64 {
        num_samples / self.of + u64::from(self.index < num_samples % self.of)
    }

    /// Which of `num_samples` it has.
    fn range(self, num_samples: u64) -> Range<u64> {
        let start = num_samples / self.of * self.index + self.index.min(num_samples % self.of);
        start..start + self.share(num_samples)
    }

    /// What it has of dealt parts.
    pub(super) fn cut(self, dealt: &[Part]) -> Vec<Part> {
        let total = dealt.iter().map(|part| u64::from(part.num_samples)).sum();
        let range = self.range(total);
        let mut end = 0;
        let own = dealt.iter().filter_map(|part| {
            let start = end;
            end += u64::from(part.num_samples);
            let (from, to) = (range.start.max(start), range.end.min(end));
            (from < to).then(|| Part {
                skipped: part.skipped + (from - start) as u32,
                num_samples: (to - from) as u32,
                ..*part
            })
        });
        own.collect()
    }
}

/// The parts of a data set in the order in which the lanes are cut out of them.
pub(super) fn deal(mut parts: Vec<Part>, seed: u64, shuffled: bool, lanes: u64) -> Vec<Part> {
    // One lane has all of them anyhow.
    if shuffled && lanes > 1 {
        let mut rng = epoch_stream(seed, NO_EPOCH, u64::MAX, Purpose::Order);
        shuffle(&mut rng, &mut parts);
    }
    parts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::PartId;
    use crate::random::below;

    fn parts(seed: u64, count: u32) -> Vec<Part> {
        let mut rng = epoch_stream(seed, 0, 0, Purpose::Replace);
        let sizes = (0..count).map(|part| (part, 1 + below(&mut rng, 40) as u32));
        let part = |(part, num_rows): (u32, u32)| Part {
            id: PartId { shard: 0, part },
            row_group: part,
            first_row: 0,
            num_rows,
            num_present: num_rows,
            skipped: 0,
            num_samples: num_rows,
            memory_bytes: 10,
        };
        sizes.map(part).collect()
    }

    #[test]
    fn the_shares_of_all_lanes_are_all_and_differ_by_one_at_most() {
        for of in [1, 2, 3, 8, 64] {
            for num_samples in [0, 1, 7, 8, 63, 64, 1000, 1_281_167] {
                let lanes = (0..of).map(|index| Lane { index, of });
                let mut next = 0;
                for lane in lanes {
                    let range = lane.range(num_samples);
                    assert_eq!(range.start, next);
                    next = range.end;
                    let share = lane.share(num_samples);
                    assert_eq!(range.end - range.start, share);
                    assert!((num_samples / of..=num_samples.div_ceil(of)).contains(&share));
                }
                assert_eq!(next, num_samples);
            }
        }
    }

    #[test]
    fn each_sample_is_dealt_to_one_lane_and_few_parts_to_two() {
        for seed in 0..20 {
            let parts = parts(seed, 60);
            for of in [1, 2, 5, 8] {
                let dealt = deal(parts.clone(), seed, true, of);
                let mut samples: BTreeMap<_, u32> = BTreeMap::new();
                let mut pieces = 0;
                for index in 0..of {
                    let own = Lane { index, of }.cut(&dealt);
                    pieces += own.len();
                    for sample in own.iter().flat_map(Part::first_samples) {
                        *samples.entry(sample).or_default() += 1;
                    }
                }
                let total: u32 = parts.iter().map(|part| part.num_samples).sum();
                assert_eq!(samples.len() as u32, total);
                assert!(samples.values().all(|&times| times == 1));
                assert!(pieces < parts.len() + of as usize, "{pieces} of {of} lanes");
            }
        }
    }

    #[test]
    fn one_lane_leaves_the_parts_as_they_are_and_several_are_dealt_at_random() {
        let parts = parts(1, 60);
        assert_eq!(Lane::WHOLE.cut(&deal(parts.clone(), 1, true, 1)), parts);
        assert_eq!(deal(parts.clone(), 1, false, 4), parts);
        let dealt = deal(parts.clone(), 1, true, 4);
        assert_ne!(dealt, parts);
        assert_eq!(dealt, deal(parts.clone(), 1, true, 8), "however many lanes");
        assert_ne!(dealt, deal(parts, 2, true, 4));
    }
}
