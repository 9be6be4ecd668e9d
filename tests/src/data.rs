//! Data sets as tests open and read them.
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use nepa_pipeline::{
    Dataset, DatasetConfig, DatasetError, IoConfig, IoRuntime, MixtureSource, PartId,
};
use nepa_schemas::{SchemaOptions, ShardBatch};

use crate::s3::S3Server;

/// The data set at a URL; all else as by default.
pub fn at(url: impl Into<String>) -> DatasetConfig {
    DatasetConfig {
        urls: vec![url.into()],
        ..DatasetConfig::default()
    }
}

/// A mixture of the data sets at these URLs, with their weights.
pub fn mixture<U: Into<String>>(sources: impl IntoIterator<Item = (U, f64)>) -> DatasetConfig {
    let sources = sources.into_iter().map(|(url, weight)| MixtureSource {
        urls: vec![url.into()],
        weight,
        schema: SchemaOptions::default(),
        split: None,
        index: None,
    });
    DatasetConfig {
        mixture: sources.collect(),
        ..DatasetConfig::default()
    }
}

/// How a store is used that this server is; all else as by default.
pub fn io(server: &S3Server) -> IoConfig {
    IoConfig {
        store_options: server.store_options(),
        ..IoConfig::default()
    }
}

/// Opens a data set on an I/O runtime of its own.
///
/// # Panics
///
/// If no thread can be started.
pub fn open_as(config: &DatasetConfig, io: &IoConfig) -> Result<Arc<Dataset>, DatasetError> {
    Dataset::open(config, io, &IoRuntime::new(2).expect("two threads"))
}

/// Opens the data set at a URL.
pub fn open(url: &str, io: &IoConfig) -> Result<Arc<Dataset>, DatasetError> {
    open_as(&at(url), io)
}

/// Opens the data set in a folder, which must be good.
///
/// # Panics
///
/// If it is not.
#[track_caller]
pub fn open_folder(folder: impl AsRef<Path>) -> Arc<Dataset> {
    let url = folder.as_ref().to_str().expect("a path in UTF-8");
    open(url, &IoConfig::default()).expect("a good data set")
}

/// A part of a data set.
pub fn part_id(shard: u32, part: u32) -> PartId {
    PartId { shard, part }
}

/// All parts of a data set, in order.
pub fn all_parts(dataset: &Dataset) -> Vec<PartId> {
    let shards = (0..).zip(dataset.shards());
    let parts = shards.flat_map(|(number, shard)| {
        (0..shard.parts.len() as u32).map(move |part| part_id(number, part))
    });
    parts.collect()
}

/// Fetches and unpacks parts; in the order of the data set, whatever came first.
pub fn read_parts(
    dataset: &Arc<Dataset>,
    parts: &[PartId],
) -> Result<BTreeMap<PartId, ShardBatch>, Arc<DatasetError>> {
    let mut batches = BTreeMap::new();
    for (id, bytes) in dataset.fetch(parts) {
        batches.insert(id, bytes?.unpack()?);
    }
    Ok(batches)
}

/// Fetches and unpacks one part.
///
/// # Panics
///
/// If nothing comes.
pub fn read_part(
    dataset: &Arc<Dataset>,
    shard: u32,
    part: u32,
) -> Result<ShardBatch, Arc<DatasetError>> {
    let mut batches = read_parts(dataset, &[part_id(shard, part)])?;
    Ok(batches.pop_first().expect("the part that was asked for").1)
}

/// Fetches and unpacks a whole data set, part by part.
pub fn read_all(dataset: &Arc<Dataset>) -> Result<BTreeMap<PartId, ShardBatch>, Arc<DatasetError>> {
    read_parts(dataset, &all_parts(dataset))
}
