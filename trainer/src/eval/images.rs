//! Labelled images in order, as a model wants them.
use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{bail, ensure};
use candle_core::{Device, Tensor};
use nepa_pipeline::render::Normalize;
use nepa_pipeline::{
    AugmentConfig, Dataset, DatasetConfig, Filter, IoConfig, IoRuntime, Loader, LoaderConfig,
};
use nepa_schemas::{Label, SchemaOptions};

/// Class numbers by label. The same index or name is the same class in every set.
#[derive(Debug, Default)]
pub struct Classes {
    numbers: BTreeMap<Label, usize>,
}

impl Classes {
    /// Number of classes so far.
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    fn number(&mut self, label: &Label) -> usize {
        let next = self.numbers.len();
        *self.numbers.entry(label.clone()).or_insert(next)
    }
}

/// Replaces an index by its class name where the data set knows it, so that sets with differing orders of classes agree.
fn named(label: Label, names: Option<&[String]>) -> Label {
    match (&label, names) {
        (Label::Index(index), Some(names)) => usize::try_from(*index)
            .ok()
            .and_then(|index| names.get(index))
            .map_or(label, |name| Label::Name(name.as_str().into())),
        _ => label,
    }
}

/// How images are prepared.
#[derive(Debug, Clone, Copy)]
pub struct ReadOptions {
    /// Shorter side after resizing, in pixels.
    pub resize: u32,
    /// Side of the square cut from the centre.
    pub size: u32,
    /// Normalisation of pixels.
    pub normalize: Normalize,
    /// Whether EXIF orientation is applied.
    pub exif_orientation: bool,
    /// Images in one batch.
    pub batch: usize,
    /// Decode threads.
    pub threads: usize,
    /// Most images taken.
    pub limit: usize,
}

/// A labelled data set.
#[derive(Debug)]
pub struct ImageSet {
    dataset: Arc<Dataset>,
    names: Option<Vec<String>>,
    place: String,
}

impl ImageSet {
    /// Opens shards: paths, prefixes or globs.
    pub fn open(
        urls: &[String],
        schema: SchemaOptions,
        runtime: &IoRuntime,
    ) -> anyhow::Result<Self> {
        let config = DatasetConfig {
            urls: urls.to_vec(),
            schema,
            ..DatasetConfig::default()
        };
        let dataset = Dataset::open(&config, &IoConfig::default(), runtime)?;
        let place = urls.join(", ");
        ensure!(dataset.num_samples() > 0, "{place}: no image to evaluate");
        Ok(Self {
            names: dataset.class_names().map(<[String]>::to_vec),
            dataset,
            place,
        })
    }

    /// Number of images.
    pub fn len(&self) -> u64 {
        self.dataset.num_samples()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives every image once, in the order of the shards: a batch of pixels, `[B, 3, size, size]`, normalised, on the CPU, with the class
    /// of each. Without `classes` no label is needed, and every class is 0.
    pub fn read(
        &self,
        options: ReadOptions,
        mut classes: Option<&mut Classes>,
        mut each: impl FnMut(&Tensor, &[usize]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let config = LoaderConfig {
            seed: 0,
            global_batch: options.batch,
            rank: 0,
            world_size: 1,
            epochs: Some(1),
            shuffle: false,
            drop_last: false,
            augment: AugmentConfig::CenterCrop {
                size: options.size,
                resize: options.resize,
                filter: Filter::Bicubic,
            },
            normalize: options.normalize,
            exif_orientation: options.exif_orientation,
            decode_threads: options.threads,
            prefetch_batches: 2,
            shuffle_window_bytes: 64 << 20,
            max_bad_fraction: 0.01,
            bad_samples_path: None,
        };
        let mut loader = Loader::new(self.dataset.clone(), config, None)?;
        let side = options.size as usize;
        let mut left = options.limit;
        while left > 0 {
            let Some(batch) = loader.next_batch()? else {
                break;
            };
            let (mut pixels, mut numbers) = (Vec::new(), Vec::new());
            for (index, sample) in batch.samples().iter().enumerate() {
                // A replacement is another sample a second time.
                if sample.replaces.is_some() || numbers.len() == left {
                    continue;
                }
                let number = match (&mut classes, sample.label.clone()) {
                    (None, _) => 0,
                    (Some(classes), Some(label)) => {
                        classes.number(&named(label, self.names.as_deref()))
                    }
                    (Some(_), None) => bail!(
                        "{}, {}: no label; evaluation needs one for every image (choose the column with --label-column)",
                        self.place,
                        sample.id
                    ),
                };
                pixels.extend_from_slice(batch.pixels(index));
                numbers.push(number);
            }
            if numbers.is_empty() {
                continue;
            }
            left -= numbers.len();
            let shape = (numbers.len(), 3, side, side);
            each(&Tensor::from_vec(pixels, shape, &Device::Cpu)?, &numbers)?;
        }
        Ok(())
    }
}
