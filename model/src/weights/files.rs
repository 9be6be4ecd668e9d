//! The files of a folder in the published layout, and what to do about those that are not read.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::ModelError;

pub(super) const CONFIG: &str = "config.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Where the weights of a folder are.
#[derive(Debug)]
pub(super) enum WeightFiles {
    /// All in one file.
    One(PathBuf),
    /// In several, named by an index.
    Sharded(PathBuf),
}

/// Finds the weights of a folder; a folder without is an error that says what it has.
pub(super) fn weight_files(folder: &Path) -> Result<WeightFiles, ModelError> {
    let (one, index) = (folder.join(WEIGHTS), folder.join(INDEX));
    // As transformers: the one file first.
    if one.is_file() {
        return Ok(WeightFiles::One(one));
    }
    if index.is_file() {
        return Ok(WeightFiles::Sharded(index));
    }
    let found = names_in(folder);
    let pickles: Vec<String> = found
        .iter()
        .filter(|name| is_pickle(name))
        .cloned()
        .collect();
    // The average beside the weights themselves is a second model.
    let (averages, own): (Vec<_>, Vec<_>) =
        pickles.into_iter().partition(|name| name.contains("_ema"));
    let pickles = if own.is_empty() { averages } else { own };
    if pickles.is_empty() {
        return Err(not_published(folder, found));
    }
    let paths: Vec<String> = pickles.iter().map(|name| place(folder, name)).collect();
    Err(ModelError::Pickle {
        command: pickle_conversion(&paths, &place(folder, WEIGHTS)),
        folder: folder.into(),
        pickles,
    })
}

/// The error for a folder that is no model in the published layout.
pub(super) fn not_published(folder: &Path, found: Vec<String>) -> ModelError {
    ModelError::NotPublished {
        folder: folder.into(),
        exists: folder.is_dir(),
        found,
    }
}

/// Sorted names of what lies in a folder; none if it cannot be read.
pub(super) fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names: BTreeSet<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.into_iter().collect()
}

/// `pytorch_model.bin`, its shards, or the published trainer's `pytorch_model_ema.bin`.
fn is_pickle(name: &str) -> bool {
    name.strip_suffix(".bin")
        .is_some_and(|stem| stem.starts_with("pytorch_model"))
}

fn place(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

/// The command that makes a safetensors file, `to`, of weights that PyTorch pickled, paths all.
///
/// Each of the files is a plain state dict, name to tensor: so `pytorch_model.bin`, its shards, and
/// also `pytorch_model_ema.bin`, as the published trainer saves its average.
/// `weights_only=True` runs no code of the pickle. Tensors are copied, as safetensors refuses such
/// as share memory or are not contiguous.
pub fn pickle_conversion(pickles: &[String], to: &str) -> String {
    let paths = std::iter::once(to).chain(pickles.iter().map(String::as_str));
    let paths: Vec<String> = paths.map(shell_quoted).collect();
    format!(
        "python3 -c 'import sys, torch; from safetensors.torch import save_file; \
         load = lambda path: torch.load(path, map_location=\"cpu\", weights_only=True); \
         save_file({{name: tensor.detach().clone().contiguous() for path in sys.argv[2:] \
         for name, tensor in load(path).items()}}, sys.argv[1], {{\"format\": \"pt\"}})' {}",
        paths.join(" ")
    )
}

/// As one word of a POSIX shell.
fn shell_quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// `model.safetensors.index.json`: the file of each weight.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    pub(super) weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Parses and checks it; `path` is for messages.
    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Self, ModelError> {
        let wrong = |detail: String| ModelError::WeightIndex {
            path: path.into(),
            detail,
        };
        let index: Self = serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        if index.weight_map.is_empty() {
            return Err(wrong("its weight_map is empty".into()));
        }
        // Only files of the folder itself: an index may come from anywhere.
        let elsewhere = index.weight_map.values().find(|file| {
            let mut parts = Path::new(file.as_str()).components();
            !matches!(
                (parts.next(), parts.next()),
                (Some(Component::Normal(_)), None)
            ) || file.contains(['/', '\\'])
        });
        match elsewhere {
            Some(file) => Err(wrong(format!(
                "its weight_map names {file:?}, which is no file of this folder"
            ))),
            None => Ok(index),
        }
    }
}

/// Sorted names of the files that a `model.safetensors.index.json` (its text) speaks of, beside
/// itself; `path` is for messages.
pub fn shard_files(path: &Path, text: &[u8]) -> Result<Vec<String>, ModelError> {
    let files: BTreeSet<String> = Index::parse(path, text)?.weight_map.into_values().collect();
    Ok(files.into_iter().collect())
}
