//! Batches, and the pool that lends the slots their pixels lie in.
//!
//! The pool is fixed: a batch's slots come back when the [`Batch`] is dropped, so a consumer that keeps batches
//! holds the loader up instead of growing memory. Each slot is moved to the thread that fills it, so they are filled in parallel.
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};
use nepa_schemas::Label;

use crate::backend::{CpuBackend, ImageBackend};
use crate::{CropPlan, SampleId};

/// What became of one position of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleRecord {
    /// The sample whose pixels these are.
    pub id: SampleId,
    /// Its plan.
    pub plan: CropPlan,
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
    image_size: u32,
    samples: Vec<SampleRecord>,
    /// At least as many as samples; the last batch of an epoch may leave some unused.
    slots: Vec<B::Slot>,
    pool: BatchPool<B::Slot>,
    backend: Arc<B>,
}

/// A batch in ordinary memory.
pub type HostBatch = Batch<CpuBackend>;

impl<B: ImageBackend> Batch<B> {
    pub(crate) fn new(
        epoch: u64,
        image_size: u32,
        samples: Vec<SampleRecord>,
        slots: Vec<B::Slot>,
        pool: BatchPool<B::Slot>,
        backend: Arc<B>,
    ) -> Self {
        Self {
            epoch,
            image_size,
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

    /// Side of the square images in pixels.
    pub fn image_size(&self) -> u32 {
        self.image_size
    }

    /// Where the samples' pixels lie, in order.
    pub fn slots(&self) -> &[B::Slot] {
        &self.slots[..self.samples.len()]
    }
}

impl HostBatch {
    /// Pixels of sample `i`, `[3, S, S]`.
    pub fn pixels(&self, i: usize) -> &[f32] {
        &self.slots()[i]
    }

    /// All pixels, `[B, 3, S, S]`, in one new vector.
    pub fn to_vec(&self) -> Vec<f32> {
        self.slots().concat()
    }
}

impl<B: ImageBackend> Drop for Batch<B> {
    fn drop(&mut self) {
        self.backend.take_back(&mut self.slots);
        self.pool.give_back(std::mem::take(&mut self.slots));
    }
}
