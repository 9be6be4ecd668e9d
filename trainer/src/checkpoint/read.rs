//! Reading a checkpoint, as a whole or in part.
use std::path::Path;

use nepa_model::{NepaConfig, Weights, read_published};

use super::error::{CheckpointError, io};
use super::files::{MORE_FILES, MoreFiles};
use super::manifest::verify_folder;
use super::state::{Checkpoint, RunState};
use super::tensors::read_tensors;
use crate::engine::TrainingState;
use crate::optimizer::OptimizerState;

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
pub(crate) fn read_more(folder: &Path) -> Result<MoreFiles, CheckpointError> {
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
pub(crate) fn read_state(folder: &Path) -> Result<RunState, CheckpointError> {
    let path = folder.join("state.json");
    let text = std::fs::read(&path).map_err(io("read", &path))?;
    serde_json::from_slice(&text).map_err(|source| CheckpointError::Json {
        path: path.display().to_string(),
        source,
    })
}

/// Reads a checkpoint's architecture and weights, or its moving average, without the optimiser.
pub(crate) fn read_weights(
    folder: &Path,
    ema: bool,
) -> Result<(NepaConfig, Weights), CheckpointError> {
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
