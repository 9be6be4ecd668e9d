//! From trials to ceilings: how many images a second each stage would let through by itself.
use nepa_pipeline::{Dataset, Stage};
use serde::Serialize;

use super::plan::{Found, Kind};
use super::trial::Trial;

/// A rate in images a second: the middle of all rounds, the least and the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Rate {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Rate {
    /// Of the rates of all rounds; `None` where there is none.
    pub(super) fn of(rates: impl Iterator<Item = f64>) -> Option<Self> {
        let mut rates = rates.filter(|rate| rate.is_finite()).collect::<Vec<_>>();
        rates.sort_by(f64::total_cmp);
        Some(Self {
            median: median(&rates)?,
            least: *rates.first()?,
            most: *rates.last()?,
        })
    }

    fn map(self, change: impl Fn(f64) -> f64) -> Self {
        Self {
            median: change(self.median),
            least: change(self.least),
            most: change(self.most),
        }
    }
}

/// The middle of sorted values.
fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// The middle of what the rounds of a kind found.
pub(super) fn middle<'a>(
    trials: impl Iterator<Item = &'a Trial>,
    value: impl Fn(&Trial) -> Option<f64>,
) -> Option<f64> {
    Rate::of(trials.filter_map(value)).map(|rate| rate.median)
}

/// Which of the ceilings is the lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Limit {
    /// Bytes do not come faster.
    Store,
    /// Unpacking and decoding take all time of the decode threads.
    Processor,
    /// Whoever takes the batches.
    Consumer,
}

/// The ceilings, in images a second.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Ladder {
    /// The loader as it is, measured.
    pub(super) as_is: Rate,
    /// Bytes of the store, without decoding.
    pub(super) store: Rate,
    /// The same with twice as many requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) more_requests: Option<Rate>,
    /// Unpacking alone, on all decode threads.
    pub(super) unpack: f64,
    /// Decoding alone, of a shard that needs no unpacking. The loader's own ways are in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) decode: Option<Rate>,
    /// Decoding alone with a thread more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) more_threads: Option<Rate>,
    /// Decoding alone of images stored anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stored_anew: Option<Rate>,
    /// Whoever takes the batches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) consumer: Option<f64>,
}

/// Bytes to fetch for an image, by the footers and the weights of a mixture.
pub(super) fn bytes_an_image(dataset: &Dataset) -> f64 {
    let (mut bytes, mut weights) = (0.0, 0.0);
    for source in dataset.sources() {
        let shards = source.shards.start as usize..source.shards.end as usize;
        let parts = dataset.shards()[shards]
            .iter()
            .flat_map(|shard| &shard.parts);
        let (mut fetched, mut images) = (0, 0);
        for part in parts {
            fetched += part.fetch_bytes;
            images += u64::from(part.num_samples());
        }
        bytes += source.weight * fetched as f64 / images.max(1) as f64;
        weights += source.weight;
    }
    bytes / weights
}

/// Two stages on the same threads.
fn together(one: f64, other: f64) -> f64 {
    1.0 / (1.0 / one + 1.0 / other)
}

impl Ladder {
    /// `None` where a signal came before the first two trials.
    pub(super) fn new(
        found: &Found,
        bytes_an_image: f64,
        threads: usize,
        consumer: Option<f64>,
    ) -> Option<Self> {
        let store = |trial: &Trial| trial.bytes_a_second() / bytes_an_image;
        let rates = |kind| Rate::of(found.of(kind).map(Trial::rate));
        let unpack = middle(found.of(Kind::Store), |trial| {
            let unpack = trial.stats.stage(Stage::Unpack);
            let images = unpack.bytes as f64 / bytes_an_image;
            (images > 0.0).then(|| threads as f64 * images / unpack.busy_s.max(1e-9))
        });
        let mut ladder = Self {
            as_is: rates(Kind::AsIs)?,
            store: Rate::of(found.of(Kind::Store).map(store))?,
            more_requests: Rate::of(found.of(Kind::MoreRequests).map(store)),
            unpack: unpack.unwrap_or(f64::INFINITY),
            decode: rates(Kind::Decode),
            more_threads: rates(Kind::MoreThreads),
            stored_anew: rates(Kind::StoredAnew),
            consumer,
        };
        if ladder.limit() == Limit::Store {
            // Batches come in bursts then, a window at a time; the bytes come steadily.
            let steady = Rate::of(found.of(Kind::AsIs).map(store));
            ladder.as_is = steady.unwrap_or(ladder.as_is);
        }
        Some(ladder)
    }

    /// Unpacking and decoding on the same threads.
    pub(super) fn processor(&self) -> Rate {
        match self.decode {
            Some(decode) => decode.map(|decode| together(decode, self.unpack)),
            // What was measured of the whole is the best that is known.
            None => self.as_is,
        }
    }

    /// As [`Self::processor`], with another rate of decoding.
    pub(super) fn processor_with(&self, decode: Rate) -> Rate {
        decode.map(|decode| together(decode, self.unpack))
    }

    fn ceilings(&self) -> Vec<(Limit, f64)> {
        let mut ceilings = vec![
            (Limit::Store, self.store.median),
            (Limit::Processor, self.processor().median),
        ];
        ceilings.extend(self.consumer.map(|consumer| (Limit::Consumer, consumer)));
        ceilings.sort_by(|a, b| a.1.total_cmp(&b.1));
        ceilings
    }

    /// The lowest ceiling.
    pub(super) fn limit(&self) -> Limit {
        self.ceilings()[0].0
    }

    /// The second lowest, and its rate.
    pub(super) fn next(&self) -> (Limit, f64) {
        self.ceilings()[1]
    }

    /// The rate that the ceilings allow.
    pub(super) fn expected(&self) -> f64 {
        self.ceilings()[0].1
    }

    /// The rate with other ceilings of store and processor.
    pub(super) fn with(&self, store: f64, processor: f64) -> f64 {
        store
            .min(processor)
            .min(self.consumer.unwrap_or(f64::INFINITY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(median: f64) -> Rate {
        Rate {
            median,
            least: median,
            most: median,
        }
    }

    #[test]
    fn a_rate_is_the_middle_of_its_rounds() {
        let found = Rate::of([3.0, f64::NAN, 1.0, 2.5].into_iter()).unwrap();
        assert_eq!((found.least, found.median, found.most), (1.0, 2.5, 3.0));
        let two = Rate::of([4.0, 2.0].into_iter()).unwrap();
        assert!((two.median - 3.0).abs() < 1e-9);
        assert_eq!(Rate::of(std::iter::empty()), None);
    }

    #[test]
    fn the_lowest_ceiling_limits() {
        let mut ladder = Ladder {
            as_is: rate(300.0),
            store: rate(1000.0),
            more_requests: None,
            unpack: 1200.0,
            decode: Some(rate(400.0)),
            more_threads: None,
            stored_anew: None,
            consumer: None,
        };
        // 1 / (1 / 400 + 1 / 1200)
        assert!((ladder.expected() - 300.0).abs() < 1e-9);
        assert_eq!(
            (ladder.limit(), ladder.next().0),
            (Limit::Processor, Limit::Store)
        );
        ladder.consumer = Some(100.0);
        assert_eq!(
            (ladder.limit(), ladder.next().0),
            (Limit::Consumer, Limit::Processor)
        );
        ladder.store = rate(50.0);
        assert_eq!(ladder.limit(), Limit::Store);
        assert!((ladder.with(500.0, 500.0) - 100.0).abs() < 1e-9);
    }
}
