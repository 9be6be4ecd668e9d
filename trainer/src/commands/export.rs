//! `nepa export`.
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use nepa_model::{fold_layerscale, published_files};
use nepa_pipeline::{Action, Filter, IoConfig, IoRuntime, Normalize, StoreUrl, open_url};
use object_store::{ObjectStoreExt, WriteMultipart};

use super::help::with_exit_codes;
use crate::console::messages::{quoted, quoted_path};
use crate::console::progress::{Progress, Unit};
use crate::console::words;
use crate::output::{is_local, local_path};
use crate::pack::store_error;
use crate::transform::{Resize, Transform};
use crate::weights::{self, CONFIG, PREPROCESSOR, Preprocessor, WEIGHTS, WeightsFolder, Which};

/// Write weights in the published layout.
///
/// Three files: config.json, model.safetensors and preprocessor_config.json, which load in the
/// published PyTorch code (and in its conversion to a classifier), in `nepa eval` and, beside
/// reference tensors, in `nepa verify`. Of a run, a checkpoint or a folder in the published layout,
/// which becomes one file then, in f32. Nothing is overwritten.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    after_long_help = with_exit_codes(
        EXAMPLES,
        "  0          all files are written\n  \
         1          the weights cannot be read, or the files are\n             \
         there already"
    )
)]
pub(crate) struct Args {
    /// A checkpoint, a run's output, or a published folder.
    ///
    /// Of a run the newest checkpoint; a path or URL.
    pub checkpoint: String,
    /// New folder for the files, or a prefix in a store.
    #[arg(value_name = "URL")]
    pub folder: String,
    /// The moving average instead of the raw weights.
    #[arg(long)]
    pub ema: bool,
    /// Multiply LayerScale into the layers before it.
    ///
    /// The model computes the same without it: layerscale_value is null then. It cannot be undone.
    #[arg(long)]
    pub fold_layerscale: bool,
}

const EXAMPLES: &str = "Examples:
  nepa export runs/quickstart exported --ema
  nepa export \\
      s3://bucket/b14/checkpoints/step-00100000 exported
  nepa export nepa-b14-classifier folded \\
      --fold-layerscale";

const FILES: [&str; 3] = [CONFIG, WEIGHTS, PREPROCESSOR];
/// Size of the parts in which a file is sent to a store, and most of them on their way.
const PART_BYTES: usize = 5 << 20;
const MOST_PARTS: usize = 4;

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = IoRuntime::new(1).context("cannot start the I/O thread")?;
    let target = Target::open(&args.folder, &runtime)?;
    let source = weights::open(&args.checkpoint, &IoConfig::default(), &runtime)?;
    let which = if args.ema { Which::Ema } else { Which::Raw };
    let (mut config, mut weights) = (source.config().clone(), source.weights(which)?);
    if args.fold_layerscale {
        ensure!(
            config.layerscale_value.is_some(),
            "{} has no LayerScale to fold: its layerscale_value is null",
            quoted(source.place())
        );
        (config, weights) = fold_layerscale(&config, &weights);
    }
    if source.step().is_some() && !config.is_classifier() {
        // As the published configurations of pretraining say; a classifier made of them pools so.
        config.add_pooling_layer = true;
    }
    // The type of the weights, by its newer and its older name, as they are written here.
    for key in ["dtype", "torch_dtype"] {
        if let Some(value) = config.other.get_mut(key) {
            *value = "float32".into();
        }
    }
    let (preprocessor, note) = match source.preprocessor() {
        Some(own) => (own.clone(), None),
        None => pixels(&source),
    };
    let files = published_files(Path::new(&args.folder), &config, &weights)?;
    let files = files
        .into_iter()
        .chain([(PREPROCESSOR, preprocessor.to_json())]);
    let files: Vec<_> = files.collect();
    let num_bytes: u64 = files.iter().map(|(_, content)| content.len() as u64).sum();
    match &target {
        Target::Folder(folder) => write(folder, &files)?,
        Target::Store(store) => send(store, &runtime, files)?,
    }
    println!(
        "done: {} and {} ({}) in {}",
        FILES[..2].join(", "),
        FILES[2],
        words::bytes(num_bytes),
        quoted(&args.folder)
    );
    if let Some(note) = note {
        println!("{note}");
    }
    let step = source.step().map_or(String::new(), |step| {
        format!(" at step {}", words::count(step))
    });
    println!(
        "they hold the {which}{step}: {} values in {}",
        words::count(weights.flat.len() as u64),
        words::counted(weights.specs.len() as u64, "tensor")
    );
    Ok(ExitCode::SUCCESS)
}

/// What the published image processor is told: to squash an image to the model's size, by the run's
/// filter where the run does so, too, else bilinear; and what is to be said about it.
fn pixels(source: &WeightsFolder) -> (Preprocessor, Option<String>) {
    let size = source.config().image_size as u32;
    let recipe = source.recipe();
    let normalize = recipe.map_or_else(Normalize::default, |recipe| recipe.data.normalize);
    let (filter, note) = match source.evaluated_by() {
        Some(Transform { resize, filter, .. }) if resize == Resize::Squash(size) => (filter, None),
        Some(other) => {
            let note = format!(
                "{PREPROCESSOR} squashes images to {size} x {size} as published; the run was \
                 evaluated with: {other}"
            );
            (Filter::Bilinear, Some(note))
        }
        None => (Filter::Bilinear, None),
    };
    (Preprocessor::squash(size, filter, normalize), note)
}

/// Writes the files into a folder, which is made; each beside its place first, the weights last.
fn write(folder: &Path, files: &[(&'static str, Vec<u8>)]) -> anyhow::Result<()> {
    let failed = |path: &Path| format!("cannot write {}", quoted_path(path));
    std::fs::create_dir_all(folder).with_context(|| failed(folder))?;
    for (name, content) in files {
        let path = folder.join(name);
        let beside = folder.join(format!("{name}.part"));
        let written =
            std::fs::write(&beside, content).and_then(|()| std::fs::rename(&beside, &path));
        if written.is_err() {
            let _ = std::fs::remove_file(&beside);
        }
        written.with_context(|| failed(&path))?;
    }
    Ok(())
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
                Err(error) => return Err(store_error(&error, Action::Read, &target.url).into()),
            }
        }
        Ok(Self::Store(Box::new(target)))
    }
}

fn exists(url: &str) -> String {
    format!(
        "{} holds a model already, and nothing is overwritten; give a new folder",
        quoted(url)
    )
}

/// Sends the files to a store.
fn send(
    target: &StoreUrl,
    runtime: &IoRuntime,
    files: Vec<(&'static str, Vec<u8>)>,
) -> anyhow::Result<()> {
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
    Ok(())
}
