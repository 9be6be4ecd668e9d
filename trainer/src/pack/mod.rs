//! Writing image shards: folders of images to Parquet objects in the format of `schemas/README.md`.
//! Called by `nepa pack` and `nepa sample-data`; knows no command line.
mod checksummed_pages;
mod existing;
mod plan;
mod scan;
mod shard_writer;

pub(crate) use existing::{ExistingShard, existing_shards, remove_leftovers};
pub(crate) use plan::{PackOptions, ShardPlan, plan, shard_id};
pub(crate) use scan::{FolderScan, ImageFile, scan};
pub(crate) use shard_writer::store_error;
pub(crate) use shard_writer::{PackedImage, ShardWriter};
