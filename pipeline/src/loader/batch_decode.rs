//! The thread of the batch decoder: collects images, decodes them in one call, gives back those that it could not.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::worker::{Job, Outcome, Planned, Shared};
use crate::backend::{BatchOutcome, BatchRenderer, ImageBackend};
use crate::sync::{Receiver, RecvTimeoutError, Sender, select_biased};

/// How long an incomplete call waits for more images.
const LINGER: Duration = Duration::from_micros(500);

/// A job on its way to the batch decoder.
#[derive(Debug)]
pub(super) struct BatchJob<S> {
    pub job: Job<S>,
    pub planned: Planned,
}

/// Runs until the loader stops, or until no decode thread can hand over more.
pub(super) fn run<B: ImageBackend>(
    shared: &Shared<B>,
    decoder: &mut B::BatchRenderer,
    stop: &Receiver<()>,
    queue: &Receiver<BatchJob<B::Slot>>,
    returned: &Sender<Job<B::Slot>>,
) {
    let mut jobs = Vec::with_capacity(decoder.max_images());
    loop {
        select_biased! {
            recv(stop) -> _ => return,
            recv(queue) -> job => {
                let Ok(job) = job else { return };
                jobs.push(job);
            },
        }
        let deadline = Instant::now() + LINGER;
        while jobs.len() < decoder.max_images() {
            match queue.recv_deadline(deadline) {
                Ok(job) => jobs.push(job),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        call(shared, decoder, &mut jobs, returned);
    }
}

/// One call of the decoder; leaves `jobs` empty.
fn call<B: ImageBackend>(
    shared: &Shared<B>,
    decoder: &mut B::BatchRenderer,
    jobs: &mut Vec<BatchJob<B::Slot>>,
    returned: &Sender<Job<B::Slot>>,
) {
    let started = Instant::now();
    let mut images = jobs
        .iter_mut()
        .map(|BatchJob { job, planned }| (planned.image(), &mut job.slot))
        .collect::<Vec<_>>();
    // Whatever goes wrong here, the decode threads have the last word on each image.
    let results = catch_unwind(AssertUnwindSafe(|| decoder.render(&mut images)));
    drop(images);
    let (results, failure) = match results {
        Ok(Ok(results)) => (results, None),
        Ok(Err(error)) => (Vec::new(), Some(super::worker::full_text(&error))),
        Err(_) => (Vec::new(), Some("it panicked".to_owned())),
    };
    let outcome = match failure {
        None => BatchOutcome::Rendered(results.iter().filter(|result| result.is_ok()).count()),
        Some(_) => BatchOutcome::CallFailed,
    };
    let mut results = results.into_iter();
    let num_images = jobs.len();
    let mut first_reason = None;
    for BatchJob { job, planned } in jobs.drain(..) {
        match results.next() {
            Some(Ok(())) => {
                shared.counters.decode.item(planned.bytes.len());
                let record = planned.record(job.id);
                job.finish(Outcome::Good(record));
            }
            other => {
                if let Some(Err(error)) = other {
                    first_reason.get_or_insert(error.to_string());
                }
                let _ = returned.send(job);
            }
        }
    }
    if shared
        .router
        .batch_done(num_images, started.elapsed(), outcome)
    {
        let reason = failure.or(first_reason).unwrap_or_default();
        tracing::warn!(
            "the batch decoder of JPEGs failed several times in a row and is not used any more; \
             the decode threads go on alone: {reason}"
        );
    }
}
