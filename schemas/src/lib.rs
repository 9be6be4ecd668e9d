//! Image data sets in Arrow, proven once into typed batches.
//!
//! A Parquet file in a bucket is foreign: [`ColumnMapping::resolve`] decides from its schema which
//! column holds the encoded images and which the labels, and [`ShardBatch::try_new`] proves a
//! record batch against that decision. After that nobody checks again. This crate knows Arrow only:
//! no files, no stores, no pixels.

mod arrays;
mod column_path;
mod error;
mod flat;
mod hugging_face;
mod image;
mod label;
mod label_choice;
mod mapping;
mod shard_batch;
mod text;

pub use column_path::{ColumnPath, UNSUPPORTED};
pub use error::{RowError, SchemaError};
pub use hugging_face::{METADATA_KEY, metadata as hugging_face_metadata};
pub use image::{ImageColumn, ImageForm};
pub use label::{Label, LabelColumn, LabelForm, LabelList, LabelValue};
pub use label_choice::{FolderKey, NoLabel};
pub use mapping::{ColumnMapping, SchemaOptions};
pub use shard_batch::{LeftOut, ShardBatch};
