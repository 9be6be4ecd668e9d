//! A seeded sample of a data set: some row groups whole, and some of their images decoded.
use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::sync::Arc;

use bytes::Bytes;
use nepa_pipeline::{
    Dataset, ImageHeader, PartId, SampleId, clips_gray, decode_rgb, full_text,
    random::{Purpose, epoch_stream, shuffle},
    read_header,
};
use nepa_schemas::{Label, LeftOut, RowError, ShardBatch};

/// Row groups that are enough, if they hold enough rows.
const ROW_GROUPS: usize = 16;
/// No further row group is taken above this; a single one may be larger.
const MAX_BYTES: u64 = 256 << 20;

/// One row group of the sample.
#[derive(Debug)]
pub(crate) struct SampledRowGroup {
    /// Rows by label.
    pub labels: BTreeMap<Label, u64>,
}

/// One image of the sample that decodes.
#[derive(Debug)]
pub(crate) struct SampledImage {
    pub id: SampleId,
    pub bytes: Bytes,
    /// What its header says.
    pub header: ImageHeader,
    /// Whether it is gray of more than 8 bits a sample, and clipped to white or black nearly
    /// everywhere.
    pub is_clipped: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Sample {
    /// The row groups that could be read, in the data set's order.
    pub row_groups: Vec<SampledRowGroup>,
    /// Rows in them.
    pub num_rows: u64,
    /// Rows of them without an image that the footers count.
    pub absent_by_footers: u64,
    /// Rows without a label (null, or a negative index), where the data set has labels.
    pub unlabelled: u64,
    /// Rows without an image.
    pub null_images: u64,
    /// Rows with an image of no bytes.
    pub empty_images: u64,
    /// Rows with a path and no bytes, and one of the paths.
    pub path_only: (u64, Option<String>),
    /// Images that are there and are not read.
    pub left_out: LeftOut,
    /// Images of the sample that decode, in random order.
    pub images: Vec<SampledImage>,
    /// Images of the sample that do not decode, with the reason.
    pub unreadable: Vec<(SampleId, String)>,
    /// Row groups that could not be read, with the reason (which holds the place).
    pub failed: Vec<String>,
}

impl Sample {
    /// Rows by label over all row groups.
    pub(crate) fn labels(&self) -> BTreeMap<&Label, u64> {
        let mut sum = BTreeMap::new();
        for (label, count) in self.row_groups.iter().flat_map(|group| &group.labels) {
            *sum.entry(label).or_default() += count;
        }
        sum
    }
}

/// Reads a sample with about `num_images` images: the same for the same data set and seed.
pub(crate) fn take_sample(dataset: &Arc<Dataset>, num_images: usize, seed: u64) -> Sample {
    let chosen = choose(dataset, num_images as u64, seed);
    let mut sample = Sample::default();
    let mut batches = BTreeMap::new();
    for (id, bytes) in dataset.fetch(&chosen) {
        match bytes.and_then(|bytes| Ok(bytes.unpack()?)) {
            Ok(batch) => {
                batches.insert(id, batch);
            }
            Err(error) => sample.failed.push(full_text(&error)),
        }
    }
    sample.failed.sort();
    let has_labels = dataset.shards()[0].mapping.label.is_ok();
    let mut ids = Vec::new();
    for (&id, batch) in &batches {
        let (shard, info) = (id.shard, dataset.part(id));
        sample.absent_by_footers += u64::from(info.num_absent);
        count_rows(&mut sample, batch, has_labels);
        for row in 0..info.num_rows {
            let id = SampleId {
                shard,
                row_group: info.row_group,
                row: info.first_row + row,
            };
            match batch.image(row as usize) {
                Ok(bytes) => ids.push((id, bytes)),
                Err(error @ RowError::NotBase64) => {
                    sample.unreadable.push((id, error.to_string()));
                }
                Err(RowError::Null | RowError::Empty | RowError::PathOnly { .. }) => {}
            }
        }
    }
    shuffle(&mut epoch_stream(seed, 0, 1, Purpose::Order), &mut ids);
    for (id, bytes) in ids.into_iter().take(num_images) {
        match examine(&bytes) {
            Ok((header, is_clipped)) => sample.images.push(SampledImage {
                id,
                bytes,
                header,
                is_clipped,
            }),
            Err(reason) => sample.unreadable.push((id, reason)),
        }
    }
    sample.unreadable.sort();
    sample
}

/// Row groups (or parts of large ones) in random order until there are enough of them and of their
/// rows, or too many bytes.
fn choose(dataset: &Dataset, num_images: u64, seed: u64) -> Vec<PartId> {
    let mut all = Vec::new();
    for (shard, content) in (0..).zip(dataset.shards()) {
        let parts = (0..).zip(&content.parts);
        let filled = parts.filter(|(_, info)| info.num_samples() > 0);
        all.extend(filled.map(|(part, info)| (PartId { shard, part }, info)));
    }
    shuffle(&mut epoch_stream(seed, 0, 0, Purpose::Order), &mut all);
    let (mut rows, mut bytes) = (0, 0);
    let mut chosen = Vec::new();
    for (place, info) in all {
        let enough = chosen.len() >= ROW_GROUPS && rows >= num_images;
        let size = info.memory_bytes.max(info.fetch_bytes);
        if enough || (!chosen.is_empty() && bytes + size > MAX_BYTES) {
            break;
        }
        rows += u64::from(info.num_samples());
        bytes += size;
        chosen.push(place);
    }
    // In the order of the files, so that neighbours are fetched in one request.
    chosen.sort_unstable();
    chosen
}

fn count_rows(sample: &mut Sample, batch: &ShardBatch, has_labels: bool) {
    let mut labels = BTreeMap::new();
    for row in 0..batch.num_rows() {
        match batch.image(row) {
            Ok(_) | Err(RowError::NotBase64) => {}
            Err(RowError::Null) => sample.null_images += 1,
            Err(RowError::Empty) => sample.empty_images += 1,
            Err(RowError::PathOnly { path }) => {
                sample.path_only.0 += 1;
                sample.path_only.1.get_or_insert(path);
            }
        }
        match batch.label(row) {
            Some(label) => *labels.entry(label).or_default() += 1,
            None => sample.unlabelled += u64::from(has_labels),
        }
    }
    sample.num_rows += batch.num_rows() as u64;
    let left_out = batch.left_out();
    sample.left_out.in_lists += left_out.in_lists;
    sample.left_out.in_other_columns += left_out.in_other_columns;
    sample.row_groups.push(SampledRowGroup { labels });
}

/// Header and pixels: a header alone does not show that an image is cut off, nor what clipping
/// leaves of it.
fn examine(bytes: &Bytes) -> Result<(ImageHeader, bool), String> {
    let decoded = catch_unwind(
        || -> Result<(ImageHeader, bool), nepa_pipeline::ImageError> {
            let header = read_header(bytes)?;
            let pixels = decode_rgb(bytes, false)?.data;
            let is_end = |value: &&u8| matches!(value, 0 | 255);
            let is_clipped = clips_gray(bytes)
                && pixels.iter().filter(is_end).count() * 100 >= pixels.len() * 95;
            Ok((header, is_clipped))
        },
    );
    match decoded {
        Ok(result) => result.map_err(|error| full_text(&error)),
        Err(_) => Err("the decoder panicked on these bytes".to_owned()),
    }
}
