//! What a profile found, for people and as JSON.
use nepa_pipeline::{DecoderStats, MixingForecast, StageStats, shown_url};
use serde::Serialize;

use super::captured::Survey;
use super::histogram::Histogram;
use super::kernel::{Threads, Use};
use super::ladder::{Known, Ladder, Limit, Rate, bytes_an_image, middle};
use super::moments::Moment;
use super::plan::{Found, Kind, Subject};
use super::rungs::name;
use super::saved::VERSION;
use super::simulate::{Costs, Scenario, Simulated};
use super::trial::{FirstBatch, Trial};
use super::verdict::{Evidence, Verdict, judge, signed};
use crate::console::print::labelled;
use crate::console::words::{self, counted, digits};
use crate::device::memory_in_use;

/// Times the divergence of batches from a permutation's from which on they are badly mixed.
const BADLY_MIXED: f64 = 1.5;

/// What was found; also the JSON (`docs/profile.md`).
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    version: u32,
    pub(super) urls: Vec<String>,
    pub(super) batch: usize,
    pub(super) image_size: u32,
    pub(super) decode_threads: usize,
    pub(super) max_requests: usize,
    pub(super) cores: usize,
    /// Whether a signal ended it early.
    pub(super) cut_off: bool,
    /// Rounds that were measured.
    pub(super) rounds: usize,
    /// Time to list the shards and to read their footers, in seconds.
    pub(super) open_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_batch: Option<FirstBatch>,
    pub(super) images_per_second: Rate,
    /// What the ceilings say that it should be.
    pub(super) expected_images_per_second: f64,
    pub(super) cpu_ms_per_image: f64,
    /// Cores that this process had, and that others had.
    pub(super) cpu_cores_used: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_cores_of_others: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory_bytes: Option<u64>,
    bytes_per_image: f64,
    pub(super) ladder: Ladder,
    pub(super) verdict: Verdict,
    pub(super) store: Store,
    pub(super) survey: Survey,
    bad_images: u64,
    /// What other stores and machines would give.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    simulated: Vec<Simulated>,
    /// Threads by kind in the last trial of the loader as it is, the busiest first.
    threads: Vec<Threads>,
    /// Stages of the last trial of the loader as it is.
    stages: Vec<StageStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decoders: Option<DecoderStats>,
    /// Of that trial, for the page.
    #[serde(skip)]
    pub(super) moments: Vec<Moment>,
}

/// What the store did in the trials without decoding.
#[derive(Debug, Serialize)]
pub(super) struct Store {
    bytes_per_second: f64,
    bytes_per_request: f64,
    in_flight: f64,
    requests: u64,
    /// From sending a request to its last byte, on average.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_byte_mean_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_byte_p50_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_byte_p99_s: Option<f64>,
    retries: u64,
    hedges: u64,
    resumed: u64,
    throttled: u64,
    cache_hits: u64,
    /// Times to the first byte.
    pub(super) first_byte: Histogram,
}

impl Store {
    fn new(found: &Found) -> Self {
        let of = |value: fn(&Trial) -> f64| {
            middle(found.of(Kind::Store), |trial| Some(value(trial))).unwrap_or(0.0)
        };
        let quantile = |share| {
            middle(found.of(Kind::Store), |trial| {
                let time = trial.io.first_byte.quantile(share)?;
                Some(time.as_secs_f64())
            })
        };
        let all =
            |count: fn(&Trial) -> u64| found.trials.iter().map(|(_, trial)| count(trial)).sum();
        Self {
            bytes_per_second: of(Trial::bytes_a_second),
            bytes_per_request: of(|trial| trial.io.bytes as f64 / trial.io.requests.max(1) as f64),
            in_flight: of(Trial::in_flight),
            requests: all(|trial| trial.io.requests),
            request_s: middle(found.of(Kind::Store), Trial::request_s),
            first_byte_mean_s: middle(found.of(Kind::Store), |trial| {
                let first_byte = &trial.io.first_byte;
                let answers = (first_byte.count() > 0).then_some(first_byte.count() as f64)?;
                Some(first_byte.sum().as_secs_f64() / answers)
            }),
            first_byte_p50_s: quantile(0.5),
            first_byte_p99_s: quantile(0.99),
            retries: all(|trial| trial.io.retries),
            hedges: all(|trial| trial.io.hedges),
            resumed: all(|trial| trial.io.resumed),
            throttled: all(|trial| trial.io.throttled),
            cache_hits: all(|trial| trial.io.cache_hits),
            first_byte: Histogram::of(found.of(Kind::Store).map(|trial| &trial.io.first_byte)),
        }
    }
}

impl Report {
    /// `None` where a signal came before there was anything to tell.
    pub(crate) fn new(subject: &Subject<'_>, found: &Found) -> Option<Self> {
        let (dataset, config) = (&subject.dataset, &subject.config);
        let bytes_per_image = bytes_an_image(dataset);
        let known = Known {
            bytes_an_image: bytes_per_image,
            decode_threads: config.decode_threads,
            consumer: subject.consumer,
            consumer_shares_cores: subject.consumer.is_none() && subject.device.is_cpu(),
        };
        let ladder = Ladder::new(found, known)?;
        let store = Store::new(found);
        let as_is = || found.of(Kind::AsIs);
        let (images, bad) = as_is().fold((0, 0), |(images, bad), trial| {
            (images + trial.images, bad + trial.bad)
        });
        let own = middle(as_is(), |trial| Some(trial.kernel.own)).unwrap_or(0.0);
        let parts = dataset.shards().iter().flat_map(|shard| &shard.parts);
        let evidence = Evidence {
            in_flight: store.in_flight,
            max_requests: subject.io.max_requests,
            requests: store.requests,
            retries: store.retries,
            resumed: store.resumed,
            request_bytes: store.bytes_per_request,
            request_s: store.request_s,
            bytes_a_second: store.bytes_per_second,
            first_byte: store
                .first_byte_p50_s
                .zip(store.first_byte_p99_s)
                .map(<[f64; 2]>::from),
            throttled: store.throttled,
            is_remote: subject.is_remote(),
            has_cache: subject.io.cache_dir.is_some(),
            cached: cached(found),
            window_bytes: config.shuffle_window_bytes,
            max_bytes: subject.io.max_bytes,
            further_ahead: subject.further_ahead(),
            mixing: subject.mixing.as_ref().and_then(badly_mixed),
            threads: config.decode_threads,
            cores: subject.cores,
            kernel: kernel(found),
            survey: found.survey.clone(),
            codecs: codecs(subject),
            anew_side: found.anew_side,
            images,
            bad,
            max_bad_fraction: config.max_bad_fraction,
            largest_part: parts.map(|part| part.memory_bytes).max().unwrap_or(0),
        };
        let last = as_is().last()?;
        Some(Self {
            version: VERSION,
            urls: subject.urls.iter().map(|url| shown_url(url)).collect(),
            batch: config.global_batch,
            image_size: subject.image_size,
            decode_threads: config.decode_threads,
            max_requests: subject.io.max_requests,
            cores: subject.cores,
            cut_off: found.cut_off,
            rounds: as_is().count(),
            open_s: subject.open_s,
            first_batch: as_is().next()?.first_batch,
            images_per_second: ladder.as_is,
            expected_images_per_second: ladder.expected(),
            cpu_ms_per_image: middle(as_is(), |trial| {
                let rate = trial.images as f64 / trial.seconds;
                (rate > 0.0).then(|| 1e3 * trial.kernel.own / rate)
            })
            .unwrap_or(0.0),
            cpu_cores_used: own,
            cpu_cores_of_others: middle(as_is(), |trial| trial.kernel.others),
            memory_bytes: memory_in_use(subject.device),
            bytes_per_image,
            verdict: judge(&ladder, &evidence),
            ladder,
            store,
            survey: found.survey.clone(),
            bad_images: bad,
            simulated: Vec::new(),
            threads: last.threads.clone(),
            stages: last.stats.stages.clone(),
            decoders: last.decoders().cloned(),
            moments: last.moments.clone(),
        })
    }

    /// Computes what scenarios would give.
    pub(crate) fn simulate(&mut self, scenarios: &[Scenario]) -> anyhow::Result<()> {
        let costs = Costs::of(serde_json::to_value(&*self)?)?;
        let simulated = scenarios.iter().map(|scenario| costs.simulate(*scenario));
        self.simulated = simulated.collect();
        Ok(())
    }

    /// The change of a setting that gives most, with what it gives as a share.
    pub(super) fn best_setting(&self) -> Option<(&str, f64)> {
        self.verdict.best_setting()
    }

    /// Images a second of the loader as it is.
    pub(super) fn rate(&self) -> f64 {
        self.images_per_second.median
    }

    /// Prints it for people.
    pub(crate) fn show(&self) {
        self.show_head();
        self.show_ladder();
        self.show_verdict();
        self.show_what_if();
        self.show_costs();
        self.show_threads();
        for simulated in &self.simulated {
            print!("\n");
            simulated.show();
        }
        if let Some(decoders) = &self.decoders {
            println!("\n{decoders}");
        }
    }

    fn show_head(&self) {
        let Rate {
            median,
            least,
            most,
        } = self.images_per_second;
        println!(
            "{} images/s ({} to {} in {}), {} CPU-ms an image, {:.2} of {} cores",
            digits(median),
            digits(least),
            digits(most),
            counted(self.rounds as u64, "round"),
            digits(self.cpu_ms_per_image),
            self.cpu_cores_used,
            self.cores
        );
        let memory = self.memory_bytes.map_or_else(String::new, |bytes| {
            format!("; {} of memory", words::bytes(bytes))
        });
        println!(
            "{} px, batch {}, {}, {} requests{memory}",
            self.image_size,
            words::count(self.batch as u64),
            counted(self.decode_threads as u64, "decode thread"),
            self.max_requests
        );
        if let Some(first) = self.first_batch {
            let rest = (first.seconds - first.fetch_s).max(0.0);
            println!(
                "first batch: listing and footers {:.2} s, row groups {:.2} s, images {rest:.2} s",
                self.open_s, first.fetch_s
            );
        }
        if self.cut_off {
            println!("Ended by a signal: what was measured until then.");
        }
    }

    fn show_ladder(&self) {
        let ladder = &self.ladder;
        let head = "ceilings, each stage by itself";
        println!("\n{head:<45}images/s");
        let row = |key: &str, rate: Option<Rate>| {
            let name = name(key);
            let shown = rate.map_or_else(
                || "not measured".to_owned(),
                |rate| {
                    let [median, least, most] = [rate.median, rate.least, rate.most].map(digits);
                    if least == most {
                        format!("{median:>9}")
                    } else {
                        format!("{median:>9}  {least} to {most}")
                    }
                },
            );
            println!("  {name:<42}{shown}");
        };
        row("as_is", Some(ladder.as_is));
        row("store", Some(ladder.store));
        row("unpack", ladder.unpack.map(Rate::known));
        row("decode", ladder.decode);
        row(
            "unpacking and decoding",
            ladder.decode.map(|_| ladder.processor()),
        );
        row("assembly", ladder.assembly);
        if ladder.consumer.is_some() {
            row("consumer", ladder.consumer);
        }
    }

    fn show_verdict(&self) {
        let verdict = &self.verdict;
        let limit = verdict.limit.says();
        for (number, cause) in verdict.causes.iter().enumerate() {
            let label = if number == 0 { "limit" } else { "also" };
            print!("\n");
            labelled(label, &format!("{limit}: {}", cause.name));
            labelled("because", &cause.because);
            labelled("do", &cause.advice);
            if let Some(set) = &cause.set {
                labelled("", &format!("--set {set}"));
            }
        }
        if verdict.limit != Limit::Consumer {
            let next = format!(
                "{} limits next, at {} images/s",
                verdict.next.says(),
                digits(verdict.next_rate)
            );
            labelled("then", &next);
        }
        if verdict.causes.iter().all(|cause| cause.set.is_none()) {
            labelled("", "No setting of the loader helps here.");
        }
        for note in &verdict.notes {
            labelled("note", note);
        }
    }

    fn show_what_if(&self) {
        if self.verdict.what_if.is_empty() {
            return;
        }
        let head = "what if";
        println!("\n{head:<45}images/s    gain");
        for what in &self.verdict.what_if {
            let rate = digits(what.rate.median);
            let gain = signed(what.gain);
            let [least, most] = what.gain_interval.map(signed);
            let interval = match what.measured {
                false => "  (computed)".to_owned(),
                true if least == most => String::new(),
                true => format!("  {least} to {most}"),
            };
            println!("  {:<42}{rate:>9}{gain:>8}{interval}", what.change);
        }
    }

    fn show_threads(&self) {
        let busy = self.threads.iter().filter(|kind| kind.cores >= 0.005);
        let busy = busy.collect::<Vec<_>>();
        if busy.is_empty() {
            return;
        }
        let head = "threads";
        println!("\n{head:<32}number   cores  waited for one");
        for kind in busy {
            println!(
                "  {:<30}{:>6}{:>8.2}{:>10.2}",
                kind.name, kind.number, kind.cores, kind.waited_cores
            );
        }
    }

    fn show_costs(&self) {
        if self.survey.formats.is_empty() {
            return;
        }
        let head = "format, one thread by itself";
        println!("\n{head:<32}images      ms     KiB    Mpx");
        for cost in &self.survey.formats {
            println!(
                "  {:<30}{:>6}{:>8.2}{:>8.0}{:>7.2}",
                cost.format,
                cost.images,
                cost.ms,
                cost.bytes / 1024.0,
                cost.megapixels
            );
        }
        if self.survey.sizes.len() > 1 {
            println!("  by size");
            for cost in &self.survey.sizes {
                println!("  {:<30}{:>6}{:>8.2}", cost.format, cost.images, cost.ms);
            }
        }
        println!("slowest");
        for slow in &self.survey.slowest {
            println!("  {} ms  {}", digits(slow.ms), slow.form);
            println!("    {}", slow.place);
        }
    }
}

/// What the processor did in the trials that load it whatever the store does: decoding alone, or
/// where there are none, the loader as it is.
fn kernel(found: &Found) -> Use {
    let kinds = [Kind::Decode, Kind::AsIs];
    let kind = kinds
        .into_iter()
        .find(|kind| found.of(*kind).next().is_some());
    let of = |value: fn(&Use) -> Option<f64>| middle(found.of(kind?), |trial| value(&trial.kernel));
    Use {
        own: of(|kernel| Some(kernel.own)).unwrap_or(0.0),
        others: of(|kernel| kernel.others),
        wait_share: of(|kernel| kernel.wait_share),
        throttled: of(|kernel| kernel.throttled),
    }
}

/// Codecs of the column that has most bytes: that of the images.
fn codecs(subject: &Subject<'_>) -> Vec<String> {
    let columns = subject.dataset.columns();
    let largest = columns.into_iter().max_by_key(|column| column.stored_bytes);
    largest.map_or_else(Vec::new, |column| column.codecs)
}

/// Share of all bytes that came from the cache.
fn cached(found: &Found) -> f64 {
    let (cached, all) = found
        .trials
        .iter()
        .fold((0, 0), |(cached, all), (_, trial)| {
            let hit = trial.io.cache_hit_bytes;
            (cached + hit, all + hit + trial.io.bytes)
        });
    cached as f64 / all.max(1) as f64
}

/// A sentence where batches are not mixed well.
fn badly_mixed(forecast: &MixingForecast) -> Option<String> {
    let groups = if forecast.by_class { "class" } else { "shard" };
    let ratio = forecast.ratio();
    if ratio <= BADLY_MIXED {
        return None;
    }
    let mut sentence = format!(
        "The shuffle window is small: if the rows are sorted by {groups}, the classes of a batch \
         are {ratio:.1} times as uneven as by chance."
    );
    if let [_, .., (bytes, _)] = forecast.windows[..] {
        sentence += &format!(" Even ones need\n--set data.shuffle_window_bytes={bytes}");
    }
    Some(sentence)
}
