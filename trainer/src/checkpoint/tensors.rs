//! Flat buffers of f32 as files of named tensors (safetensors), and back.
use std::path::Path;

use nepa_model::ParamSpec;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use super::error::{CheckpointError, io};

/// Flat buffers as the content of a file of named tensors, the names of each buffer under its
/// prefix; `path` is for messages.
pub(super) fn tensors(
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
pub(super) fn read_tensors(
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
