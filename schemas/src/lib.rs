//! Image data sets in Arrow, proven once into typed batches.
//!
//! A Parquet file in a bucket is foreign: [`ColumnMapping::resolve`] decides from its schema which column holds the
//! encoded images and which the labels, and [`ShardBatch::try_new`] proves a record batch against that decision.
//! After that nobody checks again. This crate knows Arrow only: no files, no stores, no pixels.

mod error;
mod mapping;
mod shard_batch;

pub use error::{RowError, SchemaError};
pub use mapping::{ColumnMapping, ImageColumn, LabelColumn, SchemaOptions};
pub use shard_batch::{Label, ShardBatch};
