//! `nepa sample-data`: a labelled data set rendered in code, to try everything without a download.
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use nepa_pipeline::{IoConfig, IoRuntime, StoreUrl, open_url};
use rayon::prelude::*;

use super::help::with_exit_codes;
use super::values::at_least;
use crate::console::progress::{Progress, Unit};
use crate::console::words;
use crate::pack::{Labels, PackedImage, ShardWriter, existing_shards};
use crate::sample_data::{CLASSES, Split, class_of, render_jpeg};

/// Images that each thread renders before they are written.
const IMAGES_A_THREAD: usize = 16;
/// Small, so that even this small set has many row groups to shuffle.
const ROW_GROUP_BYTES: u64 = 1 << 20;

/// Render a labelled set of JPEG scenes to try everything.
///
/// Ten classes of solids, textures and outdoor scenes, in train and val shards at URL; the same
/// seed gives the same images on every machine. No download. Nothing is overwritten.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    after_long_help = with_exit_codes(
        EXAMPLES,
        "  0          all shards are written\n  \
         1          they cannot be written, or shards are there\n             \
         already"
    )
)]
pub(crate) struct Args {
    /// Where the shards go: a local folder or an object-store URL.
    ///
    /// s3://, gs:// or az://.
    pub url: String,
    /// Images for pretraining.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = at_least::<usize>(0))]
    pub images: usize,
    /// Images for validation.
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = at_least::<usize>(0))]
    pub val_images: usize,
    /// Seed of the scenes.
    #[arg(long, value_name = "N", default_value_t = 1337, value_parser = at_least::<u64>(0))]
    pub seed: u64,
    /// Shards of the training images; the validation images are one.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least::<usize>(0))]
    pub shards: usize,
}

const EXAMPLES: &str = "Examples:
  nepa sample-data scenes
  nepa inspect scenes --grid grid.png
  nepa sample-data s3://bucket/scenes --images 500";

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args {
        url,
        images,
        val_images,
        seed,
        shards,
    } = args;
    if images == 0 {
        bail!("--images 0 leaves nothing to train on; give at least 1");
    }
    if !(1..=images).contains(&shards) {
        bail!("--shards {shards} must be from 1 to the number of images, {images}");
    }
    let runtime = IoRuntime::new(2).context("cannot start the I/O threads")?;
    let target = open_url(&url, &IoConfig::default())?;
    let splits = [Split::Train, Split::Val];
    let existing = existing_shards(
        &runtime,
        &target,
        &splits.map(|split| split.name().to_owned()),
    )?;
    if let Some(first) = existing.first() {
        bail!(
            "{} already holds {} shards of these splits ({}, ...), and nothing is overwritten; \
             remove them or choose another URL",
            target.url,
            existing.len(),
            first.name
        );
    }
    let started = Instant::now();
    let total = (images + val_images) as u64;
    let progress = Progress::new("rendering scenes", Some(total), Unit::Count("images"));
    let write = |split, num_images, num_shards| {
        write_split(
            &runtime, &target, seed, split, num_images, num_shards, &progress,
        )
    };
    let train_bytes = write(Split::Train, images, shards)?;
    let val_bytes = match val_images {
        0 => None,
        _ => Some(write(Split::Val, val_images, 1)?),
    };
    drop(progress);
    let line = |name: &str, images: usize, shards: usize, bytes: u64| {
        println!(
            "  {name}-*.parquet  {} in {}, {}",
            words::counted(images as u64, "image"),
            words::counted(shards as u64, "shard"),
            words::bytes(bytes)
        );
    };
    println!(
        "done: {} of {} classes in {}, rendered in {}",
        words::counted(total, "image"),
        CLASSES.len(),
        crate::console::messages::quoted(&url),
        words::duration(started.elapsed())
    );
    line("train", images, shards, train_bytes);
    if let Some(bytes) = val_bytes {
        line("val", val_images, 1, bytes);
    }
    let train =
        crate::console::messages::quoted(&format!("{}/train-*.parquet", url.trim_end_matches('/')));
    println!("next: nepa inspect {train} --grid scenes.png");
    Ok(ExitCode::SUCCESS)
}

/// Writes the shards of a split; gives their size in bytes.
fn write_split(
    runtime: &IoRuntime,
    target: &StoreUrl,
    seed: u64,
    split: Split,
    num_images: usize,
    num_shards: usize,
    progress: &Progress,
) -> anyhow::Result<u64> {
    let classes = CLASSES.map(str::to_owned);
    let labels = Labels::Classes(&classes);
    let chunk = IMAGES_A_THREAD * rayon::current_num_threads();
    let mut num_bytes = 0;
    for shard in 0..num_shards {
        let name = format!("{}-{shard:05}-of-{num_shards:05}.parquet", split.name());
        let mut writer = ShardWriter::new(runtime, target, &name, None, labels, ROW_GROUP_BYTES)?;
        let images = (num_images * shard / num_shards..num_images * (shard + 1) / num_shards)
            .collect::<Vec<_>>();
        for chunk in images.chunks(chunk) {
            let render = |&index: &usize| {
                let jpeg = render_jpeg(seed, split, index);
                progress.add(1);
                jpeg
            };
            let jpegs = chunk.par_iter().map(render);
            let jpegs = jpegs.collect::<anyhow::Result<Vec<_>>>()?;
            for (&index, jpeg) in chunk.iter().zip(jpegs) {
                let class = class_of(index);
                let path = format!("{}/{index:06}.jpg", CLASSES[class]);
                writer.push(PackedImage {
                    bytes: jpeg.into(),
                    path: Some(path),
                    label: Some(class as i64),
                })?;
            }
        }
        num_bytes += writer.finish()?;
    }
    Ok(num_bytes)
}
