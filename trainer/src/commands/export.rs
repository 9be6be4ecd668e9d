//! `nepa export`.
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use nepa_model::{published_files, write_published};
use nepa_pipeline::{Action, IoConfig, IoRuntime, StoreUrl, open_url};
use object_store::{ObjectStoreExt, WriteMultipart};

use super::help::with_exit_codes;
use crate::checkpoint::{read_state, read_weights, verify_folder};
use crate::console::progress::{Progress, Unit};
use crate::console::words;
use crate::output::{fetch_checkpoint, is_local, local_path};
use crate::pack::store_error;

/// Write a checkpoint's weights in the published layout.
///
/// Two files, config.json and model.safetensors, which load in the published PyTorch code, in `nepa
/// eval` and, beside reference tensors, in `nepa verify`. Nothing is overwritten.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    after_long_help = with_exit_codes(
        EXAMPLES,
        "  0          both files are written\n  \
         1          the checkpoint cannot be read, or the files are\n             \
         there already"
    )
)]
pub(crate) struct Args {
    /// A checkpoint, or a run's output (its newest checkpoint).
    ///
    /// A path or URL.
    pub checkpoint: String,
    /// New folder for the two files, or a prefix in a store.
    #[arg(value_name = "URL")]
    pub folder: String,
    /// The moving average instead of the raw weights.
    #[arg(long)]
    pub ema: bool,
}

const EXAMPLES: &str = "Examples:
  nepa export runs/quickstart exported --ema
  nepa export \\
      s3://bucket/b14/checkpoints/step-00100000 exported";

const FILES: [&str; 2] = ["config.json", "model.safetensors"];
/// Size of the parts in which a file is sent to a store, and most of them on their way.
const PART_BYTES: usize = 5 << 20;
const MOST_PARTS: usize = 4;

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = IoRuntime::new(1).context("cannot start the I/O thread")?;
    let target = Target::open(&args.folder, &runtime)?;
    let (checkpoint, _downloaded) =
        fetch_checkpoint(&args.checkpoint, &IoConfig::default(), &runtime)?;
    verify_folder(&checkpoint)?;
    let step = read_state(&checkpoint)?.step;
    let (config, weights) = read_weights(&checkpoint, args.ema)?;
    let num_bytes = match &target {
        Target::Folder(folder) => {
            write_published(folder, &config, &weights)?;
            let sizes =
                FILES.map(|name| std::fs::metadata(folder.join(name)).map(|file| file.len()));
            sizes.into_iter().sum::<std::io::Result<u64>>()?
        }
        Target::Store(store) => send(
            store,
            &runtime,
            published_files(Path::new(&store.url), &config, &weights)?,
        )?,
    };
    let which = if args.ema {
        "the moving average"
    } else {
        "the raw weights"
    };
    println!(
        "done: {} and {} ({}) in {}",
        FILES[0],
        FILES[1],
        words::bytes(num_bytes),
        crate::console::messages::quoted(&args.folder)
    );
    println!(
        "they hold {which} at step {}: {} values in {}",
        words::count(step),
        words::count(weights.flat.len() as u64),
        words::counted(weights.specs.len() as u64, "tensor")
    );
    Ok(ExitCode::SUCCESS)
}

/// Where the files go. Nothing is overwritten.
enum Target {
    Folder(PathBuf),
    Store(Box<StoreUrl>),
}

impl Target {
    fn open(url: &str, runtime: &IoRuntime) -> anyhow::Result<Self> {
        if is_local(url) {
            let folder = local_path(url);
            let there = FILES.iter().find(|name| folder.join(name).exists());
            ensure!(there.is_none(), exists(url));
            return Ok(Self::Folder(folder));
        }
        let target = open_url(url, &IoConfig::default())?;
        for name in FILES {
            let (store, path) = (Arc::clone(&target.store), target.path.clone().join(name));
            match runtime.block_on(async move { store.head(&path).await }) {
                Ok(_) => bail!(exists(url)),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(store_error(&error, Action::Read, &target.url)),
            }
        }
        Ok(Self::Store(Box::new(target)))
    }
}

fn exists(url: &str) -> String {
    format!(
        "{} holds a model already, and nothing is overwritten; give a new folder",
        crate::console::messages::quoted(url)
    )
}

/// Sends the files to a store; gives their size.
fn send(
    target: &StoreUrl,
    runtime: &IoRuntime,
    files: [(&'static str, Vec<u8>); 2],
) -> anyhow::Result<u64> {
    let total = files.iter().map(|(_, content)| content.len() as u64).sum();
    let progress = Arc::new(Progress::new("sending weights", Some(total), Unit::Bytes));
    for (name, content) in files {
        let (store, path) = (Arc::clone(&target.store), target.path.clone().join(name));
        let progress = Arc::clone(&progress);
        let sent = runtime.block_on(async move {
            let upload = store.put_multipart(&path).await?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
            for part in content.chunks(PART_BYTES) {
                upload.wait_for_capacity(MOST_PARTS).await?;
                upload.write(part);
                progress.add(part.len() as u64);
            }
            upload.finish().await
        });
        sent.map_err(|error| store_error(&error, Action::Write, &target.url))
            .with_context(|| format!("cannot write {}/{name}", target.url.trim_end_matches('/')))?;
    }
    Ok(total)
}
