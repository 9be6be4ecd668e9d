//! `nepa inspect`: what a data set holds, how it will be read, and what is wrong with it.
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use nepa_pipeline::{
    Action, ColumnInfo, Dataset, DatasetConfig, IoConfig, IoRuntime, is_parquet, open_url,
    shown_url,
};
use nepa_schemas::SchemaOptions;
use object_store::ObjectStoreExt;

use super::help::with_exit_codes;
use super::values::{at_least, whole};
use crate::console::messages::quoted_path;
use crate::console::words::bytes;
use crate::data::open_data;
use crate::inspect::{
    Findings, Layout, Report, Sample, VERSION, Written, draw_grid, take_sample, warnings,
};
use crate::pack::store_error;

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
    /// Also write what is found to this file, as JSON.
    ///
    /// docs/inspect.md explains its keys.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
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
  nepa inspect s3://bucket/in1k --index in1k.index
  nepa inspect scenes --json scenes.json";

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
    let layout = Layout::of(&dataset);
    print_layout(&layout);
    let index = args.index.as_deref();
    let index = index.map(|index| write_index(&dataset, index, &runtime));
    let index = index.transpose()?;
    let sample = take_sample(&dataset, args.samples, args.seed);
    let findings = Findings::of(&dataset, &sample);
    print_sample(&findings);
    let warnings = warnings(&dataset, &sample);
    for warning in &warnings {
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
    if let Some(path) = &args.json {
        let report = Report {
            version: VERSION,
            urls: config.urls.iter().map(|url| shown_url(url)).collect(),
            layout,
            index,
            sample: findings,
            warnings,
        };
        let mut json = serde_json::to_vec_pretty(&report)?;
        json.push(b'\n');
        std::fs::write(path, json)
            .with_context(|| format!("cannot write the report to {}", quoted_path(path)))?;
    }
    for error in &sample.failed {
        eprintln!("error: {error}");
    }
    Ok(ExitCode::from(u8::from(!sample.failed.is_empty())))
}

/// Writes the index of the data set, whole or not at all.
fn write_index(dataset: &Dataset, url: &str, runtime: &IoRuntime) -> anyhow::Result<Written> {
    let indexes = dataset.indexes()?;
    let index = indexes.into_iter().next().context("nothing was opened")?;
    let target = open_url(url, &IoConfig::default())?;
    let num_bytes = index.len() as u64;
    let (store, path) = (Arc::clone(&target.store), target.path.clone());
    let put = runtime.block_on(async move { store.put(&path, index.into()).await });
    put.map_err(|error| store_error(&error, Action::Write, &target.url))?;
    println!("index        {} ({})", target.url, bytes(num_bytes));
    Ok(Written {
        place: target.url,
        bytes: num_bytes,
    })
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

fn print_layout(layout: &Layout) {
    let schema = &layout.schema;
    println!("schema       {}", schema[0]);
    for other in schema[1..].iter().take(2) {
        println!("             in other shards: {other}");
    }
    match &layout.labels {
        Some(labels) => {
            println!("labels       {}", labels.line);
            if let Some(names) = &labels.classes {
                let shown = names.iter().take(10).cloned().collect::<Vec<_>>();
                let more = if names.len() > 10 { ", ..." } else { "" };
                println!("classes      {}: {}{more}", names.len(), shown.join(", "));
            }
        }
        None => println!("labels       none"),
    }
    let shards = &layout.shards;
    println!(
        "shards       {} ({}), the first is {}",
        shards.count,
        bytes(shards.bytes),
        shards.first
    );
    let rows = layout.rows;
    match layout.rows_without_image {
        0 => println!("rows         {rows}"),
        absent => println!("rows         {rows}, {absent} of them without an image (left out)"),
    }
    let sizes = layout.row_groups.bytes_read;
    println!(
        "row groups   {}, bytes read of each: min {}, median {}, max {}",
        layout.row_groups.count,
        bytes(sizes.least),
        bytes(sizes.median),
        bytes(sizes.most)
    );
    for (index, column) in layout.columns.iter().enumerate() {
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

fn print_sample(sample: &Findings) {
    println!(
        "sample       {} row groups with {} rows; {} images decoded, {} unreadable",
        sample.row_groups,
        sample.rows,
        sample.decoded,
        sample.unreadable.len()
    );
    if let (Some(width), Some(height), Some(size)) = (sample.width, sample.height, sample.bytes) {
        let counts = sample.formats.iter();
        let counts = counts.map(|count| format!("{} {}", count.format, count.images));
        println!("formats      {}", counts.collect::<Vec<_>>().join(", "));
        println!(
            "pixels       width {} to {} (median {}), height {} to {} (median {})",
            width.least, width.most, width.median, height.least, height.most, height.median
        );
        println!(
            "file sizes   {} to {} (median {})",
            bytes(size.least),
            bytes(size.most),
            bytes(size.median)
        );
    }
    for image in sample.unreadable.iter().take(10) {
        println!("unreadable   {image}");
    }
    if sample.unreadable.len() > 10 {
        println!("             ... and {} more", sample.unreadable.len() - 10);
    }
    print_classes(sample);
}

fn print_classes(sample: &Findings) {
    let classes = &sample.classes;
    if classes.is_empty() && sample.rows_without_label == 0 {
        return;
    }
    let shown = classes.iter().take(12);
    let shown = shown.map(|count| format!("{} {}", count.class, count.rows));
    let shown = shown.collect::<Vec<_>>().join(", ");
    let more = if classes.len() > 12 { ", ..." } else { "" };
    let without = match sample.rows_without_label {
        0 => String::new(),
        count => format!("; {count} rows without a label"),
    };
    println!("classes seen {}: {shown}{more}{without}", classes.len());
}
