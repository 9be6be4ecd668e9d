//! The trials of a profile, in turn: the loader as it is, the store without decoding, decoding
//! without the store, and each with one setting changed.
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use candle_core::Device;
use nepa_pipeline::{Dataset, EngineConfig, IoConfig, IoRuntime, Loader, LoaderConfig, RawBackend};

use super::captured::{Captured, Survey};
use super::trial::{Rules, Source, Trial, run};
use crate::console::progress::{Progress, Unit};
use crate::output::Scratch;
use crate::recipe::Precision;
use crate::run::{Batches, is_remote};
use crate::signals::received;

/// How often all trials are run, turn by turn, so that what changes on the machine meets each.
pub(super) const ROUNDS: usize = 3;
/// A shorter trial says nothing.
const LEAST: Duration = Duration::from_millis(100);
/// Times the usual first byte that a trial lasts at least, and the longest that this makes it.
const WAVES: u32 = 8;
const LONGEST: Duration = Duration::from_secs(5);
/// A first batch is waited for at least so long; a store may be slow.
const LEAST_WARM_UP: Duration = Duration::from_secs(10);
/// Images that are enough to measure decoding.
const ENOUGH: usize = 16;
/// The window of a trial: small, so that it is filled soon. It decides the order, not the rate.
const WINDOW: u64 = 64 << 20;
/// An image is stored anew where its shorter side is so many times that of the crop, with this
/// factor of it.
const LARGE: f64 = 2.5;
const SMALL: f64 = 1.5;

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The loader as it is.
    AsIs,
    /// Without decoding: the store, unpacking, the order.
    Store,
    /// The same with twice as many requests.
    MoreRequests,
    /// Decoding alone, of images from the local disk.
    Decode,
    /// The same with a thread more.
    MoreThreads,
    /// Decoding alone, of images stored anew as smaller JPEGs.
    StoredAnew,
}

impl Kind {
    /// For people, while it is run.
    fn says(self) -> &'static str {
        match self {
            Self::AsIs => "the loader as it is",
            Self::Store => "the store without decoding",
            Self::MoreRequests => "the store with twice as many requests",
            Self::Decode => "decoding without the store",
            Self::MoreThreads => "decoding with a thread more",
            Self::StoredAnew => "decoding of smaller JPEGs",
        }
    }
}

/// What is profiled.
pub(crate) struct Subject<'a> {
    /// As they were given, for the report.
    pub(crate) urls: Vec<String>,
    pub(crate) dataset: Arc<Dataset>,
    /// Opens it again with other settings of the store.
    pub(crate) reopen: &'a dyn Fn(&IoConfig) -> anyhow::Result<Arc<Dataset>>,
    pub(crate) config: LoaderConfig,
    pub(crate) io: IoConfig,
    pub(crate) runtime: &'a IoRuntime,
    pub(crate) device: &'a Device,
    pub(crate) precision: Precision,
    pub(crate) engines: EngineConfig,
    /// Images a second that are taken at most.
    pub(crate) consumer: Option<f64>,
    /// Time of all trials.
    pub(crate) time: Duration,
    /// Processor cores.
    pub(crate) cores: usize,
    /// Side of the square images.
    pub(crate) image_size: u32,
}

impl Subject<'_> {
    /// Whether any of it lies in a store.
    pub(super) fn is_remote(&self) -> bool {
        is_remote(&self.dataset)
    }
}

/// What all trials found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// In the order in which they were run.
    pub(super) trials: Vec<(Kind, Trial)>,
    pub(super) survey: Survey,
    /// Shorter side of images stored anew; 0 where they kept their size.
    pub(super) anew_side: u32,
    /// Whether a signal ended it early.
    pub(super) cut_off: bool,
}

impl Found {
    /// The trials of a kind.
    pub(super) fn of(&self, kind: Kind) -> impl Iterator<Item = &Trial> {
        let of = self.trials.iter().filter(move |(other, _)| *other == kind);
        of.map(|(_, trial)| trial)
    }
}

/// Runs all trials; as far as they come before a signal.
pub(crate) fn measure(subject: &Subject<'_>) -> anyhow::Result<Found> {
    let mut kinds = vec![Kind::AsIs, Kind::Store];
    // A local disk has no requests that wait.
    if subject.is_remote() {
        kinds.push(Kind::MoreRequests);
    }
    kinds.push(Kind::Decode);
    if subject.config.decode_threads < subject.cores {
        kinds.push(Kind::MoreThreads);
    }
    kinds.push(Kind::StoredAnew);
    let trials = kinds.len() * ROUNDS;
    let mut bench = Bench {
        subject,
        length: (subject.time / trials as u32).max(LEAST),
        captured: Captured::default(),
        more_requests: None,
        local: None,
        found: Found::default(),
    };
    let progress = Progress::new("profiling", Some(trials as u64), Unit::Count("trials"));
    for round in 0..ROUNDS {
        for &kind in &kinds {
            tracing::debug!("round {round}: {}", kind.says());
            if !bench.trial(kind, round)? {
                bench.found.cut_off = true;
                return Ok(bench.found);
            }
            progress.add(1);
        }
    }
    Ok(bench.found)
}

/// Images on the local disk.
struct Local {
    _folder: Scratch,
    as_they_are: Arc<Dataset>,
    anew: Option<Arc<Dataset>>,
}

struct Bench<'a> {
    subject: &'a Subject<'a>,
    /// Time of a trial.
    length: Duration,
    captured: Captured,
    more_requests: Option<Arc<Dataset>>,
    local: Option<Local>,
    found: Found,
}

impl Bench<'_> {
    /// Runs one trial, if there is anything to run it on; false where a signal came.
    fn trial(&mut self, kind: Kind, round: usize) -> anyhow::Result<bool> {
        let Some(dataset) = self.dataset(kind)? else {
            return Ok(received().is_none());
        };
        let subject = self.subject;
        let mut config = LoaderConfig {
            // Another order in each round, so that what is cached by then does not make it faster.
            seed: subject.config.seed.wrapping_add(round as u64),
            shuffle_window_bytes: subject.config.shuffle_window_bytes.min(WINDOW),
            // Bad samples are counted, and end nothing here.
            max_bad_fraction: 1.0,
            bad_samples_path: None,
            epochs: None,
            ..subject.config.clone()
        };
        if kind == Kind::MoreThreads {
            config.decode_threads += 1;
        }
        let encoded = matches!(kind, Kind::Store | Kind::MoreRequests);
        let source = if encoded {
            let exif_orientation = config.exif_orientation;
            let backend = Arc::new(RawBackend { exif_orientation });
            let builder = Loader::builder("")
                .dataset(Arc::clone(&dataset))
                .config(config);
            Source::Encoded(Box::new(builder.open_with(backend)?))
        } else {
            let (device, precision) = (subject.device, subject.precision);
            let engines = subject.engines;
            let dataset = Arc::clone(&dataset);
            Source::Decoded(Batches::open(
                dataset, config, None, device, precision, engines,
            )?)
        };
        let captured = &mut self.captured;
        let rules = Rules {
            length: self.length,
            warm_up: self.length.max(LEAST_WARM_UP),
            consumer: subject.consumer.filter(|_| kind == Kind::AsIs),
            keep: &mut |images| {
                if kind == Kind::Store {
                    captured.keep(images);
                }
            },
        };
        let trial = run(source, &dataset, rules)?;
        let went_on = trial.is_some();
        // Answers come in waves of so many requests; fewer waves say little.
        let first_byte = trial
            .as_ref()
            .and_then(|trial| trial.io.first_byte.quantile(0.5));
        let waves = first_byte.map_or(Duration::ZERO, |first_byte| WAVES * first_byte);
        self.length = self.length.max(waves.min(LONGEST));
        self.found.trials.extend(trial.map(|trial| (kind, trial)));
        Ok(went_on)
    }

    /// What a trial reads; none where there is nothing of the kind.
    fn dataset(&mut self, kind: Kind) -> anyhow::Result<Option<Arc<Dataset>>> {
        Ok(match kind {
            Kind::AsIs | Kind::Store => Some(Arc::clone(&self.subject.dataset)),
            Kind::MoreRequests => {
                if self.more_requests.is_none() {
                    let io = IoConfig {
                        max_requests: self.subject.io.max_requests.saturating_mul(2),
                        ..self.subject.io.clone()
                    };
                    self.more_requests = Some((self.subject.reopen)(&io)?);
                }
                self.more_requests.clone()
            }
            Kind::Decode | Kind::MoreThreads | Kind::StoredAnew => {
                // The store may not have given enough in the first round.
                if self.local.is_none() && self.captured.len() >= ENOUGH {
                    self.local = Some(self.store_locally()?);
                }
                let local = self.local.as_ref();
                local.and_then(|local| match kind {
                    Kind::StoredAnew => local.anew.clone(),
                    _ => Some(Arc::clone(&local.as_they_are)),
                })
            }
        })
    }

    /// Measures single images and stores what was kept.
    fn store_locally(&mut self) -> anyhow::Result<Local> {
        let subject = self.subject;
        let folder = Scratch::new().context("cannot make a folder for images")?;
        let io = IoConfig::default();
        let survey = self.captured.survey(&subject.dataset, &subject.config)?;
        let crop = subject.image_size;
        let is_large = f64::from(survey.shorter_side) > LARGE * f64::from(crop);
        let is_odd = survey.formats.iter().any(|cost| cost.format != "JPEG");
        let mut anew = None;
        if is_large || is_odd {
            let small = (f64::from(crop) * SMALL).ceil() as u32;
            let side = if is_large { small } else { u32::MAX };
            let place = folder.path().join("anew");
            anew = self
                .captured
                .stored_anew(side, &place, &io, subject.runtime)?;
            self.found.anew_side = if is_large { side } else { 0 };
        }
        let place = folder.path().join("as-they-are");
        let as_they_are = self.captured.stored(&place, &io, subject.runtime)?;
        self.found.survey = survey;
        Ok(Local {
            _folder: folder,
            as_they_are,
            anew,
        })
    }
}
