//! `nepa pack`: folders of images by class to Parquet shards.
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nepa_pipeline::{IoConfig, IoRuntime, StoreUrl, open_url};

use super::help::with_exit_codes;
use super::values::{at_least, number};
use crate::console::messages::quoted_path;
use crate::console::progress::{Progress, Unit};
use crate::console::words;
use crate::pack::{
    ExistingShard, FolderScan, Labels, PackError, PackOptions, PackedImage, ShardPlan, ShardWriter,
    existing_shards, plan, remove_leftovers, scan, shard_id,
};
use crate::signals::{self, SaveFirst};

/// Time to give up an upload after a signal: a store that does not answer must not hold up the end.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Pack folders of images into Parquet shards.
///
/// FOLDER/CLASS/IMAGE becomes shards `train-00000-of-00004.parquet`, ... at URL. The image files
/// are kept byte for byte. A folder without subfolders gives shards without labels. Hugging Face
/// `datasets`, pyarrow and DuckDB read the shards as well.
///
/// After an interruption the same command goes on: shards that are there already are kept, if all
/// names and sizes of their images and all options are the same. Nothing is ever overwritten.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
pub(crate) struct Args {
    /// Folder of images, one subfolder a class.
    pub folder: PathBuf,
    /// Where the shards go: a local folder or an object-store URL.
    ///
    /// s3://, gs:// or az://.
    pub url: String,
    /// First part of the shards' names.
    #[arg(long, value_name = "NAME", default_value = "train")]
    pub split: String,
    /// Share of each class that goes to a split `val` instead.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = number)]
    pub val_fraction: f64,
    /// Seed of the order of images and of the split.
    #[arg(long, value_name = "N", default_value_t = 1337, value_parser = at_least::<u64>(0))]
    pub seed: u64,
    /// Size of a row group in MiB.
    ///
    /// The loader fetches and mixes whole row groups: small ones mix better, but each costs a
    /// request; at 8 MiB (about 75 ImageNet photos) a request takes longer to transfer than to
    /// start.
    #[arg(long, default_value_t = 8.0, value_name = "MIB", value_parser = number)]
    pub row_group_mib: f64,
    /// Size of a shard in MiB.
    #[arg(long, default_value_t = 256.0, value_name = "MIB", value_parser = number)]
    pub shard_mib: f64,
}

const EXAMPLES: &str = "Examples:
  nepa pack photos shards --val-fraction 0.1
  nepa pack photos s3://bucket/photos --split test";

fn long_help() -> String {
    let signals = "Signals:
  Ctrl-C, SIGTERM   give up the shard in hand and end; the
                    same command goes on with that shard";
    with_exit_codes(
        &format!("{EXAMPLES}\n\n{signals}"),
        "  0          all shards are there\n  \
         1          the images cannot be read, the shards cannot be\n             \
         written, or other shards are there already",
    )
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    if !(0.0..1.0).contains(&args.val_fraction) {
        bail!(
            "--val-fraction {} must be from 0 to less than 1",
            args.val_fraction
        );
    }
    if args.val_fraction > 0.0 && args.split == "val" {
        bail!(
            "--split val and --val-fraction cannot both be given: both would write shards called \
             val"
        );
    }
    if args.split.is_empty() || args.split.contains(['/', '\\']) {
        bail!(
            "--split {:?} must be a name that can begin a file name, such as train",
            args.split
        );
    }
    for (option, mib) in [
        ("--row-group-mib", args.row_group_mib),
        ("--shard-mib", args.shard_mib),
    ] {
        if !(mib > 0.0 && mib.is_finite()) {
            bail!("{option} {mib} must be greater than 0");
        }
    }
    let mib = |value: f64| (value * 1024.0 * 1024.0).max(1.0) as u64;
    let options = PackOptions {
        seed: args.seed,
        split: args.split,
        val_fraction: args.val_fraction,
        shard_bytes: mib(args.shard_mib),
        row_group_bytes: mib(args.row_group_mib),
    };

    let started = Instant::now();
    let _saving = SaveFirst {
        says: "the shard in hand is given up",
        most: Some(PATIENCE),
    }
    .begin();
    let runtime = IoRuntime::new(2).context("cannot start the I/O threads")?;
    let target = open_url(&args.url, &IoConfig::default())?;
    let splits = [options.split.clone(), "val".to_owned()];
    let splits = if options.val_fraction > 0.0 {
        &splits[..]
    } else {
        &splits[..1]
    };
    let scan = scan(&args.folder)?;
    report_scan(&scan);
    let planned = plan(&scan.images, &options);
    let mut shards = planned
        .iter()
        .flat_map(|split| &split.shards)
        .collect::<Vec<_>>();
    let num_shards = shards.len();
    let id = |shard: &ShardPlan| shard_id(&scan, shard, options.row_group_bytes);
    let ids = shards.iter().map(|shard| (shard.name.as_str(), id(shard)));
    let ids = ids.collect::<BTreeMap<_, _>>();
    let existing = existing_shards(&runtime, &target, splits)?;
    let is_ours = |shard: &ExistingShard| {
        shard.id.is_some() && ids.get(shard.name.as_str()) == shard.id.as_ref()
    };
    if !existing.iter().all(is_ours) {
        bail!(others_there(&target, &existing));
    }
    remove_leftovers(&args.url, &ids)?;
    shards.retain(|shard| existing.iter().all(|there| there.name != shard.name));
    if !existing.is_empty() {
        println!(
            "{} of {num_shards} shards were there already",
            existing.len()
        );
    }

    let images = shards.iter().flat_map(|shard| &shard.images);
    let num_bytes = images.clone().map(|&index| scan.images[index].num_bytes);
    let what = format!("packing {}", words::bytes(num_bytes.sum()));
    let progress = Progress::new(what, Some(images.count() as u64), Unit::Count("images"));
    let (mut written_images, mut written_bytes) = (0, 0);
    for (written, shard) in shards.iter().enumerate() {
        let packed = pack_shard(&scan, shard, &progress, || {
            ShardWriter::new(
                &runtime,
                &target,
                &shard.name,
                Some(&ids[shard.name.as_str()]),
                Labels::of_classes(&scan.classes),
                options.row_group_bytes,
            )
        });
        let done = existing.len() + written;
        let packed = packed.with_context(|| {
            format!("{done} of {num_shards} shards are written; the same command goes on there")
        })?;
        let Some(size) = packed else {
            drop(progress);
            println!(
                "interrupted: {done} of {num_shards} shards are written, and the same command goes \
                 on there"
            );
            let signal = signals::received().unwrap_or_default();
            return Ok(ExitCode::from(128 + signal as u8));
        };
        written_images += shard.images.len() as u64;
        written_bytes += size;
        println!(
            "{}: {}, {}",
            shard.name,
            words::counted(shard.images.len() as u64, "image"),
            words::bytes(size)
        );
    }
    drop(progress);
    let place = crate::console::messages::quoted(&args.url);
    if shards.is_empty() {
        println!("done: nothing was left to write to {place}");
    } else {
        println!(
            "done: {} in {}, {}, written to {place} in {}",
            words::counted(written_images, "image"),
            words::counted(shards.len() as u64, "shard"),
            words::bytes(written_bytes),
            words::duration(started.elapsed())
        );
    }
    let also = [
        (existing.len(), "shard", "there already"),
        (
            scan.skipped.len(),
            "file",
            "skipped, as no image or of no class",
        ),
    ];
    let also = also.into_iter().filter(|(count, ..)| *count > 0);
    let also =
        also.map(|(count, noun, what)| format!("{} {what}", words::counted(count as u64, noun)));
    let also = also.collect::<Vec<_>>();
    if !also.is_empty() {
        println!("besides: {}", also.join("; "));
    }
    print_next(&args.url, &options.split);
    Ok(ExitCode::SUCCESS)
}

/// The commands that come next.
fn print_next(url: &str, split: &str) {
    let folder = url.trim_end_matches('/');
    let shards = crate::console::messages::quoted(&format!("{folder}/{split}-*.parquet"));
    println!("next: nepa inspect {shards}");
    println!("      nepa pretrain imagenette-small --data {shards}");
}

/// Writes one shard; gives its size, or `None` where a signal asked to stop before it was complete.
fn pack_shard(
    scan: &FolderScan,
    shard: &ShardPlan,
    progress: &Progress,
    start: impl FnOnce() -> Result<ShardWriter, PackError>,
) -> anyhow::Result<Option<u64>> {
    let mut writer = start()?;
    for &index in &shard.images {
        if signals::received().is_some() {
            return Ok(None);
        }
        let image = &scan.images[index];
        let bytes = std::fs::read(&image.path)
            .with_context(|| format!("cannot read {}", quoted_path(&image.path)))?;
        progress.add(1);
        writer.push(PackedImage {
            bytes: bytes.into(),
            path: Some(image.name.clone()),
            label: image.class.map(|class| class as i64),
        })?;
    }
    Ok(Some(writer.finish()?))
}

/// The message for shards that another plan wrote.
fn others_there(target: &StoreUrl, existing: &[ExistingShard]) -> String {
    let shown = existing.iter().take(10);
    let shown = shown
        .map(|shard| format!("\n  {}", shard.name))
        .collect::<String>();
    let more = match existing.len().saturating_sub(10) {
        0 => String::new(),
        more => format!("\n  ... and {more} more"),
    };
    format!(
        "{} already holds {} shards of this split, not all of them of the same images and options, \
         and nothing is overwritten:{shown}{more}\nremove them, or choose another URL or --split",
        target.url,
        existing.len()
    )
}

fn report_scan(scan: &FolderScan) {
    let bytes = scan.images.iter().map(|image| image.num_bytes).sum::<u64>();
    let classes = match scan.classes.len() {
        0 => "no classes".to_owned(),
        count => format!("{count} classes"),
    };
    println!(
        "{}, {classes}, {}",
        words::counted(scan.images.len() as u64, "image"),
        words::bytes(bytes)
    );
    if !scan.skipped.is_empty() {
        let shown = scan
            .skipped
            .iter()
            .take(5)
            .map(|path| format!("\n  {}", path.display()))
            .collect::<String>();
        let more = if scan.skipped.len() > 5 {
            "\n  ..."
        } else {
            ""
        };
        println!(
            "skipped {}, as no image or of no class:{shown}{more}",
            words::counted(scan.skipped.len() as u64, "file")
        );
    }
}
