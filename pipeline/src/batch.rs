//! Batches, and the pool that lends the slots their pixels lie in.
//!
//! The pool is fixed: a batch's slots come back when the [`Batch`] is dropped, so a consumer that keeps batches
//! holds the loader up instead of growing memory. Each slot is moved to the thread that fills it, so they are filled in parallel.
use std::sync::Arc;

use nepa_schemas::Label;

use crate::backend::{CpuBackend, ImageBackend};
use crate::image::Pixel;
use crate::sync::{Receiver, Sender, bounded};
use crate::{CropPlan, SampleId};

/// What became of one position of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRecord {
    /// The sample whose pixels these are.
    pub id: SampleId,
    /// Its plan.
    pub plan: CropPlan,
    /// The plans of its further views.
    pub more_views: Vec<CropPlan>,
    /// Its label.
    pub label: Option<Label>,
    /// The bad sample that stood here, if this one replaces it.
    pub replaces: Option<SampleId>,
}

/// Lends sets of slots; clones share the sets.
#[derive(Debug)]
pub(crate) struct BatchPool<S> {
    give_back: Sender<Vec<S>>,
    /// Sets that are not lent.
    pub free: Receiver<Vec<S>>,
}

impl<S> Clone for BatchPool<S> {
    fn clone(&self) -> Self {
        Self {
            give_back: self.give_back.clone(),
            free: self.free.clone(),
        }
    }
}

impl<S> BatchPool<S> {
    /// A pool of these sets.
    pub(crate) fn new(sets: Vec<Vec<S>>) -> Self {
        let (give_back, free) = bounded(sets.len());
        let pool = Self { give_back, free };
        for set in sets {
            pool.give_back(set);
        }
        pool
    }

    /// Takes a set back.
    pub(crate) fn give_back(&self, slots: Vec<S>) {
        self.give_back
            .try_send(slots)
            .expect("no more sets come back than were lent");
    }
}

/// A batch whose slots are lent by the pool and given back when it is dropped.
#[derive(Debug)]
pub struct Batch<B: ImageBackend> {
    epoch: u64,
    sides: Arc<[u32]>,
    samples: Vec<SampleRecord>,
    /// At least as many as samples; the last batch of an epoch may leave some unused.
    slots: Vec<B::Slot>,
    pool: BatchPool<B::Slot>,
    backend: Arc<B>,
}

/// A batch in ordinary memory.
pub type HostBatch<P = f32> = Batch<CpuBackend<P>>;

impl<B: ImageBackend> Batch<B> {
    pub(crate) fn new(
        epoch: u64,
        sides: Arc<[u32]>,
        samples: Vec<SampleRecord>,
        slots: Vec<B::Slot>,
        pool: BatchPool<B::Slot>,
        backend: Arc<B>,
    ) -> Self {
        Self {
            epoch,
            sides,
            samples,
            slots,
            pool,
            backend,
        }
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
        self.sides[0]
    }

    /// Sides of all views in pixels.
    pub fn view_sides(&self) -> &[u32] {
        &self.sides
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

    /// Where the samples' pixels lie, in order.
    pub fn slots(&self) -> &[B::Slot] {
        &self.slots[..self.samples.len()]
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

impl<P: Pixel> HostBatch<P> {
    /// Pixels of sample `i`, `[3, S, S]`, or `[P, 3 * p * p]` where patches were asked for; of its first view, if there are several.
    pub fn pixels(&self, i: usize) -> &[P] {
        self.view(i, 0)
    }

    /// Pixels of view `view` of sample `i`.
    pub fn view(&self, i: usize, view: usize) -> &[P] {
        let values = |side: &u32| 3 * (*side as usize).pow(2);
        let start = self.sides[..view].iter().map(values).sum();
        &self.slots()[i][start..start + values(&self.sides[view])]
    }

    /// All pixels of the first view, `[B, 3, S, S]` (or `[B, P, 3 * p * p]`), in one new vector.
    pub fn to_vec(&self) -> Vec<P> {
        self.view_to_vec(0)
    }

    /// All pixels of view `view`, `[B, 3, S, S]` (or `[B, P, 3 * p * p]`), in one new vector.
    pub fn view_to_vec(&self, view: usize) -> Vec<P> {
        let all = (0..self.len()).map(|i| self.view(i, view));
        all.collect::<Vec<_>>().concat()
    }
}

impl<B: ImageBackend> Drop for Batch<B> {
    fn drop(&mut self) {
        self.backend.take_back(&mut self.slots);
        self.pool.give_back(std::mem::take(&mut self.slots));
    }
}
