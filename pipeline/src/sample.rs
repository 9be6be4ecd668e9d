//! The identity of a sample and of a part of a shard, the same in every epoch, log line, error and
//! random seed.
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

/// Which part of which shard: a row group, or some pages of a large one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartId {
    /// Index of the shard in [`crate::Dataset::shards`].
    pub shard: u32,
    /// Index of the part in [`crate::Shard::parts`].
    pub part: u32,
}

/// Where something happened, as far as known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// URL of the object, without secrets.
    pub object: String,
    /// Row group in the object.
    pub row_group: Option<usize>,
    /// Row in the row group.
    pub row: Option<usize>,
    /// Byte range in the object.
    pub bytes: Option<std::ops::Range<u64>>,
}

impl Place {
    /// An object as a whole, or what several are named by.
    pub(crate) fn of(object: &str) -> Self {
        Self {
            object: object.to_owned(),
            ..Self::default()
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.object)?;
        if let Some(row_group) = self.row_group {
            write!(f, ", row group {row_group}")?;
        }
        if let Some(row) = self.row {
            write!(f, ", row {row}")?;
        }
        if let Some(bytes) = &self.bytes {
            write!(f, ", bytes {}..{}", bytes.start, bytes.end)?;
        }
        Ok(())
    }
}
