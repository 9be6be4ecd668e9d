//! Batches, and the pool that lends the memory they lie in.
//!
//! A batch is one piece of memory, which comes back when the [`Batch`] is dropped. While it is
//! being filled, each of its slots belongs to the thread that fills it. A consumer that keeps
//! batches makes the pool larger, up to [`crate::LoaderConfig::max_kept_batches`].
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use nepa_schemas::Label;

use crate::backend::device::{Accelerator, DeviceBackend};
use crate::backend::{BackendError, CpuBackend, ImageBackend, RawBackend};
use crate::image::Pixel;
use crate::sync::{Receiver, Sender, unbounded};
use crate::{CropPlan, SampleId};

/// What became of one position of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRecord {
    /// The sample whose pixels these are.
    pub id: SampleId,
    /// The plan of each of its views; one, unless the augmentation draws several.
    pub views: Vec<CropPlan>,
    /// Its label.
    pub label: Option<Label>,
    /// The bad sample that stood here, if this one replaces it.
    pub replaces: Option<SampleId>,
}

/// Lends memory for batches; clones share it.
#[derive(Debug)]
pub(crate) struct BatchPool<B: ImageBackend> {
    shared: Arc<Shared<B>>,
    give_back: Sender<B::Memory>,
    /// Memory that is not lent.
    pub free: Receiver<B::Memory>,
}

#[derive(Debug)]
struct Shared<B> {
    backend: Arc<B>,
    batch_size: usize,
    sides: Vec<u32>,
    /// Batches whose memory exists.
    total: AtomicUsize,
    /// Those that the consumer has.
    kept: AtomicUsize,
    /// Those that are on their way at the same time.
    ahead: usize,
}

impl<B: ImageBackend> Clone for BatchPool<B> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            give_back: self.give_back.clone(),
            free: self.free.clone(),
        }
    }
}

/// Batches that a consumer may keep before the pool is made larger.
const KEPT: usize = 2;

impl<B: ImageBackend> BatchPool<B> {
    /// A pool for `ahead` batches on their way and two in the hands of the consumer.
    pub(crate) fn new(
        backend: Arc<B>,
        batch_size: usize,
        sides: &[u32],
        ahead: usize,
    ) -> Result<Self, BackendError> {
        let (give_back, free) = unbounded();
        let pool = Self {
            shared: Arc::new(Shared {
                backend,
                batch_size,
                sides: sides.to_vec(),
                total: AtomicUsize::new(0),
                kept: AtomicUsize::new(0),
                ahead,
            }),
            give_back,
            free,
        };
        for _ in 0..ahead + KEPT {
            pool.grow()?;
        }
        Ok(pool)
    }

    /// Who decodes into the memory.
    pub(crate) fn backend(&self) -> &B {
        &self.shared.backend
    }

    /// Sides of the views.
    pub(crate) fn sides(&self) -> &[u32] {
        &self.shared.sides
    }

    /// Batches that the consumer has.
    pub(crate) fn kept(&self) -> usize {
        self.shared.kept.load(Ordering::Acquire)
    }

    fn grow(&self) -> Result<(), BackendError> {
        let Shared {
            backend,
            batch_size,
            sides,
            total,
            ..
        } = &*self.shared;
        let memory = backend.memory(*batch_size, sides)?;
        total.fetch_add(1, Ordering::Relaxed);
        self.give_back(memory);
        Ok(())
    }

    /// Counts a batch as the consumer's, and sees to it that those on their way still have memory.
    fn hand_out(&self) -> Result<(), BackendError> {
        let kept = self.shared.kept.fetch_add(1, Ordering::AcqRel) + 1;
        if self.shared.total.load(Ordering::Relaxed) < kept + self.shared.ahead {
            self.grow()?;
        }
        Ok(())
    }

    /// Takes memory back.
    pub(crate) fn give_back(&self, memory: B::Memory) {
        // The pool holds both ends.
        let _ = self.give_back.send(memory);
    }
}

/// A batch whose memory is lent by the pool and given back when it is dropped.
#[derive(Debug)]
pub struct Batch<B: ImageBackend> {
    epoch: u64,
    samples: Vec<SampleRecord>,
    columns: Option<RecordBatch>,
    /// For at least as many as samples; the last batch of an epoch may leave some unused. Given
    /// back by `drop`, and only then.
    memory: Option<B::Memory>,
    pool: BatchPool<B>,
}

/// A batch of encoded images.
pub type RawBatch = Batch<RawBackend>;

/// A batch in ordinary memory.
pub type HostBatch<P = f32> = Batch<CpuBackend<P>>;

impl<B: ImageBackend> Batch<B> {
    pub(crate) fn new(
        epoch: u64,
        samples: Vec<SampleRecord>,
        columns: Option<RecordBatch>,
        memory: B::Memory,
        pool: BatchPool<B>,
    ) -> Result<Self, BackendError> {
        pool.hand_out()?;
        Ok(Self {
            epoch,
            samples,
            columns,
            memory: Some(memory),
            pool,
        })
    }

    /// Epoch it belongs to, from 0.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether it holds no sample.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Samples, in order.
    pub fn samples(&self) -> &[SampleRecord] {
        &self.samples
    }

    /// Side of the square images in pixels; of the first view, if there are several.
    pub fn image_size(&self) -> u32 {
        self.pool.sides()[0]
    }

    /// Sides of all views in pixels.
    pub fn view_sides(&self) -> &[u32] {
        self.pool.sides()
    }

    /// The samples whose pixels these are, in order.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = SampleId> + '_ {
        self.samples.iter().map(|sample| sample.id)
    }

    /// The class index of each sample, in order.
    pub fn class_indices(&self) -> Result<Vec<u32>, NoClassIndex> {
        let index = |sample: &SampleRecord| match &sample.label {
            Some(Label::Index(index)) => u32::try_from(*index).ok(),
            _ => None,
        };
        self.samples
            .iter()
            .map(|sample| {
                index(sample).ok_or_else(|| NoClassIndex {
                    id: sample.id,
                    label: sample.label.clone(),
                })
            })
            .collect()
    }

    /// The further columns that were asked for ([`crate::SchemaOptions::extra_columns`]), one row a
    /// sample, in order; `None` where none were.
    pub fn columns(&self) -> Option<&RecordBatch> {
        self.columns.as_ref()
    }

    /// Where the samples lie, in order.
    pub fn memory(&self) -> &B::Memory {
        let memory = self.memory.as_ref();
        memory.expect("a batch has its memory until it is dropped")
    }
}

/// A sample has no class index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{id} has the label {label:?}, which is no class index from 0; choose a column of integers with label_column, or read the labels one by one"
)]
pub struct NoClassIndex {
    /// The sample.
    pub id: SampleId,
    /// Its label.
    pub label: Option<Label>,
}

impl Batch<RawBackend> {
    /// The encoded images, in order: slices of what was fetched.
    pub fn encoded(&self) -> &[Bytes] {
        &self.memory()[..self.len()]
    }
}

impl<P: Pixel> HostBatch<P> {
    /// The pixels of all samples, one array `[B, 3, S, S]`, or `[B, P, 3 * p * p]` where patches
    /// were asked for; of the first view, if there are several.
    pub fn array(&self) -> &[P] {
        self.view_array(0)
    }

    /// The pixels of a view of all samples, one array `[B, ...]`.
    ///
    /// # Panics
    /// If there is no such view.
    pub fn view_array(&self, view: usize) -> &[P] {
        &self.memory().view(view)[..self.len() * self.view_len(view)]
    }

    /// Pixels of sample `i`, `[3, S, S]` or `[P, 3 * p * p]`; of its first view, if there are
    /// several.
    ///
    /// # Panics
    /// If there is no such sample.
    pub fn pixels(&self, i: usize) -> &[P] {
        self.view(i, 0)
    }

    /// Pixels of view `view` of sample `i`.
    ///
    /// # Panics
    /// If there is no such sample or view.
    pub fn view(&self, i: usize, view: usize) -> &[P] {
        let len = self.view_len(view);
        &self.view_array(view)[i * len..(i + 1) * len]
    }

    /// Values of one sample in a view.
    fn view_len(&self, view: usize) -> usize {
        3 * (self.view_sides()[view] as usize).pow(2)
    }
}

impl<A: Accelerator> Batch<DeviceBackend<A>> {
    /// Lends the batch to work on `stream`, another one than the consumer's, as that of a library
    /// with streams of its own: what is enqueued there from now on comes after the pixels. Work on
    /// any stream of the device may then use the batch, if the program sees to it that it comes
    /// after this; new pixels come after all that is enqueued before the batch is dropped.
    pub fn lend_to(&self, stream: &A::Stream) -> Result<(), BackendError> {
        self.pool.backend().lend_to(self.memory(), stream)
    }

    /// Lends the batch without an order: the program itself sees to it that work on other streams
    /// comes after the pixels. New pixels come after it as with [`Self::lend_to`].
    pub fn lend(&self) {
        self.memory().lend();
    }
}

impl<B: ImageBackend> Drop for Batch<B> {
    fn drop(&mut self) {
        if let Some(mut memory) = self.memory.take() {
            self.pool.backend().take_back(&mut memory);
            self.pool.shared.kept.fetch_sub(1, Ordering::AcqRel);
            self.pool.give_back(memory);
        }
    }
}
