//! Which samples a batch holds: of one data set its next ones, of a mixture of several their
//! shares, as pure functions of (epoch, batch). Each lane gives as many to every batch, from its
//! own share of each data set; a rank takes those of its lanes.
//!
//! In a mixture, the first n samples of lane l of L hold `f(n, W_next) - f(n, W)` of each data set,
//! W being the shares summed up in their order and `f(n, W) = floor(n * W + l / L)`. The sum of
//! `floor(x + l / L)` over all l is `floor(L * x)` (Hermite), so all lanes together hold what one
//! lane would: every batch has the right shares to within one sample, and how many came before is
//! known without counting. Each lane of a data set has epochs of its own, which do not end with the
//! mixture's. Within a lane's part of a batch the data sets are permuted, so that ranks which share
//! a lane get their shares, too.
use std::ops::Range;

use super::lane::{Lane, deal};
use super::order::EpochOrder;
use super::part::{self, Part};
use crate::Dataset;
use crate::random::{Purpose, lane_stream, shuffle};

/// A sample by its place in the order of a lane of its data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SamplePlace {
    /// Index of the walk, as in [`Mixture::sources`].
    pub walk: usize,
    /// Epoch of the data set.
    pub epoch: u64,
    /// Position in the lane's order of that epoch.
    pub index: u64,
}

/// What the walk through one lane of a data set needs.
#[derive(Debug)]
pub(super) struct LaneSource {
    parts: Vec<Part>,
    lane: Lane,
    seed: u64,
    shuffle: bool,
    /// Of all lanes together.
    window_bytes: u64,
    /// Samples of an epoch that some batch uses.
    pub used_samples: u64,
    /// Epochs to walk; `None` means without end.
    pub epochs: Option<u64>,
}

impl LaneSource {
    pub(super) fn order(&self, epoch: u64) -> EpochOrder {
        EpochOrder::new(
            &self.parts,
            self.seed,
            epoch,
            self.shuffle,
            self.window_bytes,
            self.lane,
        )
    }
}

/// What of the loader's settings decides the order.
#[derive(Debug, Clone, Copy)]
pub(super) struct OrderSettings {
    pub seed: u64,
    /// Samples in one batch over all ranks.
    pub global_batch: u64,
    pub lanes: u64,
    pub rank: u64,
    pub world_size: u64,
    /// Epochs to run; `None` means without end.
    pub epochs: Option<u64>,
    pub shuffle: bool,
    pub drop_last: bool,
    /// Of all data sets and lanes together.
    pub window_bytes: u64,
}

/// Sizes and shares of the data sets.
#[derive(Debug, Clone)]
pub(super) struct Mixture {
    settings: OrderSettings,
    num_samples: Vec<u64>,
    /// Shares summed up: source i has what lies between i and i + 1. In units of 2^-32.
    bounds: Vec<u64>,
}

const ONE: u64 = 1 << 32;

impl Mixture {
    pub(super) fn of(dataset: &Dataset, settings: OrderSettings) -> Self {
        let sources = dataset.sources();
        Self::new(
            settings,
            sources.iter().map(|source| source.num_samples).collect(),
            &sources
                .iter()
                .map(|source| source.weight)
                .collect::<Vec<_>>(),
        )
    }

    fn new(settings: OrderSettings, num_samples: Vec<u64>, weights: &[f64]) -> Self {
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let mut bounds = vec![0];
        for weight in weights {
            sum += weight;
            bounds.push((sum / total * ONE as f64).round() as u64);
        }
        // Whatever rounding did.
        *bounds.last_mut().expect("it has a first") = ONE;
        Self {
            settings,
            num_samples,
            bounds,
        }
    }

    fn is_mixed(&self) -> bool {
        self.num_samples.len() > 1
    }

    fn total(&self) -> u64 {
        self.num_samples.iter().sum()
    }

    /// Global batches in an epoch. A mixture's has as many samples as all its data sets together,
    /// in whole batches.
    pub(super) fn batches_per_epoch(&self) -> u64 {
        let global = self.settings.global_batch;
        if self.settings.drop_last || self.is_mixed() {
            self.total() / global
        } else {
            self.total().div_ceil(global)
        }
    }

    /// Samples in the batches of an epoch.
    pub(super) fn used_samples(&self) -> u64 {
        (self.batches_per_epoch() * self.settings.global_batch).min(self.total())
    }

    /// Why no lane can give its share of each data set to every batch, and what to do.
    pub(super) fn problem(&self) -> Option<String> {
        let (lanes, of_lane) = (self.settings.lanes, self.lane_batch());
        if !self.is_mixed() {
            return None;
        }
        let last = self.num_samples.len() - 1;
        let problem = |source: usize| {
            let (number, num_samples) = (source + 1, self.num_samples[source]);
            if num_samples < lanes {
                return Some(format!(
                    "data set {number} of the mixture has {num_samples} samples, fewer than lanes; \
                     use fewer lanes"
                ));
            }
            // The first and the last are rounded on one side only, so what they had so far never
            // becomes less.
            let share = of_lane * (self.bounds[source + 1] - self.bounds[source]);
            (0 < source && source < last && share < ONE).then(|| {
                format!(
                    "each lane gives {of_lane} samples to a batch, {:.2} of them of data set \
                     {number} of the mixture, which is less than one; name this data set first or \
                     last, give it more weight, or use fewer lanes or a larger batch",
                    share as f64 / ONE as f64
                )
            })
        };
        (0..=last).find_map(problem)
    }

    /// Samples of each lane in a batch.
    fn lane_batch(&self) -> u64 {
        self.settings.global_batch / self.settings.lanes
    }

    fn lane(&self, index: u64) -> Lane {
        Lane {
            index,
            of: self.settings.lanes,
        }
    }

    /// The lanes of this rank. All ranks share a single one.
    fn own_lanes(&self) -> Range<u64> {
        let OrderSettings {
            lanes,
            rank,
            world_size,
            ..
        } = self.settings;
        if lanes == 1 {
            0..1
        } else {
            lanes * rank / world_size..lanes * (rank + 1) / world_size
        }
    }

    /// Index of the walk through a lane of a data set.
    fn walk_of(&self, source: usize, lane: u64) -> usize {
        let own = self.own_lanes();
        source * (own.end - own.start) as usize + (lane - own.start) as usize
    }

    /// The lanes to walk through: those of the first data set, then those of the next.
    pub(super) fn sources(&self, dataset: &Dataset) -> Vec<LaneSource> {
        let settings = &self.settings;
        let mut parts = part::parts(dataset.shards());
        let mut all = Vec::new();
        for (index, source) in dataset.sources().iter().enumerate() {
            let rest = parts
                .iter()
                .position(|part| part.id.shard >= source.shards.end)
                .unwrap_or(parts.len());
            let own = parts.drain(..rest).collect();
            let dealt = deal(own, settings.seed, settings.shuffle, settings.lanes);
            let share = u128::from(self.bounds[index + 1] - self.bounds[index]);
            let window_bytes = u128::from(settings.window_bytes) * share / u128::from(ONE);
            let lanes = self.own_lanes().map(|lane| self.lane(lane));
            all.extend(lanes.map(|lane| LaneSource {
                parts: lane.cut(&dealt),
                lane,
                seed: settings.seed,
                shuffle: settings.shuffle,
                window_bytes: window_bytes as u64,
                used_samples: self.used_of_lane(index, lane),
                epochs: settings.epochs.filter(|_| !self.is_mixed()),
            }));
        }
        all
    }

    /// Samples of a lane of a data set, in one of its epochs, that some batch uses.
    fn used_of_lane(&self, source: usize, lane: Lane) -> u64 {
        let all = lane.share(self.num_samples[source]);
        if self.is_mixed() {
            all
        } else {
            all.min(self.batches_per_epoch() * self.lane_batch())
        }
    }

    /// Samples of `source` among the first `n` of a lane.
    fn before(&self, source: usize, lane: u64, n: u64) -> u64 {
        let lanes = u128::from(self.settings.lanes);
        let phase = u128::from(lane) * u128::from(ONE);
        let floor = |bound: u64| {
            let scaled = u128::from(n) * u128::from(bound) * lanes + phase;
            (scaled / (u128::from(ONE) * lanes)) as u64
        };
        floor(self.bounds[source + 1]) - floor(self.bounds[source])
    }

    fn place(&self, source: usize, lane: u64, index: u64) -> SamplePlace {
        let num_samples = self.lane(lane).share(self.num_samples[source]);
        SamplePlace {
            walk: self.walk_of(source, lane),
            epoch: index / num_samples,
            index: index % num_samples,
        }
    }

    /// Where a walk stands before a batch: its epoch and the position in it.
    pub(super) fn position(&self, walk: usize, epoch: u64, batch: u64) -> (u64, u64) {
        let of_lane = self.lane_batch();
        if !self.is_mixed() {
            return (epoch, batch * of_lane);
        }
        let own = self.own_lanes();
        let num_lanes = (own.end - own.start) as usize;
        let (source, lane) = (walk / num_lanes, own.start + (walk % num_lanes) as u64);
        let n = (epoch * self.batches_per_epoch() + batch) * of_lane;
        let place = self.place(source, lane, self.before(source, lane, n));
        (place.epoch, place.index)
    }

    /// This rank's samples of a batch, in order: lane by lane.
    pub(super) fn slice(&self, epoch: u64, batch: u64) -> Vec<SamplePlace> {
        let of_lane = |lane| {
            if self.is_mixed() {
                self.mixed(lane, epoch, batch)
            } else {
                self.unmixed(lane, epoch, batch)
            }
        };
        let OrderSettings {
            lanes,
            rank,
            world_size,
            global_batch,
            ..
        } = self.settings;
        let own: Vec<SamplePlace> = self.own_lanes().flat_map(of_lane).collect();
        if lanes > 1 {
            return own;
        }
        let length = global_batch.min(own.len() as u64);
        let mine = length * rank / world_size..length * (rank + 1) / world_size;
        own[mine.start as usize..mine.end as usize].to_vec()
    }

    /// A lane's samples of a batch of one data set.
    fn unmixed(&self, lane: u64, epoch: u64, batch: u64) -> Vec<SamplePlace> {
        let of_lane = self.lane_batch();
        let start = batch * of_lane;
        let end = (start + of_lane).min(self.lane(lane).share(self.total()));
        let place = |index| SamplePlace {
            walk: self.walk_of(0, lane),
            epoch,
            index,
        };
        (start..end).map(place).collect()
    }

    /// A lane's samples of a batch of several data sets.
    fn mixed(&self, lane: u64, epoch: u64, batch: u64) -> Vec<SamplePlace> {
        let of_lane = self.lane_batch();
        let number = epoch * self.batches_per_epoch() + batch;
        let num_sources = self.num_samples.len();
        let of_sources: Vec<Vec<SamplePlace>> = (0..num_sources)
            .map(|source| {
                let before = |number| self.before(source, lane, number * of_lane);
                let span = before(number)..before(number + 1);
                span.map(|index| self.place(source, lane, index)).collect()
            })
            .collect();
        if !self.settings.shuffle {
            return of_sources.concat();
        }
        let mut sources: Vec<usize> = (0..num_sources)
            .flat_map(|source| vec![source; of_sources[source].len()])
            .collect();
        let mut rng = lane_stream(self.settings.seed, epoch, lane, batch, Purpose::Mix);
        shuffle(&mut rng, &mut sources);
        // Only the data sets are permuted: each one's samples stay in its own order, in which its
        // windows come.
        let mut next: Vec<_> = of_sources.into_iter().map(Vec::into_iter).collect();
        let next = |source: usize| next[source].next().expect("as many as before");
        sources.into_iter().map(next).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(global_batch: u64, lanes: u64, rank: u64, world_size: u64) -> OrderSettings {
        OrderSettings {
            seed: 1,
            global_batch,
            lanes,
            rank,
            world_size,
            epochs: Some(1),
            shuffle: true,
            drop_last: true,
            window_bytes: 1 << 20,
        }
    }

    /// Of three data sets, their shares in each batch and in all of them; of each lane, its samples
    /// in turn.
    fn has_its_shares(lanes: u64) {
        let sizes = vec![240, 47, 600];
        let global = 12 * lanes;
        let settings = settings(global, lanes, 0, 1);
        let mixture = Mixture::new(settings, sizes.clone(), &[2.0, 1.0, 0.3]);
        assert_eq!(mixture.problem(), None);
        let shares = [2.0, 1.0, 0.3].map(|weight: f64| weight / 3.3);
        let mut given = vec![0u64; 3 * lanes as usize];
        let per_epoch = mixture.batches_per_epoch();
        assert_eq!(per_epoch, 887 / global);
        for (epoch, batch) in (0..50).flat_map(|e| (0..per_epoch).map(move |b| (e, b))) {
            let num_samples = |walk: usize| {
                let (source, index) = (walk / lanes as usize, walk as u64 % lanes);
                Lane { index, of: lanes }.share(sizes[source])
            };
            for (walk, given) in given.iter().enumerate() {
                let (own_epoch, index) = mixture.position(walk, epoch, batch);
                assert_eq!(own_epoch * num_samples(walk) + index, *given);
            }
            let places = mixture.slice(epoch, batch);
            assert_eq!(places.len() as u64, global);
            let before = given.clone();
            for (place, position) in places.into_iter().zip(0..) {
                assert_eq!(place.walk as u64 % lanes, position / 12, "lane by lane");
                let number = place.epoch * num_samples(place.walk) + place.index;
                assert_eq!(number, given[place.walk], "in order, none left out");
                given[place.walk] += 1;
            }
            for (source, share) in shares.into_iter().enumerate() {
                let sum = |given: &[u64]| -> f64 {
                    let lanes = given.chunks(lanes as usize).nth(source).unwrap();
                    lanes.iter().sum::<u64>() as f64
                };
                let (before, given) = (sum(&before), sum(&given));
                assert!((given - before - global as f64 * share).abs() < 2.0);
                let all = ((epoch * per_epoch + batch + 1) * global) as f64;
                assert!((given - all * share).abs() < 2.0);
            }
        }
    }

    #[test]
    fn every_batch_has_its_shares_and_every_sample_comes_in_turn() {
        for lanes in [1, 2, 5, 8] {
            has_its_shares(lanes);
        }
    }

    #[test]
    fn lanes_leave_the_shares_of_a_batch_as_they_are() {
        let count = |lanes: u64, batch| {
            let mixture = Mixture::new(settings(24, lanes, 0, 1), vec![400, 700], &[5.0, 2.0]);
            let places = mixture.slice(0, batch).into_iter();
            places.filter(|place| (place.walk as u64) < lanes).count()
        };
        for batch in 0..40 {
            for lanes in [2, 3, 8, 24] {
                assert_eq!(count(lanes, batch), count(1, batch), "batch {batch}");
            }
        }
    }

    /// The data set, the lane and the rest of each place of a rank.
    fn places(mixture: &Mixture, epoch: u64, batch: u64) -> Vec<(usize, u64, u64, u64)> {
        let own = mixture.own_lanes();
        let num_lanes = (own.end - own.start) as usize;
        let places = mixture.slice(epoch, batch).into_iter();
        let place = places.map(|place| {
            let lane = own.start + (place.walk % num_lanes) as u64;
            (place.walk / num_lanes, lane, place.epoch, place.index)
        });
        place.collect()
    }

    #[test]
    fn ranks_share_the_batches_of_one_data_set_and_of_several() {
        let several = |settings| Mixture::new(settings, vec![40, 70], &[1.0, 1.0]);
        // The last batch has two samples.
        let one = |settings| {
            let settings = OrderSettings {
                drop_last: false,
                ..settings
            };
            Mixture::new(settings, vec![50], &[1.0])
        };
        for lanes in [1, 2, 4, 6, 12] {
            for (epoch, batch) in [(3, 3), (0, 4)] {
                let of = |rank, ranks| settings(12, lanes, rank, ranks);
                for world in [1, 2, 3, 4, 6, 12] {
                    if lanes > 1 && !lanes.is_multiple_of(world) {
                        continue;
                    }
                    let kinds: [fn(OrderSettings) -> Mixture; 2] = [several, one];
                    for mixture in kinds {
                        let slices = (0..world).map(|rank| mixture(of(rank, world)));
                        let joined: Vec<_> =
                            slices.flat_map(|own| places(&own, epoch, batch)).collect();
                        assert_eq!(joined, places(&mixture(of(0, 1)), epoch, batch));
                    }
                }
            }
        }
    }

    #[test]
    fn every_sample_of_a_data_set_is_in_one_batch_of_an_epoch() {
        for (drop_last, num_samples) in [(true, 50), (false, 50), (false, 49), (false, 5)] {
            for lanes in [1, 3, 12] {
                let settings = OrderSettings {
                    drop_last,
                    ..settings(12, lanes, 0, 1)
                };
                let mixture = Mixture::new(settings, vec![num_samples], &[1.0]);
                let batches = 0..mixture.batches_per_epoch();
                let mut all: Vec<_> = batches.flat_map(|b| places(&mixture, 0, b)).collect();
                all.sort_unstable();
                all.dedup();
                let expected = if drop_last { 48 } else { num_samples };
                assert_eq!(all.len() as u64, expected);
                for (_, index, _, position) in all {
                    assert!(position < Lane { index, of: lanes }.share(num_samples));
                }
            }
        }
    }

    #[test]
    fn data_sets_that_cannot_be_dealt_are_told() {
        let problem = |lanes, sizes: &[u64], weights: &[f64]| {
            Mixture::new(settings(24, lanes, 0, 1), sizes.to_vec(), weights).problem()
        };
        assert_eq!(problem(1, &[5, 100], &[1.0, 1.0]), None);
        assert_eq!(problem(8, &[5], &[1.0]), None);
        assert_eq!(problem(8, &[8, 100], &[1.0, 1000.0]), None);
        let text = problem(8, &[100, 5], &[1.0, 1.0]).unwrap();
        let expected = "data set 2 of the mixture has 5 samples";
        assert!(text.contains(expected), "{text}");
        let sizes = [100; 3];
        assert_eq!(problem(8, &sizes, &[0.1, 1.0, 0.1]), None);
        let text = problem(8, &sizes, &[1.0, 0.1, 1.0]).unwrap();
        assert!(
            text.contains("3 samples") && text.contains("0.14"),
            "{text}"
        );
        assert!(text.contains("of data set 2 of the mixture"), "{text}");
        assert!(problem(1, &sizes, &[1.0, 0.01, 1.0]).is_some());
    }

    /// A data set between others that had less than a sample in a batch went back by one at times,
    /// and the walk never found that sample again.
    #[test]
    fn what_a_data_set_has_given_never_becomes_less() {
        let weights = [0.8156, 0.0130, 0.9223, 0.8014];
        let given = |weights: &[f64]| {
            let mixture = Mixture::new(settings(64, 1, 0, 1), vec![1000; 4], weights);
            let before = |source| {
                (0..400)
                    .map(|n| mixture.before(source, 0, 64 * n))
                    .collect()
            };
            let sources: Vec<Vec<u64>> = (0..4).map(before).collect();
            (mixture.problem(), sources)
        };
        let (problem, sources) = given(&weights);
        assert!(problem.is_some() && !sources[1].is_sorted());
        let (problem, sources) = given(&[0.0130, 0.8156, 0.9223, 0.8014]);
        assert!(problem.is_none() && sources.iter().all(|given| given.is_sorted()));
    }
}
