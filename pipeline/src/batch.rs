//! Batches and the pool that lends their slots.
use crate::{CropPlan, SampleId};
use nepa_schemas::Label;

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

/// A batch in host memory, lent by the pool and given back when dropped.
#[derive(Debug)]
pub struct HostBatch {}

impl HostBatch {
    /// Epoch it belongs to, from 0.
    pub fn epoch(&self) -> u64 {
        unimplemented!()
    }
    /// Samples, in order.
    pub fn samples(&self) -> &[SampleRecord] {
        unimplemented!()
    }
    /// Side of the square images in pixels.
    pub fn image_size(&self) -> u32 {
        unimplemented!()
    }
    /// Pixels of sample `i`, `[3, S, S]`.
    pub fn pixels(&self, _i: usize) -> &[f32] {
        unimplemented!()
    }
    /// All pixels, `[B, 3, S, S]`, in one new vector.
    pub fn to_vec(&self) -> Vec<f32> {
        unimplemented!()
    }
}
