//! `nepa sample-data`: a labelled data set rendered in code, to try everything without a download.
use std::process::ExitCode;

use anyhow::{Context, bail};
use nepa_pipeline::{IoConfig, IoRuntime, StoreUrl, open_url};

use crate::pack::{PackedImage, ShardWriter, existing_shards};
use crate::sample_data::{CLASSES, Split, class_of, render_jpeg};

/// Threads that render.
const NUM_THREADS: usize = 2;
/// Images rendered before they are written.
const CHUNK: usize = 32;
/// Small, so that even this small set has many row groups to shuffle.
const ROW_GROUP_BYTES: u64 = 1 << 20;

/// Renders a labelled set of JPEG scenes into train and val shards at URL.
///
/// Ten classes of solids, textures and outdoor scenes; the same seed gives the same images on every machine.
/// Example: `nepa sample-data /tmp/scenes`, then `nepa inspect /tmp/scenes`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the shards go: a local folder or an object-store URL (s3://, gs://, az://).
    pub url: String,
    /// Images for pretraining.
    #[arg(long, default_value_t = 2000)]
    pub images: usize,
    /// Images for validation.
    #[arg(long, default_value_t = 400)]
    pub val_images: usize,
    /// Seed of the scenes.
    #[arg(long, default_value_t = 1337)]
    pub seed: u64,
    /// Shards of the training images; the validation images are one shard.
    #[arg(long, default_value_t = 4)]
    pub shards: usize,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
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
    write_split(&runtime, &target, seed, Split::Train, images, shards)?;
    if val_images > 0 {
        write_split(&runtime, &target, seed, Split::Val, val_images, 1)?;
    }
    println!("done; next: nepa inspect {}", target.url);
    Ok(ExitCode::SUCCESS)
}

fn write_split(
    runtime: &IoRuntime,
    target: &StoreUrl,
    seed: u64,
    split: Split,
    num_images: usize,
    num_shards: usize,
) -> anyhow::Result<()> {
    let classes = CLASSES.map(str::to_owned);
    for shard in 0..num_shards {
        let name = format!("{}-{shard:05}-of-{num_shards:05}.parquet", split.name());
        let mut writer = ShardWriter::new(runtime, target, &name, None, &classes, ROW_GROUP_BYTES)?;
        let images = (num_images * shard / num_shards..num_images * (shard + 1) / num_shards)
            .collect::<Vec<_>>();
        for chunk in images.chunks(CHUNK) {
            for (&index, jpeg) in chunk.iter().zip(render(seed, split, chunk)?) {
                let class = class_of(index);
                let path = format!("{}/{index:06}.jpg", CLASSES[class]);
                writer.push(PackedImage {
                    bytes: jpeg.into(),
                    path,
                    label: Some(class as i64),
                })?;
            }
        }
        let url = writer.url().to_owned();
        let size = writer.finish()?;
        println!(
            "{url}: {} images, {:.1} MiB",
            images.len(),
            size as f64 / f64::from(1 << 20)
        );
    }
    Ok(())
}

/// Renders `indices` on two threads, in their order.
fn render(seed: u64, split: Split, indices: &[usize]) -> anyhow::Result<Vec<Vec<u8>>> {
    let render_part = |part: &[usize]| {
        part.iter()
            .map(|&index| render_jpeg(seed, split, index))
            .collect::<anyhow::Result<Vec<_>>>()
    };
    std::thread::scope(|scope| {
        let parts = indices.chunks(indices.len().div_ceil(NUM_THREADS).max(1));
        let threads = parts
            .map(|part| scope.spawn(move || render_part(part)))
            .collect::<Vec<_>>();
        let mut jpegs = Vec::with_capacity(indices.len());
        for thread in threads {
            jpegs.extend(thread.join().expect("rendering does not panic")?);
        }
        Ok(jpegs)
    })
}
