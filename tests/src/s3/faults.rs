//! What goes wrong, and when: a plan by method, key and number of the request.
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

/// One way to misbehave.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The first byte comes this late.
    Latency(Duration),
    /// Status 503, `SlowDown`.
    Unavailable,
    /// Status 403, `AccessDenied`.
    Forbidden,
    /// The connection is closed without an answer.
    Reset,
    /// An answer of the test's own: status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// The request is carried out, and the connection closed instead of an answer.
    AnswerLost,
    /// The connection is closed after this many bytes of the body.
    Truncate(usize),
    /// Nothing more comes after this many bytes of the body; the connection stays open.
    Stall(usize),
    /// Status 200 with the whole object, whatever range was asked for.
    WholeObject,
    /// The object is replaced just before this request is answered.
    Replace(Bytes),
}

/// A fault for some requests.
#[derive(Debug, Clone)]
pub struct Rule {
    method: &'static str,
    /// Empty for all objects.
    key: String,
    requests: Range<u64>,
    /// Of these requests, those that a coin hits: its seed and the chance.
    chance: Option<(u64, f64)>,
    fault: Fault,
}

impl Rule {
    /// A fault of the GET requests number `requests` (from 0, counted since the rule was added) for `key`; an empty key
    /// stands for all objects counted together.
    pub fn get(key: &str, requests: Range<u64>, fault: Fault) -> Self {
        Self {
            method: "GET",
            key: key.to_owned(),
            requests,
            chance: None,
            fault,
        }
    }

    /// A fault of each GET request with this chance; the same requests for the same seed.
    pub fn randomly(seed: u64, chance: f64, fault: Fault) -> Self {
        Self {
            chance: Some((seed, chance)),
            ..Self::get("", 0..u64::MAX, fault)
        }
    }

    fn hits(&self, number: u64) -> bool {
        self.requests.contains(&number)
            && self
                .chance
                .is_none_or(|(seed, chance)| coin(seed, number) < chance)
    }

    /// The same for PUT requests.
    pub fn put(key: &str, requests: Range<u64>, fault: Fault) -> Self {
        Self {
            method: "PUT",
            ..Self::get(key, requests, fault)
        }
    }

    /// The same for requests of another method, such as DELETE.
    pub fn of(method: &'static str, key: &str, requests: Range<u64>, fault: Fault) -> Self {
        Self {
            method,
            ..Self::get(key, requests, fault)
        }
    }

    /// The same for listings of the bucket.
    pub fn list(requests: Range<u64>, fault: Fault) -> Self {
        Self {
            method: "LIST",
            ..Self::get("", requests, fault)
        }
    }
}

/// Uniform in `[0, 1)`, a function of both numbers (SplitMix64).
fn coin(seed: u64, number: u64) -> f64 {
    let mut z = seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// All rules, with the number of requests that each has seen.
#[derive(Debug, Default)]
pub(super) struct Plan {
    rules: Vec<(Rule, u64)>,
}

impl Plan {
    pub(super) fn add(&mut self, rule: Rule) {
        self.rules.push((rule, 0));
    }

    /// Counts a request and says what goes wrong with it: the faults of all rules that fit.
    pub(super) fn faults_of(&mut self, method: &str, key: &str) -> Vec<Fault> {
        let method = if method == "GET" && key.is_empty() {
            "LIST"
        } else {
            method
        };
        let mut faults = Vec::new();
        for (rule, seen) in &mut self.rules {
            if rule.method == method && (rule.key.is_empty() || rule.key == key) {
                if rule.hits(*seen) {
                    faults.push(rule.fault.clone());
                }
                *seen += 1;
            }
        }
        faults
    }
}

/// The faults that concern the body, handed to the operation through the request's extensions.
#[derive(Debug, Clone, Default)]
pub(super) struct BodyFaults {
    pub(super) truncate: Option<usize>,
    pub(super) stall: Option<usize>,
    pub(super) whole_object: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coin_hits_as_often_as_it_should() {
        let hits = (0..100_000).filter(|&number| coin(7, number) < 0.01);
        assert!((900..1100).contains(&hits.count()));
    }

    #[test]
    fn rules_count_their_own_requests() {
        let mut plan = Plan::default();
        plan.add(Rule::get("a", 1..2, Fault::Unavailable));
        plan.add(Rule::get("", 0..1, Fault::Reset));
        let mut number = |method, key| plan.faults_of(method, key).len();
        assert_eq!(number("PUT", "a"), 0);
        assert_eq!(number("GET", "a"), 1); // the second rule's first
        assert_eq!(number("GET", "b"), 0);
        assert_eq!(number("GET", "a"), 1); // the first rule's second
        assert_eq!(number("GET", "a"), 0);
        assert_eq!(number("GET", ""), 0); // a listing
    }
}
