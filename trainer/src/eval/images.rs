//! Labelled images in order, as a model wants them.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use candle_core::{Device, Tensor};
use nepa_pipeline::{
    Dataset, DatasetConfig, IoConfig, IoRuntime, Loader, LoaderConfig, Normalize, shown_url,
};
use nepa_schemas::Label;
use serde::Serialize;

use crate::data::{LabelFacts, open_data, show_warnings};
use crate::transform::Transform;

/// How often a reader that waits for a batch asks whether to go on.
const LOOK_EVERY: Duration = Duration::from_millis(50);

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

    /// The number of a label of that set, a new one if need be.
    pub(super) fn number(&mut self, set: &ImageSet, label: Label) -> usize {
        let next = self.numbers.len();
        *self.numbers.entry(set.named(label)).or_insert(next)
    }
}

/// How images are prepared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadOptions {
    /// How an image becomes a square.
    pub transform: Transform,
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
    pub(crate) fn open(
        config: &DatasetConfig,
        io: &IoConfig,
        runtime: &IoRuntime,
    ) -> anyhow::Result<Self> {
        let dataset = open_data(config, io, runtime)?;
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

    /// What tells two data sets apart: names, rows and columns.
    pub(crate) fn fingerprint(&self) -> String {
        self.dataset.fingerprint()
    }

    pub(crate) fn len(&self) -> u64 {
        self.dataset.num_samples()
    }

    /// Where it lies, for people.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Replaces an index by its class name where the data set knows it, so that sets with differing
    /// orders of classes agree.
    pub(super) fn named(&self, label: Label) -> Label {
        match (&label, &self.names) {
            (Label::Index(index), Some(names)) => usize::try_from(*index)
                .ok()
                .and_then(|index| names.get(index))
                .map_or(label, |name| Label::Name(name.as_str().into())),
            _ => label,
        }
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

    pub(super) fn label_facts(&self) -> anyhow::Result<LabelFacts> {
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
    /// normalised, on the CPU, with the number that `number` gives each label, and returns what was
    /// left out. Without `number` no label is needed, and every number is 0.
    pub(crate) fn read(
        &self,
        options: ReadOptions,
        number: Option<Number<'_>>,
        each: impl FnMut(&Tensor, &[usize]) -> anyhow::Result<()>,
    ) -> anyhow::Result<LeftOut> {
        let read = self.read_while(options, number, each, || true)?;
        Ok(read.unwrap_or_default())
    }

    /// As [`Self::read`]; none as soon as `go_on`, which is asked between batches and, several times
    /// a second, while one is waited for, says no.
    pub(crate) fn read_while(
        &self,
        options: ReadOptions,
        mut number: Option<Number<'_>>,
        mut each: impl FnMut(&Tensor, &[usize]) -> anyhow::Result<()>,
        go_on: impl Fn() -> bool,
    ) -> anyhow::Result<Option<LeftOut>> {
        let facts = number.is_some().then(|| self.label_facts()).transpose()?;
        let config = LoaderConfig {
            global_batch: options.batch,
            epochs: Some(1),
            shuffle: false,
            drop_last: false,
            augment: options.transform.augment(),
            normalize: options.normalize,
            exif_orientation: options.exif_orientation,
            decode_threads: options.threads,
            shuffle_window_bytes: 64 << 20,
            ..LoaderConfig::default()
        };
        let mut loader = Loader::new(self.dataset.clone(), config, None)?;
        let side = options.transform.size as usize;
        let (mut left, mut out) = (options.limit, LeftOut::default());
        while left > 0 {
            while go_on() && !loader.wait(LOOK_EVERY) {}
            if !go_on() {
                return Ok(None);
            }
            let Some(batch) = loader.next_batch()? else {
                break;
            };
            let (mut pixels, mut numbers) = (Vec::new(), Vec::new());
            for (index, sample) in batch.samples().iter().enumerate() {
                if numbers.len() == left {
                    break;
                }
                // A replacement is another sample a second time.
                if sample.replaces.is_some() {
                    out.undecodable += 1;
                    continue;
                }
                let found = match (&mut number, sample.label.clone()) {
                    (None, _) => 0,
                    (Some(number), Some(label)) => number(label)?,
                    (Some(_), None) => {
                        out.unlabelled += 1;
                        continue;
                    }
                };
                pixels.extend_from_slice(batch.pixels(index));
                numbers.push(found);
            }
            if numbers.is_empty() {
                continue;
            }
            left -= numbers.len();
            let shape = (numbers.len(), 3, side, side);
            each(&Tensor::from_vec(pixels, shape, &Device::Cpu)?, &numbers)?;
        }
        if let Some(facts) = facts.filter(|_| left == options.limit && out.unlabelled > 0) {
            bail!(
                "{}: none of its {} images has a label: all are null or negative ({}); choose \
                 another column with --label-column",
                self.place,
                out.unlabelled,
                facts.line
            );
        }
        Ok(Some(out))
    }
}

/// Gives a label its number.
pub(crate) type Number<'a> = &'a mut dyn FnMut(Label) -> anyhow::Result<usize>;

/// Images that were read past.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct LeftOut {
    /// Their label is null or negative.
    pub unlabelled: u64,
    /// They cannot be decoded.
    pub undecodable: u64,
}

impl LeftOut {
    /// What is to be said of them, of so many images.
    pub(crate) fn warnings(self, all: u64) -> Vec<String> {
        let of = |count: u64, why: &str| {
            (count > 0).then(|| format!("{count} of {all} test images {why} and are left out"))
        };
        let unlabelled = "have no label (null, or a negative index)";
        let both = [
            of(self.unlabelled, unlabelled),
            of(self.undecodable, "cannot be decoded"),
        ];
        both.into_iter().flatten().collect()
    }
}

/// The first few, and how many more there are.
pub(super) fn quoted(labels: impl ExactSizeIterator<Item = String>) -> String {
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
