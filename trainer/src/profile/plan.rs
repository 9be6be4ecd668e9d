//! The trials of a profile, in turn: the loader as it is, the store without decoding, decoding
//! without the store, and each with one setting changed.
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use candle_core::Device;
use nepa_pipeline::{
    Dataset, EngineConfig, IoConfig, IoRuntime, Loader, LoaderConfig, MixingForecast, RawBackend,
};

use super::board::Board;
use super::captured::{Captured, Survey};
use super::moments::{Moment, Watch};
use super::trial::{Rules, Source, Trial, run, step_alone};
use crate::output::Scratch;
use crate::recipe::Precision;
use crate::run::{Batches, Stepper, is_remote};
use crate::signals::received;
use crate::trace::Trace;

/// How often all trials are run, turn by turn, so that what changes on the machine meets each.
const ROUNDS: usize = 3;
/// The round whose trial of the loader as it is goes into a trace: the machine is warm by then.
const TRACED: usize = 1;
/// Where a store is slow, first batches take most of the time: the last round is left out where the
/// others took so many times the time that was asked for.
const OVERTIME: u32 = 2;
/// A shorter trial says nothing.
const LEAST: Duration = Duration::from_millis(100);
/// Times the usual first byte that a trial lasts at least, and the longest that this makes it.
const WAVES: u32 = 5;
const LONGEST: Duration = Duration::from_secs(5);
/// A first batch is waited for at least so long; a store may be slow.
const LEAST_WARM_UP: Duration = Duration::from_secs(10);
/// Images that are enough to measure decoding.
const ENOUGH: usize = 16;
/// Window of a trial, unless requests need a larger one: small, so that it is filled soon.
const WINDOW: u64 = 64 << 20;
/// Windows that the loader holds: one that is decoded, one that is fetched.
const WINDOWS: u64 = 2;
/// Images in a batch of a trial that does not decode, at most, so that batches come soon.
const STORE_BATCH: usize = 16;
/// How much further ahead the loader may read in the trial of that, at least.
const AHEAD: u64 = 4;
/// An image is stored anew where its shorter side is so many times that of the crop, with this
/// factor of it.
const LARGE: f64 = 2.5;
const SMALL: f64 = 1.5;

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The loader as it is.
    AsIs,
    /// Training steps on one batch, without a loader.
    Step,
    /// Without decoding: the store, unpacking, the order.
    Store,
    /// The same with twice as many requests.
    MoreRequests,
    /// The same with half as many.
    FewerRequests,
    /// The same with more memory to read ahead.
    MoreAhead,
    /// The order and the batches alone: images from the local disk, not decoded.
    Assembly,
    /// Decoding alone, of images from the local disk.
    Decode,
    /// The same with a thread more.
    MoreThreads,
    /// The same with a thread less.
    FewerThreads,
    /// Decoding alone, of images stored anew as smaller JPEGs.
    StoredAnew,
}

impl Kind {
    /// For people, while it is run.
    pub(super) fn says(self) -> &'static str {
        match self {
            Self::AsIs => "the loader as it is",
            Self::Step => "training steps without the loader",
            Self::Store => "the store without decoding",
            Self::MoreRequests => "the store with twice the requests",
            Self::FewerRequests => "the store with half the requests",
            Self::MoreAhead => "the store, reading further ahead",
            Self::Assembly => "order and batches alone",
            Self::Decode => "decoding without the store",
            Self::MoreThreads => "decoding with a thread more",
            Self::FewerThreads => "decoding with a thread less",
            Self::StoredAnew => "decoding of smaller JPEGs",
        }
    }

    /// Its share of the time: the ceilings are measured for longer than what is compared with them.
    fn weight(self) -> u32 {
        match self {
            Self::AsIs | Self::Store | Self::Decode => 2,
            _ => 1,
        }
    }

    /// Whether nothing is decoded.
    fn is_encoded(self) -> bool {
        matches!(
            self,
            Self::Store
                | Self::MoreRequests
                | Self::FewerRequests
                | Self::MoreAhead
                | Self::Assembly
        )
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
    /// Images a second that are taken at most; none where training steps take them, or nothing.
    pub(crate) consumer: Option<f64>,
    /// Time to open the data set, in seconds.
    pub(crate) open_s: f64,
    /// How batches are mixed, where that can be foretold.
    pub(crate) mixing: Option<MixingForecast>,
    /// Time of all trials.
    pub(crate) time: Duration,
    /// Processor cores.
    pub(crate) cores: usize,
    /// Side of the square images.
    pub(crate) image_size: u32,
    /// Gets one trial of the loader as it is.
    pub(crate) trace: Option<&'a Trace>,
}

impl Subject<'_> {
    /// Whether any of it lies in a store.
    pub(super) fn is_remote(&self) -> bool {
        is_remote(&self.dataset)
    }

    /// Bytes of a window of a trial, no more than the configured ones: small, and large enough that
    /// all requests find something to fetch.
    fn window(&self) -> u64 {
        let parts = self.dataset.shards().iter().flat_map(|shard| &shard.parts);
        let largest = parts.map(|part| part.fetch_bytes).max().unwrap_or(0);
        let request = largest.min(self.io.request_bytes);
        let flight = request.saturating_mul(2 * self.io.max_requests as u64);
        self.config.shuffle_window_bytes.min(flight.max(WINDOW))
    }

    /// Bytes of all requests that may be in flight.
    fn flight(&self) -> u64 {
        let parts = self.dataset.shards().iter().flat_map(|shard| &shard.parts);
        let (count, bytes) = parts.fold((0u64, 0u64), |(count, bytes), part| {
            (
                count + 1,
                bytes + part.fetch_bytes.min(self.io.request_bytes),
            )
        });
        bytes / count.max(1) * self.io.max_requests as u64
    }

    /// Bytes of a window and bytes held that let the loader read further ahead, where memory may
    /// keep requests from being sent.
    pub(super) fn further_ahead(&self) -> Option<[u64; 2]> {
        let (window, held) = (self.config.shuffle_window_bytes, self.io.max_bytes);
        let flight = WINDOWS.saturating_mul(self.flight());
        let lacks = WINDOWS.saturating_mul(window).min(held) < flight;
        lacks.then(|| {
            let window = window.saturating_mul(AHEAD).max(flight);
            let held = held
                .saturating_mul(AHEAD)
                .max(WINDOWS.saturating_mul(window));
            [window, held]
        })
    }
}

/// What all trials found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// In the order in which they were run.
    pub(super) trials: Vec<(Kind, Trial)>,
    /// Rates of training steps without the loader, in images a second.
    pub(super) steps: Vec<f64>,
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

/// The trials that can tell something of a subject.
fn kinds(subject: &Subject<'_>, is_stepping: bool) -> Vec<Kind> {
    // A local disk has no requests that wait.
    let is_remote = subject.is_remote();
    let threads = subject.config.decode_threads;
    let all = [
        (Kind::AsIs, true),
        (Kind::Step, is_stepping),
        (Kind::Store, true),
        (Kind::MoreRequests, is_remote),
        (
            Kind::FewerRequests,
            is_remote && subject.io.max_requests > 1,
        ),
        (
            Kind::MoreAhead,
            is_remote && subject.further_ahead().is_some(),
        ),
        (Kind::Assembly, true),
        (Kind::Decode, true),
        (Kind::MoreThreads, threads < subject.cores),
        (Kind::FewerThreads, threads > 1),
        (Kind::StoredAnew, true),
    ];
    let runs = all.into_iter().filter(|(_, is_run)| *is_run);
    runs.map(|(kind, _)| kind).collect()
}

/// Runs all trials; as far as they come before a signal. With a `stepper`, batches are trained on.
pub(crate) fn measure(
    subject: &Subject<'_>,
    mut stepper: Option<&mut Stepper>,
) -> anyhow::Result<Found> {
    let kinds = kinds(subject, stepper.is_some());
    let weights = kinds.iter().map(|kind| kind.weight()).sum::<u32>() * ROUNDS as u32;
    let mut bench = Bench {
        subject,
        unit: (subject.time / weights).max(LEAST),
        captured: Captured::default(),
        opened: BTreeMap::new(),
        local: None,
        found: Found::default(),
        board: Board::new((kinds.len() * ROUNDS) as u64),
    };
    let begun = Instant::now();
    for round in 0..ROUNDS {
        if round == ROUNDS - 1 && begun.elapsed() > OVERTIME * subject.time {
            break;
        }
        for &kind in &kinds {
            tracing::debug!("round {round}: {}", kind.says());
            if !bench.trial(kind, round, stepper.as_deref_mut())? {
                bench.found.cut_off = true;
                return Ok(bench.found);
            }
            bench.board.done();
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
    /// Time of a trial, by its weight.
    unit: Duration,
    captured: Captured,
    /// The data set with other settings of the store.
    opened: BTreeMap<Kind, Arc<Dataset>>,
    local: Option<Local>,
    found: Found,
    board: Board,
}

impl Bench<'_> {
    /// Runs one trial, if there is anything to run it on; false where a signal came.
    fn trial(
        &mut self,
        kind: Kind,
        round: usize,
        stepper: Option<&mut Stepper>,
    ) -> anyhow::Result<bool> {
        let Some(dataset) = self.dataset(kind)? else {
            return Ok(received().is_none());
        };
        self.board.tell(kind.says());
        let subject = self.subject;
        let config = self.config(kind, round);
        let length = self.unit * kind.weight();
        let is_as_is = kind == Kind::AsIs;
        let mut stepper = stepper.filter(|_| is_as_is || kind == Kind::Step);
        if let (Kind::Step, Some(stepper)) = (kind, &mut stepper) {
            let rate = step_alone(self.decoded(dataset, config)?, length, stepper)?;
            self.found.steps.extend(rate);
            return Ok(rate.is_some());
        }
        let is_traced = kind == Kind::AsIs && round == TRACED;
        let recording = subject.trace.filter(|_| is_traced).map(Trace::begin);
        let source = if kind.is_encoded() {
            let exif_orientation = config.exif_orientation;
            let backend = Arc::new(RawBackend { exif_orientation });
            let builder = Loader::builder("")
                .dataset(Arc::clone(&dataset))
                .config(config);
            Source::Encoded(Box::new(builder.open_with(backend)?))
        } else {
            Source::Decoded(self.decoded(Arc::clone(&dataset), config)?)
        };
        let (captured, board) = (&mut self.captured, &self.board);
        let show = |moment: &Moment| board.show(moment);
        let rules = Rules {
            length,
            warm_up: length.max(LEAST_WARM_UP),
            most: subject.consumer.filter(|_| is_as_is),
            stepper,
            keep: &mut |images| {
                if kind == Kind::Store {
                    captured.keep(images);
                }
            },
            watch: Watch::new(length, &show),
        };
        let trial = run(source, &dataset, rules)?;
        drop(recording);
        let went_on = trial.is_some();
        // Answers come in waves of so many requests; fewer waves say little.
        let first_byte = trial
            .as_ref()
            .and_then(|trial| trial.io.first_byte.quantile(0.5));
        let waves = first_byte.map_or(Duration::ZERO, |first_byte| WAVES * first_byte);
        self.unit = self.unit.max(waves.min(LONGEST));
        self.found.trials.extend(trial.map(|trial| (kind, trial)));
        Ok(went_on)
    }

    /// The loader's settings in a trial.
    fn config(&self, kind: Kind, round: usize) -> LoaderConfig {
        let subject = self.subject;
        let mut config = LoaderConfig {
            // Another order in each round, so that what is cached by then does not make it faster.
            seed: subject.config.seed.wrapping_add(round as u64),
            shuffle_window_bytes: subject.window(),
            // Bad samples are counted, and end nothing here.
            max_bad_fraction: 1.0,
            bad_samples_path: None,
            epochs: None,
            ..subject.config.clone()
        };
        if kind.is_encoded() {
            // As many from each lane.
            let lanes = config.lanes.max(1);
            let of_lane = config.global_batch.min(STORE_BATCH) / lanes;
            config.global_batch = lanes * of_lane.max(1);
        }
        match kind {
            Kind::MoreThreads => config.decode_threads += 1,
            Kind::FewerThreads => config.decode_threads -= 1,
            Kind::MoreAhead => {
                let ahead = subject.further_ahead();
                config.shuffle_window_bytes = ahead.map_or(config.shuffle_window_bytes, |a| a[0]);
            }
            _ => {}
        }
        config
    }

    fn decoded(&self, dataset: Arc<Dataset>, config: LoaderConfig) -> anyhow::Result<Batches> {
        let Subject {
            device,
            precision,
            engines,
            ..
        } = *self.subject;
        let batches = Batches::open(dataset, config, None, device, precision, engines)?;
        Ok(batches)
    }

    /// What a trial reads; none where there is nothing of the kind.
    fn dataset(&mut self, kind: Kind) -> anyhow::Result<Option<Arc<Dataset>>> {
        let subject = self.subject;
        let mut io = subject.io.clone();
        match kind {
            Kind::AsIs | Kind::Step | Kind::Store => return Ok(Some(Arc::clone(&subject.dataset))),
            Kind::MoreRequests => io.max_requests = io.max_requests.saturating_mul(2),
            Kind::FewerRequests => io.max_requests /= 2,
            Kind::MoreAhead => {
                io.max_bytes = subject
                    .further_ahead()
                    .map_or(io.max_bytes, |ahead| ahead[1]);
            }
            Kind::Assembly
            | Kind::Decode
            | Kind::MoreThreads
            | Kind::FewerThreads
            | Kind::StoredAnew => {
                // The store may not have given enough in the first round.
                if self.local.is_none() && self.captured.len() >= ENOUGH {
                    self.local = Some(self.store_locally()?);
                }
                return Ok(self.local.as_ref().and_then(|local| match kind {
                    Kind::StoredAnew => local.anew.clone(),
                    _ => Some(Arc::clone(&local.as_they_are)),
                }));
            }
        }
        let opened = match self.opened.entry(kind) {
            Entry::Occupied(opened) => opened.into_mut(),
            Entry::Vacant(place) => place.insert((subject.reopen)(&io)?),
        };
        Ok(Some(Arc::clone(opened)))
    }

    /// Measures single images and stores what was kept.
    fn store_locally(&mut self) -> anyhow::Result<Local> {
        let subject = self.subject;
        self.board.tell("single images");
        let folder = Scratch::new().context("cannot make a folder for images")?;
        let io = IoConfig::default();
        let survey = self.captured.survey(&subject.dataset, &subject.config)?;
        let crop = subject.image_size;
        let is_large = f64::from(survey.shorter_side) > LARGE * f64::from(crop);
        let is_odd = survey.dear().is_some();
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
