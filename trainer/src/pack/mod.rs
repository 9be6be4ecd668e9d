//! Writing image shards: folders of images to Parquet objects in the format of `schemas/README.md`.
//! Called by `nepa pack` and `nepa sample-data`; knows no command line.
mod checksummed_pages;
mod existing;
mod plan;
mod scan;
mod shard_writer;

pub use existing::{ExistingShard, existing_shards, remove_leftovers};
pub use plan::{PackOptions, ShardPlan, SplitPlan, plan, shard_id};
pub use scan::{FolderScan, ImageFile, scan};
pub(crate) use shard_writer::store_error;
pub use shard_writer::{PackedImage, ShardWriter};
