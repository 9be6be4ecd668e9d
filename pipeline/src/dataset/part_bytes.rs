//! A part of a shard as it was fetched.
use std::sync::Arc;

use bytes::Bytes;
use nepa_schemas::ShardBatch;

use super::{Shard, unpack};
use crate::store::HeldBytes;
use crate::{DatasetError, PartId};

/// The fetched columns of one part; holds its share of the byte budget until dropped.
#[derive(Debug)]
#[cfg_attr(nepa_interleavings, derive(Clone))]
pub struct PartBytes {
    pub(super) shards: Arc<[Shard]>,
    pub(super) id: PartId,
    /// Pieces by their start in the object, sorted, together covering the part's columns.
    pub(super) pieces: Vec<(u64, Bytes)>,
    /// Shared with the parts that were fetched in the same requests, whose bytes lie in the same
    /// buffers.
    pub(super) _held: Arc<HeldBytes>,
}

impl PartBytes {
    /// Which part it is.
    pub fn id(&self) -> PartId {
        self.id
    }

    /// Number of bytes in memory, gaps included.
    pub fn num_bytes(&self) -> u64 {
        self.pieces
            .iter()
            .map(|(_, bytes)| bytes.len() as u64)
            .sum()
    }

    /// Decompresses and proves the part (CPU work; never on an I/O thread).
    pub fn unpack(self) -> Result<ShardBatch, DatasetError> {
        let shard = &self.shards[self.id.shard as usize];
        let part = &shard.parts[self.id.part as usize];
        unpack::unpack(&self.pieces, shard, part, shard.place(part))
    }
}
