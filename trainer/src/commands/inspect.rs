//! `nepa inspect`: what a data set holds, how it will be read, and what is wrong with it.
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use nepa_pipeline::{
    Action, ColumnInfo, Dataset, DatasetConfig, IoConfig, IoRuntime, Place, classify, is_parquet,
    open_url,
};
use nepa_schemas::{Label, SchemaOptions};
use object_store::ObjectStoreExt;

use super::help::with_exit_codes;
use super::values::{at_least, whole};
use crate::console::messages::quoted_path;
use crate::console::words::bytes;
use crate::data::{LabelFacts, open_data};
use crate::inspect::{Sample, draw_grid, take_sample, warnings};

/// Show what a data set holds and how it will be read.
///
/// Reads all footers and a seeded sample of row groups, and decodes some of their images. Ends with
/// warnings, each with what to do.
///
/// A folder is read as a whole, but for names that begin with _ or . (as Spark, Hive and pyarrow
/// do); a Delta table is read by its log.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
pub(crate) struct Args {
    /// Shards: paths, prefixes or globs.
    #[arg(required = true, value_name = "URL")]
    urls: Vec<String>,
    /// Column with the images: its name, or `struct.field`.
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    image_column: Option<String>,
    /// Column with the labels.
    ///
    /// Its name, `struct.field`, or KEY where folders are called KEY=class; empty: read none.
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    label_column: Option<String>,
    #[command(flatten)]
    shards: super::args::ShardArgs,
    /// Images to decode.
    #[arg(
        long, default_value_t = 256, value_name = "N", value_parser = at_least::<usize>(0),
        help_heading = "Sample"
    )]
    samples: usize,
    /// Seed of the sample and of the crops.
    #[arg(
        long, default_value_t = 1337, value_name = "N", value_parser = at_least::<u64>(0),
        help_heading = "Sample"
    )]
    seed: u64,
    /// Draw images as the model will see them into this PNG file.
    ///
    /// With random crops and flips.
    #[arg(long, value_name = "FILE", help_heading = "Sample")]
    grid: Option<PathBuf>,
    /// Write an index of the shards into this file or URL.
    ///
    /// A recipe that names it (data.index) opens the same URLs without listing them and without
    /// reading footers. Call it anything that is not read as a shard, such as in1k.index.
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    index: Option<String>,
    /// Side of the images in the grid: the model's image size.
    #[arg(
        long, default_value_t = 224, value_name = "PIXELS", value_parser = whole::<u32>(8..=1024),
        help_heading = "Sample"
    )]
    size: u32,
}

const EXAMPLES: &str = "Examples:
  nepa inspect scenes --grid grid.png
  nepa inspect 's3://bucket/in1k/train-*.parquet' \\
      --label-column fine_label
  nepa inspect s3://bucket/in1k --split train --strict
  nepa inspect s3://bucket/in1k --index in1k.index";

fn long_help() -> String {
    let lines = "Output, a line each:
  schema, labels   columns that are read, and as what
  shards, rows     how many; rows without an image are left
                   out
  row groups       bytes that are fetched at once: small
                   ones mix better, each costs a request
  index            the file that --index has written
  columns read     codec, bytes stored and unpacked
  sample           what was decoded of it: formats, sizes in
                   pixels and bytes, classes, unreadable rows
  warning          what may be wrong, and what to do";
    with_exit_codes(
        &format!("{EXAMPLES}\n\n{lines}"),
        "  0          the data can be read; there may be warnings\n  \
         1          a row group or all of it cannot be read, or\n             \
         with --strict something is doubtful",
    )
}

/// Runs the command. A row group that cannot be read gives exit code 1.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = IoRuntime::new(2).context("cannot start the I/O threads")?;
    let config = DatasetConfig {
        urls: args.urls,
        schema: SchemaOptions {
            image_column: args.image_column,
            label_column: args.label_column,
            ..SchemaOptions::default()
        },
        split: args.shards.split,
        strict: args.shards.strict,
        ..DatasetConfig::default()
    };
    if let Some(index) = &args.index {
        anyhow::ensure!(
            !is_parquet(index),
            "--index {index}: it would be read as a shard where it lies among them; call it \
             something else, such as in1k.index"
        );
    }
    let dataset = open_data(&config, &IoConfig::default(), &runtime)?;
    print_layout(&dataset);
    if let Some(index) = &args.index {
        write_index(&dataset, index, &runtime)?;
    }
    let sample = take_sample(&dataset, args.samples, args.seed);
    print_sample(&dataset, &sample);
    for warning in warnings(&dataset, &sample) {
        println!("warning: {warning}");
    }
    if let Some(path) = &args.grid {
        anyhow::ensure!(
            !sample.images.is_empty(),
            nothing_to_draw(&dataset, &sample)
        );
        let picture = draw_grid(&sample.images, args.size, args.seed)?;
        picture
            .save_with_format(path, image::ImageFormat::Png)
            .with_context(|| format!("cannot write {}", quoted_path(path)))?;
        let (width, height) = picture.dimensions();
        println!("grid         {} ({width} x {height})", path.display());
    }
    for error in &sample.failed {
        eprintln!("error: {error}");
    }
    Ok(ExitCode::from(u8::from(!sample.failed.is_empty())))
}

/// Writes the index of the data set, whole or not at all.
fn write_index(dataset: &Dataset, url: &str, runtime: &IoRuntime) -> anyhow::Result<()> {
    let indexes = dataset.indexes()?;
    let index = indexes.into_iter().next().context("nothing was opened")?;
    let target = open_url(url, &IoConfig::default())?;
    let size = bytes(index.len() as u64);
    let (store, path) = (Arc::clone(&target.store), target.path.clone());
    let put = runtime.block_on(async move { store.put(&path, index.into()).await });
    put.map_err(|error| {
        let place = Place {
            object: target.url.clone(),
            ..Place::default()
        };
        classify(&error, Action::Write, &target.location, place)
    })?;
    println!("index        {} ({size})", target.url);
    Ok(())
}

/// Why there is no image for `--grid`.
fn nothing_to_draw(dataset: &Dataset, sample: &Sample) -> String {
    let why = if let Some((id, reason)) = sample.unreadable.first() {
        format!(
            "none of {} images can be decoded. The first: {}, row group {}, row {}: {reason}",
            sample.unreadable.len(),
            dataset.shards()[id.shard as usize].url,
            id.row_group,
            id.row
        )
    } else if let Some(error) = sample.failed.first() {
        format!(
            "none of {} row groups can be read. The first: {error}",
            sample.failed.len()
        )
    } else {
        format!("the sample of {} rows holds no image", sample.num_rows)
    };
    format!("--grid: {why}")
}

fn print_layout(dataset: &Dataset) {
    let shards = dataset.shards();
    let mut images: Vec<_> = shards
        .iter()
        .map(|shard| shard.mapping.to_string())
        .collect();
    images.dedup();
    println!("schema       {}", images[0]);
    for other in images[1..].iter().take(2) {
        println!("             in other shards: {other}");
    }
    match LabelFacts::of(dataset) {
        Ok(facts) => {
            println!("labels       {}", facts.line);
            if let Some(names) = facts.names {
                let shown = names.iter().take(10).cloned().collect::<Vec<_>>();
                let more = if names.len() > 10 { ", ..." } else { "" };
                println!("classes      {}: {}{more}", names.len(), shown.join(", "));
            }
        }
        Err(_) => println!("labels       none"),
    }
    let total = shards.iter().map(|shard| shard.size).sum();
    println!(
        "shards       {} ({}), the first is {}",
        shards.len(),
        bytes(total),
        shards[0].url
    );
    let absent = dataset.num_absent();
    let rows = dataset.num_samples() + absent;
    match absent {
        0 => println!("rows         {rows}"),
        _ => println!("rows         {rows}, {absent} of them without an image (left out)"),
    }
    let groups = shards.iter().flat_map(|shard| &shard.parts);
    let mut sizes = groups.map(|info| info.fetch_bytes).collect::<Vec<_>>();
    sizes.sort_unstable();
    let (least, median, most) = spread(&sizes);
    println!(
        "row groups   {}, bytes read of each: min {}, median {}, max {}",
        sizes.len(),
        bytes(least),
        bytes(median),
        bytes(most)
    );
    for (index, column) in dataset.columns().iter().enumerate() {
        println!(
            "{:12} {}: {}, {} stored, {} unpacked{}",
            if index == 0 { "columns read" } else { "" },
            column.path,
            column.codecs.join(" and "),
            bytes(column.stored_bytes),
            bytes(column.memory_bytes),
            repeated(column)
        );
    }
}

/// Says where values are many times larger than what is held of them.
fn repeated(column: &ColumnInfo) -> String {
    match column.values_bytes {
        Some(values) if values / 2 > column.memory_bytes => {
            let values = bytes(values);
            format!(" ({values} of values; those that a dictionary repeats are held once)")
        }
        _ => String::new(),
    }
}

fn print_sample(dataset: &Dataset, sample: &Sample) {
    println!(
        "sample       {} row groups with {} rows; {} images decoded, {} unreadable",
        sample.row_groups.len(),
        sample.num_rows,
        sample.images.len(),
        sample.unreadable.len()
    );
    let mut formats = BTreeMap::new();
    for image in &sample.images {
        *formats.entry(image.header.format).or_insert(0u64) += 1;
    }
    if !formats.is_empty() {
        let counts = formats
            .iter()
            .map(|(format, count)| format!("{format} {count}"));
        println!("formats      {}", counts.collect::<Vec<_>>().join(", "));
        let sides = |side: fn(&crate::inspect::SampledImage) -> u64| {
            let mut sides = sample.images.iter().map(side).collect::<Vec<_>>();
            sides.sort_unstable();
            spread(&sides)
        };
        let width = sides(|image| u64::from(image.header.width));
        let height = sides(|image| u64::from(image.header.height));
        let size = sides(|image| image.bytes.len() as u64);
        println!(
            "pixels       width {} to {} (median {}), height {} to {} (median {})",
            width.0, width.2, width.1, height.0, height.2, height.1
        );
        println!(
            "file sizes   {} to {} (median {})",
            bytes(size.0),
            bytes(size.2),
            bytes(size.1)
        );
    }
    for (id, reason) in sample.unreadable.iter().take(10) {
        let url = &dataset.shards()[id.shard as usize].url;
        println!(
            "unreadable   {url}, row group {}, row {}: {reason}",
            id.row_group, id.row
        );
    }
    if sample.unreadable.len() > 10 {
        println!("             ... and {} more", sample.unreadable.len() - 10);
    }
    print_labels(dataset, sample);
}

fn print_labels(dataset: &Dataset, sample: &Sample) {
    let mut counts = sample.labels().into_iter().collect::<Vec<_>>();
    if counts.is_empty() && sample.unlabelled == 0 {
        return;
    }
    // Most frequent first; equal ones in the order of the labels.
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let name = |label: &Label| match label {
        Label::Name(name) => name.to_string(),
        Label::Index(index) => usize::try_from(*index)
            .ok()
            .and_then(|index| dataset.class_names()?.get(index).cloned())
            .unwrap_or_else(|| index.to_string()),
    };
    let shown = counts
        .iter()
        .take(12)
        .map(|(label, count)| format!("{} {count}", name(label)));
    let shown = shown.collect::<Vec<_>>().join(", ");
    let more = if counts.len() > 12 { ", ..." } else { "" };
    let without = match sample.unlabelled {
        0 => String::new(),
        count => format!("; {count} rows without a label"),
    };
    println!("classes seen {}: {shown}{more}{without}", counts.len());
}

/// Least, median and greatest of sorted numbers.
fn spread(sorted: &[u64]) -> (u64, u64, u64) {
    match sorted {
        [] => (0, 0, 0),
        [first, .., last] => (*first, sorted[sorted.len() / 2], *last),
        [only] => (*only, *only, *only),
    }
}
