//! The decode threads: unpack row groups as they arrive, render samples into their slots.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::LoaderError;
use super::job::{BatchJob, Fetched, Flaw, Job, Outcome, Planned, Unpacked};
use crate::backend::{BackendError, Decode, ImageBackend, ImageDecoder, Router};
use crate::random::{Purpose, sample_stream};
use crate::spans::SPANS_ON_A_THREAD;
use crate::stats::PipelineCounters;
use crate::store::full_text;
use crate::sync::{Receiver, Sender, never, select_biased};
use crate::{Augment, Dataset, DatasetError, ImageError, SampleId};

/// What every decode thread shares.
#[derive(Debug)]
pub(super) struct Shared<B> {
    pub dataset: Arc<Dataset>,
    pub augment: Arc<dyn Augment>,
    /// Sides of the views.
    pub sides: Vec<u32>,
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
    let mut thread = DecodeThread::new(shared);
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
                    // The walk has ended and wants no more; the samples that it handed out are
                    // still to be rendered.
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
                    // The batch decoder ends when nobody can give it more, and then gives nothing
                    // back any more.
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
    let fetch_bytes = shared.dataset.part(part).fetch_bytes;
    let span = tracing::trace_span!(
        target: SPANS_ON_A_THREAD,
        "unpack",
        object = &*shared.dataset.shards()[part.shard as usize].url,
        row_group = shared.dataset.part(part).row_group,
        bytes = fetch_bytes,
    );
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
    drop(span);
    shared.counters.unpack.busy(started);
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
    /// The run cannot go on.
    Run(LoaderError),
}

impl From<BackendError> for Fault {
    fn from(error: BackendError) -> Self {
        Self::Run(error.into())
    }
}

impl From<ImageError> for Fault {
    fn from(error: ImageError) -> Self {
        Self::Sample(Flaw::bad(full_text(&error)))
    }
}

/// Decodes with one thread's decoder, which is made anew after a panic.
pub(super) struct DecodeThread<'a, B: ImageBackend> {
    shared: &'a Shared<B>,
    decoder: Result<Box<dyn ImageDecoder<B::Slot>>, BackendError>,
}

impl<'a, B: ImageBackend> DecodeThread<'a, B> {
    pub(super) fn new(shared: &'a Shared<B>) -> Self {
        let decoder = shared.backend.decoder();
        Self { shared, decoder }
    }

    /// Renders a job, or hands it to the batch decoder where there is one and it is the better
    /// choice.
    pub(super) fn work(
        &mut self,
        mut job: Job<B::Slot>,
        batch: Option<(&Sender<BatchJob<B::Slot>>, usize)>,
    ) {
        let shared = self.shared;
        let started = Instant::now();
        let span = tracing::trace_span!(
            target: SPANS_ON_A_THREAD,
            "decode",
            object = &*shared.dataset.shards()[job.id.shard as usize].url,
            row_group = job.id.row_group,
            row = job.id.row,
            format = tracing::field::Empty,
            width = tracing::field::Empty,
            height = tracing::field::Empty,
            bytes = tracing::field::Empty,
            bad = tracing::field::Empty,
        );
        let planned = self.plan(&job, job.id);
        if let Ok(planned) = &planned {
            span.record("format", tracing::field::debug(planned.header.format));
            span.record("width", planned.header.width);
            span.record("height", planned.header.height);
            span.record("bytes", planned.bytes.len());
        }
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
            Ok(planned.rendered(job.id))
        });
        let outcome = match rendered {
            Ok(rendered) => Outcome::Good(rendered),
            Err(Fault::Sample(flaw)) => {
                span.record("bad", &*flaw.reason);
                self.replace(&mut job, flaw)
            }
            Err(Fault::Run(error)) => Outcome::Failed(error),
        };
        drop(span);
        shared.counters.decode.busy(started);
        job.finish(outcome);
    }

    /// Whether the batch decoder takes an image that the router would send to it.
    fn suits_batch(&mut self, planned: &Planned) -> bool {
        let suits = match &mut self.decoder {
            Ok(decoder) => decoder.suits_batch(&planned.image()),
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
                Ok(planned.rendered(job.id))
            });
            match rendered {
                Ok(rendered) => return Outcome::Replaced(rendered, flaw),
                Err(Fault::Sample(_)) => {}
                Err(Fault::Run(error)) => return Outcome::Failed(error),
            }
        }
        Outcome::Exhausted(job.id, flaw.reason)
    }

    /// Reads the header of `candidate` and draws its plan.
    fn plan(&mut self, job: &Job<B::Slot>, candidate: SampleId) -> Result<Planned, Fault> {
        let (bytes, label, extra) = job.window.image(candidate).map_err(|error| {
            Fault::Sample(Flaw {
                reason: error.to_string(),
                absent: error.is_absent(),
            })
        })?;
        let header = self.guarded(|decoder| Ok(decoder.header(&bytes)?))?;
        // The random numbers stay those of the position's own sample, so that a replacement is not
        // a plain repetition.
        let mut stream = sample_stream(self.shared.seed, job.epoch, job.id, Purpose::Augment);
        let views = self
            .shared
            .augment
            .draw(header.width, header.height, &mut stream);
        let sides = views.iter().map(|plan| plan.output_size);
        if !sides.eq(self.shared.sides.iter().copied()) {
            let drawn = views.iter().map(|plan| plan.output_size).collect();
            return Err(Fault::Run(LoaderError::Views {
                promised: self.shared.sides.clone(),
                drawn,
            }));
        }
        Ok(Planned {
            id: candidate,
            bytes,
            label,
            header,
            views,
            extra,
        })
    }

    fn render(&mut self, planned: &Planned, slot: &mut B::Slot) -> Result<(), Fault> {
        self.guarded(|decoder| {
            let mut images = [Decode::new(planned.image(), slot)];
            decoder.decode(&mut images)?;
            let [image] = images;
            Ok(image.result?)
        })?;
        self.shared.counters.decode.item(planned.bytes.len());
        Ok(())
    }

    /// Foreign bytes meet foreign decoders: a panic in one of them costs the sample, not the run.
    fn guarded<T>(
        &mut self,
        body: impl FnOnce(&mut dyn ImageDecoder<B::Slot>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let decoder = match &mut self.decoder {
            Ok(decoder) => decoder.as_mut(),
            Err(error) => return Err(error.repeated().into()),
        };
        catch_unwind(AssertUnwindSafe(|| body(decoder))).unwrap_or_else(|_| {
            self.decoder = self.shared.backend.decoder();
            let reason = "the decoder panicked on these bytes".to_owned();
            Err(Fault::Sample(Flaw::bad(reason)))
        })
    }
}
