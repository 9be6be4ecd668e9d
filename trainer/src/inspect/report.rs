//! What `nepa inspect` says of a data set, as plain data: what it prints, and its JSON
//! (`docs/inspect.md`).
use std::collections::BTreeMap;

use nepa_pipeline::{ColumnInfo, Dataset, SampleId};
use nepa_schemas::Label;
use serde::Serialize;

use super::{Sample, SampledImage};
use crate::data::LabelFacts;

/// Version of the JSON; it is raised where a key changes its meaning or goes.
pub(crate) const VERSION: u32 = 1;

/// What the footers say.
#[derive(Debug, Serialize)]
pub(crate) struct Layout {
    /// How images are read, each way once; the first shard's first.
    pub schema: Vec<String>,
    /// Where labels are read, if they are.
    pub labels: Option<Labels>,
    pub shards: Shards,
    /// Rows, those without an image included.
    pub rows: u64,
    pub rows_without_image: u64,
    pub row_groups: RowGroups,
    /// Those that are read.
    pub columns: Vec<ColumnInfo>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Labels {
    /// Their column, how many classes there are where that is known, and their type.
    #[serde(rename = "column")]
    pub line: String,
    /// Names of the classes, where they are known before a label is read.
    pub classes: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Shards {
    pub count: usize,
    pub bytes: u64,
    /// URL of the first, without secrets.
    pub first: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct RowGroups {
    pub count: usize,
    /// What is read of one.
    pub bytes_read: Spread,
}

/// Of some numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Spread {
    pub least: u64,
    pub median: u64,
    pub most: u64,
}

/// What the sample says.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    pub row_groups: usize,
    pub rows: u64,
    /// Images that were decoded.
    pub decoded: usize,
    /// How many of them are of each format.
    pub formats: Vec<FormatCount>,
    /// Pixels and encoded bytes of them; `None` where there are none.
    pub width: Option<Spread>,
    pub height: Option<Spread>,
    pub bytes: Option<Spread>,
    pub unreadable: Vec<Unreadable>,
    /// Labels and how many rows have them, the most frequent first.
    pub classes: Vec<ClassCount>,
    pub rows_without_label: u64,
    /// Row groups that cannot be read, with the reason.
    pub failed: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct FormatCount {
    /// `JPEG`, say.
    pub format: String,
    pub images: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct ClassCount {
    /// The class's name, or the number that stands for it.
    pub class: String,
    pub rows: u64,
}

/// An image that does not decode.
#[derive(Debug, Serialize)]
pub(crate) struct Unreadable {
    pub object: String,
    pub row_group: u32,
    pub row: u32,
    pub reason: String,
}

/// A file that was written.
#[derive(Debug, Serialize)]
pub(crate) struct Written {
    /// Its path or URL.
    pub place: String,
    pub bytes: u64,
}

/// All of it; the JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub version: u32,
    /// As they were given, without secrets.
    pub urls: Vec<String>,
    #[serde(flatten)]
    pub layout: Layout,
    pub index: Option<Written>,
    pub sample: Findings,
    /// What may be wrong, and what to do; the most serious first.
    pub warnings: Vec<String>,
}

impl Layout {
    /// That of an opened data set.
    pub(crate) fn of(dataset: &Dataset) -> Self {
        let shards = dataset.shards();
        let mut schema = shards
            .iter()
            .map(|shard| shard.mapping.to_string())
            .collect::<Vec<_>>();
        schema.dedup();
        let absent = dataset.num_absent();
        let parts = shards.iter().flat_map(|shard| &shard.parts);
        let sizes = parts.map(|part| part.fetch_bytes).collect::<Vec<_>>();
        Self {
            schema,
            labels: LabelFacts::of(dataset).ok().map(|facts| Labels {
                line: facts.line,
                classes: facts.names,
            }),
            shards: Shards {
                count: shards.len(),
                bytes: shards.iter().map(|shard| shard.size).sum(),
                first: shards[0].url.clone(),
            },
            rows: dataset.num_samples() + absent,
            rows_without_image: absent,
            row_groups: RowGroups {
                count: sizes.len(),
                bytes_read: Spread::of(sizes).unwrap_or_default(),
            },
            columns: dataset.columns(),
        }
    }
}

impl Findings {
    /// Those of a sample of `dataset`.
    pub(crate) fn of(dataset: &Dataset, sample: &Sample) -> Self {
        let mut formats = BTreeMap::new();
        for image in &sample.images {
            *formats.entry(image.header.format).or_insert(0) += 1;
        }
        let spread =
            |number: fn(&SampledImage) -> u64| Spread::of(sample.images.iter().map(number));
        Self {
            row_groups: sample.row_groups.len(),
            rows: sample.num_rows,
            decoded: sample.images.len(),
            formats: formats
                .into_iter()
                .map(|(format, images)| FormatCount {
                    format: format.to_string(),
                    images,
                })
                .collect(),
            width: spread(|image| u64::from(image.header.width)),
            height: spread(|image| u64::from(image.header.height)),
            bytes: spread(|image| image.bytes.len() as u64),
            unreadable: sample
                .unreadable
                .iter()
                .map(|(id, reason)| Unreadable::new(dataset, *id, reason))
                .collect(),
            classes: classes(dataset, sample),
            rows_without_label: sample.unlabelled,
            failed: sample.failed.clone(),
        }
    }
}

impl Unreadable {
    fn new(dataset: &Dataset, id: SampleId, reason: &str) -> Self {
        Self {
            object: dataset.shards()[id.shard as usize].url.clone(),
            row_group: id.row_group,
            row: id.row,
            reason: reason.to_owned(),
        }
    }
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (object, reason) = (&self.object, &self.reason);
        let (row_group, row) = (self.row_group, self.row);
        write!(f, "{object}, row group {row_group}, row {row}: {reason}")
    }
}

impl Spread {
    /// `None` of no numbers.
    fn of(numbers: impl IntoIterator<Item = u64>) -> Option<Self> {
        let mut sorted = numbers.into_iter().collect::<Vec<_>>();
        sorted.sort_unstable();
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        Some(Self {
            least,
            median: sorted[sorted.len() / 2],
            most,
        })
    }
}

/// Labels of the sampled rows by name; equal counts in the order of the labels.
fn classes(dataset: &Dataset, sample: &Sample) -> Vec<ClassCount> {
    let mut counts = sample.labels().into_iter().collect::<Vec<_>>();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let name = |label: &Label| match label {
        Label::Name(name) => name.to_string(),
        Label::Index(index) => usize::try_from(*index)
            .ok()
            .and_then(|index| dataset.class_names()?.get(index).cloned())
            .unwrap_or_else(|| index.to_string()),
    };
    let named = counts.into_iter().map(|(label, rows)| ClassCount {
        class: name(label),
        rows,
    });
    named.collect()
}
