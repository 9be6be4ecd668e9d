//! What goes through the loader's queues.
use std::sync::Arc;

use bytes::Bytes;
use nepa_schemas::{Label, ShardBatch};

use super::LoaderError;
use super::rows::ExtraRow;
use super::window::LoadedWindow;
use crate::backend::PlannedImage;
use crate::batch::SampleRecord;
use crate::dataset::FetchedPart;
use crate::image::ImageHeader;
use crate::sync::{Receiver, Sender};
use crate::{CropPlan, DatasetError, PartId, SampleId};

/// A window of one lane's walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct WindowId {
    /// Index of the walk.
    pub walk: usize,
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
    pub id: SampleId,
    pub bytes: Bytes,
    pub label: Option<Label>,
    pub header: ImageHeader,
    pub views: Vec<CropPlan>,
    pub extra: Option<ExtraRow>,
}

impl Planned {
    pub(super) fn image(&self) -> PlannedImage<'_> {
        PlannedImage {
            bytes: &self.bytes,
            header: self.header,
            views: &self.views,
        }
    }

    /// What it is once rendered, in the place of `asked_for`.
    pub(super) fn rendered(self, asked_for: SampleId) -> Rendered {
        let record = SampleRecord {
            id: self.id,
            views: self.views,
            label: self.label,
            replaces: (self.id != asked_for).then_some(asked_for),
        };
        Rendered {
            record,
            extra: self.extra,
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

/// A sample whose pixels are in its slot.
#[derive(Debug)]
pub(super) struct Rendered {
    pub record: SampleRecord,
    pub extra: Option<ExtraRow>,
}

/// Why a sample is replaced.
#[derive(Debug)]
pub(super) struct Flaw {
    pub reason: String,
    /// Whether its row holds no image at all, which the footer did not tell. Such a row is not bad.
    pub absent: bool,
}

impl Flaw {
    pub(super) fn bad(reason: String) -> Self {
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
    Good(Rendered),
    /// Another one in its place, and the reason.
    Replaced(Rendered, Flaw),
    /// Nothing could replace it.
    Exhausted(SampleId, String),
    /// The run cannot go on.
    Failed(LoaderError),
}

/// A batch whose samples are being rendered.
#[derive(Debug)]
pub(super) struct PendingBatch<S> {
    pub epoch: u64,
    pub batch_in_epoch: u64,
    pub num_samples: usize,
    pub done: Receiver<Done<S>>,
    /// Slots that a short batch leaves unused.
    pub spare: Vec<S>,
    /// From its beginning until it is handed out.
    pub span: tracing::Span,
}

/// A batch on its way, and its samples that are rendered.
#[derive(Debug)]
pub(super) struct ComingBatch<S> {
    pub pending: PendingBatch<S>,
    pub done: Vec<Done<S>>,
}

impl<S> ComingBatch<S> {
    /// Whether all its samples are rendered.
    pub(super) fn is_complete(&self) -> bool {
        self.done.len() == self.pending.num_samples
    }
}

/// A job on its way to the batch decoder.
#[derive(Debug)]
pub(super) struct BatchJob<S> {
    pub job: Job<S>,
    pub planned: Planned,
}
