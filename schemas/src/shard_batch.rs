//! A record batch that is proven to hold images.
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use crate::label::Labels;
use crate::{ColumnMapping, ImageColumn, Label, RowError, SchemaError, flat, hugging_face};

/// Rows of one row group, with every column typed and proven. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ShardBatch {
    images: Arc<[Result<Bytes, RowError>]>,
    labels: Option<Labels>,
}

impl ShardBatch {
    /// Proves `batch`, read with the leaves of `mapping`. Columns beside these are ignored.
    pub fn try_new(batch: &RecordBatch, mapping: &ColumnMapping) -> Result<Self, SchemaError> {
        let column = |name: &str| -> Result<&ArrayRef, SchemaError> {
            batch
                .column_by_name(name)
                .ok_or_else(|| SchemaError::BatchLacksColumn {
                    column: name.to_owned(),
                })
        };
        let images = match &mapping.image {
            ImageColumn::HuggingFace {
                column: name,
                has_path,
            } => hugging_face::images(column(name)?, name, *has_path)?,
            ImageColumn::Flat { column: name } => flat::images(column(name)?, name)?,
        };
        let labels = mapping
            .label
            .as_ref()
            .map(|label| Labels::try_new(column(label.column())?, label))
            .transpose()?;
        Ok(Self {
            images: images.into(),
            labels,
        })
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.images.len()
    }

    /// The encoded image in `row`: a slice of the Arrow buffer, no copy. The slice keeps the buffer alive.
    pub fn image(&self, row: usize) -> Result<Bytes, RowError> {
        self.images[row].clone()
    }

    /// The rows without an image, in order: null, or a path and no bytes.
    pub fn absent_rows(&self) -> impl Iterator<Item = usize> + '_ {
        let absent =
            |image: &Result<Bytes, RowError>| image.as_ref().is_err_and(RowError::is_absent);
        (0..self.num_rows()).filter(move |&row| absent(&self.images[row]))
    }

    /// The label in `row`, if the shard has labels and this one is not null.
    pub fn label(&self, row: usize) -> Option<Label> {
        self.labels.as_ref().and_then(|labels| labels.get(row))
    }
}

#[cfg(test)]
#[path = "shard_batch_tests.rs"]
mod tests;
