//! Image data sets in Arrow, proven once into typed batches.
//!
//! A Parquet file in a bucket is foreign: [`ColumnMapping::resolve`] decides from its schema which column holds the
//! encoded images and which the labels, and [`ShardBatch::try_new`] proves a record batch against that decision.
//! After that nobody checks again. This crate knows Arrow only: no files, no stores, no pixels.

mod arrays;
mod error;
mod flat;
mod hugging_face;
mod label;
mod mapping;
mod shard_batch;

pub use error::{RowError, SchemaError};
pub use hugging_face::metadata as hugging_face_metadata;
pub use label::{Label, LabelColumn};
pub use mapping::{ColumnMapping, ImageColumn, SchemaOptions};
pub use shard_batch::ShardBatch;
