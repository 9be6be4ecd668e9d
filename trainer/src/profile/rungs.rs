//! The rungs of a ladder by the keys of its JSON, for pages and comparisons: one that is new there
//! is shown without a change here.
use serde::Deserialize;
use serde_json::Value;

use super::ladder::Rate;

/// A ceiling.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rung {
    pub(super) key: String,
    pub(super) rate: Rate,
}

impl Rung {
    /// Its name for people.
    pub(super) fn name(&self) -> String {
        name(&self.key)
    }
}

/// The name of a key for people.
pub(super) fn name(key: &str) -> String {
    match key {
        "as_is" => "as it is".to_owned(),
        "store" => "store, without decoding".to_owned(),
        "more_requests" => "store, twice as many requests".to_owned(),
        "fewer_requests" => "store, half as many requests".to_owned(),
        "more_ahead" => "store, more memory to read ahead".to_owned(),
        "unpack" => "unpacking alone".to_owned(),
        "decode" => "decoding, without the store".to_owned(),
        "more_threads" => "decoding, a thread more".to_owned(),
        "fewer_threads" => "decoding, a thread less".to_owned(),
        "assembly" => "order and batches alone".to_owned(),
        "stored_anew" => "decoding of images stored anew".to_owned(),
        "consumer" => "the consumer".to_owned(),
        other => other.replace('_', " "),
    }
}

/// A rate of the JSON: a number, or the middle, the least and the greatest of several.
pub(super) fn rate(value: &Value) -> Option<Rate> {
    let several = || Rate::deserialize(value).ok();
    value.as_f64().map(Rate::known).or_else(several)
}

/// Keys in the order in which they are shown; others come behind.
const ORDER: [&str; 12] = [
    "as_is",
    "store",
    "more_requests",
    "fewer_requests",
    "more_ahead",
    "unpack",
    "decode",
    "more_threads",
    "fewer_threads",
    "stored_anew",
    "assembly",
    "consumer",
];

/// The rungs of `ladder`.
pub(super) fn rungs(ladder: &Value) -> Vec<Rung> {
    let entries = ladder.as_object().into_iter().flatten();
    let mut rungs = entries
        .filter_map(|(key, value)| {
            let (key, rate) = (key.clone(), rate(value)?);
            Some(Rung { key, rate })
        })
        .collect::<Vec<_>>();
    let place = |rung: &Rung| ORDER.iter().position(|key| *key == rung.key);
    rungs.sort_by_key(|rung| place(rung).unwrap_or(ORDER.len()));
    rungs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_not_known_are_shown_too() {
        let ladder = serde_json::json!({
            "more_gpus": {"median": 2.0, "least": 1.0, "most": 3.0},
            "consumer": 7.0, "unpack": null,
            "as_is": {"median": 5.0, "least": 4.0, "most": 6.0},
        });
        let found = rungs(&ladder);
        let names = found.iter().map(Rung::name).collect::<Vec<_>>();
        assert_eq!(names, ["as it is", "the consumer", "more gpus"]);
        assert_eq!((found[1].rate.least, found[2].rate.most), (7.0, 3.0));
    }
}
