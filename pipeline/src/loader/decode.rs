//! The decode threads: unpack row groups as they arrive, render samples into their slots.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use nepa_schemas::{Label, ShardBatch};

use super::batch_decode::BatchJob;
use super::window::LoadedWindow;
use crate::backend::{BackendError, ImageBackend, PlannedImage, RenderError, Renderer, Router};
use crate::batch::SampleRecord;
use crate::dataset::FetchedPart;
use crate::image::ImageHeader;
use crate::random::{Purpose, sample_stream};
use crate::stats::PipelineCounters;
use crate::sync::{Receiver, Sender, never, select_biased};
use crate::{Augment, CropPlan, Dataset, DatasetError, PartId, SampleId};

/// A window of one walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WindowId {
    /// Index of the data set.
    pub source: usize,
    /// Number of the window in that walk.
    pub sequence: u64,
}

/// A part that came from the store, or why it did not.
#[derive(Debug)]
pub(super) struct Fetched {
    pub window: WindowId,
    pub part: PartId,
    pub bytes: FetchedPart,
}

/// A part that is unpacked, or why it is not.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub window: WindowId,
    pub part: PartId,
    pub batch: Result<ShardBatch, Arc<DatasetError>>,
}

/// One sample to render.
#[derive(Debug)]
pub(super) struct Job<S> {
    pub epoch: u64,
    pub id: SampleId,
    pub window: Arc<LoadedWindow>,
    /// Position in the batch.
    pub position: usize,
    pub slot: S,
    pub done: Sender<Done<S>>,
}

impl<S> Job<S> {
    /// Sends the slot back with its outcome.
    pub(super) fn finish(self, outcome: Outcome) {
        // A batch that nobody waits for any more was given up by a stopping loader.
        let _ = self.done.send(Done {
            position: self.position,
            slot: self.slot,
            outcome,
        });
    }
}

/// A sample whose header was read and whose plan was drawn.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    id: SampleId,
    pub bytes: Bytes,
    label: Option<Label>,
    header: ImageHeader,
    plan: CropPlan,
    more_views: Vec<CropPlan>,
}

impl Planned {
    pub(super) fn image(&self) -> PlannedImage<'_> {
        PlannedImage {
            bytes: &self.bytes,
            header: self.header,
            plan: self.plan,
            more_views: &self.more_views,
        }
    }

    /// Its record in the place of `asked_for`.
    pub(super) fn record(&self, asked_for: SampleId) -> SampleRecord {
        SampleRecord {
            id: self.id,
            plan: self.plan,
            more_views: self.more_views.clone(),
            label: self.label.clone(),
            replaces: (self.id != asked_for).then_some(asked_for),
        }
    }
}

/// One rendered sample.
#[derive(Debug)]
pub(super) struct Done<S> {
    pub position: usize,
    pub slot: S,
    pub outcome: Outcome,
}

/// Why a sample is replaced.
#[derive(Debug)]
pub(super) struct Flaw {
    pub reason: String,
    /// Whether its row holds no image at all, which the footer did not tell. Such a row is not bad.
    pub absent: bool,
}

impl Flaw {
    fn bad(reason: String) -> Self {
        Self {
            reason,
            absent: false,
        }
    }
}

/// What became of a job.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The sample itself.
    Good(SampleRecord),
    /// Another one in its place, and the reason.
    Replaced(SampleRecord, Flaw),
    /// Nothing could replace it.
    Exhausted(SampleId, String),
    /// The device failed.
    Failed(BackendError),
}

/// What every decode thread shares.
#[derive(Debug)]
pub(super) struct Shared<B> {
    pub dataset: Arc<Dataset>,
    pub augment: Box<dyn Augment>,
    pub backend: Arc<B>,
    pub router: Router,
    pub seed: u64,
    pub counters: Arc<PipelineCounters>,
}

/// The ends of the queues that a decode thread holds.
#[derive(Debug)]
pub(super) struct Queues<S> {
    /// Disconnected when the loader stops.
    pub stop: Receiver<()>,
    pub fetched: Receiver<Fetched>,
    pub unpacked: Sender<Unpacked>,
    pub jobs: Receiver<Job<S>>,
    /// Jobs that the batch decoder gave back.
    pub returned: Receiver<Job<S>>,
    /// The batch decoder's queue; `None` once this thread hands it no more.
    pub batch: Option<Sender<BatchJob<S>>>,
    /// Images that the batch decoder takes in one call.
    pub batch_size: usize,
}

impl<S> Clone for Queues<S> {
    fn clone(&self) -> Self {
        Self {
            stop: self.stop.clone(),
            fetched: self.fetched.clone(),
            unpacked: self.unpacked.clone(),
            jobs: self.jobs.clone(),
            returned: self.returned.clone(),
            batch: self.batch.clone(),
            batch_size: self.batch_size,
        }
    }
}

/// Runs until the loader stops, or until no job can come any more.
pub(super) fn run<B: ImageBackend>(shared: &Shared<B>, mut queues: Queues<B::Slot>) {
    let mut thread = RenderThread::new(shared);
    let (mut jobs_end, mut returned_end) = (false, false);
    while !(jobs_end && returned_end) {
        let waiting = Instant::now();
        // Row groups first: everything else waits for them. Then what has waited longest.
        select_biased! {
            recv(queues.stop) -> _ => return,
            recv(queues.fetched) -> fetched => {
                shared.counters.decode.blocked_in(waiting);
                let sent = fetched.is_ok_and(|fetched| queues.unpacked.send(unpack(shared, fetched)).is_ok());
                if !sent {
                    // The walk has ended and wants no more; the samples that it handed out are still to be rendered.
                    queues.fetched = never();
                }
            },
            recv(queues.returned) -> job => {
                shared.counters.decode.blocked_in(waiting);
                if let Ok(job) = job {
                    thread.work(job, None);
                } else {
                    (queues.returned, returned_end) = (never(), true);
                }
            },
            recv(queues.jobs) -> job => {
                shared.counters.decode.blocked_in(waiting);
                if let Ok(job) = job {
                    shared.counters.decode.fill(queues.jobs.len());
                    let batch = queues.batch.as_ref().map(|batch| (batch, queues.batch_size));
                    thread.work(job, batch);
                } else {
                    // The batch decoder ends when nobody can give it more, and then gives nothing back any more.
                    (queues.jobs, queues.batch, jobs_end) = (never(), None, true);
                }
            },
        }
    }
}

pub(super) fn unpack<B>(shared: &Shared<B>, fetched: Fetched) -> Unpacked {
    let started = Instant::now();
    let Fetched {
        window,
        part,
        bytes,
    } = fetched;
    let batch = bytes.and_then(|bytes| {
        // A panic here would leave the walk waiting for a part that never comes.
        let unpacked = catch_unwind(AssertUnwindSafe(|| bytes.unpack())).unwrap_or_else(|_| {
            Err(DatasetError::BadPage {
                place: shared.dataset.place(part),
                source: "the Parquet reader panicked on these bytes".into(),
            })
        });
        unpacked.map_err(Arc::new)
    });
    shared.counters.unpack.busy(started);
    let fetch_bytes = shared.dataset.part(part).fetch_bytes;
    shared.counters.unpack.item(fetch_bytes as usize);
    Unpacked {
        window,
        part,
        batch,
    }
}

/// Why a sample has no pixels.
enum Fault {
    /// It is to be replaced.
    Sample(Flaw),
    /// The device failed.
    Device(BackendError),
}

/// Decodes and renders with one thread's renderer, which is made anew after a panic.
pub(super) struct RenderThread<'a, B: ImageBackend> {
    shared: &'a Shared<B>,
    renderer: Result<B::Renderer, BackendError>,
}

impl<'a, B: ImageBackend> RenderThread<'a, B> {
    pub(super) fn new(shared: &'a Shared<B>) -> Self {
        let renderer = shared.backend.renderer();
        Self { shared, renderer }
    }

    /// Renders a job, or hands it to the batch decoder where there is one and it is the better choice.
    pub(super) fn work(
        &mut self,
        mut job: Job<B::Slot>,
        batch: Option<(&Sender<BatchJob<B::Slot>>, usize)>,
    ) {
        let shared = self.shared;
        let started = Instant::now();
        let planned = self.plan(&job, job.id);
        if let (Ok(planned), Some((queue, max_images))) = (&planned, batch)
            && shared.backend.batch_accepts(&planned.image())
            && shared.router.to_batch(max_images)
            && self.suits_batch(planned)
        {
            let planned = planned.clone();
            shared.counters.decode.busy(started);
            // Only a stopping loader has no batch decoder any more.
            let _ = queue.send(BatchJob { job, planned });
            return;
        }
        let rendered = planned.and_then(|planned| {
            let timed = Instant::now();
            self.render(&planned, &mut job.slot)?;
            shared.router.thread_done(timed.elapsed());
            Ok(planned.record(job.id))
        });
        let outcome = match rendered {
            Ok(record) => Outcome::Good(record),
            Err(Fault::Sample(flaw)) => self.replace(&mut job, flaw),
            Err(Fault::Device(error)) => Outcome::Failed(error),
        };
        shared.counters.decode.busy(started);
        job.finish(outcome);
    }

    /// Whether the batch decoder takes an image that the router would send to it.
    fn suits_batch(&mut self, planned: &Planned) -> bool {
        let suits = match &mut self.renderer {
            Ok(renderer) => renderer.suits_batch(&planned.image()),
            Err(_) => false,
        };
        if !suits {
            self.shared.router.not_sent();
        }
        suits
    }

    /// The outcome of the first candidate that is not bad as well.
    fn replace(&mut self, job: &mut Job<B::Slot>, flaw: Flaw) -> Outcome {
        let window = Arc::clone(&job.window);
        for candidate in window.replacements(self.shared.seed, job.epoch, job.id) {
            let rendered = self.plan(job, candidate).and_then(|planned| {
                self.render(&planned, &mut job.slot)?;
                Ok(planned.record(job.id))
            });
            match rendered {
                Ok(record) => return Outcome::Replaced(record, flaw),
                Err(Fault::Sample(_)) => {}
                Err(Fault::Device(error)) => return Outcome::Failed(error),
            }
        }
        Outcome::Exhausted(job.id, flaw.reason)
    }

    /// Reads the header of `candidate` and draws its plan.
    fn plan(&mut self, job: &Job<B::Slot>, candidate: SampleId) -> Result<Planned, Fault> {
        let (bytes, label) = job.window.image(candidate).map_err(|error| {
            Fault::Sample(Flaw {
                reason: error.to_string(),
                absent: error.is_absent(),
            })
        })?;
        let header = self.guarded(|renderer| Ok(renderer.header(&bytes)?))?;
        // The random numbers stay those of the position's own sample, so that a replacement is not a plain repetition.
        let mut rng = sample_stream(self.shared.seed, job.epoch, job.id, Purpose::Augment);
        let augment = &self.shared.augment;
        let plan = augment.draw(header.width, header.height, &mut rng);
        let more_views = augment.draw_more(header.width, header.height, &mut rng);
        Ok(Planned {
            id: candidate,
            bytes,
            label,
            header,
            plan,
            more_views,
        })
    }

    fn render(&mut self, planned: &Planned, slot: &mut B::Slot) -> Result<(), Fault> {
        self.guarded(|renderer| renderer.render(planned.image(), slot))?;
        self.shared.counters.decode.item(planned.bytes.len());
        Ok(())
    }

    /// Foreign bytes meet foreign decoders: a panic in one of them costs the sample, not the run.
    fn guarded<T>(
        &mut self,
        body: impl FnOnce(&mut B::Renderer) -> Result<T, RenderError>,
    ) -> Result<T, Fault> {
        let renderer = match &mut self.renderer {
            Ok(renderer) => renderer,
            Err(error) => return Err(Fault::Device(error.repeated())),
        };
        match catch_unwind(AssertUnwindSafe(|| body(renderer))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(RenderError::Image(error))) => Err(Fault::Sample(Flaw::bad(full_text(&error)))),
            Ok(Err(RenderError::Backend(error))) => Err(Fault::Device(error)),
            Err(_) => {
                self.renderer = self.shared.backend.renderer();
                let reason = "the decoder panicked on these bytes".to_owned();
                Err(Fault::Sample(Flaw::bad(reason)))
            }
        }
    }
}

/// The message of an error and of its causes.
pub(super) fn full_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let message = cause.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        source = cause.source();
    }
    text
}
