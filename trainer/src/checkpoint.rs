//! Checkpoints: everything that a run needs to go on as if it had not stopped, whole or absent,
//! never half.
//!
//! A checkpoint is a folder of the files below; `manifest.json` lists the others with sizes and
//! digests. [`write_folder`] and [`read_folder`] know its contents. Where checkpoints lie, and
//! which stay, is `checkpoint_store`'s.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use nepa_model::{ModelError, NepaConfig, ParamSpec, Weights, published_files, read_published};
use nepa_pipeline::{Action, LoaderState, StoreError};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::engine::TrainingState;
use crate::messages::{quoted, quoted_path};
use crate::optimizer::OptimizerState;
use crate::recipe::ResolvedRecipe;

/// The file that makes a checkpoint whole.
pub const MANIFEST: &str = "manifest.json";
/// Files that the manifest lists, in the order in which they are written.
pub const FILES: [&str; 5] = [
    "config.json",
    "model.safetensors",
    "ema.safetensors",
    "optimizer.safetensors",
    "state.json",
];
/// Files that a checkpoint has beside them, where there is something to say: the shards of the data
/// set, and the logs as they were, where the output is a store.
pub const MORE_FILES: [&str; 4] = [
    "dataset.json",
    "metrics.jsonl.zst",
    "events.zst",
    "bad_samples.jsonl.zst",
];
const MANIFEST_FORMAT: &str = "nepa-checkpoint";
const VERSION: u32 = 1;

/// Lengths of the run's growing files when the checkpoint was made; what stands behind is cut off
/// on resume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileLengths {
    /// `metrics.jsonl`.
    pub metrics_bytes: u64,
    /// The TensorBoard event file, if written.
    pub events_bytes: Option<u64>,
    /// The sample trace, if written.
    pub trace_bytes: Option<u64>,
}

/// `state.json`: where the run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Format version.
    pub version: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Images trained on.
    pub samples: u64,
    /// Position in the data.
    pub loader: LoaderState,
    /// Lengths of the run's files.
    pub files: FileLengths,
    /// The run itself, seed and schedule included.
    pub recipe: ResolvedRecipe,
    /// How the engine decided to compute, where its results depend on that
    /// ([`crate::engine::Engine::choices`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<serde_json::Value>,
}

impl RunState {
    /// The version that this program writes.
    pub const VERSION: u32 = VERSION;
}

/// One step of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint {
    /// Where the run stands.
    pub state: RunState,
    /// Weights, moments and moving average.
    pub training: TrainingState,
}

/// Size and digest of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Length.
    pub bytes: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always `nepa-checkpoint`.
    pub format: String,
    /// Format version.
    pub version: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// The other files.
    pub files: BTreeMap<String, FileEntry>,
}

impl Manifest {
    /// Reads a manifest; `place` is for messages.
    pub fn parse(text: &[u8], place: &str) -> Result<Self, CheckpointError> {
        let manifest: Self =
            serde_json::from_slice(text).map_err(|source| CheckpointError::Json {
                path: format!("{place}/{MANIFEST}"),
                source,
            })?;
        if manifest.format != MANIFEST_FORMAT || manifest.version != VERSION {
            let found = format!("{} {}", manifest.format, manifest.version);
            return Err(CheckpointError::Version {
                place: place.to_owned(),
                found,
            });
        }
        Ok(manifest)
    }

    /// The files that this program knows.
    pub fn known_files(&self) -> impl Iterator<Item = (&str, &FileEntry)> {
        let names = FILES.into_iter().chain(MORE_FILES);
        names.filter_map(|name| Some((name, self.files.get(name)?)))
    }
}

/// A checkpoint cannot be written, found or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A local file cannot be read or written.
    #[error("cannot {action} {}", quoted_path(path))]
    Io {
        /// What was being done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An object cannot be read or written.
    #[error("cannot {action} {url}")]
    Store {
        /// What was being done.
        action: Action,
        /// With which object, without secrets.
        url: String,
        /// Why.
        source: Box<StoreError>,
    },
    /// The URL of the output cannot be opened.
    #[error("cannot open the output {url}")]
    Open {
        /// The URL.
        url: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Saving failed; nothing was lost.
    #[error(
        "cannot save the checkpoint of step {step} in {place}. The part written so far is removed and earlier checkpoints are untouched; \
         make room (or lower checkpoint.keep) and go on with --resume"
    )]
    Save {
        /// Optimiser steps done.
        step: u64,
        /// Where.
        place: String,
        /// Why.
        source: Box<CheckpointError>,
    },
    /// Published weights cannot be read or written.
    #[error("cannot read or write the weights in {place}")]
    Model {
        /// The checkpoint.
        place: String,
        /// Why.
        source: ModelError,
    },
    /// A JSON file is not what it should be.
    #[error("{path} is not readable")]
    Json {
        /// The file.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A weight file is not safetensors.
    #[error("{path} is not readable")]
    SafeTensors {
        /// The file.
        path: String,
        /// Why.
        source: safetensors::SafeTensorError,
    },
    /// Another format or version.
    #[error("the checkpoint {place} has the format {found}; this program reads nepa-checkpoint 1")]
    Version {
        /// The checkpoint.
        place: String,
        /// What stands there.
        found: String,
    },
    /// No run was started here.
    #[error(
        "{} holds no run: it has no recipe.toml or no metrics.jsonl\ntip: give the --out of a `nepa pretrain`",
        quoted(place)
    )]
    NoRun {
        /// The folder.
        place: String,
    },
    /// No manifest: the checkpoint was never finished, or this is none.
    #[error(
        "{} is no whole checkpoint: it has no {MANIFEST}\ntip: give a folder such as OUT/checkpoints/step-00000100, or the OUT of a run",
        quoted(place)
    )]
    NoManifest {
        /// The folder.
        place: String,
    },
    /// A file that the manifest lists is not there, or has another length.
    #[error("the checkpoint {place} is damaged: {file} has {} bytes, its manifest says {expected}. Remove this checkpoint to go on from an earlier one", found.map_or("no".to_owned(), |n| n.to_string()))]
    WrongSize {
        /// The checkpoint.
        place: String,
        /// The file.
        file: String,
        /// Its length, if it is there.
        found: Option<u64>,
        /// The manifest's.
        expected: u64,
    },
    /// A file has other bytes than were written.
    #[error(
        "the checkpoint {place} is damaged: the SHA-256 of {file} is not the manifest's. Remove this checkpoint to go on from an earlier one"
    )]
    WrongDigest {
        /// The checkpoint.
        place: String,
        /// The file.
        file: String,
    },
    /// The manifest lists other files than a checkpoint has.
    #[error("the checkpoint {place} is damaged: its manifest does not list {file}")]
    NotListed {
        /// The checkpoint.
        place: String,
        /// The file.
        file: String,
    },
    /// A tensor is missing.
    #[error("{path} lacks the tensor {name}")]
    MissingTensor {
        /// The file.
        path: String,
        /// The tensor.
        name: String,
    },
    /// A tensor that the model does not have.
    #[error("{path} holds the tensor {name}, which this model does not have")]
    SurplusTensor {
        /// The file.
        path: String,
        /// The tensor.
        name: String,
    },
    /// A tensor of another shape or type.
    #[error("{path}: the tensor {name} is {found}, the model's is F32 {expected:?}")]
    WrongTensor {
        /// The file.
        path: String,
        /// The tensor.
        name: String,
        /// Its type and shape.
        found: String,
        /// The model's shape.
        expected: Vec<usize>,
    },
    /// Nothing there.
    #[error("there is no whole checkpoint in {place}")]
    None {
        /// The output.
        place: String,
    },
}

/// Turns an I/O error into one that says what was being done with which file.
pub(crate) fn io<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> CheckpointError + 'a {
    move |source| CheckpointError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// Files that go with a checkpoint, by their names in [`MORE_FILES`].
pub type MoreFiles = BTreeMap<&'static str, Vec<u8>>;

/// Makes all files of a checkpoint one by one, the manifest last, and hands each to `write`.
/// `place` is for messages.
pub fn make_files(
    checkpoint: &Checkpoint,
    more: &MoreFiles,
    place: &Path,
    mut write: impl FnMut(&str, Vec<u8>) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let Checkpoint { state, training } = checkpoint;
    let specs = &training.weights.specs;
    let mut files = BTreeMap::new();
    let mut add = |name: &str, content: Vec<u8>| {
        files.insert(name.to_owned(), entry(&content));
        write(name, content)
    };
    let published = published_files(place, &state.recipe.model, &training.weights);
    let published = published.map_err(|source| CheckpointError::Model {
        place: place.display().to_string(),
        source,
    })?;
    for (name, content) in published {
        add(name, content)?;
    }
    // Before the first step, and where no average is kept, the weights stand in its place.
    let ema = if training.optimizer.ema.is_empty() {
        &training.weights.flat
    } else {
        &training.optimizer.ema
    };
    let moments = [
        ("exp_avg.", &training.optimizer.m),
        ("exp_avg_sq.", &training.optimizer.v),
    ];
    for (name, buffers) in [
        ("ema.safetensors", &[("", ema)][..]),
        ("optimizer.safetensors", &moments[..]),
    ] {
        add(name, tensors(&place.join(name), specs, buffers)?)?;
    }
    add("state.json", json(&place.join("state.json"), state)?)?;
    for (name, content) in more {
        add(name, content.clone())?;
    }
    let manifest = Manifest {
        format: MANIFEST_FORMAT.to_owned(),
        version: VERSION,
        step: state.step,
        files,
    };
    write(MANIFEST, json(&place.join(MANIFEST), &manifest)?)
}

/// Writes all files of a checkpoint into the empty `folder`, each forced to the disk, the manifest
/// last.
pub fn write_folder(
    folder: &Path,
    checkpoint: &Checkpoint,
    more: &MoreFiles,
) -> Result<(), CheckpointError> {
    make_files(checkpoint, more, folder, |name, content| {
        let path = folder.join(name);
        File::create(&path)
            .and_then(|mut file| {
                file.write_all(&content)?;
                file.sync_all()
            })
            .map_err(io("write", &path))
    })?;
    File::open(folder)
        .and_then(|file| file.sync_all())
        .map_err(io("sync", folder))
}

/// Reads and verifies a checkpoint folder: sizes, digests, and each tensor's name, type and shape.
pub fn read_folder(folder: &Path) -> Result<Checkpoint, CheckpointError> {
    verify_folder(folder)?;
    let place = folder.display().to_string();
    let state = read_state(folder)?;
    let (_, weights) =
        read_published(folder).map_err(|source| CheckpointError::Model { place, source })?;
    let mut ema = read_tensors(&folder.join("ema.safetensors"), &weights.specs, &[""])?;
    let mut moments = read_tensors(
        &folder.join("optimizer.safetensors"),
        &weights.specs,
        &["exp_avg.", "exp_avg_sq."],
    )?;
    let has_average = state.step > 0 && state.recipe.optimizer.ema_decay.is_some();
    let optimizer = OptimizerState {
        step: state.step,
        ema: if has_average {
            ema.remove(0)
        } else {
            Vec::new()
        },
        m: moments.remove(0),
        v: moments.remove(0),
    };
    let training = TrainingState { weights, optimizer };
    Ok(Checkpoint { state, training })
}

/// Reads the files that go with a checkpoint, where it has them.
pub fn read_more(folder: &Path) -> Result<MoreFiles, CheckpointError> {
    let mut more = MoreFiles::new();
    for name in MORE_FILES {
        let path = folder.join(name);
        match std::fs::read(&path) {
            Ok(content) => drop(more.insert(name, content)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("read", &path)(error)),
        }
    }
    Ok(more)
}

/// Reads where the run of a checkpoint stands.
pub fn read_state(folder: &Path) -> Result<RunState, CheckpointError> {
    let path = folder.join("state.json");
    let text = std::fs::read(&path).map_err(io("read", &path))?;
    serde_json::from_slice(&text).map_err(|source| CheckpointError::Json {
        path: path.display().to_string(),
        source,
    })
}

/// Reads a checkpoint's architecture and weights, or its moving average, without the optimiser.
pub fn read_weights(folder: &Path, ema: bool) -> Result<(NepaConfig, Weights), CheckpointError> {
    let (config, mut weights) =
        read_published(folder).map_err(|source| CheckpointError::Model {
            place: folder.display().to_string(),
            source,
        })?;
    if ema {
        weights.flat =
            read_tensors(&folder.join("ema.safetensors"), &weights.specs, &[""])?.remove(0);
    }
    Ok((config, weights))
}

/// Compares a folder with its manifest, byte for byte.
pub fn verify_folder(folder: &Path) -> Result<Manifest, CheckpointError> {
    let manifest = read_manifest(folder)?;
    let place = folder.display().to_string();
    if let Some(name) = FILES
        .into_iter()
        .find(|name| !manifest.files.contains_key(*name))
    {
        return Err(CheckpointError::NotListed {
            place,
            file: name.to_owned(),
        });
    }
    for (name, expected) in manifest.known_files() {
        let path = folder.join(name);
        let found = std::fs::metadata(&path).ok().map(|metadata| metadata.len());
        if found != Some(expected.bytes) {
            let (file, expected) = (name.to_owned(), expected.bytes);
            return Err(CheckpointError::WrongSize {
                place,
                file,
                found,
                expected,
            });
        }
        if digest(&path)? != *expected {
            return Err(CheckpointError::WrongDigest {
                place,
                file: name.to_owned(),
            });
        }
    }
    Ok(manifest)
}

/// Reads a folder's manifest.
pub fn read_manifest(folder: &Path) -> Result<Manifest, CheckpointError> {
    let path = folder.join(MANIFEST);
    match std::fs::read(&path) {
        Ok(text) => Manifest::parse(&text, &folder.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(CheckpointError::NoManifest {
                place: folder.display().to_string(),
            })
        }
        Err(source) => Err(CheckpointError::Io {
            action: "read",
            path,
            source,
        }),
    }
}

/// A value as the text of a file; `path` is for messages.
fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, CheckpointError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|source| CheckpointError::Json {
        path: path.display().to_string(),
        source,
    })?;
    text.push(b'\n');
    Ok(text)
}

/// Flat buffers as the content of a file of named tensors, the names of each buffer under its
/// prefix; `path` is for messages.
fn tensors(
    path: &Path,
    specs: &[ParamSpec],
    buffers: &[(&str, &Vec<f32>)],
) -> Result<Vec<u8>, CheckpointError> {
    let mut tensors = Vec::with_capacity(specs.len() * buffers.len());
    for (prefix, flat) in buffers {
        for spec in specs {
            let bytes = bytemuck::cast_slice(&flat[spec.offset..spec.offset + spec.len()]);
            let view = TensorView::new(Dtype::F32, spec.shape.clone(), bytes)
                .map_err(|source| unreadable(path, source))?;
            tensors.push((format!("{prefix}{}", spec.name), view));
        }
    }
    safetensors::serialize(tensors, None).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &Path, source: safetensors::SafeTensorError) -> CheckpointError {
    CheckpointError::SafeTensors {
        path: path.display().to_string(),
        source,
    }
}

/// Reads what [`tensors`] made: one flat buffer a prefix, nothing missing, nothing left over.
fn read_tensors(
    path: &Path,
    specs: &[ParamSpec],
    prefixes: &[&str],
) -> Result<Vec<Vec<f32>>, CheckpointError> {
    let bytes = std::fs::read(path).map_err(io("read", path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|source| unreadable(path, source))?;
    let path = path.display().to_string();
    let num_values = specs.last().map_or(0, |spec| spec.offset + spec.len());
    let mut buffers = Vec::with_capacity(prefixes.len());
    let mut known = std::collections::HashSet::new();
    for prefix in prefixes {
        let mut flat = vec![0f32; num_values];
        for spec in specs {
            let name = format!("{prefix}{}", spec.name);
            let Ok(view) = file.tensor(&name) else {
                return Err(CheckpointError::MissingTensor { path, name });
            };
            if view.dtype() != Dtype::F32 || view.shape() != spec.shape {
                let found = format!("{:?} {:?}", view.dtype(), view.shape());
                return Err(CheckpointError::WrongTensor {
                    path,
                    name,
                    found,
                    expected: spec.shape.clone(),
                });
            }
            let values = &mut flat[spec.offset..spec.offset + spec.len()];
            for (value, bytes) in values.iter_mut().zip(view.data().as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
            known.insert(name);
        }
        buffers.push(flat);
    }
    match file.names().into_iter().find(|name| !known.contains(*name)) {
        Some(name) => Err(CheckpointError::SurplusTensor {
            path,
            name: name.to_owned(),
        }),
        None => Ok(buffers),
    }
}

/// Size and digest of a file.
fn digest(path: &Path) -> Result<FileEntry, CheckpointError> {
    let mut file = File::open(path).map_err(io("read", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut num_bytes = 0;
    loop {
        let read = file.read(&mut buffer).map_err(io("read", path))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        num_bytes += read as u64;
    }
    Ok(FileEntry {
        bytes: num_bytes,
        sha256: format!("{:x}", hasher.finalize()),
    })
}

/// Size and digest of what will be a file.
fn entry(content: &[u8]) -> FileEntry {
    FileEntry {
        bytes: content.len() as u64,
        sha256: format!("{:x}", Sha256::digest(content)),
    }
}

#[cfg(test)]
#[path = "checkpoint_tests.rs"]
mod tests;
