//! Batches in host memory, and the pool that lends their pixel buffers.
//!
//! The pool is fixed: a batch's buffers come back when the [`HostBatch`] is dropped, so a consumer that keeps batches
//! holds the loader up instead of growing memory. Each slot owns its buffer, so slots are filled in parallel.
use crossbeam::channel::{Receiver, Sender, bounded};
use nepa_schemas::Label;

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

/// Pixels of one sample, `[3, S, S]`.
pub(crate) type Slot = Vec<f32>;

/// Lends sets of slots; clones share the sets.
#[derive(Debug, Clone)]
pub(crate) struct BatchPool {
    give_back: Sender<Vec<Slot>>,
    /// Sets that are not lent.
    pub free: Receiver<Vec<Slot>>,
}

impl BatchPool {
    /// `num_batches` sets of `batch_size` slots of `slot_len` floats.
    pub(crate) fn new(num_batches: usize, batch_size: usize, slot_len: usize) -> Self {
        let (give_back, free) = bounded(num_batches);
        for _ in 0..num_batches {
            give_back
                .send(vec![vec![0.0; slot_len]; batch_size])
                .expect("the pool holds its own receiver");
        }
        Self { give_back, free }
    }

    /// Takes a set back.
    pub(crate) fn give_back(&self, slots: Vec<Slot>) {
        self.give_back
            .try_send(slots)
            .expect("no more sets come back than were lent");
    }
}

/// A batch in host memory, lent by the pool and given back when dropped.
#[derive(Debug)]
pub struct HostBatch {
    epoch: u64,
    image_size: u32,
    samples: Vec<SampleRecord>,
    /// At least as many as samples; the last batch of an epoch may leave some unused.
    slots: Vec<Slot>,
    pool: BatchPool,
}

impl HostBatch {
    pub(crate) fn new(
        epoch: u64,
        image_size: u32,
        samples: Vec<SampleRecord>,
        slots: Vec<Slot>,
        pool: BatchPool,
    ) -> Self {
        Self {
            epoch,
            image_size,
            samples,
            slots,
            pool,
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

    /// Pixels of sample `i`, `[3, S, S]`.
    pub fn pixels(&self, i: usize) -> &[f32] {
        assert!(
            i < self.samples.len(),
            "sample {i} of a batch of {}",
            self.samples.len()
        );
        &self.slots[i]
    }

    /// All pixels, `[B, 3, S, S]`, in one new vector.
    pub fn to_vec(&self) -> Vec<f32> {
        self.slots[..self.samples.len()].concat()
    }
}

impl Drop for HostBatch {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.slots));
    }
}
