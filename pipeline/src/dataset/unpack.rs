//! From fetched bytes to a proven `ShardBatch`: decompression and decoding, work for the CPU pool.
use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use nepa_schemas::ShardBatch;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReaderBuilder, RowSelection, RowSelector};
use parquet::errors::{ParquetError, Result as ParquetResult};

use super::footer::unsupported;
use super::pieces::Pieces;
use super::{Part, Shard, pages};
use crate::DatasetError;
use crate::Place;

/// Reads the part and proves it.
pub(super) fn unpack(
    pieces: &[(u64, Bytes)],
    shard: &Shard,
    part: &Part,
    place: Place,
) -> Result<ShardBatch, DatasetError> {
    pages::check(pieces, shard, part, &place)?;
    let bytes = Pieces::new(pieces.to_vec(), shard.size);
    let batch = read(bytes, shard, part).map_err(|source| page_error(source, place.clone()))?;
    if batch.num_rows() != part.num_rows as usize {
        let (expected, found) = (u64::from(part.num_rows), batch.num_rows() as u64);
        return Err(DatasetError::RowCount {
            place,
            expected,
            found,
        });
    }
    let batch =
        ShardBatch::try_new(&batch, &shard.mapping).map_err(|source| DatasetError::Schema {
            place: place.clone(),
            source: Box::new(source.in_rows_from(part.first_row as usize)),
            leave_out: super::LeaveOut::Nothing,
        })?;
    let said = part.num_absent as usize;
    if said > 0 {
        let found = batch.absent_rows().take(said).count();
        if found < said {
            let (said, found) = (said as u64, found as u64);
            return Err(DatasetError::AbsentCount { place, said, found });
        }
    }
    Ok(batch)
}

fn read(pieces: Pieces, shard: &Shard, part: &Part) -> ParquetResult<RecordBatch> {
    let mut builder =
        ParquetRecordBatchReaderBuilder::new_with_metadata(pieces, shard.metadata.clone())
            .with_projection(shard.reading.projection.clone())
            .with_row_groups(vec![part.row_group as usize])
            .with_batch_size(part.num_rows.max(1) as usize);
    let in_row_group = shard
        .metadata
        .metadata()
        .row_group(part.row_group as usize)
        .num_rows();
    if i64::from(part.num_rows) != in_row_group {
        // With the offset index, pages before and after the selected rows are not read.
        builder = builder.with_row_selection(RowSelection::from(vec![
            RowSelector::skip(part.first_row as usize),
            RowSelector::select(part.num_rows as usize),
        ]));
    }
    let batches = builder.build()?;
    let schema = arrow::array::RecordBatchReader::schema(&batches);
    let batches = batches.collect::<Result<Vec<_>, _>>()?;
    // One as a rule, none of an empty part.
    match <[RecordBatch; 1]>::try_from(batches) {
        Ok([batch]) => Ok(batch),
        Err(batches) => Ok(concat_batches(&schema, &batches)?),
    }
}

/// Tells damaged bytes (checksum) from what is not supported, and from bytes that make no sense.
fn page_error(source: ParquetError, place: Place) -> DatasetError {
    if source.to_string().contains("CRC") {
        DatasetError::PageChecksum { place, source }
    } else if let Some(feature) = unsupported(&source) {
        DatasetError::Unsupported { place, feature }
    } else {
        DatasetError::BadPage {
            place,
            source: Box::new(source),
        }
    }
}
