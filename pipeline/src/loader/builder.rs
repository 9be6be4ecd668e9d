//! A loader in a few lines, for programs that are not ours: URLs in, batches out, every setting
//! with a default.
use std::fmt;
use std::sync::Arc;

use super::start::Start;
use super::{Loader, LoaderConfig, LoaderError, LoaderState};
use crate::backend::{CpuBackend, ImageBackend, RawBackend};
use crate::image::{Normalize, Pixel};
use crate::{Augment, AugmentConfig, Dataset, DatasetConfig, IoConfig, IoRuntime, MixtureSource};

/// A setting that is set by itself.
type Change = Arc<dyn Fn(&mut LoaderConfig) + Send + Sync>;

/// Settings of a loader to be, from [`Loader::builder`]. The defaults are those of
/// [`LoaderConfig`], [`DatasetConfig`] and [`IoConfig`]; whole ones can be given too. The order of
/// the calls does not matter: what is set by itself goes before the whole.
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
#[derive(Clone, Default)]
#[must_use = "nothing is opened before `open`"]
pub struct LoaderBuilder {
    dataset: DatasetConfig,
    /// URL and weight of each data set of a mixture.
    sources: Vec<(String, f64)>,
    opened: Option<Arc<Dataset>>,
    io: IoConfig,
    runtime: Option<IoRuntime>,
    config: LoaderConfig,
    /// What is set by itself, above `config`.
    changes: Vec<Change>,
    normalize: Option<Normalize>,
    augment: Option<Arc<dyn Augment>>,
    state: Option<LoaderState>,
}

impl fmt::Debug for LoaderBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoaderBuilder")
            .field("dataset", &self.dataset)
            .field("sources", &self.sources)
            .field("config", &self.resolved())
            .finish_non_exhaustive()
    }
}

impl Loader {
    /// A builder for the data set at `url`: a path, an object, a prefix or a glob.
    pub fn builder(url: impl Into<String>) -> LoaderBuilder {
        LoaderBuilder::default().url(url)
    }

    /// A builder for a mixture: one [`LoaderBuilder::source`] for each of its data sets.
    pub fn mixture() -> LoaderBuilder {
        LoaderBuilder::default()
    }
}

impl LoaderBuilder {
    /// One more URL of the same data set.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.dataset.urls.push(url.into());
        self
    }

    /// One more data set of a mixture, with its weight. Columns, split and the like hold for all of
    /// them.
    pub fn source(mut self, url: impl Into<String>, weight: f64) -> Self {
        self.sources.push((url.into(), weight));
        self
    }

    fn change(mut self, change: impl Fn(&mut LoaderConfig) + Send + Sync + 'static) -> Self {
        self.changes.push(Arc::new(change));
        self
    }

    /// The settings of the loader.
    fn resolved(&self) -> LoaderConfig {
        let mut config = self.config.clone();
        for change in &self.changes {
            change(&mut config);
        }
        if let Some(normalize) = self.normalize {
            config.normalize = normalize;
        }
        config
    }

    /// Which data set is read.
    fn dataset_config(&self) -> DatasetConfig {
        let source = |(url, weight): &(String, f64)| MixtureSource {
            urls: vec![url.clone()],
            weight: *weight,
            schema: self.dataset.schema.clone(),
            split: None,
            index: None,
        };
        let mut dataset = self.dataset.clone();
        dataset.mixture.extend(self.sources.iter().map(source));
        dataset
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

    /// Further columns, of any type, that each batch gives as Arrow arrays
    /// ([`crate::Batch::columns`]).
    pub fn extra_columns<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        let names = names.into_iter().map(Into::into);
        self.dataset.schema.extra_columns.extend(names);
        self
    }

    /// Reads the shards of one split alone, as their names say it. Default: all.
    pub fn split(mut self, name: impl Into<String>) -> Self {
        self.dataset.split = Some(name.into());
        self
    }

    /// Opens the data set by its index ([`DatasetConfig::index`]), a path or URL. Default: it is
    /// listed, and its footers are read.
    pub fn index(mut self, url: impl Into<String>) -> Self {
        self.dataset.index = Some(url.into());
        self
    }

    /// Makes what is doubtful about the data set ([`Dataset::warnings`]) an error. Default: it is
    /// logged.
    pub fn strict(mut self, strict: bool) -> Self {
        self.dataset.strict = strict;
        self
    }

    /// Samples in one batch over all ranks. Default: 256.
    pub fn batch_size(self, global_batch: usize) -> Self {
        self.change(move |config| config.global_batch = global_batch)
    }

    /// Seed of order and augmentation. Default: 0.
    pub fn seed(self, seed: u64) -> Self {
        self.change(move |config| config.seed = seed)
    }

    /// Epochs to run. Default: without end.
    pub fn epochs(self, epochs: u64) -> Self {
        self.change(move |config| config.epochs = Some(epochs))
    }

    /// Whether samples are shuffled. Default: they are.
    pub fn shuffle(self, shuffle: bool) -> Self {
        self.change(move |config| config.shuffle = shuffle)
    }

    /// Whether an epoch's last incomplete batch is dropped. Default: it is.
    pub fn drop_last(self, drop_last: bool) -> Self {
        self.change(move |config| config.drop_last = drop_last)
    }

    /// Shares of the data, each shuffled and read by itself ([`LoaderConfig::lanes`]): a rank
    /// reads its own alone. Default: 1, with which each rank reads everything.
    pub fn lanes(self, lanes: usize) -> Self {
        self.change(move |config| config.lanes = lanes)
    }

    /// This rank, from 0, of so many. Default: 0 of 1.
    pub fn rank(self, rank: usize, world_size: usize) -> Self {
        self.change(move |config| (config.rank, config.world_size) = (rank, world_size))
    }

    /// Augmentation. Default: torchvision's `RandomResizedCrop(224)` and a horizontal flip.
    pub fn augment(self, augment: AugmentConfig) -> Self {
        self.change(move |config| config.augment = augment.clone())
    }

    /// An augmentation of the program's own, instead of [`Self::augment`].
    pub fn augment_by(mut self, augment: impl Augment + 'static) -> Self {
        self.augment = Some(Arc::new(augment));
        self
    }

    /// Normalisation. Default: mean and standard deviation 0.5.
    pub fn normalize(mut self, mean: [f32; 3], std: [f32; 3]) -> Self {
        self.normalize = Some(Normalize { mean, std });
        self
    }

    /// Batches that the consumer may keep at once. Default: 16.
    pub fn max_kept_batches(self, batches: usize) -> Self {
        self.change(move |config| config.max_kept_batches = batches)
    }

    /// Decode threads. Default: one for each processor core.
    pub fn decode_threads(self, threads: usize) -> Self {
        self.change(move |config| config.decode_threads = threads)
    }

    /// All settings of the loader at once, under those that are set by themselves.
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

    /// The same with pixels of another type (`f32`, [`half::bf16`], or `u8` without normalisation),
    /// and with `Some(p)` cut into patches: `[P, 3 * p * p]`, the P = (S / p)^2 patches row by row,
    /// each `[3, p, p]`.
    pub fn open_as<P: Pixel>(
        self,
        patch_size: Option<u32>,
    ) -> Result<Loader<CpuBackend<P>>, LoaderError> {
        let config = self.resolved();
        let backend = CpuBackend::new(config.normalize, config.exif_orientation, patch_size);
        self.start(Arc::new(backend))
    }

    /// The same without decoding: [`crate::RawBatch::encoded`] gives the images as they are stored,
    /// each with its views ([`crate::SampleRecord::views`]) as drawn.
    pub fn open_raw(self) -> Result<Loader<RawBackend>, LoaderError> {
        let exif_orientation = self.resolved().exif_orientation;
        self.open_with(Arc::new(RawBackend { exif_orientation }))
    }

    /// The same with any image backend. It normalises, or not, as it was made to: with
    /// [`Self::normalize`] this is an error.
    pub fn open_with<B: ImageBackend>(self, backend: Arc<B>) -> Result<Loader<B>, LoaderError> {
        if let Some(normalize) = self.normalize {
            return Err(LoaderError::Setting {
                setting: "normalize",
                value: format!("{normalize:?}"),
                why: "the image backend is the caller's own and decides how pixels are normalised"
                    .to_owned(),
            });
        }
        self.start(backend)
    }

    fn start<B: ImageBackend>(self, backend: Arc<B>) -> Result<Loader<B>, LoaderError> {
        let config = self.resolved();
        let dataset_config = self.dataset_config();
        let dataset = match self.opened {
            Some(dataset) => dataset,
            None => open_dataset(&dataset_config, &self.io, self.runtime)?,
        };
        let augment = match self.augment {
            Some(augment) => augment,
            None => config.augment.build()?,
        };
        let start = Start {
            dataset,
            config,
            augment,
            backend,
        };
        start.start(self.state.as_ref())
    }
}

/// Opens a data set, and logs what is doubtful about it.
fn open_dataset(
    config: &DatasetConfig,
    io: &IoConfig,
    runtime: Option<IoRuntime>,
) -> Result<Arc<Dataset>, LoaderError> {
    let own = || IoRuntime::new(2).map_err(LoaderError::Thread);
    let runtime = runtime.map_or_else(own, Ok)?;
    let dataset = Dataset::open(config, io, &runtime)?;
    for warning in dataset.warnings() {
        tracing::warn!("{warning}");
    }
    Ok(dataset)
}
