//! A record batch that is proven to hold images.
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use crate::label::{Labels, labels};
use crate::{ColumnMapping, Label, RowError, SchemaError};

/// Rows of one row group, with every column typed and proven. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ShardBatch {
    images: Arc<[Result<Bytes, RowError>]>,
    labels: Option<Labels>,
    left_out: LeftOut,
    extra: Option<RecordBatch>,
}

/// Images that a batch holds and that are not read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// In lists, beyond the first of each.
    pub in_lists: u64,
    /// Rows with an image in more than one of the columns of which one is read.
    pub in_other_columns: u64,
}

impl ShardBatch {
    /// Proves `batch`, read with the leaves of `mapping`. Columns beside these are ignored.
    pub fn try_new(batch: &RecordBatch, mapping: &ColumnMapping) -> Result<Self, SchemaError> {
        let mut left_out = LeftOut::default();
        let mut images: Vec<Result<Bytes, RowError>> = Vec::new();
        for column in &mapping.images {
            let found = column.images(batch)?;
            left_out.in_lists += found.left_out;
            if images.is_empty() {
                images = found.images;
                continue;
            }
            for (image, other) in images.iter_mut().zip(found.images) {
                match (&image, other) {
                    (Err(_), other @ Ok(_)) => *image = other,
                    (Ok(_), Ok(_)) => left_out.in_other_columns += 1,
                    (_, Err(_)) => {}
                }
            }
        }
        let label = mapping.label.as_ref().ok();
        Ok(Self {
            images: images.into(),
            labels: label.map(|label| labels(batch, label)).transpose()?,
            left_out,
            extra: extra(batch, mapping)?,
        })
    }

    /// The further columns that were asked for, row for row with the images; `None` where none
    /// were.
    pub fn extra(&self) -> Option<&RecordBatch> {
        self.extra.as_ref()
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.images.len()
    }

    /// The encoded image in `row`: a slice of the Arrow buffer, no copy. The slice keeps the buffer
    /// alive.
    pub fn image(&self, row: usize) -> Result<Bytes, RowError> {
        self.images[row].clone()
    }

    /// The rows without an image, in order: null, or a path and no bytes.
    pub fn absent_rows(&self) -> impl Iterator<Item = usize> + '_ {
        let absent =
            |image: &Result<Bytes, RowError>| image.as_ref().is_err_and(RowError::is_absent);
        (0..self.num_rows()).filter(move |&row| absent(&self.images[row]))
    }

    /// The label in `row`, if the shard has labels and this one is neither null nor a negative
    /// index, which says that there is none.
    pub fn label(&self, row: usize) -> Option<Label> {
        self.labels.as_ref().and_then(|labels| labels[row].clone())
    }

    /// Images that are there and are not read.
    pub fn left_out(&self) -> LeftOut {
        self.left_out
    }
}

/// The columns of [`crate::SchemaOptions::extra_columns`] alone.
fn extra(batch: &RecordBatch, mapping: &ColumnMapping) -> Result<Option<RecordBatch>, SchemaError> {
    if mapping.extra.is_empty() {
        return Ok(None);
    }
    let schema = batch.schema();
    let place = |name: &String| {
        let place = schema.index_of(name);
        place.map_err(|_| SchemaError::BatchLacksColumn {
            column: name.clone(),
        })
    };
    let places = mapping.extra.iter().map(|field| place(field.name()));
    let places = places.collect::<Result<Vec<_>, _>>()?;
    let extra = batch.project(&places);
    Ok(Some(extra.expect("the columns were found in the batch")))
}

#[cfg(test)]
#[path = "shard_batch_tests.rs"]
mod tests;
