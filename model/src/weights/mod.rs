//! Named weights in one order for all: sorted by name, one flat f32 buffer. Reads and writes the
//! published layout, strictly.
use std::collections::BTreeMap;

use crate::NepaConfig;

mod files;
mod read;
mod write;

pub use files::{pickle_conversion, shard_files};
pub use read::{read_config, read_published};
pub use write::{published_files, write_published};

/// `[K, D]`, of a classifier.
pub(crate) const CLASSIFIER_WEIGHT: &str = "classifier.weight";

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
    /// All weights of a model, sorted by name, offsets contiguous: of a classifier its head, too.
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
        if let Some(classes) = config.num_classes() {
            if config.add_pooling_layer {
                add("fc_norm.weight".into(), &[d]);
                add("fc_norm.bias".into(), &[d]);
            }
            add(CLASSIFIER_WEIGHT.into(), &[classes, d]);
            add("classifier.bias".into(), &[classes]);
        }
        add("vit_nepa.embeddings.cls_token".into(), &[1, 1, d]);
        if config.use_mask_token {
            add("vit_nepa.embeddings.mask_token".into(), &[1, 1, d]);
        }
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
}

#[cfg(test)]
mod tests;
