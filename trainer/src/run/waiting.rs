//! What a run waited for: a sentence, from what the loader did while it waited. It says what was
//! measured; why a store or a processor is as slow as it is, `nepa profile` finds out.
use std::time::Duration;

use nepa_pipeline::{IoCounters, PipelineStats, Stage};

use crate::console::words::{self, digits, percent};

/// A smaller share of waiting is none.
const NOTHING: f64 = 0.01;
/// From this share on the loader is worth a closer look.
const MUCH: f64 = 0.05;
/// A first batch that comes later is told of.
const LATE: Duration = Duration::from_secs(5);
/// A stage is named from this share of the waiting on.
const NAMED: f64 = 0.3;
/// Of the time of decode threads, the share of unpacking from which on it is told.
const UNPACKING: f64 = 0.15;

/// What the loader did while the run waited, after the first batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Waits {
    /// Time to the first batch, which fills the queues; in none of the others.
    pub(super) first: Option<Duration>,
    /// Time that steps waited for their batch.
    pub(super) waited: Duration,
    /// Time in which the loader was looked at, and what of it each stage was waited for, in
    /// seconds.
    seen_s: f64,
    fetch_s: f64,
    unpack_s: f64,
    decode_s: f64,
    /// Sum over requests of the time in flight, in seconds.
    request_s: f64,
    /// From the store or the disk, and from the cache.
    bytes: u64,
    cached_bytes: u64,
}

impl Waits {
    /// Adds what was done in one wait.
    pub(super) fn add(&mut self, stats: &PipelineStats, io: &IoCounters) {
        let seconds = |stage| stats.share(stage) * stats.wall_s;
        self.seen_s += stats.wall_s;
        self.fetch_s += seconds(Stage::Fetch);
        self.unpack_s += seconds(Stage::Unpack);
        self.decode_s += seconds(Stage::Decode);
        self.request_s += io.busy_ns as f64 / 1e9;
        self.bytes += io.bytes;
        self.cached_bytes += io.cache_hit_bytes;
    }
}

/// What is known beside.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Time after the first batch.
    pub(super) time: Duration,
    pub(super) threads: usize,
    pub(super) max_requests: usize,
    /// Whether any of the data lies in a store.
    pub(super) is_remote: bool,
    /// Whether a GPU decodes, too.
    pub(super) has_gpu_decoder: bool,
    /// Time to the first byte that half of the answers did not exceed, and answers by which the
    /// store asked to be asked less; after the first batch.
    pub(super) first_byte: Option<Duration>,
    pub(super) throttled: u64,
}

/// What a run waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// As in `3 % of the time for data: the store (...)`.
    pub(super) text: String,
    /// Whether the loader was waited for so long that it is worth a closer look.
    pub(super) is_much: bool,
}

impl Waits {
    /// What was waited for; `None` where no batch came.
    pub(super) fn verdict(&self, known: &Known) -> Option<Verdict> {
        let first = self.first?;
        let share = self.waited.as_secs_f64() / known.time.as_secs_f64().max(1e-9);
        let share = share.min(1.0);
        let what = if share >= NOTHING {
            self.cause(known)
        } else {
            "the step limits".to_owned()
        };
        let late = if first > LATE {
            format!("{} for the first batch, then ", words::duration(first))
        } else {
            String::new()
        };
        let text = format!("{late}{} of the time for data: {what}", percent(share));
        let is_much = share >= MUCH;
        Some(Verdict { text, is_much })
    }

    fn cause(&self, known: &Known) -> String {
        let seen = self.seen_s.max(1e-9);
        let (fetch, busy) = (self.fetch_s / seen, (self.unpack_s + self.decode_s) / seen);
        match (fetch >= NAMED, busy >= NAMED) {
            (true, false) => self.source(known),
            (true, true) if fetch >= 2.0 * busy => self.source(known),
            (true, true) if busy < 2.0 * fetch => {
                format!("{}, and {}", self.source(known), self.decoding(known, busy))
            }
            (_, true) => self.decoding(known, busy),
            (false, false) if known.has_gpu_decoder => format!(
                "the GPU's decoder (decode threads busy {} of that time)",
                percent(busy.min(1.0))
            ),
            (false, false) => format!(
                "neither the {} ({} of that time) nor decoding ({}) alone",
                if known.is_remote { "store" } else { "disk" },
                percent(fetch),
                percent(busy.min(1.0))
            ),
        }
    }

    /// The store, the disk or the cache, as it was used while the run waited.
    fn source(&self, known: &Known) -> String {
        let seen = self.seen_s.max(1e-9);
        let rate = |bytes: u64| format!("{} MB/s", digits(bytes as f64 / 1e6 / seen));
        if self.cached_bytes > self.bytes {
            return format!("the local cache ({})", rate(self.cached_bytes));
        }
        let in_flight = self.request_s / seen;
        let in_flight = if in_flight < 10.0 {
            format!("{in_flight:.1}")
        } else {
            format!("{in_flight:.0}")
        };
        let mut facts = vec![format!(
            "{in_flight} of {} requests in flight",
            known.max_requests
        )];
        let first_byte = known.first_byte.filter(|_| known.is_remote);
        facts.extend(first_byte.map(|time| {
            let ms = 1e3 * time.as_secs_f64();
            format!("first byte after {} ms", digits(ms))
        }));
        facts.push(rate(self.bytes));
        if known.throttled > 0 {
            let times = words::count(known.throttled);
            facts.push(format!("asked {times} times to be asked less"));
        }
        let name = if known.is_remote { "store" } else { "disk" };
        format!("the {name} ({})", facts.join(", "))
    }

    fn decoding(&self, known: &Known, busy: f64) -> String {
        let unpacking = self.unpack_s / (self.unpack_s + self.decode_s).max(1e-9);
        let unpacking = if unpacking >= UNPACKING {
            format!(", {} of it unpacking", percent(unpacking))
        } else {
            String::new()
        };
        format!(
            "decoding ({} busy {} of that time{unpacking})",
            words::counted(known.threads as u64, "thread"),
            percent(busy.min(1.0))
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 100 s after the first batch, so many waited; shares of that time for the fetch,
    /// unpacking and decoding.
    fn waits(waited_s: f64, fetch: f64, unpack: f64, decode: f64) -> Waits {
        Waits {
            first: Some(Duration::from_secs(1)),
            waited: Duration::from_secs_f64(waited_s),
            seen_s: waited_s,
            fetch_s: fetch * waited_s,
            unpack_s: unpack * waited_s,
            decode_s: decode * waited_s,
            request_s: 31.0 * waited_s,
            bytes: (12.34e6 * waited_s) as u64,
            cached_bytes: 0,
        }
    }

    fn known() -> Known {
        Known {
            time: Duration::from_secs(100),
            threads: 2,
            max_requests: 32,
            is_remote: true,
            first_byte: Some(Duration::from_millis(180)),
            ..Known::default()
        }
    }

    fn text(waits: &Waits, known: &Known) -> String {
        waits.verdict(known).unwrap().text
    }

    #[test]
    fn the_store_is_told_by_what_was_measured() {
        let remote = "3 % of the time for data: the store (31 of 32 requests in flight, first \
            byte after 180 ms, 12.3 MB/s)";
        let waits = waits(3.0, 0.9, 0.02, 0.1);
        let verdict = waits.verdict(&known()).unwrap();
        assert_eq!(verdict.text, remote);
        assert!(!verdict.is_much, "3 % is little");
        let throttled = Known {
            throttled: 1200,
            ..known()
        };
        let said = text(&waits, &throttled);
        assert!(
            said.ends_with(", 12.3 MB/s, asked 1,200 times to be asked less)"),
            "{said}"
        );
        let local = Known {
            is_remote: false,
            ..known()
        };
        let said = text(&waits, &local);
        assert!(
            said.ends_with(": the disk (31 of 32 requests in flight, 12.3 MB/s)"),
            "{said}"
        );
        let cached = Waits {
            cached_bytes: 300_000_000,
            ..waits
        };
        let said = text(&cached, &known());
        assert!(said.ends_with(": the local cache (100 MB/s)"), "{said}");
    }

    #[test]
    fn decoding_is_told_with_its_threads() {
        let said = text(&waits(40.0, 0.05, 0.02, 0.95), &known());
        assert!(
            said.ends_with(
                "40 % of the time for data: decoding (2 threads busy 97 % of that time)"
            ),
            "{said}"
        );
        let said = text(&waits(40.0, 0.05, 0.24, 0.72), &known());
        assert!(said.ends_with("that time, 25 % of it unpacking)"), "{said}");
    }

    #[test]
    fn what_is_not_clear_is_not_told_as_if_it_were() {
        let both = text(&waits(40.0, 0.45, 0.0, 0.5), &known());
        assert!(
            both.contains("the store (31 of")
                && both.ends_with(", and decoding (2 threads busy 50 % of that time)"),
            "{both}"
        );
        let neither = text(&waits(40.0, 0.1, 0.0, 0.2), &known());
        assert!(
            neither.ends_with("neither the store (10 % of that time) nor decoding (20 %) alone"),
            "{neither}"
        );
        let gpu = Known {
            has_gpu_decoder: true,
            ..known()
        };
        let said = text(&waits(40.0, 0.1, 0.0, 0.2), &gpu);
        assert!(
            said.contains("the GPU's decoder (decode threads busy 20 %"),
            "{said}"
        );
    }

    #[test]
    fn a_run_that_does_not_wait_is_limited_by_its_step() {
        let verdict = waits(0.2, 0.9, 0.0, 0.1).verdict(&known()).unwrap();
        assert_eq!(verdict.text, "0.2 % of the time for data: the step limits");
        assert!(!verdict.is_much);
        let late = Waits {
            first: Some(Duration::from_secs(12)),
            ..waits(0.2, 0.9, 0.0, 0.1)
        };
        let said = text(&late, &known());
        assert!(
            said.starts_with("12 s for the first batch, then 0.2 % of"),
            "{said}"
        );
        assert_eq!(Waits::default().verdict(&known()), None);
    }
}
