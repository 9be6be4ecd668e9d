//! The identity of a sample, the same in every epoch, log line, error and random seed.
use bytes::Bytes;
use nepa_schemas::Label;
use serde::{Deserialize, Serialize};

/// Where a sample lies in its data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SampleId {
    /// Index of the shard in the data set's sorted list of objects.
    pub shard: u32,
    /// Index of the row group in the shard.
    pub row_group: u32,
    /// Row within the row group.
    pub row: u32,
}

impl std::fmt::Display for SampleId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "shard {}, row group {}, row {}",
            self.shard, self.row_group, self.row
        )
    }
}

/// Bytes that claim to be an image; cheap to clone, nothing decoded.
#[derive(Debug, Clone)]
pub struct EncodedImage {
    /// Where it comes from.
    pub id: SampleId,
    /// The encoded file, a slice of the Arrow buffer.
    pub bytes: Bytes,
    /// Its label, if the data set has labels.
    pub label: Option<Label>,
}
