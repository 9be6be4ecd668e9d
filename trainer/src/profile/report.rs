//! What a profile found, for people and as JSON.
use nepa_pipeline::{DecoderStats, StageStats, shown_url};
use serde::Serialize;

use super::captured::Survey;
use super::histogram::Histogram;
use super::ladder::{Ladder, Limit, Rate, bytes_an_image, middle};
use super::moments::Moment;
use super::plan::{Found, Kind, Subject};
use super::trial::Trial;
use super::verdict::{Evidence, Verdict, judge, signed};
use crate::console::print::labelled;
use crate::console::words::{self, counted, digits};
use crate::device::memory_in_use;

/// Version of the JSON; it is raised where a key changes its meaning or goes.
pub(super) const VERSION: u32 = 2;

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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) first_batch_s: Option<f64>,
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
        let ladder = Ladder::new(
            found,
            bytes_per_image,
            config.decode_threads,
            subject.consumer,
        )?;
        let store = Store::new(found);
        let as_is = || found.of(Kind::AsIs);
        let (images, bad) = as_is().fold((0, 0), |(images, bad), trial| {
            (images + trial.images, bad + trial.bad)
        });
        let own = middle(as_is(), |trial| Some(trial.kernel.own)).unwrap_or(0.0);
        let parts = dataset.shards().iter().flat_map(|shard| &shard.parts);
        // Decoding alone loads the processor whatever the store does.
        let busiest = found.of(Kind::Decode).chain(as_is()).last()?;
        let evidence = Evidence {
            in_flight: store.in_flight,
            max_requests: subject.io.max_requests,
            request_bytes: store.bytes_per_request,
            bytes_a_second: store.bytes_per_second,
            first_byte: store
                .first_byte_p50_s
                .zip(store.first_byte_p99_s)
                .map(<[f64; 2]>::from),
            throttled: store.throttled,
            is_remote: subject.is_remote(),
            has_cache: subject.io.cache_dir.is_some(),
            threads: config.decode_threads,
            cores: subject.cores,
            kernel: busiest.kernel,
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
            first_batch_s: as_is().next()?.first_batch_s,
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
            stages: last.stats.stages.clone(),
            decoders: last.decoders().cloned(),
            moments: last.moments.clone(),
        })
    }

    /// Prints it for people.
    pub(crate) fn show(&self) {
        self.show_head();
        self.show_ladder();
        self.show_verdict();
        self.show_what_if();
        self.show_costs();
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
        let first = self.first_batch_s.map_or_else(String::new, |first| {
            format!("; first batch after {first:.2} s")
        });
        let memory = self.memory_bytes.map_or_else(String::new, |bytes| {
            format!("; {} of memory", words::bytes(bytes))
        });
        println!(
            "{} px, batch {}, {}, {} requests{first}{memory}",
            self.image_size,
            words::count(self.batch as u64),
            counted(self.decode_threads as u64, "decode thread"),
            self.max_requests
        );
        if self.cut_off {
            println!("Ended by a signal: what was measured until then.");
        }
    }

    fn show_ladder(&self) {
        let ladder = &self.ladder;
        let head = "ceilings, each stage by itself";
        println!("\n{head:<45}images/s");
        let row = |name: &str, rate: Option<Rate>| {
            let shown = rate.map_or_else(
                || "not measured".to_owned(),
                |rate| {
                    format!(
                        "{:>9}  {} to {}",
                        digits(rate.median),
                        digits(rate.least),
                        digits(rate.most)
                    )
                },
            );
            println!("  {name:<42}{shown}");
        };
        row("as it is", Some(ladder.as_is));
        row("store, without decoding", Some(ladder.store));
        row("decoding, without the store", ladder.decode);
        row(
            "unpacking and decoding",
            ladder.decode.map(|_| ladder.processor()),
        );
        if let Some(consumer) = ladder.consumer {
            println!("  {:<42}{:>9}", "the consumer", digits(consumer));
        }
    }

    fn show_verdict(&self) {
        let verdict = &self.verdict;
        let limit = match verdict.limit {
            Limit::Store => "the store",
            Limit::Processor => "decoding",
            Limit::Consumer => "the consumer",
        };
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
        for note in &verdict.notes {
            labelled("note", note);
        }
    }

    fn show_what_if(&self) {
        if self.verdict.what_if.is_empty() {
            return;
        }
        let head = "what if";
        println!("\n{head:<53}images/s    gain");
        for what in &self.verdict.what_if {
            let how = if what.measured { "" } else { "  (computed)" };
            let rate = digits(what.rate);
            let gain = signed(what.gain);
            println!("  {:<50}{rate:>9}{gain:>8}{how}", what.change);
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
        println!("slowest");
        for slow in &self.survey.slowest {
            println!("  {} ms  {}", digits(slow.ms), slow.form);
            println!("    {}", slow.place);
        }
    }
}

/// Codecs of the column that has most bytes: that of the images.
fn codecs(subject: &Subject<'_>) -> Vec<String> {
    let columns = subject.dataset.columns();
    let largest = columns.into_iter().max_by_key(|column| column.stored_bytes);
    largest.map_or_else(Vec::new, |column| column.codecs)
}
