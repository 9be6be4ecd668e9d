//! What another store or another machine would give, computed from the costs that a profile
//! measured.
//!
//! - Store: `requests * bytes_per_request / request_s` bytes a second, where another latency changes
//!   `request_s` by the difference; no more than `bandwidth`, where that is given or was found.
//! - Decoding: the thread time of an image, shared by as many threads as there are cores for.
//! - The rest as it was measured: the order, the consumer.
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ladder::{Limit, Rate};
use super::saved::read;
use crate::console::messages::quoted_path;
use crate::console::words::digits;

/// A larger gain by more requests means that no line was full.
const LINE_IS_FULL: f64 = 0.10;

/// What is to be different, as `requests=64,latency=30`; all else is as it was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Scenario {
    /// Most requests in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<f64>,
    /// Time to the first byte, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<f64>,
    /// Bytes of the line, in MB/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<f64>,
    /// Processor cores; as many threads decode, unless they are given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<f64>,
    /// Decode threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<f64>,
    /// Images a second that are taken at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<f64>,
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut scenario = Self::default();
        for item in text.split(',') {
            let (key, value) = item
                .split_once('=')
                .ok_or_else(|| format!("{item:?} is not of the form NAME=NUMBER"))?;
            let place = match key.trim() {
                "requests" => &mut scenario.requests,
                "latency" => &mut scenario.latency,
                "bandwidth" => &mut scenario.bandwidth,
                "cores" => &mut scenario.cores,
                "threads" => &mut scenario.threads,
                "consumer" => &mut scenario.consumer,
                other => {
                    return Err(format!(
                        "{other:?} cannot be changed: it must be requests, latency (ms), \
                         bandwidth (MB/s), cores, threads or consumer (images/s)"
                    ));
                }
            };
            let number = value.trim().parse::<f64>();
            let number = number.ok().filter(|number| *number > 0.0 && *number < 1e9);
            let number = number.ok_or_else(|| format!("{item:?} needs a positive number"))?;
            if place.replace(number).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        Ok(scenario)
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("", self.requests, " requests"),
            ("first byte after ", self.latency, " ms"),
            ("", self.bandwidth, " MB/s"),
            ("", self.cores, " cores"),
            ("", self.threads, " decode threads"),
            ("a consumer of ", self.consumer, " images/s"),
        ];
        let parts = parts
            .iter()
            .filter_map(|(before, value, after)| Some(format!("{before}{}{after}", (*value)?)));
        f.write_str(&parts.collect::<Vec<_>>().join(", "))
    }
}

/// What is needed of a profile, as its JSON has it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Costs {
    decode_threads: usize,
    max_requests: usize,
    cores: usize,
    bytes_per_image: f64,
    images_per_second: Rate,
    expected_images_per_second: f64,
    ladder: Rungs,
    store: StoreCosts,
    verdict: Limited,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Rungs {
    store: Rate,
    more_requests: Option<Rate>,
    unpack: Option<f64>,
    decode: Option<Rate>,
    assembly: Option<Rate>,
    consumer: Option<Rate>,
    consumer_shares_cores: bool,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct StoreCosts {
    bytes_per_second: f64,
    bytes_per_request: f64,
    in_flight: f64,
    request_s: Option<f64>,
    first_byte_mean_s: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Limited {
    limit: Limit,
}

/// What a scenario would give.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Simulated {
    /// What is different.
    pub scenario: Scenario,
    /// Images a second.
    pub images_per_second: f64,
    /// What limits then.
    limit: Limit,
    /// The ceilings, the lowest first.
    ceilings: Vec<(Limit, f64)>,
    /// Whether the store's ceiling leaves out a line whose width nobody knows.
    line_is_unknown: bool,
}

impl Costs {
    /// The costs of a profile that was written as JSON.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let place = || format!("{} lacks what is computed with", quoted_path(path));
        Self::of(read(path)?).with_context(place)
    }

    /// The costs of a profile's JSON.
    pub(super) fn of(profile: Value) -> anyhow::Result<Self> {
        Ok(serde_json::from_value(profile)?)
    }

    /// Images a second that the store would give, and whether its line is unknown.
    fn store(&self, scenario: &Scenario) -> (f64, bool) {
        let store = &self.store;
        let gain = self
            .ladder
            .more_requests
            .map_or(0.0, |more| more.median / self.ladder.store.median - 1.0);
        let Some(request_s) = store.request_s.filter(|_| store.bytes_per_second > 0.0) else {
            // Local files, or all from a cache.
            return (self.ladder.store.median, false);
        };
        let first_byte = store.first_byte_mean_s.unwrap_or(0.0).min(request_s);
        let is_full = gain < LINE_IS_FULL;
        // A full line makes every request longer; without it, only the first byte is waited for.
        let alone = if is_full { first_byte } else { request_s };
        let latency = scenario.latency.map_or(first_byte, |ms| ms / 1e3);
        let request_s = (alone + latency - first_byte).max(1e-6);
        // Not every request that may be in flight is, as windows end; of a full line nobody knows.
        let busy = (store.in_flight / self.max_requests as f64).min(1.0);
        let busy = if is_full { 1.0 } else { busy };
        let requests = scenario.requests.unwrap_or(self.max_requests as f64);
        let bytes = busy * requests * store.bytes_per_request / request_s;
        let found = is_full.then_some(store.bytes_per_second);
        let line = scenario.bandwidth.map(|mb| mb * 1e6).or(found);
        let bytes = bytes.min(line.unwrap_or(f64::INFINITY));
        (bytes / self.bytes_per_image, line.is_none())
    }

    /// Images a second that would be unpacked and decoded, if that was measured.
    fn processor(&self, scenario: &Scenario) -> Option<f64> {
        let unpack = self.ladder.unpack.map_or(Rate::FREE, Rate::known);
        let rate = self.ladder.decode?.together(unpack).median;
        let (threads, cores) = (self.decode_threads as f64, self.cores as f64);
        // What the network takes of the cores.
        let alone = match self.verdict.limit {
            Limit::Processor => {
                (self.images_per_second.median / self.expected_images_per_second).min(1.0)
            }
            _ => 1.0,
        };
        let more_cores = scenario.cores.unwrap_or(cores);
        let more_threads = scenario.threads.or(scenario.cores).unwrap_or(threads);
        Some(rate * alone * more_threads.min(more_cores) / threads.min(cores))
    }

    /// What a scenario would give.
    pub(crate) fn simulate(&self, scenario: Scenario) -> Simulated {
        let (store, line_is_unknown) = self.store(&scenario);
        let consumer = scenario.consumer.map(Rate::known).or(self.ladder.consumer);
        let consumer = consumer.map(|rate| rate.median);
        let processor = self.processor(&scenario);
        let ceilings = [
            (Limit::Store, Some(store)),
            (Limit::Processor, processor),
            (
                Limit::Assembly,
                self.ladder.assembly.map(|rate| rate.median),
            ),
            (Limit::Consumer, consumer),
        ];
        let mut ceilings = ceilings
            .into_iter()
            .filter_map(|(limit, rate)| Some((limit, rate?)))
            .collect::<Vec<_>>();
        ceilings.sort_by(|a, b| a.1.total_cmp(&b.1));
        let (limit, lowest) = ceilings[0];
        let shared = match (processor, consumer) {
            (Some(processor), Some(consumer))
                if self.ladder.consumer_shares_cores && scenario.consumer.is_none() =>
            {
                Rate::known(processor)
                    .together(Rate::known(consumer))
                    .median
            }
            _ => f64::INFINITY,
        };
        Simulated {
            scenario,
            images_per_second: lowest.min(shared),
            limit,
            ceilings,
            line_is_unknown,
        }
    }
}

impl Simulated {
    /// Prints it for people.
    pub(crate) fn show(&self) {
        println!(
            "{}: {} images/s, limited by {}  (computed)",
            self.scenario,
            digits(self.images_per_second),
            self.limit.says()
        );
        for (limit, rate) in &self.ceilings {
            println!("  {:<42}{:>9}", limit.says(), digits(*rate));
        }
        if self.line_is_unknown {
            println!("  the line was never full: give bandwidth=MB/s if you know the new one's");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two threads decode 1,000 images a second; 8 requests of 1 MB take 100 ms each: 80 MB/s,
    /// which are 800 images.
    fn costs() -> Costs {
        let rate = |rate| Some(Rate::known(rate));
        Costs {
            decode_threads: 2,
            max_requests: 8,
            cores: 2,
            bytes_per_image: 1e5,
            images_per_second: Rate::known(800.0),
            expected_images_per_second: 800.0,
            ladder: Rungs {
                store: Rate::known(800.0),
                more_requests: rate(1600.0),
                unpack: None,
                decode: rate(1000.0),
                assembly: rate(20_000.0),
                consumer: None,
                consumer_shares_cores: false,
            },
            store: StoreCosts {
                bytes_per_second: 8e7,
                bytes_per_request: 1e6,
                in_flight: 8.0,
                request_s: Some(0.1),
                first_byte_mean_s: Some(0.08),
            },
            verdict: Limited {
                limit: Limit::Store,
            },
        }
    }

    fn rate(costs: &Costs, scenario: &str) -> (f64, Limit) {
        let found = costs.simulate(scenario.parse().unwrap());
        (found.images_per_second.round(), found.limit)
    }

    #[test]
    fn ceilings_follow_what_is_changed() {
        let costs = costs();
        let unchanged = costs.simulate(Scenario::default());
        assert!((unchanged.images_per_second - 800.0).abs() < 1e-6);
        assert!(unchanged.line_is_unknown);
        for (scenario, expected) in [
            ("requests=4", (400.0, Limit::Store)),
            ("requests=64", (1000.0, Limit::Processor)),
            // 100 ms become 180.
            ("latency=160", (444.0, Limit::Store)),
            ("requests=64,cores=8", (4000.0, Limit::Processor)),
            ("requests=64,cores=8,threads=3", (1500.0, Limit::Processor)),
            ("requests=64,cores=8,bandwidth=120", (1200.0, Limit::Store)),
            ("requests=64,consumer=320", (320.0, Limit::Consumer)),
            ("requests=9999,cores=512", (20_000.0, Limit::Assembly)),
        ] {
            assert_eq!(rate(&costs, scenario), expected, "{scenario}");
        }
        // A step on the same cores takes its time from decoding.
        let mut stepping = costs;
        stepping.ladder.consumer = Some(Rate::known(250.0));
        stepping.ladder.consumer_shares_cores = true;
        assert_eq!(rate(&stepping, "requests=64"), (200.0, Limit::Consumer));
    }

    #[test]
    fn a_line_that_was_full_stays_so() {
        let mut costs = costs();
        costs.ladder.more_requests = Some(Rate::known(808.0));
        assert_eq!(rate(&costs, "requests=64"), (800.0, Limit::Store));
        assert_eq!(rate(&costs, "bandwidth=40"), (400.0, Limit::Store));
        // 8 requests of 1 MB, a first byte after 80 ms: 100 MB/s.
        assert_eq!(rate(&costs, "bandwidth=999"), (1000.0, Limit::Store));
    }

    #[test]
    fn what_cannot_be_changed_is_refused() {
        for (text, says) in [
            ("requests", "not of the form"),
            ("disk=3", "cannot be changed"),
            ("cores=0", "positive"),
            ("cores=x", "positive"),
            ("cores=1,cores=2", "twice"),
        ] {
            let error = text.parse::<Scenario>().unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
