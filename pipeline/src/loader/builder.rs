//! A loader in a few lines, for programs that are not ours: URLs in, batches out, every setting with a default.
use std::sync::Arc;

use super::{Loader, LoaderConfig, LoaderState};
use crate::backend::{CpuBackend, ImageBackend};
use crate::image::{Normalize, Pixel};
use crate::{
    AugmentConfig, Dataset, DatasetConfig, IoConfig, IoRuntime, LoaderError, MixtureSource,
};

/// Settings of a loader to be, from [`Loader::builder`]. The defaults are those of [`LoaderConfig`], [`DatasetConfig`] and [`IoConfig`]; whole ones can be given too.
///
/// ```no_run
/// use nepa_pipeline::Loader;
///
/// let loader = Loader::builder("s3://bucket/train-*.parquet")
///     .batch_size(256)
///     .epochs(10)
///     .open()?;
/// for batch in loader {
///     let batch = batch?;
///     for i in 0..batch.len() {
///         let (id, pixels) = (batch.samples()[i].id, batch.pixels(i)); // normalised, [3, 224, 224]
///     }
/// }
/// # Ok::<(), nepa_pipeline::LoaderError>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "nothing is opened before `open`"]
pub struct LoaderBuilder {
    dataset: DatasetConfig,
    opened: Option<Arc<Dataset>>,
    io: IoConfig,
    runtime: Option<IoRuntime>,
    config: LoaderConfig,
    state: Option<LoaderState>,
}

impl Loader {
    /// A builder for the data set at `url`: a path, an object, a prefix or a glob. An empty URL names none, for [`LoaderBuilder::source`].
    pub fn builder(url: impl Into<String>) -> LoaderBuilder {
        LoaderBuilder::default().url(url)
    }
}

impl LoaderBuilder {
    /// One more URL of the same data set.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        let url = url.into();
        if !url.is_empty() {
            self.dataset.urls.push(url);
        }
        self
    }

    /// One more data set of a mixture, with its weight; columns as [`Self::image_column`] and [`Self::label_column`] say before this call.
    pub fn source(mut self, url: impl Into<String>, weight: f64) -> Self {
        self.dataset.mixture.push(MixtureSource {
            urls: vec![url.into()],
            weight,
            schema: self.dataset.schema.clone(),
            split: None,
        });
        self
    }

    /// A data set that is opened already, instead of URLs.
    pub fn dataset(mut self, dataset: Arc<Dataset>) -> Self {
        self.opened = Some(dataset);
        self
    }

    /// The image column. Default: found by type and name.
    pub fn image_column(mut self, name: impl Into<String>) -> Self {
        self.dataset.schema.image_column = Some(name.into());
        self
    }

    /// The label column; an empty name reads none. Default: found by type and name.
    pub fn label_column(mut self, name: impl Into<String>) -> Self {
        self.dataset.schema.label_column = Some(name.into());
        self
    }

    /// Reads the shards of one split alone, as their names say it. Default: all.
    pub fn split(mut self, name: impl Into<String>) -> Self {
        self.dataset.split = Some(name.into());
        self
    }

    /// Makes what is doubtful about the data set ([`Dataset::warnings`]) an error. Default: it is logged.
    pub fn strict(mut self, strict: bool) -> Self {
        self.dataset.strict = strict;
        self
    }

    /// Samples in one batch over all ranks. Default: 256.
    pub fn batch_size(mut self, global_batch: usize) -> Self {
        self.config.global_batch = global_batch;
        self
    }

    /// Seed of order and augmentation. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.config.seed = seed;
        self
    }

    /// Epochs to run. Default: without end.
    pub fn epochs(mut self, epochs: u64) -> Self {
        self.config.epochs = Some(epochs);
        self
    }

    /// Whether samples are shuffled. Default: they are.
    pub fn shuffle(mut self, shuffle: bool) -> Self {
        self.config.shuffle = shuffle;
        self
    }

    /// Whether an epoch's last incomplete batch is dropped. Default: it is.
    pub fn drop_last(mut self, drop_last: bool) -> Self {
        self.config.drop_last = drop_last;
        self
    }

    /// This rank, from 0, of so many. Default: 0 of 1.
    pub fn rank(mut self, rank: usize, world_size: usize) -> Self {
        (self.config.rank, self.config.world_size) = (rank, world_size);
        self
    }

    /// Augmentation. Default: torchvision's `RandomResizedCrop(224)` and a horizontal flip.
    pub fn augment(mut self, augment: AugmentConfig) -> Self {
        self.config.augment = augment;
        self
    }

    /// Normalisation. Default: mean and standard deviation 0.5.
    pub fn normalize(mut self, mean: [f32; 3], std: [f32; 3]) -> Self {
        self.config.normalize = Normalize { mean, std };
        self
    }

    /// Decode threads. Default: one for each processor core.
    pub fn decode_threads(mut self, threads: usize) -> Self {
        self.config.decode_threads = threads;
        self
    }

    /// All settings of the loader at once.
    pub fn config(mut self, config: LoaderConfig) -> Self {
        self.config = config;
        self
    }

    /// How the store is used.
    pub fn io(mut self, io: IoConfig) -> Self {
        self.io = io;
        self
    }

    /// An I/O runtime to share. Default: one of two threads of its own.
    pub fn runtime(mut self, runtime: IoRuntime) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Goes on where [`Loader::state`] stood, with any number of ranks.
    pub fn resume(mut self, state: LoaderState) -> Self {
        self.state = Some(state);
        self
    }

    /// Opens the data set and starts a loader of normalised `f32` pixels, `[3, S, S]` a sample.
    pub fn open(self) -> Result<Loader, LoaderError> {
        self.open_as::<f32>(None)
    }

    /// The same with pixels of another type (`f32`, [`half::bf16`], or `u8` without normalisation), and with `Some(p)` cut into patches:
    /// `[P, 3 * p * p]`, the P = (S / p)^2 patches row by row, each `[3, p, p]`.
    pub fn open_as<P: Pixel>(
        self,
        patch_size: Option<u32>,
    ) -> Result<Loader<CpuBackend<P>>, LoaderError> {
        let backend = CpuBackend::new(
            self.config.normalize,
            self.config.exif_orientation,
            patch_size,
        );
        self.open_with(Arc::new(backend))
    }

    /// The same with any image backend.
    pub fn open_with<B: ImageBackend>(self, backend: Arc<B>) -> Result<Loader<B>, LoaderError> {
        let open = || -> Result<Arc<Dataset>, LoaderError> {
            let own = || IoRuntime::new(2).map_err(LoaderError::Thread);
            let runtime = self.runtime.map_or_else(own, Ok)?;
            let dataset = Dataset::open(&self.dataset, &self.io, &runtime)?;
            for warning in dataset.warnings() {
                tracing::warn!("{warning}");
            }
            Ok(dataset)
        };
        let dataset = self.opened.map_or_else(open, Ok)?;
        Loader::with_backend(dataset, self.config, self.state.as_ref(), backend)
    }
}
