//! The decode threads: unpack row groups as they arrive, render samples into their slots.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, never, select_biased};
use nepa_schemas::ShardBatch;

use super::window::LoadedWindow;
use crate::batch::{SampleRecord, Slot};
use crate::dataset::RowGroupBytes;
use crate::random::{Purpose, sample_stream};
use crate::render::{CpuRenderer, Normalize};
use crate::stats::PipelineCounters;
use crate::{Augment, Dataset, DatasetError, Place, SampleId};

/// A row group that came from the store, or why it did not; `window` is the sequence number of its window.
#[derive(Debug)]
pub(super) struct Fetched {
    pub window: u64,
    pub shard: u32,
    pub row_group: u32,
    pub bytes: Result<RowGroupBytes, DatasetError>,
}

/// A row group that is unpacked, or why it is not.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub window: u64,
    pub shard: u32,
    pub row_group: u32,
    pub batch: Result<ShardBatch, DatasetError>,
}

/// One sample to render.
#[derive(Debug)]
pub(super) struct Job {
    pub epoch: u64,
    pub id: SampleId,
    pub window: Arc<LoadedWindow>,
    /// Position in the batch.
    pub position: usize,
    pub slot: Slot,
    pub done: Sender<Done>,
}

/// One rendered sample.
#[derive(Debug)]
pub(super) struct Done {
    pub position: usize,
    pub slot: Slot,
    /// The record, and why the sample that should have stood here is bad, if it is.
    pub outcome: Outcome,
}

/// What became of a job.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The sample itself.
    Good(SampleRecord),
    /// Another one in its place, and the reason.
    Replaced(SampleRecord, String),
    /// Nothing could replace it.
    Exhausted(SampleId, String),
}

/// What every decode thread shares.
#[derive(Debug)]
pub(super) struct Shared {
    pub dataset: Arc<Dataset>,
    pub augment: Box<dyn Augment>,
    pub normalize: Normalize,
    pub exif_orientation: bool,
    pub seed: u64,
    pub counters: Arc<PipelineCounters>,
}

/// The ends of the queues that a decode thread holds.
#[derive(Debug, Clone)]
pub(super) struct Queues {
    /// Disconnected when the loader stops.
    pub stop: Receiver<()>,
    pub fetched: Receiver<Fetched>,
    pub unpacked: Sender<Unpacked>,
    pub jobs: Receiver<Job>,
}

/// Runs until the loader stops.
pub(super) fn run(shared: &Shared, queues: &Queues) {
    let mut fetched_queue = queues.fetched.clone();
    let mut renderer = CpuRenderer::new(shared.normalize, shared.exif_orientation);
    loop {
        let waiting = Instant::now();
        // Row groups first: everything else waits for them.
        select_biased! {
            recv(queues.stop) -> _ => return,
            recv(fetched_queue) -> fetched => {
                shared.counters.decode.blocked_in(waiting);
                let Ok(fetched) = fetched else {
                    // The walk has ended and fetches no more; the samples that it handed out are still to be rendered.
                    fetched_queue = never();
                    continue;
                };
                let unpacked = unpack(shared, fetched);
                if queues.unpacked.send(unpacked).is_err() {
                    return;
                }
            }
            recv(queues.jobs) -> job => {
                shared.counters.decode.blocked_in(waiting);
                let Ok(job) = job else { return };
                shared.counters.decode.fill(queues.jobs.len());
                render(shared, &mut renderer, job);
            }
        }
    }
}

fn unpack(shared: &Shared, fetched: Fetched) -> Unpacked {
    let started = Instant::now();
    let Fetched {
        window,
        shard,
        row_group,
        bytes,
    } = fetched;
    let object = &shared.dataset.shards()[shard as usize];
    let info = object.row_groups[row_group as usize];
    let batch = bytes.and_then(|bytes| {
        // A panic here would leave the walk waiting for a row group that never comes.
        catch_unwind(AssertUnwindSafe(|| shared.dataset.unpack(bytes))).unwrap_or_else(|_| {
            let place = Place {
                object: object.url.clone(),
                row_group: Some(row_group as usize),
                ..Place::default()
            };
            Err(DatasetError::BadPage {
                place,
                source: "the Parquet reader panicked on these bytes".into(),
            })
        })
    });
    shared.counters.unpack.busy(started);
    shared.counters.unpack.item(info.fetch_bytes as usize);
    Unpacked {
        window,
        shard,
        row_group,
        batch,
    }
}

fn render(shared: &Shared, renderer: &mut CpuRenderer, job: Job) {
    let started = Instant::now();
    let Job {
        epoch,
        id,
        window,
        position,
        mut slot,
        done,
    } = job;
    let mut attempt = |candidate: SampleId| -> Result<SampleRecord, String> {
        let (bytes, label) = window.image(candidate).map_err(|error| error.to_string())?;
        // The random numbers stay those of the position's own sample, so that a replacement is not a plain repetition.
        let mut rng = sample_stream(shared.seed, epoch, id, Purpose::Augment);
        // Foreign bytes meet foreign decoders: a panic in one of them costs the sample, not the run.
        let rendered = catch_unwind(AssertUnwindSafe(|| {
            renderer.render(&bytes, shared.augment.as_ref(), &mut rng, &mut slot)
        }));
        let Ok(rendered) = rendered else {
            *renderer = CpuRenderer::new(shared.normalize, shared.exif_orientation);
            return Err("the decoder panicked on these bytes".to_owned());
        };
        let plan = rendered.map_err(|error| full_text(&error))?;
        shared.counters.decode.item(bytes.len());
        Ok(SampleRecord {
            id: candidate,
            plan,
            label,
            replaces: (candidate != id).then_some(id),
        })
    };
    let outcome = match attempt(id) {
        Ok(record) => Outcome::Good(record),
        Err(reason) => {
            let replacement = window
                .replacements(shared.seed, epoch, id)
                .find_map(|candidate| attempt(candidate).ok());
            match replacement {
                Some(record) => Outcome::Replaced(record, reason),
                None => Outcome::Exhausted(id, reason),
            }
        }
    };
    shared.counters.decode.busy(started);
    // A batch that nobody waits for any more was given up by a stopping loader.
    let _ = done.send(Done {
        position,
        slot,
        outcome,
    });
}

/// The message of an error and of its causes.
fn full_text(error: &dyn std::error::Error) -> String {
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
