//! The threads of the batch decoders: each collects images, decodes them in one call, gives back
//! those that it could not.
//!
//! One at a time collects, so that calls are as full as they can be; the others are in their calls
//! meanwhile.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::decode::Shared;
use super::job::{BatchJob, Job, Outcome};
use crate::backend::{BatchOutcome, Decode, ImageBackend, ImageDecoder};
use crate::spans::SPANS_ON_A_THREAD;
use crate::store::full_text;
use crate::sync::{Receiver, RecvTimeoutError, Sender, select_biased};

/// How long an incomplete call waits for more images. Sixteen threads hand one over every few tens
/// of microseconds where the decoder is fast; where it is slow, they queue up during the call
/// before.
const LINGER: Duration = Duration::from_micros(100);

/// The ends of the queues that a batch decoder's thread holds.
#[derive(Debug)]
pub(super) struct Queues<S> {
    /// Disconnected when the loader stops.
    pub stop: Receiver<()>,
    pub jobs: Receiver<BatchJob<S>>,
    pub returned: Sender<Job<S>>,
    /// The turn to collect: whoever has it gives it on.
    pub turn: (Sender<()>, Receiver<()>),
}

impl<S> Clone for Queues<S> {
    fn clone(&self) -> Self {
        Self {
            stop: self.stop.clone(),
            jobs: self.jobs.clone(),
            returned: self.returned.clone(),
            turn: self.turn.clone(),
        }
    }
}

impl<S> Queues<S> {
    /// Waits for the turn, collects up to `max_images` jobs, gives the turn on. `None` when no more
    /// come, or the loader stops.
    fn collect(&self, max_images: usize, jobs: &mut Vec<BatchJob<S>>) -> Option<()> {
        select_biased! {
            recv(self.stop) -> _ => return None,
            recv(self.turn.1) -> turn => turn.ok()?,
        }
        select_biased! {
            recv(self.stop) -> _ => jobs.clear(),
            recv(self.jobs) -> job => jobs.extend(job),
        }
        if !jobs.is_empty() {
            let deadline = Instant::now() + LINGER;
            while jobs.len() < max_images {
                match self.jobs.recv_deadline(deadline) {
                    Ok(job) => jobs.push(job),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
        }
        // At the end too, so that the others find it.
        let _ = self.turn.0.send(());
        (!jobs.is_empty()).then_some(())
    }
}

/// Runs until the loader stops, or until no decode thread can hand over more.
pub(super) fn run<B: ImageBackend>(
    shared: &Shared<B>,
    decoder: &mut dyn ImageDecoder<B::Slot>,
    queues: &Queues<B::Slot>,
) {
    let mut jobs = Vec::with_capacity(decoder.max_images());
    while queues.collect(decoder.max_images(), &mut jobs).is_some() {
        call(shared, decoder, &mut jobs, &queues.returned);
    }
}

/// One call of the decoder; leaves `jobs` empty.
fn call<B: ImageBackend>(
    shared: &Shared<B>,
    decoder: &mut dyn ImageDecoder<B::Slot>,
    jobs: &mut Vec<BatchJob<B::Slot>>,
    returned: &Sender<Job<B::Slot>>,
) {
    let started = Instant::now();
    let span = tracing::trace_span!(
        target: SPANS_ON_A_THREAD,
        "decode together",
        images = jobs.len(),
    );
    let mut images = jobs
        .iter_mut()
        .map(|BatchJob { job, planned }| Decode::new(planned.image(), &mut job.slot))
        .collect::<Vec<_>>();
    // Whatever goes wrong here, the decode threads have the last word on each image.
    let called = catch_unwind(AssertUnwindSafe(|| decoder.decode(&mut images)));
    let ended = Instant::now();
    drop(span);
    let results: Vec<_> = images.into_iter().map(|image| image.result).collect();
    let failure = match called {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(full_text(&error)),
        Err(_) => Some("it panicked".to_owned()),
    };
    let outcome = match failure {
        None => BatchOutcome::Rendered(results.iter().filter(|result| result.is_ok()).count()),
        Some(_) => BatchOutcome::CallFailed,
    };
    let num_images = jobs.len();
    let mut first_reason = None;
    for (BatchJob { job, planned }, result) in jobs.drain(..).zip(results) {
        match result {
            Ok(()) if failure.is_none() => {
                shared.counters.decode.item(planned.bytes.len());
                let rendered = planned.rendered(job.id);
                job.finish(Outcome::Good(rendered));
            }
            other => {
                if let Err(error) = other {
                    first_reason.get_or_insert(error.to_string());
                }
                let _ = returned.send(job);
            }
        }
    }
    let time = shared.router.own_time(started, ended);
    if shared.router.batch_done(num_images, time, outcome) {
        let reason = failure.or(first_reason).unwrap_or_default();
        tracing::warn!(
            "the batch decoder of JPEGs failed several times in a row and is not used any more; \
             the decode threads go on alone: {reason}"
        );
    }
}
