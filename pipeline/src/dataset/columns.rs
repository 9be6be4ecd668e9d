//! What the footers say about the columns that are read; for people, not for the loader.
use std::collections::BTreeSet;

use serde::Serialize;

use super::Dataset;

/// One Parquet column that is read, over all shards; as JSON, a column of `nepa inspect --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnInfo {
    /// Dotted path, such as `image.bytes`.
    pub path: String,
    /// Codecs of its chunks, such as `ZSTD`, sorted; more than one where shards were written
    /// differently.
    pub codecs: Vec<String>,
    /// Bytes as stored (compressed).
    pub stored_bytes: u64,
    /// Bytes of its pages after decompression; those of its values where an encoding leaves out
    /// what they share.
    pub memory_bytes: u64,
    /// Bytes of its values, each time that they stand in a row, if all footers count them.
    pub values_bytes: Option<u64>,
}

impl Dataset {
    /// The columns that are read, in the order of [`nepa_schemas::ColumnMapping::leaf_paths`], then
    /// those of later shards alone.
    pub fn columns(&self) -> Vec<ColumnInfo> {
        let mut columns: Vec<(ColumnInfo, BTreeSet<String>)> = Vec::new();
        for shard in self.shards.iter() {
            let metadata = shard.metadata.metadata();
            for &leaf in shard.reading.leaves() {
                let path = metadata
                    .file_metadata()
                    .schema_descr()
                    .column(leaf)
                    .path()
                    .string();
                let known = columns.iter().position(|(column, _)| column.path == path);
                let place = known.unwrap_or_else(|| {
                    let empty = ColumnInfo {
                        path,
                        codecs: Vec::new(),
                        stored_bytes: 0,
                        memory_bytes: 0,
                        values_bytes: Some(0),
                    };
                    columns.push((empty, BTreeSet::new()));
                    columns.len() - 1
                });
                let (column, codecs) = &mut columns[place];
                for row_group in metadata.row_groups() {
                    let chunk = row_group.column(leaf);
                    // "ZSTD(ZstdLevel(1))": the level is how it was written, and a footer does not
                    // hold it.
                    let codec = chunk.compression().to_string();
                    codecs.insert(codec.split('(').next().unwrap_or_default().to_owned());
                    // Negative sizes were refused when the footer was read.
                    column.stored_bytes += chunk.compressed_size().unsigned_abs();
                    let held = super::footer::held_bytes(chunk);
                    column.memory_bytes = column.memory_bytes.saturating_add(held);
                    let values = chunk.unencoded_byte_array_data_bytes();
                    column.values_bytes = column
                        .values_bytes
                        .zip(values)
                        .map(|(sum, more)| sum.saturating_add(more.unsigned_abs()));
                }
            }
        }
        let with_codecs = |(mut column, codecs): (ColumnInfo, BTreeSet<String>)| {
            column.codecs = codecs.into_iter().collect();
            column
        };
        columns.into_iter().map(with_codecs).collect()
    }
}
