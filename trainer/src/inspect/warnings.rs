//! What in a data set will slow a run down or spoil it, and what to do about it.

use nepa_pipeline::Dataset;
use nepa_schemas::NoLabel;

use super::{Sample, SampledRowGroup};
use crate::data::LabelFacts;

const MIB: u64 = 1 << 20;
const HUGE: u64 = 256 * MIB;
const TINY: u64 = MIB;
/// Row groups with fewer labels say nothing about the order.
const MIN_LABELS: u64 = 8;

/// All warnings, most serious first.
pub(crate) fn warnings(dataset: &Dataset, sample: &Sample) -> Vec<String> {
    let mut found = Vec::new();
    let rows = sample.num_rows;
    if let (count @ 1.., path) = &sample.path_only {
        found.push(format!(
            "{count} of {rows} sampled rows hold a path or URL and no image bytes (such as {}): to \
             train on them, download the images (for example with img2dataset, \
             output_format=parquet) and write them into the shards",
            path.as_deref().unwrap_or("")
        ));
    }
    let absent = sample.null_images + sample.path_only.0;
    if let uncounted @ 1.. = absent.saturating_sub(sample.absent_by_footers) {
        found.push(format!(
            "{uncounted} of {rows} sampled rows hold no image and the footers do not count them \
             (of row groups that are read in parts: by pages), so that other images are given a \
             second time in their place: leave such rows out when writing the shards, or write \
             smaller row groups with statistics"
        ));
    }
    if let empty @ 1.. = sample.empty_images {
        found.push(format!(
            "{empty} of {rows} sampled rows hold an image of zero bytes; such samples are replaced \
             by others, and a run ends above its max_bad_fraction: leave them out when writing the \
             shards"
        ));
    }
    found.extend(left_out(dataset, sample));
    let clipped = sample.images.iter().filter(|image| image.is_clipped);
    if let count @ 1.. = clipped.count() {
        found.push(format!(
            "{count} of {} sampled images are gray with more than 8 bits a sample and above 255 \
             (or below 1) nearly everywhere: they become white (or black), as values are clipped \
             to 0 to 255; convert them to 8 bits",
            sample.images.len()
        ));
    }
    found.extend(dataset.warnings().iter().map(ToString::to_string));
    found.extend(sorted(dataset, sample));
    found.extend(sizes(dataset));
    found.extend(labels(dataset, sample));
    found
}

/// Labels that are missing, or that are not read.
fn labels(dataset: &Dataset, sample: &Sample) -> Vec<String> {
    let mut found = Vec::new();
    match LabelFacts::of(dataset) {
        Ok(facts) if facts.unnamed_shards > 0 => found.push(format!(
            "{} of {} shards name no classes (was their metadata lost on the way?): the names that \
             the others give are taken for them",
            facts.unnamed_shards,
            dataset.shards().len()
        )),
        Err(why @ (NoLabel::Ambiguous { .. } | NoLabel::Unreadable { .. })) => {
            found.push(format!("no labels are read: {why}"));
        }
        Err(NoLabel::Absent { fields, .. }) if !fields.is_empty() => found.push(format!(
            "no labels are read: no column is called like one; fields that are: {}; name one with \
             --label-column {}",
            fields.join(", "),
            fields[0]
        )),
        Ok(_) | Err(_) => {}
    }
    if sample.unlabelled > 0 {
        found.push(format!(
            "{} of {} sampled rows have no label (null, or a negative index): pretraining reads \
             none, `nepa eval` leaves these rows out",
            sample.unlabelled, sample.num_rows
        ));
    }
    found
}

/// Images that are there and are not read.
fn left_out(dataset: &Dataset, sample: &Sample) -> Vec<String> {
    let images = &dataset.shards()[0].mapping.images;
    let mut found = Vec::new();
    if sample.left_out.in_lists > 0 {
        found.push(format!(
            "`{}` holds lists of images, the first of which is read: {} other images of the {} \
             sampled rows are left out; to read all, write a row for each image",
            images[0].path, sample.left_out.in_lists, sample.num_rows
        ));
    }
    if sample.left_out.in_other_columns > 0 {
        found.push(format!(
            "{} of {} sampled rows hold images in more than one column: that of `{}` is read \
             before others; choose one with --image-column",
            sample.left_out.in_other_columns, sample.num_rows, images[0].path
        ));
    }
    found
}

/// Row groups that hold far fewer classes than random rows would.
fn sorted(dataset: &Dataset, sample: &Sample) -> Option<String> {
    let total: u64 = sample.row_groups.iter().map(labels_in).sum();
    let pooled = sample.labels();
    let share = |count: u64| count as f64 / total as f64;
    let even = pooled.values().all(|&count| share(count) < 0.8);
    let named = dataset.class_names().map_or(0, <[String]>::len);
    let several = if pooled.len() > 1 { even } else { named > 1 };
    let judged = sample
        .row_groups
        .iter()
        .filter(|group| labels_in(group) >= MIN_LABELS);
    let judged = judged.collect::<Vec<_>>();
    let is_sorted = |group: &&&SampledRowGroup| {
        let count = labels_in(group);
        let most = group.labels.values().max().copied().unwrap_or(0);
        // How many classes as many random rows would show.
        let exponent = i32::try_from(count).unwrap_or(i32::MAX);
        let expected: f64 = pooled
            .values()
            .map(|&n| 1.0 - (1.0 - share(n)).powi(exponent))
            .sum();
        let nearly_one = several && most * 10 >= count * 9;
        nearly_one || (group.labels.len() as f64) * 2.0 < expected
    };
    let count = judged.iter().filter(is_sorted).count();
    (count > 0 && count * 2 >= judged.len()).then(|| {
        format!(
            "class-sorted order: in {count} of {} sampled row groups the rows are of one or few \
             classes, though the set has more; batches mix only what lies in the shuffle window: \
             shuffle the rows before writing the shards (`nepa pack` does), or enlarge the window \
             (shuffle_window_bytes)",
            judged.len()
        )
    })
}

fn labels_in(group: &SampledRowGroup) -> u64 {
    group.labels.values().sum()
}

fn sizes(dataset: &Dataset) -> Vec<String> {
    let mut found = Vec::new();
    let groups = dataset.shards().iter().flat_map(|shard| &shard.parts);
    let groups = groups.collect::<Vec<_>>();
    let largest = groups
        .iter()
        .map(|info| info.memory_bytes.max(info.fetch_bytes))
        .max();
    if let Some(bytes) = largest.filter(|&bytes| bytes > HUGE) {
        found.push(format!(
            "huge row groups without an offset index: the largest takes {:.0} MiB and is fetched \
             and held whole, so the loader needs much memory and starts late: write row groups of \
             about 8 MiB (row_group_size of pyarrow and DuckDB, in rows; --row-group-mib of `nepa \
             pack`)",
            bytes as f64 / MIB as f64
        ));
    }
    let tiny = groups.iter().filter(|info| info.fetch_bytes < TINY).count();
    if groups.len() > 1 && tiny * 2 > groups.len() {
        found.push(format!(
            "tiny row groups: {tiny} of {} are below 1 MiB; each costs a request, which takes \
             longer to start than to transfer: write row groups of about 8 MiB",
            groups.len()
        ));
    }
    found
}
