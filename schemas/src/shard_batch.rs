//! A record batch that is proven to hold images.
use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use crate::{ColumnMapping, RowError, SchemaError};

/// A label as it stands in the shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Label {
    /// A class index.
    Index(i64),
    /// A class name (string and dictionary columns).
    Name(std::sync::Arc<str>),
}

/// Rows of one row group, with every column typed and proven.
#[derive(Debug, Clone)]
pub struct ShardBatch {}

impl ShardBatch {
    /// Proves `batch`, read with the leaves of `mapping`.
    pub fn try_new(_batch: &RecordBatch, _mapping: &ColumnMapping) -> Result<Self, SchemaError> {
        unimplemented!()
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        unimplemented!()
    }

    /// The encoded image in `row`: a slice of the Arrow buffer, no copy.
    pub fn image(&self, _row: usize) -> Result<Bytes, RowError> {
        unimplemented!()
    }

    /// The label in `row`, if the shard has labels and this one is not null.
    pub fn label(&self, _row: usize) -> Option<Label> {
        unimplemented!()
    }
}
