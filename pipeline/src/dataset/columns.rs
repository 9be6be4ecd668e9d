//! What the footers say about the columns that are read; for people, not for the loader.
use std::collections::BTreeSet;

use super::Dataset;

/// One Parquet column that is read, over all shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnInfo {
    /// Dotted path, such as `image.bytes`.
    pub path: String,
    /// Codecs of its chunks, such as `ZSTD`, sorted; more than one where shards were written differently.
    pub codecs: Vec<String>,
    /// Bytes as stored (compressed).
    pub stored_bytes: u64,
    /// Bytes of its pages after decompression; those of its values where an encoding leaves out what they share.
    pub memory_bytes: u64,
    /// Bytes of its values, each time that they stand in a row, if all footers count them.
    pub values_bytes: Option<u64>,
}

impl Dataset {
    /// The columns that are read, in the order of [`nepa_schemas::ColumnMapping::leaf_paths`].
    pub fn columns(&self) -> Vec<ColumnInfo> {
        let paths = self.shards[0].mapping.leaf_paths();
        paths.into_iter().map(|path| self.column(path)).collect()
    }

    fn column(&self, path: String) -> ColumnInfo {
        let mut codecs = BTreeSet::new();
        let (mut stored_bytes, mut memory_bytes) = (0, 0u64);
        let mut values_bytes = Some(0u64);
        let row_groups = self
            .readers
            .iter()
            .flat_map(|reader| reader.metadata.metadata().row_groups());
        for column in row_groups.flat_map(parquet::file::metadata::RowGroupMetaData::columns) {
            if column.column_path().string() == path {
                // "ZSTD(ZstdLevel(1))": the level is how it was written, and a footer does not hold it.
                let codec = column.compression().to_string();
                codecs.insert(codec.split('(').next().unwrap_or_default().to_owned());
                // Negative sizes were refused when the footer was read.
                stored_bytes += column.compressed_size().unsigned_abs();
                let held = super::footer::held_bytes(column);
                memory_bytes = memory_bytes.saturating_add(held);
                let values = column.unencoded_byte_array_data_bytes();
                values_bytes = values_bytes
                    .zip(values)
                    .map(|(sum, more)| sum.saturating_add(more.unsigned_abs()));
            }
        }
        ColumnInfo {
            path,
            codecs: codecs.into_iter().collect(),
            stored_bytes,
            memory_bytes,
            values_bytes,
        }
    }
}
