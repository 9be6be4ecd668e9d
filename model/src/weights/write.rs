//! Weights and configuration out, in the published layout.
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::Weights;
use super::files::{CONFIG, WEIGHTS};
use crate::{ModelError, NepaConfig};

// The values in memory are those of a safetensors file.
const _: () = assert!(cfg!(target_endian = "little"));

impl Weights {
    /// Writes a safetensors file, beside its place first and then renamed.
    pub fn write_safetensors(&self, path: &Path) -> Result<(), ModelError> {
        write_whole(path, &self.to_safetensors(path)?)
    }

    /// The content of a safetensors file; `path` is for messages.
    fn to_safetensors(&self, path: &Path) -> Result<Vec<u8>, ModelError> {
        let mut views = Vec::with_capacity(self.specs.len());
        let bytes: &[u8] = bytemuck::cast_slice(&self.flat);
        for spec in &self.specs {
            let range = spec.range();
            let view = safetensors::tensor::TensorView::new(
                safetensors::Dtype::F32,
                spec.shape.clone(),
                &bytes[4 * range.start..4 * range.end],
            )
            .map_err(|error| ModelError::WeightFormat {
                path: path.into(),
                detail: error.to_string(),
            })?;
            views.push((spec.name.as_str(), view));
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize(views, Some(metadata)).map_err(|error| ModelError::WeightFormat {
            path: path.into(),
            detail: error.to_string(),
        })
    }
}

/// Writes beside and renames, so that the file is whole or absent.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    let beside = path.with_extension("part");
    fs::write(&beside, bytes)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|source| ModelError::File {
            action: "write",
            path: path.into(),
            source,
        })
}

/// Writes `config.json` and `model.safetensors` into `folder`, which is made if need be.
pub fn write_published(
    folder: &Path,
    config: &NepaConfig,
    weights: &Weights,
) -> Result<(), ModelError> {
    fs::create_dir_all(folder).map_err(|source| ModelError::File {
        action: "write",
        path: folder.into(),
        source,
    })?;
    for (name, content) in published_files(folder, config, weights)? {
        write_whole(&folder.join(name), &content)?;
    }
    Ok(())
}

/// Names and contents of the files that [`write_published`] writes; `folder` is for messages.
pub fn published_files(
    folder: &Path,
    config: &NepaConfig,
    weights: &Weights,
) -> Result<[(&'static str, Vec<u8>); 2], ModelError> {
    // Through a value: its keys are sorted, as in the published file.
    let content = serde_json::to_value(config)
        .and_then(|value| serde_json::to_string_pretty(&value))
        .map_err(|source| ModelError::ConfigFormat {
            path: folder.join(CONFIG),
            source,
        })?;
    Ok([
        (CONFIG, content.into_bytes()),
        (WEIGHTS, weights.to_safetensors(&folder.join(WEIGHTS))?),
    ])
}
