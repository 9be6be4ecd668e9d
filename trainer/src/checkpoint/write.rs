//! Writing a checkpoint's files, the manifest last.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use nepa_model::published_files;
use serde::Serialize;

use super::error::{CheckpointError, io};
use super::files::{MANIFEST, MoreFiles};
use super::manifest::{Manifest, entry};
use super::state::Checkpoint;
use super::tensors::tensors;

/// Makes all files of a checkpoint one by one, the manifest last, and hands each to `write`.
/// `place` is for messages.
pub(crate) fn make_files(
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
    let manifest = Manifest::new(state.step, files);
    write(MANIFEST, json(&place.join(MANIFEST), &manifest)?)
}

/// Writes all files of a checkpoint into the empty `folder`, each forced to the disk, the manifest
/// last.
pub(crate) fn write_folder(
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

/// A value as the text of a file; `path` is for messages.
pub(super) fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, CheckpointError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|source| CheckpointError::Json {
        path: path.display().to_string(),
        source,
    })?;
    text.push(b'\n');
    Ok(text)
}
