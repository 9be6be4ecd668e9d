//! Writing image shards: Parquet objects in the format of `schemas/README.md`.
//!
//! [`Packer`] packs a stream of images, whose number need not be known, and is what the Python
//! package calls. `nepa pack` (folders of images) and `nepa sample-data` use the parts below it.
//! Nothing here prints or knows a command line.
mod checksummed_pages;
mod error;
mod existing;
mod plan;
mod scan;
mod shard_writer;
mod stream;

pub use error::PackError;
pub use stream::{ItemLabel, PackedShard, Packer, StreamOptions};

pub(crate) use existing::{ExistingShard, existing_shards, remove_leftovers};
pub(crate) use plan::{PackOptions, ShardPlan, plan, shard_id};
pub(crate) use scan::{FolderScan, ImageFile, scan};
pub(crate) use shard_writer::store_error;
pub(crate) use shard_writer::{Labels, PackedImage, ShardWriter};
