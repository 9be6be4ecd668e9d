//! What a trial does from moment to moment, for the page and for the terminal.
use std::time::{Duration, Instant};

use nepa_pipeline::{PipelineStats, Stage};

/// Moments of a trial, at most, and the shortest time between two.
const MOST: u32 = 200;
const LEAST: Duration = Duration::from_millis(100);

/// What a loader did between two looks.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moment {
    /// The middle of the time between them, from the beginning of measuring, in seconds.
    pub(super) at_s: f64,
    /// Images decoded (or handed on as they are) a second.
    pub(super) images_a_second: f64,
    /// Bytes that came a second.
    pub(super) bytes_a_second: f64,
    /// Share of the requests, of the decode threads (unpacking, decoding), of the consumer that
    /// were at work.
    pub(super) busy: [f64; 4],
}

/// Names of what [`Moment::busy`] holds.
pub(super) const STAGES: [&str; 4] = ["store", "unpacking", "decoding", "consumer"];

impl Moment {
    fn new(since: &PipelineStats, at_s: f64) -> Self {
        let seconds = since.wall_s.max(1e-9);
        let fetch = since.stage(Stage::Fetch);
        Self {
            at_s,
            images_a_second: since.stage(Stage::Decode).items as f64 / seconds,
            bytes_a_second: fetch.bytes as f64 / seconds,
            busy: [
                (fetch.busy_s / seconds / fetch.workers.max(1) as f64).min(1.0),
                since.share(Stage::Unpack),
                since.share(Stage::Decode),
                since.share(Stage::Consume),
            ],
        }
    }
}

/// Looks at a trial now and then.
pub(super) struct Watch<'a> {
    every: Duration,
    begun: Instant,
    last: Option<(Instant, PipelineStats)>,
    moments: Vec<Moment>,
    /// Is shown each moment.
    show: &'a dyn Fn(&Moment),
}

impl<'a> Watch<'a> {
    /// Of a trial of this length.
    pub(super) fn new(length: Duration, show: &'a dyn Fn(&Moment)) -> Self {
        Self {
            every: LEAST.max(length / MOST),
            begun: Instant::now(),
            last: None,
            moments: Vec::new(),
            show,
        }
    }

    /// Measuring begins.
    pub(super) fn begin(&mut self) {
        self.begun = Instant::now();
        self.moments.clear();
    }

    /// Looks, if it is time.
    pub(super) fn look(&mut self, stats: impl FnOnce() -> PipelineStats) {
        let now = Instant::now();
        if let Some((at, _)) = &self.last
            && now - *at < self.every
        {
            return;
        }
        let stats = stats();
        if let Some((at, before)) = &self.last {
            let middle = *at + (now - *at) / 2;
            let at_s = middle.saturating_duration_since(self.begun).as_secs_f64();
            let moment = Moment::new(&stats.since(before), at_s);
            (self.show)(&moment);
            self.moments.push(moment);
        }
        self.last = Some((now, stats));
    }

    /// All moments since measuring began.
    pub(super) fn into_moments(self) -> Vec<Moment> {
        self.moments
    }
}
