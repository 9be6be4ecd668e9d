//! What limits, why, how that is known, and what would change it: a function of what was measured.
use serde::Serialize;

use super::captured::{PROGRESSIVE, Survey};
use super::kernel::Use;
use super::ladder::{Ladder, Limit, Rate};
use crate::console::words::{self, counted, digits, percent};

/// A smaller gain is not worth a change, and may be noise.
const WORTH: f64 = 0.05;
/// A larger gain by more requests means that latency binds.
const BY_LATENCY: f64 = 0.10;
/// Share of the time that threads wait for a core from which on others are in the way.
const CROWDED: f64 = 0.15;
/// Cores that others must take for that.
const OTHERS: f64 = 0.2;
/// Share of the time that a control group is held back for that.
const HELD_BACK: f64 = 0.05;
/// Row groups above this make the first batch late and take memory.
const LARGE_PART: u64 = 256 << 20;
/// Requests below this cost more for their number than for their bytes.
const SMALL_REQUEST: f64 = 512.0 * 1024.0;
/// Share of requests that the store asks not to send, from which on that is a cause.
const THROTTLED: f64 = 0.02;
/// Share of requests that are sent again, from which on it is worth a note.
const SENT_AGAIN: f64 = 0.05;
/// Share of the time of a request that passes before its first byte, below which the rate of its
/// connection makes it long.
const FIRST_BYTE: f64 = 0.3;

/// What is known beside the ceilings.
#[derive(Debug, Clone, Default)]
pub(super) struct Evidence {
    /// Requests in flight on average, and the most that are allowed.
    pub in_flight: f64,
    pub max_requests: usize,
    /// Requests that were sent for the first time, and again.
    pub requests: u64,
    pub retries: u64,
    /// Answers that broke off, and were gone on with.
    pub resumed: u64,
    /// Bytes of a request, on average.
    pub request_bytes: f64,
    /// From sending one to its last byte, on average, in seconds.
    pub request_s: Option<f64>,
    /// Bytes a second in all.
    pub bytes_a_second: f64,
    /// First byte: the middle and the 99th percentile, in seconds.
    pub first_byte: Option<[f64; 2]>,
    /// Answers by which the store asked to be asked less.
    pub throttled: u64,
    pub is_remote: bool,
    pub has_cache: bool,
    /// Share of bytes that came from the cache.
    pub cached: f64,
    /// Bytes of a shuffle window, and the most that are held, as they are set.
    pub window_bytes: u64,
    pub max_bytes: u64,
    /// The same as they were set to read further ahead, where that was tried.
    pub further_ahead: Option<[u64; 2]>,
    pub threads: usize,
    pub cores: usize,
    /// Of the trials that decode.
    pub kernel: Use,
    pub survey: Survey,
    /// How the image column is compressed: names of codecs.
    pub codecs: Vec<String>,
    /// Shorter side of images stored anew; 0: as it was.
    pub anew_side: u32,
    /// Images taken, and bad ones among them.
    pub images: u64,
    pub bad: u64,
    /// Share of bad ones at which a run ends.
    pub max_bad_fraction: f64,
    /// Bytes of the largest part that is read at once.
    pub largest_part: u64,
    /// How batches are mixed, where that is not well.
    pub mixing: Option<String>,
}

/// What may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    MoreRequests,
    FewerRequests,
    MoreAhead,
    NoStore,
    MoreThreads,
    FewerThreads,
    NoCompression,
    NoDecoding,
    StoredAnew,
    NoOthers,
}

/// A change, and what it would give.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct WhatIf {
    #[serde(skip)]
    kind: Change,
    /// What is changed.
    pub change: String,
    /// Images a second then.
    pub rate: Rate,
    /// More than now, as a share of now.
    pub gain: f64,
    /// The same of the slowest and of the fastest round.
    pub gain_interval: [f64; 2],
    /// Whether the change itself was made and measured; computed of measured costs otherwise.
    pub measured: bool,
    /// A flag that makes it, where one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
}

/// Why it limits, and what to do about it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Cause {
    /// A word or two: `latency`, `bandwidth`, `another program`, ...
    pub name: &'static str,
    /// The cause and its proof, in a sentence.
    pub because: String,
    /// What to do, in a sentence.
    pub advice: String,
    /// The flag that does it, where one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// What it would give, as a share of now; 0 where that is not known.
    pub gain: f64,
}

/// The result.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Verdict {
    pub limit: Limit,
    /// What limits where that does not, at so many images a second.
    pub next: Limit,
    pub next_rate: f64,
    /// At least one; that with the greatest gain first.
    pub causes: Vec<Cause>,
    /// All changes that were looked at, the greatest gain first.
    pub what_if: Vec<WhatIf>,
    /// What else a reader should know.
    pub notes: Vec<String>,
}

impl Verdict {
    /// The change of a setting that can be made as it stands and that is worth it, with its gain.
    pub(super) fn best_setting(&self) -> Option<(&str, f64)> {
        let settings = self.what_if.iter().filter(|what| {
            let speed = [
                Change::MoreRequests,
                Change::FewerRequests,
                Change::MoreThreads,
                Change::FewerThreads,
            ];
            what.gain > WORTH && speed.contains(&what.kind)
        });
        let best = settings.max_by(|a, b| a.gain.total_cmp(&b.gain))?;
        Some((best.set.as_deref()?, best.gain))
    }
}

/// A gain for people: `+12 %`, or `x 12` where there are ten times as many.
pub(super) fn signed(gain: f64) -> String {
    if gain < 9.0 {
        format!("{:+.0} %", 100.0 * gain)
    } else {
        format!("x {}", digits(1.0 + gain))
    }
}

fn milliseconds(ms: f64) -> String {
    format!("{} ms", digits(ms))
}

fn megabytes(bytes_a_second: f64) -> String {
    format!("{} MB/s", digits(bytes_a_second / 1e6))
}

/// What changes are looked at.
struct Looks<'a> {
    ladder: &'a Ladder,
    evidence: &'a Evidence,
    list: Vec<WhatIf>,
}

impl Looks<'_> {
    fn add(
        &mut self,
        kind: Change,
        change: String,
        store: Rate,
        processor: Rate,
        set: Option<String>,
    ) {
        let rate = self.ladder.with(store, processor);
        let now = self.ladder.expected();
        self.list.push(WhatIf {
            kind,
            change,
            rate,
            gain: more(rate.median, now),
            gain_interval: [more(rate.least, now), more(rate.most, now)],
            measured: kind != Change::NoOthers,
            set,
        });
    }

    /// Changes of the store's settings.
    fn requests(&mut self) {
        let (ladder, evidence) = (self.ladder, self.evidence);
        let processor = ladder.processor();
        for (kind, rate, requests, how) in [
            (
                Change::MoreRequests,
                ladder.more_requests,
                2 * evidence.max_requests,
                "twice",
            ),
            (
                Change::FewerRequests,
                ladder.fewer_requests,
                evidence.max_requests / 2,
                "half",
            ),
        ] {
            if let Some(rate) = rate {
                let change = format!("{how} as many requests ({requests})");
                let set = format!("io.max_requests={requests}");
                self.add(kind, change, rate, processor, Some(set));
            }
        }
        if let Some(rate) = ladder.more_ahead {
            let (change, set) = ahead(evidence);
            self.add(Change::MoreAhead, change, rate, processor, Some(set));
        }
        if evidence.is_remote {
            self.add(
                Change::NoStore,
                "no store: a local disk, or a warm cache".to_owned(),
                Rate::FREE,
                processor,
                (!evidence.has_cache).then(|| "io.cache_dir=FOLDER".to_owned()),
            );
        }
    }

    /// Changes of decoding.
    fn decoding(&mut self) {
        let (ladder, evidence) = (self.ladder, self.evidence);
        let (store, processor) = (ladder.store, ladder.processor());
        for (kind, rate, threads, how) in [
            (
                Change::MoreThreads,
                ladder.more_threads,
                evidence.threads + 1,
                "more",
            ),
            (
                Change::FewerThreads,
                ladder.fewer_threads,
                evidence.threads - 1,
                "less",
            ),
        ] {
            if let Some(rate) = rate {
                let change = format!("a decode thread {how} ({threads})");
                // As many threads unpack as decode.
                let factor = threads as f64 / evidence.threads as f64;
                let unpack = ladder.unpack.map_or(Rate::FREE, Rate::known);
                let processor = rate.together(unpack.times(factor));
                let set = format!("loader.decode_threads={threads}");
                self.add(kind, change, store, processor, Some(set));
            }
        }
        if let Some(decode) = ladder.decode {
            if more(decode.median, processor.median) > WORTH {
                let change = "columns without compression".to_owned();
                self.add(Change::NoCompression, change, store, decode, None);
            }
            let change = "decoding that costs nothing".to_owned();
            self.add(Change::NoDecoding, change, store, Rate::FREE, None);
        }
        if let Some(anew) = ladder.stored_anew {
            let form = match evidence.anew_side {
                0 => "every image stored as baseline JPEG".to_owned(),
                side => format!("images stored as JPEG, shorter side {side} px"),
            };
            let processor = ladder.processor_with(anew);
            self.add(Change::StoredAnew, form, store, processor, None);
        }
        if let Some(others) = crowd(evidence) {
            let own = evidence.kernel.own.max(1e-9);
            // As much faster as they need not wait, and no more than there are cores for.
            let waited = evidence.kernel.wait_share.unwrap_or(0.0).min(0.99);
            let could = (own + others).min(own / (1.0 - waited));
            let factor = could / own;
            // A disk of this machine was read in their midst, too; a store's answers are waited
            // for whoever runs here.
            let read = if evidence.is_remote { 1.0 } else { factor };
            let change = "no other program on the machine".to_owned();
            let (store, alone) = (store.times(read), processor.times(factor));
            self.add(Change::NoOthers, change, store, alone, None);
        }
    }

    fn all(mut self) -> Vec<WhatIf> {
        self.requests();
        self.decoding();
        // What was set otherwise is shown even where it gave nothing.
        self.list
            .retain(|what| what.gain > WORTH || what.set.is_some());
        self.list.sort_by(|a, b| b.gain.total_cmp(&a.gain));
        self.list
    }
}

/// What lets the loader read further ahead, and the setting of it.
fn ahead(evidence: &Evidence) -> (String, String) {
    let [window, held] = evidence.further_ahead.unwrap_or_default();
    if evidence.max_bytes < 2 * evidence.window_bytes {
        let change = format!("bytes held of {}", words::bytes(held));
        (change, format!("io.max_bytes={held}"))
    } else {
        let change = format!("a shuffle window of {}", words::bytes(window));
        (change, format!("data.shuffle_window_bytes={window}"))
    }
}

/// How much more `rate` is than `now`, as a share; 0 where that is nothing.
fn more(rate: f64, now: f64) -> f64 {
    if now > 0.0 { rate / now - 1.0 } else { 0.0 }
}

/// Cores that others take, where they are in the way.
fn crowd(evidence: &Evidence) -> Option<f64> {
    let waits = evidence
        .kernel
        .wait_share
        .is_some_and(|share| share > CROWDED);
    evidence
        .kernel
        .others
        .filter(|others| waits && *others > OTHERS)
}

/// Why images are dear that are cheaper if they are stored anew: the cause, and what shows it.
fn dear_images(evidence: &Evidence) -> Option<(&'static str, String)> {
    let formats = &evidence.survey.formats;
    if let Some((cost, share, times)) = evidence.survey.dear() {
        let than = if cost.format == PROGRESSIVE {
            "a baseline one"
        } else {
            "a JPEG"
        };
        let costs = if times.is_finite() {
            format!("cost {times:.1} times {than} ({})", milliseconds(cost.ms))
        } else {
            format!("cost {}", milliseconds(cost.ms))
        };
        let share = percent(share);
        let because = format!("{share} of the images are {} and {costs}", cost.format);
        return Some(("format", because));
    }
    // Else they kept their size.
    (evidence.anew_side > 0).then(|| {
        let pixels = formats.iter().map(|c| c.megapixels * c.images as f64);
        let images = formats.iter().map(|c| c.images).sum::<usize>();
        let because = format!(
            "images of {} million pixels, of which the model sees few, keep the decode threads busy",
            digits(pixels.sum::<f64>() / images.max(1) as f64)
        );
        ("large images", because)
    })
}

/// What limits, and what to do.
pub(super) fn judge(ladder: &Ladder, evidence: &Evidence) -> Verdict {
    // Where others take the cores, the one thread that hands images out waits for one, too: its
    // rate is then none of its own.
    let is_crowded = crowd(evidence).is_some();
    let ladder = &Ladder {
        assembly: ladder.assembly.filter(|_| !is_crowded),
        ..ladder.clone()
    };
    let looks = Looks {
        ladder,
        evidence,
        list: Vec::new(),
    };
    let what_if = looks.all();
    let limit = ladder.limit();
    let causes = match limit {
        Limit::Consumer => vec![consumer(ladder)],
        Limit::Assembly => vec![assembly(ladder)],
        Limit::Store => {
            // Threads that read a disk of this machine waited for a core as well.
            let crowd = others(evidence, &what_if).filter(|_| !evidence.is_remote);
            let store = store(ladder, evidence, &what_if);
            crowd.into_iter().chain([store]).collect()
        }
        Limit::Processor => processor(ladder, evidence, &what_if),
    };
    let (next, next_rate) = ladder.next();
    Verdict {
        limit,
        next,
        next_rate,
        causes,
        what_if,
        notes: notes(evidence),
    }
}

impl Cause {
    fn new(name: &'static str, because: String, advice: String) -> Self {
        Self {
            name,
            because,
            advice,
            set: None,
            gain: 0.0,
        }
    }

    fn with(self, gain: f64, set: Option<String>) -> Self {
        Self { set, gain, ..self }
    }
}

fn consumer(ladder: &Ladder) -> Cause {
    let (next, rate) = ladder.next();
    let taken = ladder.consumer.map_or(0.0, |consumer| consumer.median);
    let because = if ladder.consumer_shares_cores {
        format!(
            "training steps alone give {} images/s, and decoding takes its time on the same cores: \
             {} together",
            digits(taken),
            digits(ladder.expected())
        )
    } else {
        format!(
            "batches are taken at {} images/s, and the loader could give {}, {} more; then {} \
             would limit",
            digits(taken),
            digits(rate),
            percent(more(rate, taken)),
            next.says()
        )
    };
    let advice = "Nothing in the loader is to be changed: it feeds this consumer.".to_owned();
    Cause::new("consumer", because, advice)
}

fn assembly(ladder: &Ladder) -> Cause {
    let because = format!(
        "one thread walks the order and hands images out, {} a second",
        digits(ladder.expected())
    );
    let advice = "No setting helps; several processes (ranks) would share that work.".to_owned();
    Cause::new("one thread", because, advice)
}

/// What a change would give, if it was looked at.
fn of(what_if: &[WhatIf], kind: Change) -> Option<&WhatIf> {
    what_if.iter().find(|what| what.kind == kind)
}

fn store(ladder: &Ladder, evidence: &Evidence, what_if: &[WhatIf]) -> Cause {
    if evidence.bytes_a_second <= 0.0 {
        let because = "nothing came from the store in any trial".to_owned();
        let advice = "Wait until it answers, or give more --seconds.".to_owned();
        return Cause::new("silence", because, advice);
    }
    let more = ladder
        .more_requests
        .map(|requests| more(requests.median, ladder.store.median));
    let flight = format!(
        "{:.0} of {} requests in flight, {} each",
        evidence.in_flight,
        evidence.max_requests,
        words::bytes(evidence.request_bytes as u64)
    );
    let first_byte = evidence
        .first_byte
        .map_or_else(String::new, |[middle, late]| {
            format!(
                ", the first byte after {} (99 %: {})",
                milliseconds(1e3 * middle),
                milliseconds(1e3 * late)
            )
        });
    let tried = more.map_or_else(String::new, |more| {
        format!("; twice as many requests gave {}", signed(more))
    });
    let elsewhere = of(what_if, Change::NoStore).map_or_else(String::new, |what| {
        format!(
            " Without the store {} images/s ({}) are possible: a nearer bucket, a local disk, or, \
             from the second epoch on and where the set fits a disk, a cache.",
            digits(what.rate.median),
            signed(what.gain)
        )
    });
    let ahead = of(what_if, Change::MoreAhead).filter(|what| {
        let more_requests = of(what_if, Change::MoreRequests).map_or(0.0, |more| more.gain);
        what.gain > BY_LATENCY && what.gain > more_requests
    });
    if let Some(what) = ahead {
        let because = format!(
            "too little is read ahead to keep requests busy: {flight}; {} gave {}",
            what.change,
            signed(what.gain)
        );
        let advice = "Let it read further ahead; it takes that much more memory. A larger window \
                      changes the order of samples, too."
            .to_owned();
        return Cause::new("read-ahead", because, advice).with(what.gain, what.set.clone());
    }
    let asked = evidence.requests + evidence.retries;
    if evidence.throttled as f64 > THROTTLED * asked as f64 {
        let because = format!(
            "the store asks to be asked less: {} of {} answers were 503 or 429; {flight}{tried}",
            words::count(evidence.throttled),
            words::count(asked)
        );
        let advice = format!("Spread the shards over more prefixes.{elsewhere}");
        return Cause::new("throttling", because, advice);
    }
    if more.is_some_and(|more| more > BY_LATENCY) {
        let late = evidence.first_byte.zip(evidence.request_s);
        let by_connection = late
            .filter(|([first_byte, _], request_s)| *first_byte < FIRST_BYTE * request_s)
            .map(|([first_byte, _], request_s)| {
                evidence.request_bytes / (request_s - first_byte).max(1e-9)
            });
        let (name, why) = match by_connection {
            Some(rate) => (
                "connections",
                format!("each connection gives {} only", megabytes(rate)),
            ),
            None => ("latency", "the store answers late".to_owned()),
        };
        let because = format!("{why}: {flight}{first_byte}{tried}");
        let mut advice = match of(what_if, Change::MoreRequests) {
            Some(what) => format!("Ask for more at once: {}.", signed(what.gain)),
            None => String::new(),
        };
        if evidence.request_bytes < SMALL_REQUEST {
            advice += " The requests are small; larger row groups (nepa pack) need fewer.";
        }
        let set = format!("io.max_requests={}", 2 * evidence.max_requests);
        let gain = of(what_if, Change::MoreRequests).map_or(0.0, |what| what.gain);
        return Cause::new(name, because, advice).with(gain, Some(set));
    }
    if !evidence.is_remote {
        let because = format!(
            "the disk gives {}; {flight}",
            megabytes(evidence.bytes_a_second)
        );
        let advice = "Read from a faster disk, or store fewer bytes.".to_owned();
        return Cause::new("disk", because, advice);
    }
    let because = format!(
        "the line gives {} in all: {flight}{first_byte}{tried}",
        megabytes(evidence.bytes_a_second)
    );
    let advice = format!("More requests do not help; fewer bytes an image would.{elsewhere}");
    let cause = Cause::new("bandwidth", because, advice);
    match of(what_if, Change::NoStore) {
        Some(what) => cause.with(what.gain, what.set.clone()),
        None => cause,
    }
}

/// Other programs on the processors, where they are in the way.
fn others(evidence: &Evidence, what_if: &[WhatIf]) -> Option<Cause> {
    let others = crowd(evidence)?;
    let what = of(what_if, Change::NoOthers)?;
    let because = format!(
        "other programs take {others:.1} of {} cores: our threads waited for a core for {} of the \
         time that they could run",
        evidence.cores,
        percent(evidence.kernel.wait_share.unwrap_or(0.0))
    );
    let advice = format!(
        "End them, or give the loader cores of its own: {}, as computed.",
        signed(what.gain)
    );
    Some(Cause::new("another program", because, advice).with(what.gain, None))
}

fn processor(ladder: &Ladder, evidence: &Evidence, what_if: &[WhatIf]) -> Vec<Cause> {
    let threads = match evidence.threads {
        1 => "the one decode thread is".to_owned(),
        many => format!("all {many} decode threads are"),
    };
    let mut causes = Vec::new();
    if let Some(held) = evidence.kernel.throttled.filter(|share| *share > HELD_BACK) {
        let because = format!(
            "the control group's limit of processor time held this program back for {} of the time",
            percent(held.min(1.0))
        );
        let advice = "Raise the limit of the container (cpu.max).".to_owned();
        // All that is measured is as fast as it lets it be.
        causes.push(Cause::new("control group", because, advice).with(f64::INFINITY, None));
    }
    causes.extend(others(evidence, what_if));
    let decoding = ladder.decode.map_or(f64::INFINITY, |decode| decode.median);
    let unpacking = ladder
        .unpack
        .map_or(0.0, |unpack| ladder.processor().median / unpack);
    let anew = of(what_if, Change::StoredAnew).filter(|what| what.gain > WORTH);
    let more = of(what_if, Change::MoreThreads).filter(|what| what.gain > WORTH);
    let gain = decoding / ladder.processor().median - 1.0;
    if ladder.decode.is_some() && gain > WORTH {
        let because = format!(
            "unpacking ({}) takes {} of the time of the decode threads",
            evidence.codecs.join(", "),
            percent(unpacking)
        );
        let advice = format!(
            "Encoded images do not get smaller: write the shards without compression (nepa pack \
             does): {}.",
            signed(gain)
        );
        causes.push(Cause::new("unpacking", because, advice).with(gain, None));
    }
    if let Some(what) = anew
        && let Some((cause, because)) = dear_images(evidence)
    {
        let advice = format!(
            "With {}: {} images/s ({}).",
            what.change,
            digits(what.rate.median),
            signed(what.gain)
        );
        causes.push(Cause::new(cause, because, advice).with(what.gain, None));
    }
    if let Some(what) = more {
        let because = format!(
            "{threads} busy all the time on {}, and one more gave {}",
            counted(evidence.cores as u64, "core"),
            signed(what.gain)
        );
        let advice = "Use more decode threads.".to_owned();
        causes
            .push(Cause::new("decode threads", because, advice).with(what.gain, what.set.clone()));
    }
    causes.sort_by(|a, b| b.gain.total_cmp(&a.gain));
    for cause in &mut causes {
        if !cause.gain.is_finite() {
            cause.gain = 0.0;
        }
    }
    if !causes.is_empty() {
        return causes;
    }
    let because = format!(
        "{threads} busy all the time on {}, {} ms an image",
        counted(evidence.cores as u64, "core"),
        digits(1e3 * evidence.threads as f64 / decoding)
    );
    let advice = "Only more or faster cores, or a GPU's JPEG engines, help.".to_owned();
    vec![Cause::new("cores", because, advice)]
}

fn notes(evidence: &Evidence) -> Vec<String> {
    let mut notes = Vec::new();
    if evidence.bad > 0 {
        let share = evidence.bad as f64 / evidence.images.max(1) as f64;
        let mut note = format!(
            "{} of {} images could not be decoded ({}); others were taken in their place.",
            words::count(evidence.bad),
            words::count(evidence.images),
            percent(share)
        );
        if share >= evidence.max_bad_fraction {
            let allowed = (1.5 * share * 1000.0).ceil() / 1000.0;
            note += &format!(
                " A run ends at {}: mend the data, or allow more:\n--set data.max_bad_fraction={allowed}",
                percent(evidence.max_bad_fraction)
            );
        }
        notes.push(note);
    }
    if evidence.requests > 0 && evidence.retries as f64 > SENT_AGAIN * evidence.requests as f64 {
        notes.push(format!(
            "{} of {} requests were sent again ({} answers broke off): the store or the line to it \
             is unsteady.",
            words::count(evidence.retries),
            words::count(evidence.requests),
            words::count(evidence.resumed)
        ));
    }
    if evidence.cached > 0.0 {
        notes.push(format!(
            "{} of the bytes came from the cache: the first epoch, which fills it, is slower, and \
             one that finds all there is faster.",
            percent(evidence.cached)
        ));
    }
    notes.extend(evidence.mixing.clone());
    if evidence.largest_part > LARGE_PART {
        notes.push(format!(
            "The largest row group has {} that are read at once: the first batch waits for it, and \
             memory holds several. Write smaller row groups (nepa pack: 32 MiB).",
            words::bytes(evidence.largest_part)
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::super::captured::FormatCost;
    use super::*;

    #[test]
    fn gains_are_short() {
        let said = [-0.5, 0.0, 0.123, 8.9, 15.76, 214.57].map(signed);
        assert_eq!(
            said,
            ["-50 %", "+0 %", "+12 %", "+890 %", "x 16.8", "x 216"]
        );
    }

    fn rate(median: f64) -> Rate {
        Rate::known(median)
    }

    fn ladder() -> Ladder {
        Ladder::of_decoding(1000.0)
    }

    fn evidence() -> Evidence {
        Evidence {
            in_flight: 13.0,
            max_requests: 32,
            request_bytes: 1e6,
            bytes_a_second: 5e6,
            is_remote: true,
            threads: 2,
            cores: 2,
            max_bad_fraction: 0.01,
            images: 1000,
            ..Evidence::default()
        }
    }

    #[test]
    fn each_cause_is_named() {
        let (base, known) = (ladder(), evidence());
        let cause = |ladder: &Ladder, evidence: &Evidence| judge(ladder, evidence).causes.remove(0);
        assert_eq!(cause(&base, &known).name, "cores");

        let slow = |store, more| Ladder {
            store: rate(store),
            more_requests: Some(rate(more)),
            ..ladder()
        };
        let bound = cause(&slow(70.0, 71.0), &known);
        assert_eq!(bound.name, "bandwidth");
        assert!(
            bound.because.contains("13 of 32 requests in flight"),
            "{bound:?}"
        );
        let late = judge(&slow(400.0, 780.0), &known);
        assert_eq!((late.limit, late.causes[0].name), (Limit::Store, "latency"));
        assert_eq!(late.causes[0].set.as_deref(), Some("io.max_requests=64"));
        // The same where a connection is slow: its first byte comes soon.
        let slow_connections = Evidence {
            first_byte: Some([0.01, 0.02]),
            request_s: Some(0.5),
            ..evidence()
        };
        let by_connection = cause(&slow(400.0, 780.0), &slow_connections);
        assert_eq!(by_connection.name, "connections");
        assert!(
            by_connection.because.contains("2.04 MB/s"),
            "{by_connection:?}"
        );
        // The store may say itself that it is asked too often, whatever more requests give.
        let throttling = Evidence {
            requests: 100,
            throttled: 30,
            ..evidence()
        };
        assert_eq!(cause(&slow(400.0, 780.0), &throttling).name, "throttling");
        let short = Ladder {
            more_ahead: Some(rate(900.0)),
            ..slow(400.0, 410.0)
        };
        let windows = Evidence {
            window_bytes: 1 << 20,
            max_bytes: 1 << 30,
            further_ahead: Some([1 << 22, 1 << 32]),
            ..evidence()
        };
        let ahead = cause(&short, &windows);
        assert_eq!(ahead.name, "read-ahead");
        assert_eq!(
            ahead.set.as_deref(),
            Some("data.shuffle_window_bytes=4194304")
        );
        let held = Evidence {
            max_bytes: 1 << 20,
            ..windows
        };
        let held = cause(&short, &held).set;
        assert_eq!(held.as_deref(), Some("io.max_bytes=4294967296"));
        let one_thread = Ladder {
            assembly: Some(rate(500.0)),
            ..ladder()
        };
        assert_eq!(cause(&one_thread, &known).name, "one thread");
        let gains = late
            .what_if
            .iter()
            .map(|what| what.gain)
            .collect::<Vec<_>>();
        assert!(gains.is_sorted_by(|a, b| a >= b), "{gains:?}");
        // Decoding limits then: 1,000 images a second.
        let without = of(&late.what_if, Change::NoStore).unwrap().rate;
        assert!((without.median - 1000.0).abs() < 1e-6);

        let kernel = Use {
            own: 1.0,
            others: Some(1.0),
            wait_share: Some(0.4),
            throttled: Some(0.0),
        };
        let crowded = cause(
            &base,
            &Evidence {
                kernel,
                ..evidence()
            },
        );
        assert_eq!(crowded.name, "another program");
        // 1 / (1 - 0.4): they need not wait then.
        assert!((crowded.gain - 2.0 / 3.0).abs() < 0.01, "{crowded:?}");
        // They slow the thread that hands images out as well.
        let slow_hand = Ladder {
            assembly: Some(rate(950.0)),
            ..ladder()
        };
        let crowd = Evidence {
            kernel,
            ..evidence()
        };
        let both = judge(&slow_hand, &crowd);
        assert_eq!((both.limit, both.next), (Limit::Processor, Limit::Store));
        assert_eq!(both.causes[0], crowded);
        // Reading from a disk is slowed as well, and gets faster without them.
        let as_slow = Ladder {
            store: rate(1030.0),
            ..ladder()
        };
        let from_disk = Evidence {
            is_remote: false,
            ..crowd.clone()
        };
        assert_eq!(cause(&as_slow, &from_disk), crowded);
        let slower = Ladder {
            store: rate(970.0),
            more_requests: None,
            ..ladder()
        };
        let found = judge(&slower, &from_disk);
        assert_eq!(found.limit, Limit::Store);
        let causes = found.causes.iter().map(|cause| cause.name);
        assert_eq!(causes.collect::<Vec<_>>(), ["another program", "disk"]);
        // Others who take idle cores are in nobody's way.
        let idle = Use {
            wait_share: Some(0.01),
            ..kernel
        };
        assert_eq!(
            cause(
                &base,
                &Evidence {
                    kernel: idle,
                    ..evidence()
                }
            )
            .name,
            "cores"
        );
        let held = Use {
            throttled: Some(0.3),
            ..idle
        };
        assert_eq!(
            cause(
                &base,
                &Evidence {
                    kernel: held,
                    ..evidence()
                }
            )
            .name,
            "control group"
        );

        let packed = Ladder {
            unpack: Some(2000.0),
            ..ladder()
        };
        assert_eq!(cause(&packed, &known).name, "unpacking");
        let anew = Ladder {
            stored_anew: Some(rate(2000.0)),
            ..ladder()
        };
        let smaller = Evidence {
            anew_side: 336,
            ..evidence()
        };
        assert_eq!(cause(&anew, &smaller).name, "large images");
        let cost = |format: &str, images, ms| FormatCost {
            format: format.to_owned(),
            images,
            ms,
            bytes: 1.0,
            megapixels: 0.2,
        };
        let survey = Survey {
            formats: vec![cost("JPEG", 75, 1.4), cost("PNG", 25, 3.2)],
            ..Survey::default()
        };
        let mixed = cause(
            &anew,
            &Evidence {
                survey,
                ..evidence()
            },
        );
        assert_eq!(mixed.name, "format");
        assert!(
            mixed.because.contains("25 %") && mixed.because.contains("2.3 times"),
            "{mixed:?}"
        );
        // A few odd ones explain no gain.
        let survey = Survey {
            formats: vec![cost("JPEG", 98, 1.4), cost("PNG", 2, 3.2)],
            ..Survey::default()
        };
        let few = Evidence {
            survey,
            anew_side: 0,
            ..evidence()
        };
        assert_eq!(cause(&anew, &few).name, "cores");
        let threads = Ladder {
            more_threads: Some(rate(1900.0)),
            ..ladder()
        };
        assert_eq!(
            cause(&threads, &known).set.as_deref(),
            Some("loader.decode_threads=3")
        );
        let fed = Ladder {
            consumer: Some(rate(500.0)),
            ..ladder()
        };
        assert_eq!(cause(&fed, &known).name, "consumer");
    }

    #[test]
    fn gains_have_the_interval_of_their_rounds() {
        let more = Rate {
            median: 780.0,
            least: 600.0,
            most: 1600.0,
        };
        let ladder = Ladder {
            store: rate(400.0),
            more_requests: Some(more),
            fewer_requests: Some(rate(200.0)),
            ..ladder()
        };
        let verdict = judge(&ladder, &evidence());
        let what = of(&verdict.what_if, Change::MoreRequests).unwrap();
        assert!((what.gain - 0.95).abs() < 1e-9);
        // No faster than decoding, at 1,000.
        let [least, most] = what.gain_interval;
        assert!((least - 0.5).abs() < 1e-9 && (most - 1.5).abs() < 1e-9);
        assert_eq!(verdict.best_setting().unwrap().0, "io.max_requests=64");
        let fewer = of(&verdict.what_if, Change::FewerRequests).unwrap();
        assert!((fewer.gain + 0.5).abs() < 1e-9, "{fewer:?}");
    }

    #[test]
    fn bad_images_and_large_row_groups_are_noted() {
        let odd = Evidence {
            bad: 20,
            largest_part: 1 << 30,
            ..evidence()
        };
        let notes = judge(&ladder(), &odd).notes;
        assert!(
            notes[0].contains("--set data.max_bad_fraction=0.03"),
            "{notes:?}"
        );
        assert!(notes[1].contains("1.00 GiB"), "{notes:?}");
        assert!(judge(&ladder(), &evidence()).notes.is_empty());
    }
}
