//! Which samples a batch holds: of one data set its next ones, of a mixture of several their
//! shares, as pure functions of (epoch, batch).
//!
//! In a mixture, the first n samples of all batches hold `floor(n * W_next) - floor(n * W)` of each
//! data set, W being the shares summed up in their order; so every batch has the right shares to
//! within one sample, and how many came before is known without counting. Each data set has epochs
//! of its own, which do not end with the mixture's. Within a batch the data sets are permuted, so
//! that ranks get their shares, too.
use super::order::{self, EpochOrder, Part};
use crate::Dataset;
use crate::random::{Purpose, epoch_stream, shuffle};

/// A sample by its place in its data set's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SamplePlace {
    pub source: usize,
    /// Epoch of the data set.
    pub epoch: u64,
    /// Position in that epoch's order.
    pub index: u64,
}

/// What the walk through one data set needs.
#[derive(Debug)]
pub(super) struct WalkSource {
    parts: Vec<Part>,
    seed: u64,
    shuffle: bool,
    window_bytes: u64,
    /// Samples of an epoch that some batch uses.
    pub used_samples: u64,
    /// Epochs to walk; `None` means without end.
    pub epochs: Option<u64>,
}

impl WalkSource {
    pub(super) fn order(&self, epoch: u64) -> EpochOrder {
        EpochOrder::new(
            &self.parts,
            self.seed,
            epoch,
            self.shuffle,
            self.window_bytes,
        )
    }
}

/// What of the loader's settings decides the order.
#[derive(Debug, Clone, Copy)]
pub(super) struct OrderSettings {
    pub seed: u64,
    /// Samples in one batch over all ranks.
    pub global_batch: u64,
    pub rank: u64,
    pub world_size: u64,
    /// Epochs to run; `None` means without end.
    pub epochs: Option<u64>,
    pub shuffle: bool,
    pub drop_last: bool,
    /// Of all data sets together.
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

    /// The data sets to walk through.
    pub(super) fn sources(&self, dataset: &Dataset) -> Vec<WalkSource> {
        let settings = &self.settings;
        let mut parts = order::parts(dataset.shards());
        if !self.is_mixed() {
            return vec![WalkSource {
                parts,
                seed: settings.seed,
                shuffle: settings.shuffle,
                window_bytes: settings.window_bytes,
                used_samples: self.used_samples(),
                epochs: settings.epochs,
            }];
        }
        let sources = dataset.sources().iter().zip(self.bounds.windows(2));
        sources
            .map(|(source, bounds)| {
                let rest = parts
                    .iter()
                    .position(|part| part.id.shard >= source.shards.end)
                    .unwrap_or(parts.len());
                let share = u128::from(bounds[1] - bounds[0]);
                let window_bytes = u128::from(settings.window_bytes) * share / u128::from(ONE);
                WalkSource {
                    parts: parts.drain(..rest).collect(),
                    seed: settings.seed,
                    shuffle: settings.shuffle,
                    window_bytes: window_bytes as u64,
                    used_samples: source.num_samples,
                    epochs: None,
                }
            })
            .collect()
    }

    /// Samples of `source` among the first `n` of all batches.
    fn before(&self, source: usize, n: u64) -> u64 {
        let floor = |bound: u64| (u128::from(n) * u128::from(bound) / u128::from(ONE)) as u64;
        floor(self.bounds[source + 1]) - floor(self.bounds[source])
    }

    fn place(&self, source: usize, index: u64) -> SamplePlace {
        let num_samples = self.num_samples[source];
        SamplePlace {
            source,
            epoch: index / num_samples,
            index: index % num_samples,
        }
    }

    /// Where the walk through `source` stands before a batch: its epoch and the position in it.
    pub(super) fn position(&self, source: usize, epoch: u64, batch: u64) -> (u64, u64) {
        let global = self.settings.global_batch;
        if !self.is_mixed() {
            return (epoch, batch * global);
        }
        let n = (epoch * self.batches_per_epoch() + batch) * global;
        let place = self.place(source, self.before(source, n));
        (place.epoch, place.index)
    }

    /// This rank's samples of a batch, in order.
    pub(super) fn slice(&self, epoch: u64, batch: u64) -> Vec<SamplePlace> {
        let global = self.settings.global_batch;
        let (rank, world) = (self.settings.rank, self.settings.world_size);
        if !self.is_mixed() {
            let start = batch * global;
            let length = global.min(self.total() - start);
            return (start + length * rank / world..start + length * (rank + 1) / world)
                .map(|index| SamplePlace {
                    source: 0,
                    epoch,
                    index,
                })
                .collect();
        }
        let number = epoch * self.batches_per_epoch() + batch;
        let mut all: Vec<SamplePlace> = (0..self.num_samples.len())
            .flat_map(|source| {
                let span = self.before(source, number * global)
                    ..self.before(source, (number + 1) * global);
                span.map(move |index| self.place(source, index))
            })
            .collect();
        let mut sources: Vec<usize> = all.iter().map(|place| place.source).collect();
        if self.settings.shuffle {
            let mut rng = epoch_stream(self.settings.seed, epoch, batch, Purpose::Mix);
            shuffle(&mut rng, &mut sources);
            // Only the data sets are permuted: each one's samples stay in its own order, in which
            // its windows come.
            let mut next: Vec<std::vec::IntoIter<SamplePlace>> = (0..self.num_samples.len())
                .map(|source| {
                    let own = all.iter().filter(|place| place.source == source);
                    own.copied().collect::<Vec<_>>().into_iter()
                })
                .collect();
            all = sources
                .iter()
                .map(|&source| next[source].next().expect("as many as before"))
                .collect();
        }
        let mine = global * rank / world..global * (rank + 1) / world;
        all[mine.start as usize..mine.end as usize].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(global_batch: u64, rank: u64, world_size: u64) -> OrderSettings {
        OrderSettings {
            seed: 1,
            global_batch,
            rank,
            world_size,
            epochs: Some(1),
            shuffle: true,
            drop_last: true,
            window_bytes: 1 << 20,
        }
    }

    #[test]
    fn every_batch_has_its_shares_and_every_sample_comes_in_turn() {
        let mixture = Mixture::new(settings(12, 0, 1), vec![40, 7, 100], &[2.0, 1.0, 0.3]);
        let shares = [2.0, 1.0, 0.3].map(|weight: f64| weight / 3.3);
        let mut given = [0u64; 3];
        let per_epoch = mixture.batches_per_epoch();
        assert_eq!(per_epoch, 147 / 12);
        for epoch in 0..50 {
            for batch in 0..per_epoch {
                for (source, given) in given.iter().enumerate() {
                    let (own_epoch, index) = mixture.position(source, epoch, batch);
                    assert_eq!(own_epoch * mixture.num_samples[source] + index, *given);
                }
                let places = mixture.slice(epoch, batch);
                assert_eq!(places.len(), 12);
                let before = given;
                for place in places {
                    let number = place.epoch * mixture.num_samples[place.source] + place.index;
                    assert_eq!(number, given[place.source], "in order, none left out");
                    given[place.source] += 1;
                }
                for source in 0..3 {
                    let count = (given[source] - before[source]) as f64;
                    assert!((count - 12.0 * shares[source]).abs() < 2.0);
                    let all = (epoch * per_epoch + batch + 1) as f64 * 12.0;
                    assert!((given[source] as f64 - all * shares[source]).abs() < 2.0);
                }
            }
        }
    }

    #[test]
    fn ranks_share_a_mixed_batch() {
        let slice = |rank, world_size| {
            let settings = settings(12, rank, world_size);
            Mixture::new(settings, vec![40, 70], &[1.0, 1.0]).slice(3, 5)
        };
        let whole = slice(0, 1);
        for world in [2, 3, 4] {
            let slices: Vec<_> = (0..world).flat_map(|rank| slice(rank, world)).collect();
            assert_eq!(slices, whole);
        }
    }
}
