//! An asynchronous loader of image shards in Parquet from object storage.
//!
//! Bytes go from a bucket to batches of normalised pixels. The order of samples and everything random about each of them
//! are pure functions of (data set, seed, epoch): thread counts and timing change nothing. No model is known here.

#![cfg_attr(
    nepa_interleavings,
    expect(
        unreachable_code,
        clippy::diverging_sub_expression,
        reason = "an arm of the model's selections may return"
    )
)]

pub mod augment;
pub mod backend;
pub mod batch;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dataset;
pub mod device;
pub mod error;
pub mod image_decode;
pub mod loader;
pub mod random;
pub mod render;
pub mod sample;
pub mod stats;
pub mod store;
mod sync;

pub use augment::{Augment, AugmentConfig, CropPlan, CropRect, EdgeSupport, Filter};
pub use backend::{CpuBackend, ImageBackend};
pub use batch::{Batch, HostBatch, NoClassIndex, SampleRecord};
pub use dataset::{
    ColumnInfo, Dataset, DatasetConfig, DatasetWarning, Deliver, FetchHandle, IoConfig, IoCounters,
    IoRuntime, MixtureSource, PartBytes, PartInfo, Shard, Source, WatchFooters,
};
pub use error::{DatasetError, ImageError, LoaderError, Place};
pub use loader::{
    EpochReport, Loader, LoaderBuilder, LoaderConfig, LoaderState, Mixing, MixingForecast,
};
pub use sample::{EncodedImage, SampleId};
pub use store::{StoreOptions, StoreUrl, open_url};
