//! Parts of shards as the order sees them: whole, or what of them lies in one lane.
use crate::{PartId, SampleId, Shard};

/// A part of a shard, or the samples of it that one lane has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub id: PartId,
    pub row_group: u32,
    pub first_row: u32,
    pub num_rows: u32,
    /// Rows that hold an image. Which ones they are is known when the part is unpacked.
    pub num_present: u32,
    /// The first of them that are another lane's.
    pub skipped: u32,
    /// Samples: those that follow, as many as lie in the lane.
    pub num_samples: u32,
    /// Of the whole part.
    pub memory_bytes: u64,
}

impl Part {
    /// The sample in one of its rows.
    pub(super) fn sample(&self, row: u32) -> SampleId {
        SampleId {
            shard: self.id.shard,
            row_group: self.row_group,
            row: self.first_row + row,
        }
    }

    /// As many samples as it has, by its first rows: those that it has only where no row is without
    /// an image.
    pub(super) fn first_samples(&self) -> impl Iterator<Item = SampleId> + use<> {
        let part = *self;
        (part.skipped..part.skipped + part.num_samples).map(move |row| part.sample(row))
    }
}

/// All parts with samples, in the order of the data set.
pub(super) fn parts(shards: &[Shard]) -> Vec<Part> {
    let mut all = Vec::new();
    for (shard, content) in (0..).zip(shards) {
        for (part, info) in (0..).zip(&content.parts) {
            if info.num_samples() > 0 {
                all.push(Part {
                    id: PartId { shard, part },
                    row_group: info.row_group,
                    first_row: info.first_row,
                    num_rows: info.num_rows,
                    num_present: info.num_samples(),
                    skipped: 0,
                    num_samples: info.num_samples(),
                    memory_bytes: info.memory_bytes.max(info.fetch_bytes),
                });
            }
        }
    }
    all
}
