//! Labelled images in order, as a model wants them.
use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use candle_core::{Device, Tensor};
use nepa_pipeline::{
    AugmentConfig, Dataset, DatasetConfig, Filter, IoConfig, IoRuntime, Loader, LoaderConfig,
    Normalize, shown_url,
};
use nepa_schemas::Label;

use crate::data::{LabelFacts, open_data, show_warnings};

/// Class numbers by label. The same index or name is the same class in every set.
#[derive(Debug, Default)]
pub(crate) struct Classes {
    numbers: BTreeMap<Label, usize>,
}

impl Classes {
    /// Number of classes so far.
    pub(crate) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// The label with that number.
    pub(crate) fn label(&self, number: usize) -> Option<&Label> {
        let mut all = self.numbers.iter();
        all.find(|(_, known)| **known == number)
            .map(|(label, _)| label)
    }

    fn number(&mut self, label: &Label) -> usize {
        let next = self.numbers.len();
        *self.numbers.entry(label.clone()).or_insert(next)
    }
}

/// Replaces an index by its class name where the data set knows it, so that sets with differing
/// orders of classes agree.
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
pub(crate) struct ReadOptions {
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
    pub threads: usize,
    /// Most images taken.
    pub limit: usize,
}

/// A labelled data set.
#[derive(Debug)]
pub(crate) struct ImageSet {
    dataset: Arc<Dataset>,
    names: Option<Vec<String>>,
    place: String,
}

impl ImageSet {
    /// Opens shards, and says what is doubtful about them.
    pub(crate) fn open(config: &DatasetConfig, runtime: &IoRuntime) -> anyhow::Result<Self> {
        let dataset = open_data(config, &IoConfig::default(), runtime)?;
        show_warnings(&dataset);
        let place = config.urls.iter().map(|url| shown_url(url));
        let place = place.collect::<Vec<_>>().join(", ");
        ensure!(dataset.num_samples() > 0, "{place}: no image to evaluate");
        Ok(Self {
            names: dataset.class_names().map(<[String]>::to_vec),
            dataset,
            place,
        })
    }

    pub(crate) fn len(&self) -> u64 {
        self.dataset.num_samples()
    }

    /// Where the labels are, for people; an error that says why there are none.
    pub(crate) fn labels(&self) -> anyhow::Result<String> {
        let facts = self.label_facts()?;
        let more = match facts.unnamed_shards {
            0 => String::new(),
            count => format!(
                "; {count} of {} shards name no classes, the names of the others are taken",
                self.dataset.shards().len()
            ),
        };
        Ok(format!("{}{more}", facts.line))
    }

    fn label_facts(&self) -> anyhow::Result<LabelFacts> {
        let facts = LabelFacts::of(&self.dataset).map_err(|why| anyhow!("{why}"));
        facts.with_context(|| format!("{} has no labels to evaluate by", self.place))
    }

    /// Fails where the labels of two sets cannot be the same, as those of the one are names and
    /// those of the other bare numbers.
    pub(crate) fn check_same_spelling(&self, test: &Self) -> anyhow::Result<()> {
        let (train_facts, test_facts) = (self.label_facts()?, test.label_facts()?);
        let spelling = |facts: &LabelFacts| match &facts.names {
            Some(names) => quoted(names.iter().map(|name| format!("`{name}`"))),
            None if facts.by_name => "names".to_owned(),
            None => "numbers (0, 1, ...)".to_owned(),
        };
        ensure!(
            train_facts.by_name == test_facts.by_name,
            different_spelling(
                &format!("{}: {}", self.place, spelling(&train_facts)),
                &format!("{}: {}", test.place, spelling(&test_facts))
            )
        );
        Ok(())
    }

    /// Gives every image once, in the order of the shards: a batch of pixels, `[B, 3, size, size]`,
    /// normalised, on the CPU, with the class of each, and returns how many were left out, as they
    /// have no label. Without `classes` no label is needed, and every class is 0.
    pub(crate) fn read(
        &self,
        options: ReadOptions,
        mut classes: Option<&mut Classes>,
        mut each: impl FnMut(&Tensor, &[usize]) -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let facts = classes.is_some().then(|| self.label_facts()).transpose()?;
        let config = LoaderConfig {
            global_batch: options.batch,
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
            shuffle_window_bytes: 64 << 20,
            ..LoaderConfig::default()
        };
        let mut loader = Loader::new(self.dataset.clone(), config, None)?;
        let side = options.size as usize;
        let (mut left, mut unlabelled) = (options.limit, 0);
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
                    (Some(_), None) => {
                        unlabelled += 1;
                        continue;
                    }
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
        if let Some(facts) = facts.filter(|_| left == options.limit && unlabelled > 0) {
            bail!(
                "{}: none of its {unlabelled} images has a label: all are null or negative ({}); \
                 choose another column with --label-column",
                self.place,
                facts.line
            );
        }
        Ok(unlabelled)
    }
}

/// The first few, and how many more there are.
fn quoted(labels: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 5;
    let more = labels.len().saturating_sub(SHOWN);
    let shown = labels.take(SHOWN).collect::<Vec<_>>().join(", ");
    match more {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn different_spelling(train: &str, test: &str) -> String {
    format!(
        "no class of the test set is in the training set: the labels are spelled differently \
         ({train}; {test}). Where both mean the same, write names, or indices with the same class \
         names, into both (a tool on the way may have lost the `huggingface` metadata, which names \
         the classes), or choose other columns with --label-column"
    )
}

/// Compares the classes of a test set with those of the training set, which have numbers below
/// `known`. Gives a warning that names those which training does not know; fails if it knows none.
pub(super) fn compare_classes(
    classes: &Classes,
    known: usize,
    test: &[usize],
) -> anyhow::Result<Option<String>> {
    let mut unknown = BTreeMap::<usize, u64>::new();
    for number in test.iter().filter(|number| **number >= known) {
        *unknown.entry(*number).or_default() += 1;
    }
    let label = |number: usize| {
        classes
            .label(number)
            .map_or(String::new(), Label::to_string)
    };
    let total: u64 = unknown.values().sum();
    if total == test.len() as u64 && total > 0 {
        let spelled = |numbers: std::ops::Range<usize>| quoted(numbers.map(label));
        bail!(different_spelling(
            &format!("training set: {}", spelled(0..known)),
            &format!("test set: {}", spelled(known..classes.len()))
        ));
    }
    let named = unknown
        .iter()
        .map(|(number, count)| format!("{} ({count})", label(*number)));
    Ok((total > 0).then(|| {
        format!(
            "{} of the classes of the test set are not in the training set, so that their images \
             are always wrong: {}",
            unknown.len(),
            quoted(named)
        )
    }))
}
