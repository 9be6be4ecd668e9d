//! Named weights in one order for all: sorted by name, one flat f32 buffer. Reads and writes the
//! published layout, strictly.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::{ModelError, NepaConfig};

/// Name, shape and place of one weight in the flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamSpec {
    /// Published name.
    pub name: String,
    /// Shape, PyTorch layout.
    pub shape: Vec<usize>,
    /// First element in the flat buffer.
    pub offset: usize,
}

impl ParamSpec {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Its part of the flat buffer.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len()
    }
    /// All weights of a model, sorted by name, offsets contiguous.
    pub fn all(config: &NepaConfig) -> Vec<Self> {
        let (d, mlp, patch) = (
            config.hidden_size,
            config.intermediate_size,
            config.patch_size,
        );
        let mut shapes: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let mut add = |name: String, shape: &[usize]| {
            shapes.insert(name, shape.to_vec());
        };
        add("vit_nepa.embeddings.cls_token".into(), &[1, 1, d]);
        let projection = "vit_nepa.embeddings.patch_embeddings.projection";
        add(
            format!("{projection}.weight"),
            &[d, config.num_channels, patch, patch],
        );
        add(format!("{projection}.bias"), &[d]);
        add("vit_nepa.layernorm.weight".into(), &[d]);
        add("vit_nepa.layernorm.bias".into(), &[d]);
        for n in 0..config.num_hidden_layers {
            let layer = format!("vit_nepa.encoder.layer.{n}");
            for norm in ["layernorm_before", "layernorm_after"] {
                add(format!("{layer}.{norm}.weight"), &[d]);
                add(format!("{layer}.{norm}.bias"), &[d]);
            }
            for part in ["query", "key", "value"] {
                add(
                    format!("{layer}.attention.attention.{part}.weight"),
                    &[d, d],
                );
                if config.qkv_bias {
                    add(format!("{layer}.attention.attention.{part}.bias"), &[d]);
                }
            }
            if config.qk_norm && config.qk_norm_affine {
                for norm in ["q_norm", "k_norm"] {
                    add(
                        format!("{layer}.attention.attention.{norm}.weight"),
                        &[config.head_size()],
                    );
                    if config.qk_norm_bias {
                        add(
                            format!("{layer}.attention.attention.{norm}.bias"),
                            &[config.head_size()],
                        );
                    }
                }
            }
            let ups: &[&str] = if config.use_gated_mlp {
                &["up_proj", "gate_proj"]
            } else {
                &["up_proj"]
            };
            for up in ups {
                add(format!("{layer}.intermediate.{up}.weight"), &[mlp, d]);
                add(format!("{layer}.intermediate.{up}.bias"), &[mlp]);
            }
            for (dense, width) in [("attention.output.dense", d), ("output.dense", mlp)] {
                add(format!("{layer}.{dense}.weight"), &[d, width]);
                add(format!("{layer}.{dense}.bias"), &[d]);
            }
            if config.layerscale_value.is_some() {
                add(format!("{layer}.layer_scale.lambda1"), &[d]);
                add(format!("{layer}.output.layer_scale.lambda1"), &[d]);
            }
        }
        let mut offset = 0;
        shapes
            .into_iter()
            .map(|(name, shape)| {
                let spec = Self {
                    name,
                    shape,
                    offset,
                };
                offset += spec.len();
                spec
            })
            .collect()
    }
}

/// All weights of a model in one flat f32 buffer, in the order of [`ParamSpec::all`].
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// What lies where.
    pub specs: Vec<ParamSpec>,
    /// The values.
    pub flat: Vec<f32>,
}

impl Weights {
    /// The weight of that name.
    pub fn get(&self, name: &str) -> Option<(&ParamSpec, &[f32])> {
        let index = self
            .specs
            .binary_search_by(|spec| spec.name.as_str().cmp(name))
            .ok()?;
        let spec = &self.specs[index];
        Some((spec, &self.flat[spec.range()]))
    }

    /// Reads a safetensors file that must hold the weights of `config`, all of them and no other.
    pub fn read_safetensors(path: &Path, config: &NepaConfig) -> Result<Self, ModelError> {
        let bytes = fs::read(path).map_err(|source| ModelError::File {
            action: "read",
            path: path.into(),
            source,
        })?;
        let mut tensors: HashMap<String, Tensor> =
            candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|error| {
                ModelError::WeightFormat {
                    path: path.into(),
                    detail: error.to_string(),
                }
            })?;
        let specs = ParamSpec::all(config);
        let (mut missing, mut misshapen) = (Vec::new(), Vec::new());
        let mut flat = Vec::with_capacity(specs.iter().map(ParamSpec::len).sum());
        for spec in &specs {
            let Some(tensor) = tensors.remove(&spec.name) else {
                missing.push(spec.name.clone());
                continue;
            };
            if tensor.dims() != spec.shape || !tensor.dtype().is_float() {
                misshapen.push(format!(
                    "{} is {} {:?}, should be floats {:?}",
                    spec.name,
                    tensor.dtype().as_str(),
                    tensor.dims(),
                    spec.shape
                ));
                continue;
            }
            flat.extend(
                tensor
                    .to_dtype(DType::F32)?
                    .flatten_all()?
                    .to_vec1::<f32>()?,
            );
        }
        let surplus: Vec<String> = tensors
            .into_keys()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        if missing.is_empty() && surplus.is_empty() && misshapen.is_empty() {
            Ok(Self { specs, flat })
        } else {
            Err(ModelError::WeightNames {
                path: path.into(),
                missing,
                surplus,
                misshapen,
            })
        }
    }

    /// Writes a safetensors file, beside its place first and then renamed.
    pub fn write_safetensors(&self, path: &Path) -> Result<(), ModelError> {
        write_whole(path, &self.to_safetensors(path)?)
    }

    /// The content of a safetensors file; `path` is for messages.
    fn to_safetensors(&self, path: &Path) -> Result<Vec<u8>, ModelError> {
        let mut views = Vec::with_capacity(self.specs.len());
        let bytes: Vec<u8> = self
            .flat
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
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

/// Reads and checks a `config.json`.
pub fn read_config(path: &Path) -> Result<NepaConfig, ModelError> {
    let text = fs::read(path).map_err(|source| ModelError::File {
        action: "read",
        path: path.into(),
        source,
    })?;
    let config: NepaConfig =
        serde_json::from_slice(&text).map_err(|source| ModelError::ConfigFormat {
            path: path.into(),
            source,
        })?;
    config.validate()?;
    Ok(config)
}

/// Reads `config.json` and `model.safetensors`; a missing or surplus weight, or a wrong shape, is
/// an error that names it.
pub fn read_published(folder: &Path) -> Result<(NepaConfig, Weights), ModelError> {
    let config = read_config(&folder.join("config.json"))?;
    let weights = Weights::read_safetensors(&folder.join("model.safetensors"), &config)?;
    Ok((config, weights))
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
    let (text, model) = ("config.json", "model.safetensors");
    // Through a value: its keys are sorted, as in the published file.
    let content = serde_json::to_value(config)
        .and_then(|value| serde_json::to_string_pretty(&value))
        .map_err(|source| ModelError::ConfigFormat {
            path: folder.join(text),
            source,
        })?;
    Ok([
        (text, content.into_bytes()),
        (model, weights.to_safetensors(&folder.join(model))?),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init_weights;

    fn count(config: &NepaConfig) -> usize {
        ParamSpec::all(config).iter().map(ParamSpec::len).sum()
    }

    #[test]
    fn specs_are_sorted_contiguous_and_of_published_size() {
        let specs = ParamSpec::all(&NepaConfig::base_14());
        assert!(specs.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(
            specs
                .windows(2)
                .all(|pair| pair[0].range().end == pair[1].offset)
        );
        assert_eq!(specs.len(), 5 + 12 * 18, "as in the published file");
        assert!((85_000_000..87_000_000).contains(&count(&NepaConfig::base_14())));
        assert!((302_500_000..305_000_000).contains(&count(&NepaConfig::large_14())));
    }

    #[test]
    fn published_layout_round_trips() {
        let folder = tempfile::tempdir().expect("a folder");
        for config in [
            NepaConfig::tiny(),
            NepaConfig {
                use_gated_mlp: true,
                qk_norm_affine: true,
                qk_norm_bias: true,
                ..NepaConfig::tiny()
            },
            NepaConfig {
                qkv_bias: false,
                qk_norm: false,
                ..NepaConfig::tiny()
            },
        ] {
            let weights = init_weights(&config, 3);
            write_published(folder.path(), &config, &weights).expect("writes");
            assert_eq!(
                read_published(folder.path()).expect("reads"),
                (config, weights)
            );
        }
    }

    #[test]
    fn each_offending_weight_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = NepaConfig::tiny();
        let mut weights = init_weights(&config, 3);
        let last = weights.specs.len() - 1;
        weights.specs[0].name = "fc_norm.weight".into();
        weights.specs[1].name = "classifier.weight".into();
        weights.specs[last].shape = vec![8, 6];
        write_published(folder.path(), &config, &weights).expect("writes");
        let message = read_published(folder.path())
            .expect_err("must be refused")
            .to_string();
        for part in [
            "missing (2): vit_nepa.embeddings.cls_token, vit_nepa.embeddings.patch_embeddings.projection.bias",
            "surplus (2): classifier.weight, fc_norm.weight",
            "vit_nepa.layernorm.weight is f32 [8, 6], should be floats [48]",
        ] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }

    #[test]
    fn damaged_and_missing_files_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let message = read_published(folder.path())
            .expect_err("no file")
            .to_string();
        assert!(message.contains("config.json"), "{message}");
        write_published(
            folder.path(),
            &NepaConfig::tiny(),
            &init_weights(&NepaConfig::tiny(), 1),
        )
        .expect("writes");
        let path = folder.path().join("model.safetensors");
        let bytes = fs::read(&path).expect("reads");
        fs::write(&path, &bytes[..bytes.len() / 2]).expect("writes");
        assert!(matches!(
            read_published(folder.path()),
            Err(ModelError::WeightFormat { .. })
        ));
    }
}
