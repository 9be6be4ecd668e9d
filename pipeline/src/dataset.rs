//! A data set: the sorted shards behind URLs, their footers and schemas, and reading row groups from them.
use std::sync::Arc;

use nepa_schemas::{ColumnMapping, SchemaOptions, ShardBatch};
use serde::{Deserialize, Serialize};

use crate::DatasetError;

/// How the store is used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IoConfig {
    /// Most requests in flight.
    pub max_requests: usize,
    /// Most bytes held: in flight, fetched and not yet released.
    pub max_bytes: u64,
    /// Ranges closer than this are fetched as one, in bytes.
    pub coalesce_gap_bytes: u64,
    /// Larger ranges are split into requests of this size, in bytes.
    pub request_bytes: u64,
    /// Time for one attempt of a request, in seconds.
    pub request_timeout_s: f64,
    /// Attempts after the first.
    pub max_retries: usize,
}

impl Default for IoConfig {
    fn default() -> Self {
        Self {
            max_requests: 32,
            max_bytes: 1 << 30,
            coalesce_gap_bytes: 1 << 20,
            request_bytes: 16 << 20,
            request_timeout_s: 30.0,
            max_retries: 8,
        }
    }
}

/// The tokio runtime for I/O, apart from all decoding; one a process is enough.
#[derive(Debug, Clone)]
pub struct IoRuntime {}

impl IoRuntime {
    /// Starts `threads` I/O threads.
    pub fn new(_threads: usize) -> std::io::Result<Self> {
        unimplemented!()
    }

    /// Runs a future on this runtime and waits for it. Not for use inside async code.
    pub fn block_on<F>(&self, _future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        unimplemented!()
    }
}

/// What the I/O did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Range requests finished, failed ones included.
    pub requests: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Repeated requests, as far as known.
    pub retries: u64,
    /// Requests in flight now.
    pub in_flight: u64,
    /// Sum over requests of the time in flight, in nanoseconds.
    pub busy_ns: u64,
    /// Time row groups waited for the byte budget, in nanoseconds.
    pub budget_wait_ns: u64,
    /// Bytes held now: in flight, fetched and not yet dropped.
    pub held_bytes: u64,
}

/// Which data set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DatasetConfig {
    /// URLs, local paths, prefixes or globs.
    pub urls: Vec<String>,
    /// Column choices.
    #[serde(flatten)]
    pub schema: SchemaOptions,
}

/// Size of a row group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowGroupInfo {
    /// Rows.
    pub num_rows: u32,
    /// Bytes to fetch for the columns that are read (compressed).
    pub fetch_bytes: u64,
    /// Bytes of those columns after decompression.
    pub memory_bytes: u64,
}

/// One Parquet object.
#[derive(Debug)]
pub struct Shard {
    /// URL without secrets.
    pub url: String,
    /// Size in bytes.
    pub size: u64,
    /// ETag, if the store gives one.
    pub e_tag: Option<String>,
    /// Its row groups.
    pub row_groups: Vec<RowGroupInfo>,
    /// Its columns.
    pub mapping: ColumnMapping,
}

/// An opened data set: cheap to share.
#[derive(Debug)]
pub struct Dataset {}

impl Dataset {
    /// Lists the URLs, reads all footers concurrently, resolves the schemas.
    pub fn open(_config: &DatasetConfig, _io: &IoConfig, _runtime: &IoRuntime) -> Result<Arc<Self>, DatasetError> {
        unimplemented!()
    }

    /// The shards, sorted by URL.
    pub fn shards(&self) -> &[Shard] {
        unimplemented!()
    }

    /// Number of samples in all shards.
    pub fn num_samples(&self) -> u64 {
        unimplemented!()
    }

    /// A digest (hex) of what decides the order: names relative to the data set's root, rows of each row group, mapping.
    /// The same data set on disk and in a bucket has the same fingerprint.
    pub fn fingerprint(&self) -> String {
        unimplemented!()
    }

    /// Class names, if the shards agree on them.
    pub fn class_names(&self) -> Option<&[String]> {
        unimplemented!()
    }

    /// What the I/O did so far.
    pub fn io_counters(&self) -> IoCounters {
        unimplemented!()
    }

    /// Fetches the columns of `row_groups` = (shard, row group), concurrently within the limits. `deliver` is called on an
    /// I/O thread once for each, in completion order, with the raw bytes; unpacking is for the CPU pool.
    pub fn fetch(
        self: &Arc<Self>,
        _row_groups: &[(u32, u32)],
        _deliver: Arc<dyn Fn(u32, u32, Result<RowGroupBytes, DatasetError>) + Send + Sync>,
    ) {
        unimplemented!()
    }

    /// Decompresses and proves a fetched row group (CPU work; never on an I/O thread).
    pub fn unpack(&self, _bytes: RowGroupBytes) -> Result<ShardBatch, DatasetError> {
        unimplemented!()
    }
}

/// The fetched column chunks of one row group; holds its share of the byte budget until dropped.
#[derive(Debug)]
pub struct RowGroupBytes {}
