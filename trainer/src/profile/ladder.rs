//! From trials to ceilings: how many images a second each stage would let through by itself.
use nepa_pipeline::{Dataset, Stage};
use serde::{Deserialize, Serialize};

use super::plan::{Found, Kind};
use super::trial::Trial;

/// Share of a trial that the order waits for row groups, from which on the store limits it.
const WAITED: f64 = 0.3;

/// A rate in images a second: the middle of all rounds, the least and the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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

    /// One that is known.
    pub(super) fn known(rate: f64) -> Self {
        Self {
            median: rate,
            least: rate,
            most: rate,
        }
    }

    /// What takes no time.
    pub(super) const FREE: Self = Self {
        median: f64::INFINITY,
        least: f64::INFINITY,
        most: f64::INFINITY,
    };

    fn with(self, other: Self, meet: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            median: meet(self.median, other.median),
            least: meet(self.least, other.least),
            most: meet(self.most, other.most),
        }
    }

    /// Of two stages side by side: the slower one's.
    pub(super) fn min(self, other: Self) -> Self {
        self.with(other, f64::min)
    }

    /// Of two stages on the same threads.
    pub(super) fn together(self, other: Self) -> Self {
        self.with(other, |one, other| 1.0 / (1.0 / one + 1.0 / other))
    }

    /// So many times as fast.
    pub(super) fn times(self, factor: f64) -> Self {
        self.with(Self::known(factor), |rate, factor| rate * factor)
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Limit {
    /// Bytes do not come faster.
    Store,
    /// Unpacking and decoding take all time of the decode threads.
    Processor,
    /// The loader's own ways: the order, and the batches.
    Assembly,
    /// Whoever takes the batches.
    Consumer,
}

impl Limit {
    /// For people.
    pub(super) fn says(self) -> &'static str {
        match self {
            Self::Store => "the store",
            Self::Processor => "decoding",
            Self::Assembly => "putting batches together",
            Self::Consumer => "the consumer",
        }
    }
}

/// The ceilings, in images a second. A rate that is missing was not measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Ladder {
    /// The loader as it is, measured.
    pub(super) as_is: Rate,
    /// Bytes of the store, without decoding.
    pub(super) store: Rate,
    /// The same with twice as many requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) more_requests: Option<Rate>,
    /// The same with half as many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fewer_requests: Option<Rate>,
    /// The same with more memory to read ahead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) more_ahead: Option<Rate>,
    /// Unpacking alone, on all decode threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unpack: Option<f64>,
    /// Decoding alone, of a shard that needs no unpacking. The loader's own ways are in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) decode: Option<Rate>,
    /// Decoding alone with a thread more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) more_threads: Option<Rate>,
    /// Decoding alone with a thread less.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fewer_threads: Option<Rate>,
    /// Decoding alone of images stored anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stored_anew: Option<Rate>,
    /// The order and the batches, without store and decoding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) assembly: Option<Rate>,
    /// Whoever takes the batches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) consumer: Option<Rate>,
    /// Whether the consumer computes on the cores that decode.
    pub(super) consumer_shares_cores: bool,
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

/// What is known of the loader beside its trials.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub(super) bytes_an_image: f64,
    pub(super) decode_threads: usize,
    /// Images a second that are taken at most.
    pub(super) consumer: Option<f64>,
    /// Whether training steps take cores from the loader.
    pub(super) consumer_shares_cores: bool,
}

impl Ladder {
    /// `None` where a signal came before the first two trials.
    pub(super) fn new(found: &Found, known: Known) -> Option<Self> {
        let Known {
            bytes_an_image,
            decode_threads,
            ..
        } = known;
        // Where the order does not wait for row groups, bytes come now and then, a window at a time,
        // and the store gives at least what is taken.
        let store = |trial: &Trial| {
            let by_bytes = trial.bytes_a_second() / bytes_an_image;
            let waited = trial.stats.stage(Stage::Dispatch).blocked_in_s / trial.seconds;
            if waited < WAITED {
                by_bytes.max(trial.rate())
            } else {
                by_bytes
            }
        };
        let stores = |kind| Rate::of(found.of(kind).map(store));
        let rates = |kind| Rate::of(found.of(kind).map(Trial::rate));
        let unpack = middle(found.of(Kind::Store), |trial| {
            let unpack = trial.stats.stage(Stage::Unpack);
            let images = unpack.bytes as f64 / bytes_an_image;
            (images > 0.0).then(|| decode_threads as f64 * images / unpack.busy_s.max(1e-9))
        });
        let mut ladder = Self {
            as_is: rates(Kind::AsIs)?,
            store: stores(Kind::Store)?,
            more_requests: stores(Kind::MoreRequests),
            fewer_requests: stores(Kind::FewerRequests),
            more_ahead: stores(Kind::MoreAhead),
            unpack,
            decode: rates(Kind::Decode),
            more_threads: rates(Kind::MoreThreads),
            fewer_threads: rates(Kind::FewerThreads),
            stored_anew: rates(Kind::StoredAnew),
            assembly: rates(Kind::Assembly),
            consumer: known
                .consumer
                .map(Rate::known)
                .or_else(|| Rate::of(found.steps.iter().copied())),
            consumer_shares_cores: known.consumer_shares_cores,
        };
        if ladder.limit() == Limit::Store {
            // Batches come in bursts then, a window at a time; the bytes come steadily.
            let steady = stores(Kind::AsIs);
            ladder.as_is = steady.unwrap_or(ladder.as_is);
        }
        Some(ladder)
    }

    /// Unpacking and decoding on the same threads.
    pub(super) fn processor(&self) -> Rate {
        // What was measured of the whole is the best that is known.
        self.decode
            .map_or(self.as_is, |decode| self.processor_with(decode))
    }

    /// As [`Self::processor`], with another rate of decoding.
    pub(super) fn processor_with(&self, decode: Rate) -> Rate {
        decode.together(self.unpack.map_or(Rate::FREE, Rate::known))
    }

    fn ceilings(&self) -> Vec<(Limit, f64)> {
        let mut ceilings = vec![
            (Limit::Store, self.store.median),
            (Limit::Processor, self.processor().median),
        ];
        let more = [
            (Limit::Assembly, self.assembly),
            (Limit::Consumer, self.consumer),
        ];
        ceilings.extend(
            more.into_iter()
                .filter_map(|(limit, rate)| Some((limit, rate?.median))),
        );
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
        self.with(self.store, self.processor()).median
    }

    /// The rate with other ceilings of store and processor.
    pub(super) fn with(&self, store: Rate, processor: Rate) -> Rate {
        let consumer = self.consumer.unwrap_or(Rate::FREE);
        let fed = if self.consumer_shares_cores {
            processor.together(consumer)
        } else {
            processor.min(consumer)
        };
        store.min(fed).min(self.assembly.unwrap_or(Rate::FREE))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    impl Ladder {
        /// A fast store, and decoding at this rate.
        pub(in super::super) fn of_decoding(rate: f64) -> Self {
            Self {
                as_is: Rate::known(0.9 * rate),
                store: Rate::known(20.0 * rate),
                more_requests: Some(Rate::known(20.0 * rate)),
                fewer_requests: None,
                more_ahead: None,
                unpack: None,
                decode: Some(Rate::known(rate)),
                more_threads: None,
                fewer_threads: None,
                stored_anew: None,
                assembly: None,
                consumer: None,
                consumer_shares_cores: false,
            }
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
        let mut ladder = Ladder::of_decoding(400.0);
        ladder.store = Rate::known(1000.0);
        ladder.unpack = Some(1200.0);
        // 1 / (1 / 400 + 1 / 1200)
        assert!((ladder.expected() - 300.0).abs() < 1e-9);
        let ends = |ladder: &Ladder| (ladder.limit(), ladder.next().0);
        assert_eq!(ends(&ladder), (Limit::Processor, Limit::Store));
        ladder.consumer = Some(Rate::known(100.0));
        assert_eq!(ends(&ladder), (Limit::Consumer, Limit::Processor));
        assert!((ladder.expected() - 100.0).abs() < 1e-9);
        // 1 / (1 / 300 + 1 / 100): a step on the same cores slows decoding, too.
        ladder.consumer_shares_cores = true;
        assert!((ladder.expected() - 75.0).abs() < 1e-9);
        assert_eq!(ladder.limit(), Limit::Consumer);
        ladder.consumer_shares_cores = false;
        ladder.store = Rate::known(50.0);
        assert_eq!(ladder.limit(), Limit::Store);
        let faster = ladder.with(Rate::known(500.0), Rate::known(500.0));
        assert!((faster.median - 100.0).abs() < 1e-9);
        ladder.assembly = Some(Rate::known(20.0));
        assert_eq!(ends(&ladder), (Limit::Assembly, Limit::Store));
    }
}
