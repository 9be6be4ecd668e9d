//! Rows of the further columns that were asked for ([`crate::SchemaOptions::extra_columns`]),
//! gathered for a batch.
use arrow::compute::interleave_record_batch;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

/// A sample's row in the further columns of its part.
#[derive(Debug, Clone)]
pub(super) struct ExtraRow {
    pub columns: RecordBatch,
    pub row: usize,
}

/// The rows of a batch's samples, in order; `None` where no further columns were asked for.
pub(super) fn gathered(rows: &[Option<ExtraRow>]) -> Result<Option<RecordBatch>, ArrowError> {
    let Some(rows) = rows.iter().map(Option::as_ref).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let columns = rows.iter().map(|row| &row.columns).collect::<Vec<_>>();
    if columns.is_empty() {
        return Ok(None);
    }
    let places = rows.iter().enumerate().map(|(i, row)| (i, row.row));
    interleave_record_batch(&columns, &places.collect::<Vec<_>>()).map(Some)
}
