//! Weights and configuration in, from the published layout. A tensor at a time goes from the file
//! into the flat buffer, so that no second copy of the weights is in memory.
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::files::{CONFIG, Index, WeightFiles, names_in, not_published, weight_files};
use super::{CLASSIFIER_WEIGHT, ParamSpec, Weights};
use crate::config::number_given_twice;
use crate::{ModelError, NepaConfig};

/// A larger header is no header.
const MOST_HEADER_BYTES: u64 = 100_000_000;

impl Weights {
    /// Reads a safetensors file that must hold the weights of `config`, all of them and no other,
    /// as f16, bf16, f32 or f64.
    pub fn read_safetensors(path: &Path, config: &NepaConfig) -> Result<Self, ModelError> {
        let file = TensorFile::open(path)?;
        let places = file.names().map(|name| (name.clone(), 0)).collect();
        read_all(path, vec![file], &places, config)
    }

    /// Reads the files of a `model.safetensors.index.json` beside it.
    fn read_sharded(path: &Path, config: &NepaConfig) -> Result<Self, ModelError> {
        let text = fs::read(path).map_err(|source| cannot_read(path, source))?;
        let index = Index::parse(path, &text)?;
        let mut files: Vec<TensorFile> = Vec::new();
        let mut places = BTreeMap::new();
        for (weight, name) in index.weight_map {
            let path = path.with_file_name(name);
            let place = files.iter().position(|file| file.path == path);
            let place = if let Some(place) = place {
                place
            } else {
                files.push(TensorFile::open(&path)?);
                files.len() - 1
            };
            places.insert(weight, place);
        }
        read_all(path, files, &places, config)
    }
}

fn cannot_read(path: &Path, source: io::Error) -> ModelError {
    ModelError::File {
        action: "read",
        path: path.into(),
        source,
    }
}

/// Reads all weights of `config`; `places` says in which of the files each is, and `path` is for
/// messages.
fn read_all(
    path: &Path,
    mut files: Vec<TensorFile>,
    places: &BTreeMap<String, usize>,
    config: &NepaConfig,
) -> Result<Weights, ModelError> {
    let specs = ParamSpec::all(config);
    let (mut missing, mut misshapen, mut found) = (Vec::new(), Vec::new(), Vec::new());
    let mut other_classes = false;
    for spec in &specs {
        let place = places.get(&spec.name);
        let Some((file, info)) = place.and_then(|place| {
            let info = files[*place].header.info(&spec.name)?;
            Some((*place, info.clone()))
        }) else {
            missing.push(spec.name.clone());
            continue;
        };
        let other_shape = info.shape != spec.shape;
        if other_shape || !is_float(info.dtype) {
            other_classes |= other_shape && spec.name == CLASSIFIER_WEIGHT;
            let (name, kind) = (&spec.name, info.dtype.to_string().to_lowercase());
            misshapen.push(format!(
                "{name} is {kind} {:?}, should be floats {:?}",
                info.shape, spec.shape
            ));
        }
        found.push((file, info));
    }
    let mut surplus: Vec<String> = Vec::new();
    for (number, file) in files.iter().enumerate() {
        for name in file.names() {
            let known = specs.binary_search_by(|spec| spec.name.cmp(name)).is_ok();
            if !known || places.get(name) != Some(&number) {
                surplus.push(name.clone());
            }
        }
    }
    surplus.sort();
    if !(missing.is_empty() && surplus.is_empty() && misshapen.is_empty()) {
        return Err(ModelError::WeightNames {
            path: path.into(),
            advice: advice(config, &missing, &surplus, other_classes),
            missing,
            surplus,
            misshapen,
        });
    }
    let mut flat = vec![0.0; specs.iter().map(ParamSpec::len).sum()];
    let mut bytes = Vec::new();
    for (spec, (file, info)) in specs.iter().zip(&found) {
        files[*file].read_into(info, &mut bytes, &mut flat[spec.range()])?;
    }
    Ok(Weights { specs, flat })
}

/// What probably is wrong where weights do not fit.
fn advice(
    config: &NepaConfig,
    missing: &[String],
    surplus: &[String],
    other_classes: bool,
) -> String {
    let about = |names: &[String], what: &str| names.iter().any(|name| name.contains(what));
    if other_classes {
        let classes = config.num_classes().unwrap_or(0);
        return format!(
            "The configuration has {classes} classes (id2label, else num_labels); the weights have \
             another number."
        );
    }
    let reason = match (config.is_classifier(), missing, surplus) {
        (true, missing, _) if about(missing, CLASSIFIER_WEIGHT) => {
            "\"architectures\" says that this is a classifier, but the weights have none: those \
             of pretraining are of \"ViTNepaForPreTraining\""
        }
        (false, _, surplus) if about(surplus, CLASSIFIER_WEIGHT) => {
            "\"architectures\" says that this is a model of pretraining, but the weights have a \
             classifier: \"ViTNepaForImageClassification\" has one"
        }
        (true, missing, _) if about(missing, "fc_norm") => {
            "with add_pooling_layer = true a classifier has fc_norm weights, which are not here"
        }
        (true, _, surplus) if about(surplus, "fc_norm") => {
            "a classifier has fc_norm weights with add_pooling_layer = true only, which the \
             configuration does not say"
        }
        _ => {
            "Weights and configuration must come from the same model: look at qk_norm_affine, \
             qkv_bias, use_gated_mlp, layerscale_value (null: no LayerScale) and num_hidden_layers"
        }
    };
    format!("{reason}.")
}

fn is_float(kind: Dtype) -> bool {
    matches!(kind, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

/// A safetensors file whose header is read.
#[derive(Debug)]
struct TensorFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Names by place in the file.
    names: Vec<String>,
    /// First byte behind the header.
    data: u64,
}

impl TensorFile {
    fn open(path: &Path) -> Result<Self, ModelError> {
        let cannot = |source| cannot_read(path, source);
        let damaged = |detail: String| ModelError::WeightFormat {
            path: path.into(),
            detail,
        };
        let mut file = File::open(path).map_err(cannot)?;
        let whole = file.metadata().map_err(cannot)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length)
            .map_err(|_| damaged(format!("it has {whole} bytes")))?;
        let length = u64::from_le_bytes(length);
        if length > MOST_HEADER_BYTES.min(whole - 8) {
            return Err(damaged(format!(
                "its header would have {length} bytes, the file has {whole}"
            )));
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).map_err(cannot)?;
        let header: Metadata =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("header: {error}")))?;
        let data = 8 + length;
        let expected = data + header.data_len() as u64;
        if whole != expected {
            return Err(damaged(format!(
                "it has {whole} bytes, its header speaks of {expected}"
            )));
        }
        let mut names = header.offset_keys();
        names.sort();
        Ok(Self {
            path: path.into(),
            file,
            names,
            header,
            data,
        })
    }

    /// Sorted names of its tensors.
    fn names(&self) -> impl Iterator<Item = &String> {
        self.names.iter()
    }

    /// Reads a tensor as f32; `bytes` is scratch.
    fn read_into(
        &mut self,
        info: &TensorInfo,
        bytes: &mut Vec<u8>,
        values: &mut [f32],
    ) -> Result<(), ModelError> {
        let (start, end) = info.data_offsets;
        bytes.resize(end - start, 0);
        self.file
            .seek(SeekFrom::Start(self.data + start as u64))
            .and_then(|_| self.file.read_exact(bytes))
            .map_err(|source| cannot_read(&self.path, source))?;
        match info.dtype {
            Dtype::F16 => widen(bytes, values, |le| f16::from_le_bytes(le).to_f32()),
            Dtype::BF16 => widen(bytes, values, |le| bf16::from_le_bytes(le).to_f32()),
            Dtype::F64 => widen(bytes, values, |le| f64::from_le_bytes(le) as f32),
            // All others were refused.
            _ => widen(bytes, values, f32::from_le_bytes),
        }
        Ok(())
    }
}

/// Values of N bytes each, as f32.
fn widen<const N: usize>(bytes: &[u8], values: &mut [f32], widened: impl Fn([u8; N]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = widened(*bytes);
    }
}

/// Reads and checks a `config.json`.
pub fn read_config(path: &Path) -> Result<NepaConfig, ModelError> {
    let text = fs::read(path).map_err(|source| cannot_read(path, source))?;
    let config: NepaConfig =
        serde_json::from_slice(&text).map_err(|source| ModelError::ConfigFormat {
            path: path.into(),
            source,
        })?;
    let twice = number_given_twice(&text).map(|number| ModelError::Config {
        key: "id2label",
        value: format!("{{\"{number}\": .., \"{number}\": ..}}"),
        rule: format!("class {number} has two names"),
    });
    twice
        .map_or_else(|| config.validate(), Err)
        .map_err(|source| ModelError::InFile {
            path: path.into(),
            source: Box::new(source),
        })?;
    Ok(config)
}

/// Reads a folder in the published layout: `config.json`, and `model.safetensors` or the files of
/// `model.safetensors.index.json`. A missing or surplus weight, or a wrong shape, is an error that
/// names it; a folder that is something else, one that says what it has.
pub fn read_published(folder: &Path) -> Result<(NepaConfig, Weights), ModelError> {
    let path = folder.join(CONFIG);
    if !path.is_file() {
        return Err(not_published(folder, names_in(folder)));
    }
    let config = read_config(&path)?;
    let weights = match weight_files(folder)? {
        WeightFiles::One(path) => Weights::read_safetensors(&path, &config)?,
        WeightFiles::Sharded(path) => Weights::read_sharded(&path, &config)?,
    };
    Ok((config, weights))
}
