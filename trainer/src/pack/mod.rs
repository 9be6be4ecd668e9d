//! Writing image shards: folders of images to Parquet objects in the format of `schemas/README.md`.
//! Called by `nepa pack` and `nepa sample-data`; knows no command line.
mod checksummed_pages;
mod plan;
mod scan;
mod shard_writer;

pub use plan::{PackOptions, ShardPlan, SplitPlan, plan};
pub use scan::{FolderScan, ImageFile, scan};
pub use shard_writer::{PackedImage, ShardWriter, existing_shards};
