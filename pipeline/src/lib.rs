//! An asynchronous loader of image shards in Parquet from object storage.
//!
//! Bytes go from a bucket to batches of normalised pixels. The order of samples and everything
//! random about each of them are pure functions of (data set, seed, epoch): thread counts and
//! timing change nothing. No model is known here.
//!
//! [`Loader::builder`] is where to begin. The parts can be used by themselves: [`open_url`]
//! (stores), [`Dataset`] (rows of shards), [`CpuRenderer`] and [`decode_rgb`] (images),
//! [`ImageBackend`] (decoders and memory of one's own).

#![cfg_attr(
    nepa_interleavings,
    expect(
        unreachable_code,
        clippy::diverging_sub_expression,
        reason = "an arm of the model's selections may return"
    )
)]

mod augment;
mod backend;
mod batch;
mod dataset;
#[cfg(test)]
mod golden_tests;
mod image;
mod loader;
mod mix;
pub mod random;
mod sample;
mod spans;
mod stats;
mod store;
mod sync;

// The public names, by layer. `tests/fixtures/pipeline-names.txt` has them once more, so that a
// change of them is seen as one.

// Stores: bytes of objects.
pub use store::{
    Action, CredentialError, DeltaProblem, Denial, Found, InParts, IoConfig, IoCounters, IoRuntime,
    Latencies, Location, OddKeys, Patience, Provider, StoreCause, StoreError, StoreOptions,
    StoreUrl, TableFormat, TableProblem, classify, full_text, is_parquet, open_url, plain, redact,
    shown_url, storable_url,
};

// Data sets: rows of shards.
#[cfg(not(nepa_interleavings))]
pub use dataset::Fetch;
pub use dataset::{
    Beginning, ColumnInfo, Dataset, DatasetConfig, DatasetError, DatasetWarning, IndexProblem,
    LeaveOut, MixtureSource, Part, PartBytes, Shard, Source, WatchFooters,
};
pub use nepa_schemas::{ColumnMapping, Label, SchemaError, SchemaOptions, ShardBatch};
pub use sample::{PartId, Place, SampleId};

// Augmentations: which part of an image, and what becomes of its pixels.
pub use augment::{
    Augment, AugmentConfig, AugmentError, CenterCrop, CropPlan, CropRect, EdgeSupport, EraseBox,
    Filter, MultiCrop, Operation, RandAugment, RandomErasing, RandomResizedCrop, Squash,
};
pub use mix::{CutBox, ImageMix, MixConfig, MixError, MixMode, MixPlan};

// Images: bytes to pixels.
pub use image::{
    CpuRenderer, Decoder, ImageError, ImageFormat, ImageHeader, JpegFacts, JpegProcess,
    LibjpegError, MAX_PIXELS, Normalize, Orientation, Pixel, PixelOperations, PixelRect, RgbImage,
    clips_gray, decode_rgb, read_header,
};

// Backends: who decodes, and into whose memory.
#[cfg(feature = "cuda")]
pub use backend::cuda;
pub use backend::device::{
    Accelerator, Chroma, CpuCrops, CropJob, DeviceBackend, DeviceDecoder, DeviceDecoders,
    DeviceMemory, DeviceSlot, EngineConfig, IMAGES_A_THREAD, Normalization, PixelLayout, PixelType,
    StoredPixels, Target,
};
pub use backend::{
    BackendError, CpuBackend, CpuMemory, CpuSlot, Decode, ImageBackend, ImageDecoder, PlannedImage,
    RawBackend,
};

// What is traced.
pub use spans::{SPANS_ACROSS_THREADS, SPANS_ON_A_THREAD};

// The loader: samples in order, as batches.
pub use batch::{Batch, HostBatch, NoClassIndex, RawBatch, SampleRecord};
pub use loader::{
    BadSampleList, EpochReport, Loader, LoaderBuilder, LoaderConfig, LoaderError, LoaderState,
    Mixing, MixingForecast, StatsReader,
};
pub use stats::{
    DecoderCounters, DecoderStats, JpegEngine, PipelineStats, RefusalPhase, Refusals, Stage,
    StageStats,
};
